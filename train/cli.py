"""The command line of stage two.

```
segtrain fit      --config C --data.store S --data.val.root R --output runs/a    train; --ckpt_path L resumes
segtrain validate --ckpt_path C --data.val.root R --data.val.split val           mIoU and pixel accuracy
segtrain test     --ckpt_path C --data.val.root R --data.val.split val           mIoU and more: table, JSON, plots
segtrain predict  --ckpt_path C --images FOLDER --output O                       masks and overlays, images of any size
segtrain relabel  --ckpt_path C --data.store S --output S2                       self-training: correct the store
segtrain export   --ckpt_path C --output D                                       ONNX and others, with card and check
```

fit, validate and test are Lightning's, with everything of its trainer under --trainer; the others are plain functions.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from data.console import EXIT_USER_ERROR, log_to_stderr, run_program

LIGHTNING = {
    "fit": "Train a network on the masks of a store; resumes with --ckpt_path.",
    "validate": "Measure a checkpoint quickly: mIoU and pixel accuracy.",
    "test": "Measure a checkpoint: scales, flip, windows, CRF; table, JSON, plots, VOC server folder.",
}
# name -> (module, function, first line of its docstring)
FUNCTIONS = {
    "predict": ("train.predict", "predict", "Write masks and overlays for a folder of images, or one image."),
    "relabel": ("train.relabel", "relabel", "Correct the masks of a store with a trained network and the labels."),
    "export": ("train.export", "export", "Write a network as ONNX or TorchScript, with a card, and check it."),
}
# What to say after Ctrl-C, where there is something to go on with.
_INTERRUPTED = {
    "fit": "interrupted; go on with --ckpt_path and the last checkpoint",
    "predict": "interrupted; the same command goes on where it stopped",
    "relabel": "interrupted; the same command goes on where it stopped",
}
_NOISE = (
    ".*args parameter is intended to run from within Python.*",
    r".*Found \d+ module\(s\) in eval mode.*",  # frozen batch norm
    ".*could not find the monitored key.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*LeafSpec.*is deprecated.*",
    ".*GPU available but not used.*",
    ".*pin_memory.*no accelerator is found.*",
    ".*defined a `validation_step` but have no `val_dataloader`.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Total length of `list` across ranks is zero.*",  # fit without --data.val
    ".*WeightAveraging callback with a model that overrides the configure_model.*",  # it is whole on each device
    ".*recommended to use `self.log.*sync_dist=True.*",
)


def usage() -> str:
    """Return the list of commands."""
    rows = {**LIGHTNING, **{name: summary for name, (_, _, summary) in FUNCTIONS.items()}}
    lines = [f"  {name:<9} {summary}" for name, summary in rows.items()]
    top = ["usage: segtrain COMMAND [options]", "", "A segmentation network from a store of masks.", ""]
    return "\n".join(
        [*top, *lines, "", "segtrain COMMAND --help lists the options; --print_config shows a configuration."]
    )


def run(args: Sequence[str]) -> None:
    """Run the command; exits through SystemExit on wrong usage."""
    if not args or args[0] in {"-h", "--help"}:
        print(usage())
        return
    command, rest = args[0], list(args[1:])
    if command in LIGHTNING:
        from train.lightning_cli import run_lightning

        run_lightning(command, rest)
    elif command in FUNCTIONS:
        _run_function(command, rest)
    else:
        print(f"error: unknown command {command!r}\n{usage()}", file=sys.stderr)
        raise SystemExit(EXIT_USER_ERROR)


def _run_function(command: str, args: list[str]) -> None:
    from jsonargparse import auto_cli, set_parsing_settings

    from train.arguments import LineParser

    module, function, _ = FUNCTIONS[command]
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    called: Callable[..., Any] = getattr(import_module(module), function)
    auto_cli(called, args=args, as_positional=False, prog=f"segtrain {command}", parser_class=LineParser)


def configure() -> None:
    """Send log lines to stderr, and keep libraries quiet about what is not for the user."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning calls by an old name
    log_to_stderr(logging.StreamHandler(), ("data", "train"), "%(levelname)s %(message)s")
    for message in _NOISE:
        warnings.filterwarnings("ignore", message)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; see `data.console.run_program`."""
    configure()
    command = next(iter(sys.argv[1:] if args is None else args), "")
    return run_program(run, args, _INTERRUPTED.get(command, "interrupted"))


if __name__ == "__main__":
    sys.exit(main())

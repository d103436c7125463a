"""fit, validate and test: LightningCLI with fixed classes, run folders, loggers and checkpoints."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import Namespace, set_parsing_settings
from jsonargparse._link_arguments import skip_apply_links
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from data.classes import ClassSet
from data.config import require, to_plain
from data.console import warn_of_idle
from data.errors import ConfigError
from data.files import check_place
from train.callbacks import AveragedWeights, EarlyWarnings
from train.checkpoint import CARD_KEY, check_resumable, read_checkpoint
from train.checkpoint_io import WholeCheckpoints
from train.datamodule import SegmentationData
from train.evaluation import Evaluator, ReportConfig
from train.inference import InferenceConfig
from train.loggers import run_loggers, writers_silent
from train.memory import step_in_memory
from train.module import SegmentationModule
from train.run_folder import (
    BEST,
    CHECKPOINTS,
    LAST,
    RunFolder,
    best_checkpoint,
    check_free,
    goes_on,
    is_first_process,
    last_checkpoint,
)
from train.run_parser import LINKED, RunParser, differences, filled, plain_namespace, unread

logger = logging.getLogger(__name__)


class SegtrainCLI(LightningCLI):
    """LightningCLI that keeps a run in one folder and never overrides a checkpoint silently.

    Args:
        command: fit, validate or test.
        more: as LightningCLI takes them.

    """

    def __init__(self, command: str, **more: Any) -> None:
        self._asked = command
        super().__init__(SegmentationModule, SegmentationData, **more)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the command and the arguments of the trainer's method that are not options.

        The one that was asked for alone: the options of each take a good quarter of a second to collect.
        """
        hidden = {"model", "datamodule", "weights_only", "verbose", "train_dataloaders", "val_dataloaders"}
        return {self._asked: hidden | {"dataloaders"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is neither trainer, nor model, nor data."""
        parser.add_argument("--output", type=Path, default=Path("runs/last"), help="fit: folder of the run.")
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="fit: begin anew in a folder that holds a run already."
        )
        parser.add_argument(
            "--ema_decay", type=float, default=0.0, help="fit: average the weights with this decay; 0 is off."
        )
        parser.add_argument(
            "--checkpoint_every", type=int, default=500, help="fit: steps between two writes of last.ckpt."
        )
        parser.add_argument(
            "--wandb", type=str | None, default=None, help="fit: log to this Weights & Biases project too."
        )
        parser.add_argument(
            "--save_voc_test",
            type=Path | None,
            default=None,
            help="test: write masks as the VOC server takes them, to results/VOC2012/... in this folder (or in this "
            "one, if it is named results); works without ground truth.",
        )
        parser.add_argument("--inference", type=InferenceConfig, default=InferenceConfig())
        parser.add_argument("--report", type=ReportConfig, default=ReportConfig())
        # What follows from other arguments. What follows from the command (whether boundaries are counted, whether
        # --inference applies) or lies in the checkpoint (classes) is no argument that a link could start from, and a
        # group of options such as --inference is none that it can end in: those go through the methods named
        # `keep_to` and `measure_with`.
        for target, (source, compute) in LINKED.items():
            parser.link_arguments(source, target, compute_fn=compute)

    def _parse_ckpt_path(self) -> None:
        """Take the model's settings from the checkpoint; a setting given here that differs stops the run.

        Lightning's own version of this keeps the checkpoint's value without a word.
        """
        path = self._own("ckpt_path")
        if path is None:
            if self._command() in {"validate", "test"}:
                raise ConfigError(f"{self._command()} needs a checkpoint; name it with --ckpt_path.")
            return
        checkpoint = read_checkpoint(Path(path))
        if self._command() == "fit":
            check_resumable(checkpoint, Path(path))
        card = checkpoint[CARD_KEY]
        stored = filled(card["settings"], SegmentationModule().settings)
        given = to_plain(plain_namespace(self._given.get("model")))
        changed = differences(stored, given)
        if changed:
            raise ConfigError(
                f"The checkpoint {path} was trained with other settings ({'; '.join(changed)}); leave these out, or "
                "begin a new run without --ckpt_path."
            )
        self.config = self.parser.parse_object({self._command(): {"model": stored}}, self.config)
        self.card = card

    card: dict[str, Any] | None = None

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse twice: with defaults, and without to know what was given.

        Without defaults the links have no sources, and with them a linked setting in a config file is overwritten in
        silence; so the second parse leaves the links out, and shows such a setting.
        """
        super().parse_arguments(parser, args)
        self._args = list(args)
        seed = self._own("seed_everything")
        require("seed_everything", seed, isinstance(seed, bool) or 0 <= seed < 2**32, "from 0 to 4294967295")
        require("checkpoint_every", self._own("checkpoint_every"), self._own("checkpoint_every") >= 1, "at least 1")
        with skip_apply_links():
            self._given = parser.parse_args(args, defaults=False).get(self._command(), Namespace())
        for target, (source, _) in LINKED.items():
            if target in self._given:
                raise ConfigError(f"--{target} cannot be set, it follows from --{source}; leave it out of the config.")

    def after_instantiate_classes(self) -> None:
        """Hand on the checkpoint's classes."""
        if self.card is not None:
            classes = ClassSet.from_json(self.card["classes"])
            self.model.keep_to(classes)
            self.datamodule.keep_to(classes)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer with the run's loggers, checkpoints and callbacks."""
        output = Path(self._own("output"))
        settings = self._own("trainer")
        if settings.get("logger") in (None, True):
            kwargs["logger"] = run_loggers(output, self._own("wandb")) if self._command() == "fit" else False
        kwargs.setdefault("default_root_dir", str(output))
        self.trainer_defaults["callbacks"] = self._callbacks(output) if self._command() == "fit" else []
        if settings.get("enable_progress_bar") is not False:
            every = 5 if sys.stdout.isatty() else 100  # steps; in a log file each time is a line
            self.trainer_defaults["callbacks"].append(TQDMProgressBar(refresh_rate=every))
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:  # Lightning's ways to refuse
            raise ConfigError(refused(error)) from error
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not one that --trainer.plugins names
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        return trainer

    def _callbacks(self, output: Path) -> list[Callback]:
        callbacks: list[Callback] = [EarlyWarnings()]
        if self._own("trainer").get("logger") is not False:
            callbacks.append(LearningRateMonitor("step"))
        if self._own("ema_decay"):
            callbacks.append(AveragedWeights(self._own("ema_decay")))  # before the checkpoints, which read it
        shared: dict[str, Any] = {"auto_insert_metric_name": False, "enable_version_counter": False}
        shared["dirpath"] = output / CHECKPOINTS
        if self.datamodule.val is not None:
            callbacks.append(ModelCheckpoint(filename=Path(BEST).stem, monitor="val/miou", mode="max", **shared))
        every = self._own("checkpoint_every")
        callbacks.append(ModelCheckpoint(filename=Path(LAST).stem, every_n_train_steps=every, **shared))
        return callbacks

    def before_fit(self) -> None:
        """Refuse what Lightning would find out late or not at all, and runs that would write over another one."""
        if is_first_process():
            self._warn_of_unread()
            groups: dict[str, Any] = {"model.loss": self.model.loss_config, "model.network": self.model.network_config}
            groups["data"] = self.datamodule
            warn_of_idle([f"{group}.{name}" for group, settings in groups.items() for name in settings.idle()])
        self._check_length()
        if self._own("trainer").get("fast_dev_run"):
            return
        output, ckpt_path = Path(self._own("output")), self._own("ckpt_path")
        resumed = None if ckpt_path is None else Path(ckpt_path)
        if is_first_process():
            if not self._own("overwrite"):
                check_free(output, resumed)
            check_place(output)
        kept = self.config["fit"].clone()
        kept["ckpt_path"], kept["overwrite"] = None, False  # said of this start, not of the run
        content = self._parser("fit").dump(kept, skip_validation=True)
        anew = self._own("overwrite") and not goes_on(output, resumed)
        self.trainer.callbacks.append(RunFolder(output, content, anew))  # type: ignore[attr-defined]

    def _warn_of_unread(self) -> None:
        """Warn of options that were typed and are another command's."""
        names = unread(self._command(), self._args)
        if names:
            where = "; --report.output names its folder" if "output" in names else ""
            flags = ", ".join(f"--{name}" for name in names)
            logger.warning("segtrain %s does not read %s: left aside%s.", self._command(), flags, where)

    def _check_length(self) -> None:
        """Refuse a training without an end, without a step, or with batches that cannot be normalised."""
        epochs, steps = self.trainer.max_epochs, self.trainer.max_steps
        require("trainer.max_epochs", epochs, epochs != 0, "at least 1")
        require("trainer.max_steps", steps, steps != 0, "at least 1")
        overfit = self._own("trainer").get("overfit_batches")
        rule = (
            "0: the order of the images is this program's own; to learn some by heart, make a store or a split of them"
        )
        require("trainer.overfit_batches", overfit, not overfit, rule)
        share = self.trainer.limit_train_batches
        require("trainer.limit_train_batches", share, share != 0, "above 0")
        rule = "at least 1, or --trainer.max_steps given: the learning rate falls towards the end of the run"
        require("trainer.max_epochs", epochs, epochs != -1 or steps > 0, rule)
        shared = self._own("trainer").get("sync_batchnorm") and self.trainer.world_size > 1
        alone = self.datamodule.batch_size == 1 and not shared
        rule = "at least 2 with this architecture, whose pooled branch is normalised over the batch (not so deeplabv2)"
        pooled = self.model.network_config.architecture != "deeplabv2"
        require("data.batch_size", self.datamodule.batch_size, not (alone and pooled), rule)

    def after_fit(self) -> None:
        """Write the last weights and say where everything is."""
        if self._own("trainer").get("fast_dev_run"):
            print("Nothing was kept, because of --trainer.fast_dev_run.")
            return
        output = Path(self._own("output"))
        last, best = last_checkpoint(output), best_checkpoint(output)
        self.trainer.save_checkpoint(last, weights_only=False)
        if self.trainer.is_global_zero:
            use = best if best.exists() else last
            print(f"Run: {output}. Measure it with: segtrain test --ckpt_path {use} --data.val.root R")

    def fit(self, **kwargs: Any) -> None:
        """Train."""
        try:
            with writers_silent(), self._plain_endings():
                self.trainer.fit(**{**kwargs, "weights_only": True})
        except OSError as error:
            error.filename = error.filename or str(self._own("output"))  # a full disk names no file
            raise

    def validate(self, **kwargs: Any) -> None:
        """Measure mIoU and pixel accuracy."""
        self._measure(quick=True, **kwargs)

    def test(self, **kwargs: Any) -> None:
        """Measure everything, and write the report."""
        self._measure(quick=False, **kwargs)

    def _measure(self, quick: bool, **kwargs: Any) -> None:
        path = Path(self._own("ckpt_path"))
        inference, report = self._own_init("inference"), self._own_init("report")
        evaluator = Evaluator(inference, report, path, quick=quick, save_voc_test=self._own("save_voc_test"))
        if is_first_process():
            self._warn_of_unread()
            warn_of_idle([f"inference.{name}" for name in inference.idle()])
            for folder in evaluator.folders():
                check_place(folder)
        if quick:  # its images are the validation's, though the trainer's test shows them
            self.trainer.limit_test_batches = self.trainer.limit_val_batches
        self.model.measure_with(inference, boundary=not quick, name=str(path))
        self.trainer.callbacks.append(evaluator)  # type: ignore[attr-defined]
        kwargs.pop("verbose", None)
        with self._plain_endings():
            self.trainer.test(self.model, self.datamodule, ckpt_path=str(path), verbose=False, weights_only=True)

    @contextmanager
    def _plain_endings(self) -> Iterator[None]:
        """Turn how Lightning ends into how this program does: refused settings, full memory, and Ctrl-C."""
        try:
            with step_in_memory(training=self._command() == "fit"):
                yield
        except MisconfigurationException as error:
            raise ConfigError(refused(error)) from error
        except SystemExit:
            if self.trainer.interrupted:  # it leaves with status 1 and without a word
                raise KeyboardInterrupt from None
            raise

    def _command(self) -> str:
        return str(self.config["subcommand"])

    def _own(self, key: str) -> Any:
        return self.config[self._command()].get(key)

    def _own_init(self, key: str) -> Any:
        return self.config_init[self._command()].get(key)


def refused(error: Exception) -> str:
    """Return what to say of settings of the trainer that Lightning does not take."""
    return f"The settings under --trainer cannot be used here: {' '.join(str(error).split())}"


def run_lightning(command: str, args: list[str]) -> None:
    """Parse and run fit, validate or test."""
    for package in ("pytorch_lightning", "lightning_fabric"):  # their import sets these to INFO
        logging.getLogger(package).setLevel(logging.WARNING)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    SegtrainCLI(
        command,
        args=[command, *args],
        parser_class=RunParser,
        parser_kwargs={"prog": "segtrain"},
        trainer_defaults={
            "use_distributed_sampler": False,
            "max_epochs": 30,
            "log_every_n_steps": 10,
            "enable_model_summary": False,
        },
        save_config_callback=None,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
    )

"""The network as a file that runs without this project: ONNX, TorchScript or torch.export, with a card and a check."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from data.console import count
from data.errors import ConfigError, ModelError
from data.files import write_atomically
from train.checkpoint import file_digest, load_network
from train.network import SIZE_MULTIPLE, padding_in_whole_numbers

MODEL_FORMAT = "segtrain-model"
MODEL_VERSION = 1
_TRACED_HW = (64, 96)  # two different sides, so that a swap of height and width cannot hide

Format = Literal["onnx", "torchscript", "torch_export"]
_FILES: dict[str, str] = {"onnx": "model.onnx", "torchscript": "model.pt", "torch_export": "model.pt2"}


def export(
    ckpt_path: Path,
    output: Path,
    format: Format = "onnx",
    opset: int = 18,
    sizes: tuple[tuple[int, int], ...] = ((128, 128), (224, 320), (384, 512)),
    tolerance: float = 1e-3,
) -> None:
    """Write a network as ONNX or TorchScript, with a card, and check it.

    Height and width stay free (multiples of 32; train.predictor.Predictor pads). The file is run beside the checkpoint
    on several sizes, and the largest difference of the class scores is written into the card.

    Args:
        ckpt_path: checkpoint that `segtrain fit` wrote.
        output: folder for the model file and model.json.
        format: onnx (runs anywhere), torchscript, or torch_export (torch.export's .pt2).
        opset: ONNX operator set, 18 or later.
        sizes: (height, width) pairs to check.
        tolerance: largest difference that is accepted, as a share of the largest score.

    """
    if opset < 18:
        raise ConfigError(f"--opset is {opset}; it must be 18 or later (antialiased and bilinear resize).")
    network, _, card = load_network(ckpt_path)
    output.mkdir(parents=True, exist_ok=True)
    path = output / _FILES[format]
    write_model(network, path, format, opset)
    differences = check_parity(network, path, format, sizes)
    worst = max(differences.values())
    content = {key: card[key] for key in ("classes", "palette", "input", "output", "settings")} | {
        "format": MODEL_FORMAT,
        "format_version": MODEL_VERSION,
        "written_by": card["written_by"],
        "file": path.name,
        "kind": format,
        "opset": opset if format == "onnx" else None,
        "checkpoint": {"name": Path(ckpt_path).name, "fingerprint": file_digest(ckpt_path)},
        "parity": {"largest_difference_of_scores": worst, "by_size": differences},
    }
    write_atomically(output / "model.json", (json.dumps(content, indent=1) + "\n").encode())
    size_mb = sum(file.stat().st_size for file in output.glob(f"{path.name}*")) / 1e6
    print(f"Written: {path} ({size_mb:.1f} MB) and model.json.")
    print(f"Largest difference from the checkpoint over {count(len(differences), 'size')}: {worst:.2e} (class scores).")
    largest_score = max(float(_run_torch(network, _noise(size)).abs().max()) for size in sizes)
    if not worst <= tolerance * max(1.0, largest_score):
        raise ModelError(
            f"{path} differs from the checkpoint by {worst:.2e}, more than --tolerance {tolerance} allows: do not use "
            "it; try another --format."
        )


def write_model(network: nn.Module, path: Path, format: Format, opset: int) -> None:
    """Write a network in a format, with free batch, height and width.

    Raises:
        ConfigError: a package that the format needs is not installed.
        ModelError: the format's exporter cannot take this network.

    """
    example = _noise(_TRACED_HW).repeat(2, 1, 1, 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters' own deprecations are nothing a user can mend
            match format:
                case "onnx":
                    _write_onnx(network, example, path, opset)
                case "torchscript":
                    torch.jit.trace(network, example, check_trace=False).save(str(path))
                case "torch_export":
                    with padding_in_whole_numbers():
                        program = torch.export.export(network, (example,), dynamic_shapes=_dynamic())
                    torch.export.save(program, path)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error}; install what export needs: pip install 'text2mask-wsss[export]'.") from error
    except Exception as error:  # the exporters raise many kinds for an operator they do not know
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        others = " or ".join(name for name in _FILES if name != format)
        raise ModelError(f"This network cannot be written as {format} ({reason}); try --format {others}.") from error


def _write_onnx(network: nn.Module, example: Tensor, path: Path, opset: int) -> None:
    torch.onnx.export(
        network,
        (example,),
        path,
        dynamo=True,
        opset_version=opset,
        input_names=["rgb"],
        output_names=["scores"],
        dynamic_shapes=_dynamic(),
        external_data=False,
        verbose=False,
    )


def _dynamic() -> tuple[dict[int, Any]]:
    """Return which axes are free: the batch, and height and width in steps of `SIZE_MULTIPLE`."""
    height = SIZE_MULTIPLE * torch.export.Dim("height_cells", min=1, max=512)
    width = SIZE_MULTIPLE * torch.export.Dim("width_cells", min=1, max=512)
    return ({0: torch.export.Dim("batch", min=1, max=4096), 2: height, 3: width},)


def check_parity(network: nn.Module, path: Path, format: Format, sizes: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Return the largest absolute difference of the scores between file and network, by image size.

    Raises:
        ConfigError: a size that the network does not take.

    """
    wrong = [size for size in sizes if min(size) < 1 or any(side % SIZE_MULTIPLE for side in size)]
    if wrong or not sizes:
        raise ConfigError(
            f"--sizes holds {wrong or 'nothing'}; it takes multiples of {SIZE_MULTIPLE}, as [[128, 160]]."
        )
    run = _loader(path, format)
    return {
        f"{height}x{width}": float(
            np.abs(run(_noise((height, width))) - _run_torch(network, _noise((height, width))).numpy()).max()
        )
        for height, width in sizes
    }


def _loader(path: Path, format: Format) -> Any:
    match format:
        case "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            return lambda rgb: session.run(None, {"rgb": rgb.numpy()})[0]
        case "torchscript":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # deprecated in favour of torch_export, still asked for
                script = torch.jit.load(str(path))
            return lambda rgb: _run_torch(script, rgb).numpy()
        case "torch_export":
            module = torch.export.load(path).module()
            return lambda rgb: _run_torch(module, rgb).numpy()


@torch.no_grad()
def _run_torch(network: Any, rgb: Tensor) -> Tensor:
    return network(rgb)


def _noise(size_hw: tuple[int, int]) -> Tensor:
    """Return a picture to compare on: smooth colours with noise, RGB in 0..255, always the same."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 5, 5, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=size_hw, mode="bilinear", align_corners=False)
    return (255 * (0.9 * smooth + 0.1 * torch.rand(smooth.shape, generator=generator))).round()

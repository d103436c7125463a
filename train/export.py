"""The network as a file that runs without this project: ONNX, TorchScript or torch.export, with a card and a check."""

import hashlib
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from data.config import require
from data.errors import ConfigError, ModelError
from data.files import write_atomically
from data.wording import count
from train.checkpoint import file_digest, load_network
from train.inference import not_finite
from train.network import SIZE_MULTIPLE, padding_of_whole_cells

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
    require("tolerance", tolerance, tolerance >= 0, "at least 0")
    check_sizes(sizes)
    network, _, card = load_network(ckpt_path)
    expected = [_run_torch(network, _noise(size)) for size in sizes]
    if not all(scores.isfinite().all() for scores in expected):
        raise ModelError(not_finite(str(ckpt_path), {scores.dtype for scores in expected}))
    output.mkdir(parents=True, exist_ok=True)
    path = output / _FILES[format]
    print(f"Tracing the network for {path.name}, then comparing on {count(len(sizes), 'size')} ...", flush=True)
    model = model_bytes(network, format, opset)
    differences = check_parity(network, model, format, sizes)
    worst = float(np.max(list(differences.values())))  # NaN, where any is
    largest_score = max(float(scores.abs().max()) for scores in expected)
    if not worst <= tolerance * max(1.0, largest_score):
        raise ModelError(
            f"As {format} the network differs from the checkpoint by {worst:.2e}, more than --tolerance {tolerance} "
            "allows: nothing was written; try another --format."
        )
    write_atomically(path, model)
    content = {key: card[key] for key in ("classes", "palette", "input", "output", "settings")} | {
        "format": MODEL_FORMAT,
        "format_version": MODEL_VERSION,
        "written_by": card["written_by"],
        "file": path.name,
        "sha256": hashlib.sha256(model).hexdigest(),
        "kind": format,
        "opset": opset if format == "onnx" else None,
        "checkpoint": {"name": Path(ckpt_path).name, "fingerprint": file_digest(ckpt_path)},
        "parity": {"largest_difference_of_scores": worst, "by_size": differences},
    }
    write_atomically(output / "model.json", (json.dumps(content, indent=1) + "\n").encode())
    print(f"Written: {path} ({len(model) / 1e6:.1f} MB) and model.json.")
    print(f"Largest difference from the checkpoint over {count(len(differences), 'size')}: {worst:.2e} (class scores).")


def check_sizes(sizes: Sequence[tuple[int, int]]) -> None:
    """Raise ConfigError where a size to check on is one that no network takes."""
    wrong = [size for size in sizes if min(size) < 1 or any(side % SIZE_MULTIPLE for side in size)]
    if wrong or not sizes:
        raise ConfigError(
            f"--sizes holds {wrong or 'nothing'}; it takes multiples of {SIZE_MULTIPLE}, as [[128, 160]]."
        )


def model_bytes(network: nn.Module, format: Format, opset: int) -> bytes:
    """Return a network in a format, with free batch, height and width.

    The file's whole content is made in memory: torch's own writers of files leave a part of one on a full disk, and the
    one of TorchScript then ends the process.

    Raises:
        ConfigError: a package that the format needs is not installed.
        ModelError: the format's exporter cannot take this network.

    """
    example = _noise(_TRACED_HW).repeat(2, 1, 1, 1)
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), padding_of_whole_cells():
            warnings.simplefilter("ignore")  # the exporters' own deprecations are nothing a user can mend
            match format:
                case "onnx":
                    return _onnx_bytes(network, example, opset)
                case "torchscript":
                    torch.jit.save(torch.jit.trace(network, example, check_trace=False), buffer)
                case "torch_export":
                    program = torch.export.export(network, (example,), dynamic_shapes=_dynamic())
                    torch.export.save(program, buffer)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error}; install what export needs: pip install 'text2mask-wsss[export]'.") from error
    except OSError:
        raise  # temporary files of an exporter on a full disk
    except Exception as error:  # the exporters raise many kinds for an operator they do not know
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        others = " or ".join(name for name in _FILES if name != format)
        raise ModelError(f"This network cannot be written as {format} ({reason}); try --format {others}.") from error
    return buffer.getvalue()


def _onnx_bytes(network: nn.Module, example: Tensor, opset: int) -> bytes:
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        opset_version=opset,
        input_names=["rgb"],
        output_names=["scores"],
        dynamic_shapes=_dynamic(),
        verbose=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def _dynamic() -> tuple[dict[int, Any]]:
    """Return which axes are free: the batch, and height and width in steps of `SIZE_MULTIPLE`."""
    height = SIZE_MULTIPLE * torch.export.Dim("height_cells", min=1, max=512)
    width = SIZE_MULTIPLE * torch.export.Dim("width_cells", min=1, max=512)
    return ({0: torch.export.Dim("batch", min=1, max=4096), 2: height, 3: width},)


def check_parity(
    network: nn.Module, model: bytes, format: Format, sizes: Sequence[tuple[int, int]]
) -> dict[str, float]:
    """Return the largest absolute difference of the scores between a file's content and its network, by image size."""
    run = _loader(model, format)
    return {
        f"{height}x{width}": float(
            np.abs(run(_noise((height, width))) - _run_torch(network, _noise((height, width))).numpy()).max()
        )
        for height, width in sizes
    }


def _loader(model: bytes, format: Format) -> Any:
    match format:
        case "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            return lambda rgb: session.run(None, {"rgb": rgb.numpy()})[0]
        case "torchscript":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # deprecated in favour of torch_export, still asked for
                script = torch.jit.load(io.BytesIO(model))
            return lambda rgb: _run_torch(script, rgb).numpy()
        case "torch_export":
            module = torch.export.load(io.BytesIO(model)).module()
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

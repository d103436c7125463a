"""From a network and an image of any size to class probabilities: scales, flips, sliding windows, CRF."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from data.config import CrfEngine, changed, require, require_finite
from data.errors import ModelError
from train.network import SIZE_MULTIPLE

Network = Callable[[Tensor], Tensor]
Images = Float[Tensor, "n 3 height width"]
Probabilities = Float[Tensor, "n classes height width"]


@dataclass(frozen=True)
class CrfConfig:
    """Dense CRF over the network's probabilities."""

    enabled: bool = False
    """Run it; the paper does, and it takes about a second for a VOC image."""
    engine: CrfEngine = "auto"
    """pydensecrf (a CPU alone; needs a C++ compiler to install) or torch (a CPU or a CUDA GPU; the same within 0.001);
    auto: torch beside a network on a CUDA GPU or without pydensecrf, else pydensecrf."""
    iterations: int = 10
    """Rounds of mean field; 0 changes nothing."""
    sxy_gaussian: float = 1.0
    """Width of the smoothing term, in pixels."""
    compat_gaussian: float = 3.0
    """Weight of the smoothing term."""
    sxy_bilateral: float = 67.0
    """Width in space of the colour term, in pixels."""
    srgb_bilateral: float = 3.0
    """Width in colour of the colour term, in grey levels."""
    compat_bilateral: float = 4.0
    """Weight of the colour term."""

    def __post_init__(self) -> None:
        require_finite("inference.crf", self)
        require("inference.crf.iterations", self.iterations, self.iterations >= 0, "at least 0")
        for name in ("sxy_gaussian", "sxy_bilateral", "srgb_bilateral"):
            require(f"inference.crf.{name}", getattr(self, name), getattr(self, name) > 0, "above 0")


@dataclass(frozen=True)
class InferenceConfig:
    """How an image is shown to the network."""

    scales: tuple[float, ...] = (1.0,)
    """Show it at these sizes; the paper: 0.5, 0.75, 1."""
    merge: Literal["mean", "max"] = "mean"
    """How the probabilities of scales and flips become one; the paper: max."""
    flip: bool = False
    """Show it mirrored too."""
    window: int | None = None
    """Cut larger images into overlapping squares of this side in pixels; whole images when not given."""
    overlap: float = 0.33
    """Share of a window's side that it has in common with the next one."""
    crf: CrfConfig = field(default_factory=CrfConfig)
    """Sharpen the result along edges of the image."""

    def __post_init__(self) -> None:
        scales = bool(self.scales) and all(0.1 <= scale <= 8 for scale in self.scales)
        require("inference.scales", self.scales, scales, "one or more numbers from 0.1 to 8")
        window = self.window is None or self.window >= SIZE_MULTIPLE
        require("inference.window", self.window, window, f"at least {SIZE_MULTIPLE} pixels")
        require("inference.overlap", self.overlap, 0 <= self.overlap < 1, "at least 0 and below 1")

    def idle(self) -> tuple[str, ...]:
        """Return the settings that were changed and have no effect with the others."""
        unread = ["overlap"] if self.window is None else []
        unread += ["merge"] if len(self.scales) == 1 and not self.flip else []
        crf = () if self.crf.enabled else changed(self.crf, [entry.name for entry in fields(self.crf)])
        return (*changed(self, unread), *(f"crf.{name}" for name in crf))


def probabilities(
    network: Network, images: Images, config: InferenceConfig, fill: Tensor, model: str = "The network"
) -> Probabilities:
    """Return the class probabilities of images of one size, before any CRF; they sum to 1 over the classes.

    Args:
        network: takes RGB in 0..255, sides multiples of `SIZE_MULTIPLE`, gives scores.
        images: RGB in 0..255.
        config: scales, flip, window.
        fill: what images are padded with, RGB in 0..255, (1, 3, 1, 1); `Segmenter.mean`.
        model: what the network is called in an error.

    Raises:
        ModelError: scores that are NaN or infinite, from which argmax would make background without a word.

    """
    size_hw = images.shape[-2:]
    merged: Tensor | None = None
    count = 0
    dtypes: set[torch.dtype] = set()

    def watched(view: Tensor) -> Tensor:
        scores = network(view)
        dtypes.add(scores.dtype)
        return scores

    finite = torch.ones((), dtype=torch.bool, device=images.device)
    for view, flipped in _views(images, config):
        scores = _windows(watched, view, config, fill)
        finite &= scores.isfinite().all()
        part = scores.softmax(dim=1)
        part = F.interpolate(part, size=size_hw, mode="bilinear", align_corners=False)
        part = part.flip(-1) if flipped else part
        merged = part if merged is None else merge(merged, part, config)
        count += 1
    if not finite:
        raise ModelError(not_finite(model, dtypes))
    assert merged is not None
    return merged / merged.sum(dim=1, keepdim=True) if count > 1 else merged


def not_finite(model: str, dtypes: set[torch.dtype]) -> str:
    """Return what to say of a network whose scores are no numbers."""
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    remedy = (
        "the numbers are too large for half precision, set --trainer.precision 32-true or bf16-mixed"
        if torch.float16 in dtypes
        else "its weights are spoilt, use another checkpoint, such as one of earlier in the run"
    )
    return f"{model} gives scores that are NaN or infinite, in {names}: {remedy}."


def merge(merged: Tensor, part: Tensor, config: InferenceConfig) -> Tensor:
    """Return the probabilities of views so far, not normalised, with those of one more."""
    return torch.maximum(merged, part) if config.merge == "max" else merged + part


def _views(images: Images, config: InferenceConfig) -> Iterator[tuple[Images, bool]]:
    size_hw = (images.shape[-2], images.shape[-1])
    for scale in config.scales:
        size = view_size(size_hw, scale)
        view = images
        if size != size_hw:
            view = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=scale < 1)
        yield view, False
        if config.flip:
            yield view.flip(-1), True


def view_size(size_hw: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the height and width that an image is shown at."""
    height, width = size_hw
    return max(1, round(height * scale)), max(1, round(width * scale))


def _windows(network: Network, images: Images, config: InferenceConfig, fill: Tensor) -> Tensor:
    """Return the scores of an image, from overlapping windows where it is larger than one."""
    height, width = images.shape[-2:]
    if config.window is None or max(height, width) <= config.window:
        return padded_scores(network, images, fill)
    total: Tensor | None = None
    count = images.new_zeros(1, 1, height, width)
    for top in window_starts(height, config.window, config.overlap):
        for left in window_starts(width, config.window, config.overlap):
            at = (..., slice(top, top + config.window), slice(left, left + config.window))
            part = padded_scores(network, images[at], fill)
            if total is None:
                total = part.new_zeros(part.shape[0], part.shape[1], height, width)
            total[at] += part
            count[at] += 1
    assert total is not None
    return total / count


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Return where windows begin so that they cover a length, evenly spread, overlapping by at least the share.

    >>> window_starts(100, 40, 0.25)
    [0, 30, 60]
    """
    if length <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = -(-(length - window) // step) + 1
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def padded_scores(network: Network, images: Images, fill: Tensor) -> Tensor:
    """Return scores for images of any size: pad right and bottom to what the network takes, and cut it off again.

    Args:
        network: as in `probabilities`.
        images: RGB in 0..255.
        fill: what is added, RGB in 0..255, (1, 3, 1, 1).

    """
    height, width = images.shape[-2:]
    missing_h, missing_w = -height % SIZE_MULTIPLE, -width % SIZE_MULTIPLE
    if missing_h or missing_w:
        fill = fill.to(images)
        images = F.pad(images - fill, (0, missing_w, 0, missing_h)) + fill
    return network(images)[..., :height, :width].float()


def with_engine(config: InferenceConfig, device: str) -> InferenceConfig:
    """Return the settings with the CRF's engine that auto stands for beside a network on this device."""
    if not config.crf.enabled:
        return config
    from data.densecrf import chosen_engine

    return replace(config, crf=replace(config.crf, engine=chosen_engine(config.crf.engine, device)))


def sharpen(
    rgb: UInt8[np.ndarray, "height width 3"],
    probability: Float[np.ndarray, "classes height width"],
    config: CrfConfig,
    device: str = "cpu",
    origin_yx: tuple[int, int] = (0, 0),
) -> Float[np.ndarray, "classes height width"]:
    """Return the probabilities after the dense CRF; classes that nowhere reach 1 % are left out of it, for speed.

    Args:
        rgb: the image.
        probability: of each class.
        config: whether it runs, its engine and its parameters.
        device: where the network is; the torch engine runs there where that is a CUDA GPU, else on the CPU.
        origin_yx: where the image's first pixel lies in the larger one of which it is a part.

    """
    if not config.enabled:
        return probability
    from data.densecrf import chosen_engine, dense_crf

    largest = probability.max(axis=(1, 2))
    kept = largest >= min(0.01, largest.max())  # of several hundred classes none may reach it
    result = np.zeros_like(probability)
    result[kept] = dense_crf(
        rgb,
        probability[kept],
        torch=torch if chosen_engine(config.engine, device) == "torch" else None,
        device=device if device.startswith("cuda") else "cpu",
        iterations=config.iterations,
        sxy_gaussian=config.sxy_gaussian,
        compat_gaussian=config.compat_gaussian,
        sxy_bilateral=config.sxy_bilateral,
        srgb_bilateral=config.srgb_bilateral,
        compat_bilateral=config.compat_bilateral,
        origin_yx=origin_yx,
    )
    return result

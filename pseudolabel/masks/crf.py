"""Refining scores along the image's edges: the dense CRF of the paper, PAMR or TLP, after a guided filter if wanted."""

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from data.densecrf import chosen_engine, dense_crf
from data.store.softmaps import resize_scores
from pseudolabel.masks.config import CrfConfig
from pseudolabel.masks.guided import guided
from pseudolabel.masks.memory import gpu_memory_for
from pseudolabel.masks.pamr import pamr
from pseudolabel.masks.tlp import text_guided_smoothing
from pseudolabel.masks.working import shrunk_to

# Mean of the COCO images in BGR, as Caffe models subtract it; the published code feeds the CRF what is left.
MEAN_BGR = (104.008, 116.669, 122.675)


def refine_scores(
    rgb_u8: UInt8[np.ndarray, "height width 3"],
    scores: Float[np.ndarray, "rows height width"],
    config: CrfConfig,
    device: str = "cpu",
    shrunk: float = 1.0,
) -> Float32[np.ndarray, "rows height width"]:
    """Return the marginals of background and labels at every pixel; they sum to 1.

    Args:
        rgb_u8: the image as it is in its file, or at its working size.
        scores: non-negative scores, not normalised.
        config: kind and its parameters; `scale` below 1 runs it on a smaller image, with its ranges scaled alike, and
            enlarges the marginals.
        device: where PAMR and the torch engine of the dense CRF run; pydensecrf runs on the CPU.
        shrunk: side length of `rgb_u8` relative to the image file's; `scale` and the ranges are those of the file.

    Raises:
        ConfigError: the GPU's memory does not hold it.

    """
    scores = scores.astype(np.float32)
    if not config.refines:
        return _normalise(scores)
    size_hw = rgb_u8.shape[:2]
    scale = min(1.0, config.scale / shrunk)
    small_hw = (max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale)))
    guide = shrunk_to(rgb_u8, small_hw)
    if config.wrapped_image:
        guide = wrapped_bgr(guide)
    if small_hw != size_hw:
        scores = resize_scores(scores, small_hw)
    if config.guide > 0:
        scores = guided(guide, scores, max(1, round(config.guide * scale * shrunk)), config.guide_edge)
    with gpu_memory_for(
        f"the refinement of an image of {small_hw[1]} x {small_hw[0]} px", "a lower --crf.max_megapixels or --crf.scale"
    ):
        marginals = _refine(guide, scores, config, scale * shrunk, device)
    if small_hw != size_hw:
        marginals = _normalise(resize_scores(marginals, size_hw))
    return marginals


def _refine(guide_u8: np.ndarray, scores: np.ndarray, config: CrfConfig, scale: float, device: str) -> np.ndarray:
    """Refine at a side length of `scale` relative to the image file's, by which ranges in pixels shrink too."""
    match config.kind:
        case "densecrf":
            torch = _torch() if chosen_engine(config.engine, device) == "torch" else None
            return dense_crf(
                guide_u8,
                scores,
                torch=torch,
                device=device if device.startswith("cuda") else "cpu",
                iterations=config.iterations,
                sxy_gaussian=config.sxy_gaussian * scale,
                compat_gaussian=config.compat_gaussian,
                sxy_bilateral=config.sxy_bilateral * scale,
                srgb_bilateral=config.srgb_bilateral,
                compat_bilateral=config.compat_bilateral,
            )
        case "pamr":
            return _normalise(pamr(guide_u8, _normalise(scores), config.iterations, device))
        case "tlp":
            normalised = _normalise(scores)
            return _normalise(text_guided_smoothing(guide_u8, normalised, config.smoothness, config.edge, config.grid))
        case "none":
            return _normalise(scores)


def _torch() -> Any:
    """Import torch, which takes seconds, only where it is needed."""
    import torch

    return torch


def with_engine(config: CrfConfig, device: str) -> CrfConfig:
    """Return the settings with the engine that auto stands for beside a model on this device."""
    if config.kind != "densecrf":
        return config
    return replace(config, engine=chosen_engine(config.engine, device))


def runs_on_gpu(config: CrfConfig, device: str) -> bool:
    """Return whether the refinement runs on the model's GPU, in the process that holds it; else it takes a core."""
    match config.kind:
        case "densecrf":
            return device.startswith("cuda") and chosen_engine(config.engine, device) == "torch"
        case "pamr":
            return device != "cpu"
        case _:
            return False


def _normalise(scores: Float32[np.ndarray, "rows height width"]) -> Float32[np.ndarray, "rows height width"]:
    """Divide by the sum at each pixel."""
    clipped = np.clip(scores, 1e-5, None)
    return clipped / clipped.sum(axis=0, keepdims=True)


def wrapped_bgr(rgb_u8: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Subtract a mean from the BGR image and keep the lowest byte, so that dark pixels turn bright (published code)."""
    shifted = rgb_u8[..., ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)
    return shifted.astype(np.int64).astype(np.uint8)

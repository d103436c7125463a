"""Refining scores along the image's edges: the dense CRF of the paper, or PAMR, which runs on a GPU too."""

from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from data.densecrf import dense_crf
from pseudolabel.config import CrfConfig
from pseudolabel.fuse import resize_scores

# Mean of the COCO images in BGR, as Caffe models subtract it; the published code feeds the CRF what is left.
MEAN_BGR = (104.008, 116.669, 122.675)
PAMR_DILATIONS = (1, 2, 4, 8, 12, 24)


def refine_scores(
    rgb_u8: UInt8[np.ndarray, "height width 3"],
    scores: Float[np.ndarray, "rows height width"],
    config: CrfConfig,
    device: str = "cpu",
) -> Float32[np.ndarray, "rows height width"]:
    """Return the marginals of background and labels at every pixel; they sum to 1.

    Args:
        rgb_u8: the image as it is in its file.
        scores: non-negative scores, not normalised.
        config: kind and its parameters; `scale` below 1 runs it on a smaller image, with its ranges scaled alike, and
            enlarges the marginals.
        device: where PAMR runs; the dense CRF runs on the CPU.

    """
    if config.kind == "none" or config.iterations == 0:
        return _normalise(scores.astype(np.float32))
    size_hw = rgb_u8.shape[:2]
    guide = wrapped_bgr(rgb_u8) if config.wrapped_image else rgb_u8
    small_hw = (max(1, round(size_hw[0] * config.scale)), max(1, round(size_hw[1] * config.scale)))
    if small_hw != size_hw:
        guide = cv2.resize(guide, small_hw[::-1], interpolation=cv2.INTER_AREA)
        scores = resize_scores(scores.astype(np.float32), small_hw)
    marginals = _refine(guide, scores.astype(np.float32), config, device)
    if small_hw != size_hw:
        marginals = _normalise(resize_scores(marginals, size_hw))
    return marginals


def _refine(guide_u8: np.ndarray, scores: np.ndarray, config: CrfConfig, device: str) -> np.ndarray:
    """Refine at the scale asked for."""
    match config.kind:
        case "densecrf":
            return dense_crf(
                guide_u8,
                scores,
                iterations=config.iterations,
                sxy_gaussian=config.sxy_gaussian * config.scale,
                compat_gaussian=config.compat_gaussian,
                sxy_bilateral=config.sxy_bilateral * config.scale,
                srgb_bilateral=config.srgb_bilateral,
                compat_bilateral=config.compat_bilateral,
            )
        case "pamr":
            return _normalise(pamr(guide_u8, _normalise(scores), config.iterations, device))
        case "none":
            return _normalise(scores)


def _normalise(scores: Float32[np.ndarray, "rows height width"]) -> Float32[np.ndarray, "rows height width"]:
    """Divide by the sum at each pixel."""
    clipped = np.clip(scores, 1e-5, None)
    return clipped / clipped.sum(axis=0, keepdims=True)


def wrapped_bgr(rgb_u8: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Subtract a mean from the BGR image and keep the lowest byte, so that dark pixels turn bright (published code)."""
    shifted = rgb_u8[..., ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)
    return shifted.astype(np.int64).astype(np.uint8)


def pamr(
    rgb_u8: UInt8[np.ndarray, "height width 3"],
    scores: Float32[np.ndarray, "rows height width"],
    rounds: int,
    device: str = "cpu",
) -> Float32[np.ndarray, "rows height width"]:
    """Average scores over neighbours of like colour, several times.

    Source: Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020, section 3.3: the
    weight of a neighbour is the softmax over neighbours of -|difference| / (0.1 * local standard deviation), mean over
    colours; the neighbours are the 3 x 3 rings at six dilations. The deviation is over all of them, the pixel itself
    counted once a ring, as in the authors' code.
    """
    import torch

    image = torch.from_numpy(np.ascontiguousarray(rgb_u8)).to(device).permute(2, 0, 1)[None].float() / 255
    values = torch.from_numpy(np.ascontiguousarray(scores)).to(device)[None]
    with torch.inference_mode():
        weights = _pamr_weights(image)
        for _ in range(rounds):
            neighbours = zip(weights, _shifts(values), strict=True)
            values = sum((weight * shifted for weight, shifted in neighbours), torch.zeros_like(values))
    return values[0].cpu().numpy()


def _shifts(maps: Any) -> Any:
    """Yield maps shifted to each neighbour at each dilation; borders are repeated."""
    from torch.nn import functional

    reach = max(PAMR_DILATIONS)
    height, width = maps.shape[-2:]
    padded = functional.pad(maps, (reach, reach, reach, reach), mode="replicate")
    for dilation in PAMR_DILATIONS:
        for down in (-dilation, 0, dilation):
            for right in (-dilation, 0, dilation):
                if (down, right) != (0, 0):
                    yield padded[..., reach + down : reach + down + height, reach + right : reach + right + width]


def _pamr_weights(image: Any) -> Any:
    """Return the weight of every neighbour (neighbours, 1, 1, height, width), summing to 1."""
    import torch

    rings = len(PAMR_DILATIONS)
    total, squares, count = rings * image, rings * image**2, 9 * rings
    for shifted in _shifts(image):
        total, squares = total + shifted, squares + shifted**2
    deviation = ((squares - total**2 / count) / (count - 1)).clamp_min(0).sqrt()
    scale = 1e-8 + 0.1 * deviation
    scores = torch.stack([(-(image - shifted).abs() / scale).mean(dim=1, keepdim=True) for shifted in _shifts(image)])
    return torch.softmax(scores, dim=0)

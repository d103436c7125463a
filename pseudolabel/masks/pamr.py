"""Pixel-adaptive mask refinement: a refinement that runs on a GPU too."""

from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

PAMR_DILATIONS = (1, 2, 4, 8, 12, 24)


def pamr(
    rgb_u8: UInt8[np.ndarray, "height width 3"],
    scores: Float32[np.ndarray, "rows height width"],
    rounds: int,
    device: str = "cpu",
) -> Float32[np.ndarray, "rows height width"]:
    """Average scores over neighbours of similar colour, several times.

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

"""The fully connected CRF: by pydensecrf, which is C++ for a CPU, or in torch, which the caller hands in.

Source: Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011.
Both engines are the same arithmetic: on photographs and drawn images their marginals differ by less than 0.001
(`benchmarks/crf.md`). This is the only file that touches pydensecrf.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, UInt8

from data.config import CrfEngine
from data.errors import ConfigError
from data.lattice import Lattice, gaussian_lattice

_SMALLEST = 1e-5  # scores are clipped here before the logarithm, as the usual utilities of pydensecrf do
Engine = Literal["pydensecrf", "torch"]


def chosen_engine(engine: CrfEngine, device: str = "cpu") -> Engine:
    """Return which engine runs: auto is pydensecrf on a CPU that has it, else torch.

    Args:
        engine: the setting.
        device: where the model or the network is.

    Raises:
        ConfigError: pydensecrf is asked for and cannot be imported.

    """
    if engine == "pydensecrf" and not has_pydensecrf():
        raise ConfigError(
            "crf.engine is pydensecrf, which cannot be imported here: install it, pip install 'text2mask-wsss[crf]' "
            "(it needs a C++ compiler), or use --crf.engine torch, which gives the same masks."
        )
    if engine == "auto":
        return "torch" if device.startswith("cuda") or not has_pydensecrf() else "pydensecrf"
    return engine


@functools.cache
def has_pydensecrf() -> bool:
    """Return whether pydensecrf can be imported."""
    try:
        from pydensecrf import densecrf
    except (ImportError, ValueError):  # ValueError: it was built for another numpy
        return False
    return hasattr(densecrf, "DenseCRF2D")


def dense_crf(
    rgb_u8: UInt8[np.ndarray, "height width 3"],
    scores: Float[np.ndarray, "classes score_height score_width"],
    *,
    iterations: int,
    sxy_gaussian: float,
    compat_gaussian: float,
    sxy_bilateral: float,
    srgb_bilateral: float,
    compat_bilateral: float,
    origin_yx: tuple[int, int] = (0, 0),
    torch: Any = None,
    device: str = "cpu",
) -> Float32[np.ndarray, "classes height width"]:
    """Return the marginals of a dense CRF after mean-field inference.

    Args:
        rgb_u8: the image as it is in the file. A mean-subtracted image cast to bytes wraps around and spoils the
            bilateral term.
        scores: non-negative score of each class at the image's size; they need not add up to one. The unary
            energy is -log(score).
        iterations: mean-field steps; 0 returns the scores, divided by their sum at each pixel.
        sxy_gaussian: standard deviation of the smoothness kernel, in pixels.
        compat_gaussian: weight of the smoothness kernel.
        sxy_bilateral: spatial standard deviation of the appearance kernel, in pixels.
        srgb_bilateral: colour standard deviation of the appearance kernel, in grey levels of 0 to 255.
        compat_bilateral: weight of the appearance kernel.
        origin_yx: where the image's first pixel lies in a larger one of which it is a part: the lattice that filters
            lies still in the larger one, so that a part far from its edges comes out as in the whole.
        torch: the module torch, which then does the work; None: pydensecrf does.
        device: where torch works.

    Raises:
        ConfigError: image and scores differ in size, or ranges that are too small for torch's engine.

    """
    height, width = rgb_u8.shape[:2]
    if scores.shape[1:] != (height, width):
        raise ConfigError(f"Scores of {scores.shape[1:]} for an image of {(height, width)} pixels: resize the scores.")
    clipped = np.clip(scores.astype(np.float32), _SMALLEST, None)
    if iterations == 0 or len(scores) == 1:
        return clipped / clipped.sum(axis=0, keepdims=True)
    gaussian, bilateral = (sxy_gaussian, compat_gaussian), (sxy_bilateral, srgb_bilateral, compat_bilateral)
    energy = np.ascontiguousarray(-np.log(clipped).reshape(len(scores), -1))
    if torch is None:
        marginals = _by_pydensecrf(rgb_u8, energy, iterations, gaussian, bilateral, origin_yx)
    else:
        with torch.inference_mode():
            marginals = _by_torch(torch, device, rgb_u8, energy, iterations, gaussian, bilateral, origin_yx)
    return marginals.reshape(scores.shape)


def _by_pydensecrf(
    rgb_u8: np.ndarray,
    energy: np.ndarray,
    iterations: int,
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
    origin_yx: tuple[int, int],
) -> np.ndarray:
    """Return the marginals (classes, pixels) for unary energies of the same shape."""
    from pydensecrf import densecrf

    field = densecrf.DenseCRF2D(rgb_u8.shape[1], rgb_u8.shape[0], len(energy))
    field.setUnaryEnergy(energy)
    if origin_yx == (0, 0):
        field.addPairwiseGaussian(sxy=gaussian[0], compat=gaussian[1])
        # pydensecrf asks for memory it may write to, which np.asarray(PIL image) does not give.
        image = np.require(rgb_u8, requirements=["C_CONTIGUOUS", "WRITEABLE"])
        field.addPairwiseBilateral(sxy=bilateral[0], srgb=bilateral[1], rgbim=image, compat=bilateral[2])
    else:  # the same features, of which the two calls above only know the columns and rows from 0 on
        origin_xy = np.array(origin_yx[::-1], np.float32)[:, None]
        places = np.indices(rgb_u8.shape[:2], np.float32)[::-1].reshape(2, -1) + origin_xy
        colours = rgb_u8.reshape(-1, 3).T / np.float32(bilateral[1])
        field.addPairwiseEnergy(places / np.float32(gaussian[0]), compat=gaussian[1])
        field.addPairwiseEnergy(np.concatenate([places / np.float32(bilateral[0]), colours]), compat=bilateral[2])
    return np.array(field.inference(iterations), dtype=np.float32)


def _by_torch(
    torch: Any,
    device: str,
    rgb_u8: np.ndarray,
    energy: np.ndarray,
    iterations: int,
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
    origin_yx: tuple[int, int],
) -> np.ndarray:
    """Return the marginals (classes, pixels); `_mean_field` with the kernels of an image."""
    height, width = rgb_u8.shape[:2]
    rgb = torch.from_numpy(np.array(rgb_u8)).to(device).reshape(-1, 3).float()
    columns = torch.arange(width, device=device).add(origin_yx[1]).float().repeat(height)
    rows = torch.arange(height, device=device).add(origin_yx[0]).float().repeat_interleave(width)
    # Tensors of one number: a GPU turns a division by a plain one into a product, whose last bit may be another, and
    # with it which lattice points there are.
    step, near, alike = torch.tensor([gaussian[0], *bilateral[:2]], device=device).split(1)
    smoothness = gaussian_lattice(torch, [columns / step, rows / step])
    appearance = gaussian_lattice(torch, [columns / near, rows / near, *(rgb / alike).T.contiguous()])
    kernels = [smoothness.normalised(torch, gaussian[1]), appearance.normalised(torch, bilateral[2])]
    del rgb, columns, rows, smoothness, appearance
    unary = -torch.from_numpy(energy).to(device).T.contiguous()
    return _mean_field(torch, unary, kernels, iterations).T.cpu().numpy()


def _mean_field(torch: Any, unary: Any, kernels: Sequence[Lattice], iterations: int) -> Any:
    """Return the marginals (pixels, classes): Q <- softmax(unary + sum of K Q over the kernels), several times.

    The compatibility is Potts's: a class is supported by its own marginals around.
    """
    marginals = _softmax(unary.clone())
    for _ in range(iterations):
        scores = unary.clone()
        for kernel in kernels:
            scores += kernel.filtered(torch, marginals)
        marginals = _softmax(scores)
    return marginals


def _softmax(scores: Any) -> Any:
    """Return the softmax of each row, in place; torch's own takes five times as long for a few columns on a CPU."""
    scores -= scores.amax(dim=1, keepdim=True)
    scores.exp_()
    scores /= scores.sum(dim=1, keepdim=True)
    return scores

"""The fully connected CRF; the only file that touches pydensecrf.

Source: Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011.
"""

import numpy as np
from jaxtyping import Float, Float32, UInt8

from data.errors import ConfigError

_SMALLEST = 1e-5  # scores are clipped here before the logarithm, as the usual utilities of pydensecrf do


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

    Raises:
        ConfigError: image and scores differ in size.

    """
    height, width = rgb_u8.shape[:2]
    if scores.shape[1:] != (height, width):
        raise ConfigError(f"Scores of {scores.shape[1:]} for an image of {(height, width)} pixels: resize the scores.")
    clipped = np.clip(scores.astype(np.float32), _SMALLEST, None)
    if iterations == 0 or len(scores) == 1:
        return clipped / clipped.sum(axis=0, keepdims=True)

    from pydensecrf import densecrf

    field = densecrf.DenseCRF2D(width, height, len(scores))
    field.setUnaryEnergy(np.ascontiguousarray(-np.log(clipped).reshape(len(scores), -1)))
    field.addPairwiseGaussian(sxy=sxy_gaussian, compat=compat_gaussian)
    # pydensecrf asks for memory it may write to, which np.asarray(PIL image) does not give.
    image = np.require(rgb_u8, requirements=["C_CONTIGUOUS", "WRITEABLE"])
    field.addPairwiseBilateral(sxy=sxy_bilateral, srgb=srgb_bilateral, rgbim=image, compat=compat_bilateral)
    marginals = np.array(field.inference(iterations), dtype=np.float32)
    return marginals.reshape(scores.shape)

"""From class maps to scores: the mean over draws, the background's score, and the way back to the image's pixels.

Source: arXiv 2309.04109, section 3.4: F_0 = (2 tau - max_c F_c)^2. We set F_0 to zero where max F exceeds 2 tau, where
the published formula rises again. Needs no torch, so that worker processes start quickly.

Background words may compete: F_0 = max(that, max_b F_b), where F_b is the map of a background word, made as the
classes' are (as GoCA reads them, CVPR 2026, arXiv 2603.06178); in the paper they soak up attention and are not read.
"""

import numpy as np
from jaxtyping import Float, UInt8

from data.errors import StoreError
from data.store.softmaps import SoftMaps, upsample
from pseudolabel.masks.config import CrfConfig, FuseConfig
from pseudolabel.masks.working import enlarged_to, working_size

_DEFAULT_CRF = CrfConfig()


def background_score(
    maps: Float[np.ndarray, "classes height width"],
    config: FuseConfig,
    words: Float[np.ndarray, "height width"] | None = None,
) -> Float[np.ndarray, "height width"]:
    """Return the background's score from the class maps (each 0 to 1): 4 tau^2 where all are zero, 0 above 2 tau.

    With `clamp` off it rises again above 2 tau, as published. With background `words` it is at least what the words'
    maps reach.

    Raises:
        StoreError: the words' maps are wanted and were not made.

    """
    margin = 2 * config.threshold - maps.max(axis=0)
    if config.clamp:
        margin = np.maximum(margin, 0)
    match config.background:
        case "rule":
            return margin**2
        case "words":
            if words is None:
                raise StoreError(
                    "its soft maps hold none of background words; make them with `pseudolabel generate "
                    "--fuse.background words`, or use --fuse.background rule"
                )
            return np.maximum(margin**2, words)


def scores_with_background(soft: SoftMaps, config: FuseConfig) -> Float[np.ndarray, "rows height width"]:
    """Return one score map for the background and each label, at grid resolution, in float32."""
    maps = soft.maps.astype(np.float32)
    if soft.background:
        return maps
    words = None if soft.words is None else soft.words.astype(np.float32)
    return np.concatenate([background_score(maps, config, words)[None], maps])


def image_scores(
    soft: SoftMaps, config: FuseConfig, size_hw: tuple[int, int] | None = None
) -> Float[np.ndarray, "rows height width"]:
    """Return the scores of background and labels at the image's own size or another one.

    The way back from the grid is that of `upsample`: padded image, crop, image.
    """
    return upsample(scores_with_background(soft, config), soft, size_hw)


def before_crf(soft: SoftMaps, config: FuseConfig, crf: CrfConfig = _DEFAULT_CRF) -> UInt8[np.ndarray, "height width"]:
    """Return the class id of the highest score at each pixel, without any refinement.

    Args:
        soft: soft maps of an image.
        config: how the background's score is made.
        crf: says at which size a large image is worked on.

    """
    ids = np.array([0, *soft.labels], np.uint8)
    scores = image_scores(soft, config, working_size(soft.image_hw, crf))
    return enlarged_to(ids[scores.argmax(axis=0)], soft.image_hw)

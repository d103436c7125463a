"""Whether what a phrase names is in an image at all.

A map that is scaled to 0..1 always has a highest cell, so it cannot say. This score reads the attention as it is: at
the cells that a phrase draws most, how much of the attention goes to the phrase and how much to the tokens that are no
words? A cell that shows nothing a word names rests on the start token and the filler.
"""

import numpy as np
from jaxtyping import Float

# Share of the cells that is looked at: few, so that a small object shows. Chosen on the demo's calibration scenes,
# where 0.3 to 2 % differ by about one point of AUROC (benchmarks/phrases.md).
SUREST_SHARE = 0.005


def presence(
    attention: Float[np.ndarray, "passes *cells"],
    idle: Float[np.ndarray, "passes *cells"],
    surest_share: float = SUREST_SHARE,
) -> float:
    """Return how likely a phrase's thing is in the image, 0 to 1; not a probability, but comparable between images.

    Args:
        attention: share of each cell's attention that the phrase's tokens have together, not scaled, in every pass;
            cells are those of the image, without padding (`PhraseMaps.attention`).
        idle: the same for the tokens that are no words: start, end and filler.
        surest_share: share of the cells that is looked at.

    The surest cells are those of the mean over passes, so that a peak at another place in every pass counts for little.
    Ours; what else was tried is in benchmarks/phrases.md.

    >>> round(presence(np.array([[0.6, 0.1, 0.1, 0.1]]), np.array([[0.2, 0.8, 0.8, 0.8]])), 3)
    0.75

    """
    own = attention.mean(axis=0).ravel().astype(np.float64)
    rest = idle.mean(axis=0).ravel().astype(np.float64)
    count = max(1, round(surest_share * own.size))
    surest = np.argpartition(own, -count)[-count:]
    found = own[surest].sum()
    whole = found + rest[surest].sum()
    return float(found / whole) if whole > 0 else 0.0

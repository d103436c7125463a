"""DAAM (Tang et al., ACL 2023, arXiv 2210.04885): the mean of all cross-attention, its own map for each word."""

from benchmarks.peers.common import Maps, Model, mean, scaled
from pseudolabel.calibrate.recordings import PLAIN, Recorded, Wanted


def wanted(model: Model) -> Wanted:
    """Return what is recorded."""
    return Wanted(model.layers, rules=(PLAIN,))


def soft_maps(recorded: Recorded, model: Model) -> Maps:
    """Return class maps. Where we differ: one noised look at a given image, not the whole denoising of a drawn one."""
    return scaled(mean(recorded, model.layers, model), recorded)

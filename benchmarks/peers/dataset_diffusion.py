"""Dataset Diffusion (Nguyen et al., NeurIPS 2023, arXiv 2309.14303): S^tau A, self-attention to the power of 4."""

from benchmarks.peers.common import Maps, Model, mean, scaled, spread
from pseudolabel.calibrate.recordings import PLAIN, Recorded, Wanted

POWER = 4


def wanted(model: Model) -> Wanted:
    """Return what is recorded."""
    return Wanted(model.layers, (model.spreading,), rules=(PLAIN,))


def soft_maps(recorded: Recorded, model: Model) -> Maps:
    """Return class maps. Where we differ: one noised look at a given image, not the whole denoising of a drawn one."""
    return scaled(spread(mean(recorded, model.layers, model), recorded, model, POWER), recorded)

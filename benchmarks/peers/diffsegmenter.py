"""DiffSegmenter (Wang et al., IEEE TIP 2025, arXiv 2309.02773): layers weighed by their resolution, then S once."""

from benchmarks.peers.common import Maps, Model, scaled, spread, weighted_mean
from pseudolabel.calibrate.recordings import PLAIN, Recorded, Wanted

# Of cross-attention at 8, 16, 32 and 64 cells a side of Stable Diffusion's latent of 64: by the latent's side over the
# grid's. A weight belongs to a resolution, whatever number of layers has it.
WEIGHTS = {8: 0.3, 4: 0.5, 2: 0.1, 1: 0.1}


def wanted(model: Model) -> Wanted:
    """Return what is recorded."""
    return Wanted(model.layers, (model.spreading,), rules=(PLAIN,))


def soft_maps(recorded: Recorded, model: Model) -> Maps:
    """Return class maps. Where we differ: the names of the classes are given, none is asked of a captioner."""
    weights = [WEIGHTS[layer.factor] / len(model.at(layer.factor)) for layer in model.layers]
    return scaled(spread(weighted_mean(recorded, model.layers, weights, model), recorded, model, 1), recorded)

"""iSeg (Sun et al., arXiv 2409.03209): self-attention of lower entropy, applied ten times."""

from benchmarks.peers.common import Maps, Model, mean, scaled
from pseudolabel.calibrate.recordings import PLAIN, Recorded, Wanted
from pseudolabel.softmaps.affinity import iterate_normalised, sharpened

SHARPENING = 0.015  # published for VOC


def wanted(model: Model) -> Wanted:
    """Return what is recorded: cross-attention at a quarter of the latent's side."""
    return Wanted(model.at(4), (model.spreading,), rules=(PLAIN,))


def soft_maps(recorded: Recorded, model: Model) -> Maps:
    """Return class maps. Where we differ: no category-enhanced cross-attention, which another model steers."""
    maps = scaled(mean(recorded, model.at(4), model), recorded)
    matrix = sharpened(recorded.attention[model.spreading.name].matrix(), SHARPENING)
    values = iterate_normalised(matrix, maps.flatten(2).transpose(1, 2))
    return scaled(values.transpose(1, 2).unflatten(-1, maps.shape[-2:]), recorded)

"""CDA (CD-CLIP, CVPR 2026): self-attention weighed by how alike the classes of two cells are."""

from benchmarks.peers.common import Maps, Model, mean, scaled
from pseudolabel.calibrate.recordings import PLAIN, Recorded, Wanted
from pseudolabel.softmaps.affinity import spread_between_alike
from pseudolabel.softmaps.config import AffinityConfig

SETTINGS = AffinityConfig(kind="cda", iterations=1, temperature=0.1)


def wanted(model: Model) -> Wanted:
    """Return what is recorded."""
    return Wanted(model.layers, (model.spreading,), rules=(PLAIN,))


def soft_maps(recorded: Recorded, model: Model) -> Maps:
    """Return class maps. Where we differ: the maps are the diffusion model's, not CLIP's."""
    maps = scaled(mean(recorded, model.layers, model), recorded)
    matrix = recorded.attention[model.spreading.name].matrix()
    values = spread_between_alike(matrix, maps.flatten(2).transpose(1, 2), SETTINGS)
    return scaled(values.transpose(1, 2).unflatten(-1, maps.shape[-2:]), recorded)

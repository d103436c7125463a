"""The arena's reading: attention recorded once for each image and sentence, and the soft maps of every method."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.common import DEMO_CLASSES
from benchmarks.peers import cda, daam, dataset_diffusion, diffsegmenter, goca, gradcam, iseg
from benchmarks.peers.common import Model
from benchmarks.refinements import paper
from data.demo.world import Scene
from data.store.softmaps import Frame, SoftMaps
from pseudolabel.calibrate.pictures import Picture
from pseudolabel.calibrate.recordings import PLAIN, Wanted, record
from pseudolabel.config import GenerateConfig
from pseudolabel.pipeline import Pipeline, to_soft_maps
from pseudolabel.softmaps.config import DiffusionConfig
from pseudolabel.softmaps.diffusion.families import list_layers
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.diffusion.parts import Parts, pick_device
from pseudolabel.softmaps.passes import Reader

Maps = list[SoftMaps]  # of each scene

PEERS = {
    "daam": daam,
    "dataset_diffusion": dataset_diffusion,
    "diffsegmenter": diffsegmenter,
    "iseg": iseg,
    "goca": goca,
    "cda": cda,
}
SENTENCES = {"with background words": True, "classes alone": False}
PEER_DRAWS = 2
OURS = ("paper preset", "default")


def titles() -> dict[str, str]:
    """Return what each peer is called and where it is from: the first words of its file, up to the colon."""
    modules: dict[str, Any] = {**PEERS, "gradcam": gradcam}
    return {name: (module.__doc__ or name).partition(":")[0] for name, module in modules.items()}


def ours(default: GenerateConfig) -> dict[str, GenerateConfig]:
    """Return the settings of the rows that go through the pipeline; more draws gain nothing on this model."""
    published = paper(default)
    published = replace(published, diffusion=replace(published.diffusion, draws=PEER_DRAWS))
    return {"paper preset": published, "default": default}


@dataclass(frozen=True)
class Arena:
    """The model and what is needed to read it.

    Attributes:
        parts: the diffusion model, whole.
        default: settings of the default.
        model: the layers that peers read.
        classifier: Grad-CAM's.

    """

    parts: Parts
    default: GenerateConfig
    model: Model
    classifier: nn.Module

    @classmethod
    def load(cls, default: GenerateConfig, classifier: nn.Module) -> "Arena":
        """Load the model that the default names."""
        parts = load_parts(default.model, pick_device("cpu"), torch.float32)
        return cls(parts, default, layers_of(parts, default), classifier)

    def reader(self, words: bool) -> Reader:
        """Return what reads images for the peers: at the default's timestep and the model's usual size."""
        diffusion = DiffusionConfig(timesteps=self.default.diffusion.timesteps, draws=PEER_DRAWS)
        prompt = replace(self.default.prompt, background_words=words)
        resize = replace(self.default.resize, long_side_px=None)
        return Reader(self.parts, DEMO_CLASSES, prompt, diffusion, resize, self.default.run)


def layers_of(parts: Parts, default: GenerateConfig) -> Model:
    """Return the layers that peers read."""
    layers = list_layers(parts)
    [spreading] = [layer for layer in layers if layer.name == default.attention.self_layers[-1]]
    return Model(layers, spreading)


def read_world(arena: Arena, world: str, scenes: Sequence[Scene]) -> dict[str, dict[str, Maps]]:
    """Return every method's soft maps of every scene, by reading: peers have one for each sentence."""
    pictures = [Picture(f"{world}_{index:06d}", scene.rgb, scene.labels) for index, scene in enumerate(scenes)]
    found: dict[str, dict[str, Maps]] = {name: {} for name in (*PEERS, "gradcam", *OURS)}
    for sentence, words in SENTENCES.items():
        peers = {name: peer for name, peer in PEERS.items() if words or name != "goca"}  # it shares out among words
        everything = Wanted(
            arena.model.layers,
            (arena.model.spreading,),
            (PLAIN, *((goca.RULE,) if "goca" in peers else ())),
            arena.model.spreading if "goca" in peers else None,
        )
        recorded = record(arena.reader(words), pictures, everything)
        for sentences in tqdm(recorded, f"{world}, {sentence}", total=len(scenes), leave=False):
            for name, peer in peers.items():
                found[name].setdefault(sentence, []).append(peer_maps(peer, sentences, arena.model))
    found["gradcam"]["image"] = [classifier_maps(arena.classifier, scene) for scene in scenes]
    for name, config in ours(arena.default).items():
        pipeline = Pipeline(arena.parts, config, DEMO_CLASSES, cut=False)
        shown = tqdm(pictures, f"{world}, {name}", leave=False)
        found[name]["its own"] = [pipeline.soft_maps([p.rgb_u8], [p.labels], [p.id])[0] for p in shown]
    return found


@torch.inference_mode()
def peer_maps(peer: Any, sentences: Sequence[Any], model: Model) -> SoftMaps:
    """Return a peer's soft maps of one image, the mean over noise draws; all its classes fit into one sentence."""
    [recorded] = sentences
    return to_soft_maps(peer.soft_maps(recorded, model).mean(dim=0), recorded.picture.labels, recorded.frame)


def classifier_maps(classifier: nn.Module, scene: Scene) -> SoftMaps:
    """Return Grad-CAM's soft maps of a scene."""
    size_hw = (scene.mask.shape[0], scene.mask.shape[1])
    frame = Frame(size_hw, size_hw, size_hw)
    return to_soft_maps(gradcam.soft_maps(classifier, scene.rgb, scene.labels), scene.labels, frame)

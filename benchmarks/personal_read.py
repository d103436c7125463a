"""What the shipped model shows of a learned token and its class word: tokens learned, scenes read, kept in a folder."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml

from benchmarks.common import DEMO_MODEL, HERE
from data.classes import ClassSet
from data.demo.personal import SUBSETS, Concept
from data.images import read_image
from data.masks import read_mask
from pseudolabel.config import RunConfig
from pseudolabel.personalize.config import LookConfig, PersonalizeConfig
from pseudolabel.personalize.training import learn
from pseudolabel.softmaps.affinity import SelfAttention
from pseudolabel.softmaps.config import DiffusionConfig, ModelConfig, PromptConfig, ResizeConfig
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.diffusion.unet import list_layers
from pseudolabel.softmaps.grids import resize_maps
from pseudolabel.softmaps.layers import resolve_layers
from pseudolabel.softmaps.passes import Reader
from pseudolabel.softmaps.reading import class_weights, run_passes

PERSONAL_CONFIG = HERE.parent / "configs/pseudolabel/demo_personal.yaml"
LAYERS = (
    "down_blocks.1.attentions.0",
    "down_blocks.2.attentions.0",
    "up_blocks.0.attentions.1",
    "up_blocks.1.attentions.1",
)
READ_AT = DiffusionConfig(timesteps=(30,), draws=2)  # and at the default size, unlike configs/pseudolabel/demo.yaml
SELF_LAYER = "up_blocks.1.attentions.1"
SENTENCES = {"class": (2,), "token": (1,), "both": (1, 2)}  # labels: 1 the token, 2 the class word


def personal_config(options: argparse.Namespace, root: Path, concept: Concept, output: Path) -> PersonalizeConfig:
    """Return settings as `pseudolabel personalize --config configs/pseudolabel/demo_personal.yaml` has them."""
    given = yaml.safe_load(PERSONAL_CONFIG.read_text())
    given |= {"model": ModelConfig(**given["model"]), "timesteps": tuple(given["timesteps"])}
    look = {key: tuple(value) if isinstance(value, list) else value for key, value in given["look"].items()}
    given["look"] = LookConfig(**look)
    given |= {"steps": options.steps} if options.steps else {}
    images = root / concept.name / "references"
    named = {"images": images, "init_word": concept.class_word, "token": concept.token, "output": output}
    return PersonalizeConfig(**given, **named, seed=options.seed, device="cpu")


def maps_of(
    options: argparse.Namespace, root: Path, concept: Concept, kind: str, look: LookConfig | None
) -> dict[str, np.ndarray]:
    """Learn a token and read all scenes of its concept with it; (scenes, 2, layers, maps, rows, columns) by sentence.

    The second axis is: as read, and spread by self-attention.
    """
    folder = options.work / f"{kind}_{options.scenes}_{options.seed}_{options.steps or 'default'}"
    token = folder / f"{concept.name}.safetensors"
    if not token.exists():
        config = personal_config(options, root, concept, token)
        learned = learn(config if look is None else replace(config, look=look))
        print(f"{kind} {concept.token}: loss {learned.first:.4f} to {learned.last:.4f}", flush=True)
    alone = options.work / f"class_{options.scenes}_{options.seed}" / f"{concept.name}.npz"
    found = read_scenes(options, root, concept, (), ("class",), alone)
    return found | read_scenes(options, root, concept, (str(token),), ("token", "both"), token.with_suffix(".npz"))


def read_scenes(
    options: argparse.Namespace,
    root: Path,
    concept: Concept,
    tokens: tuple[str, ...],
    names: Sequence[str],
    cache: Path,
) -> dict[str, np.ndarray]:
    """Read all scenes of a concept with some sentences, or return what was read before.

    Args:
        options: the command line's.
        root: folder of the scenes.
        concept: what is looked for.
        tokens: files of learned tokens.
        names: of the sentences, keys of SENTENCES.
        cache: file that keeps what was read.

    Returns:
        By sentence (scenes, 2, layers, maps, rows, columns); the second axis is: as read, and spread.

    """
    if not cache.exists():
        model = ModelConfig(id=str(DEMO_MODEL), tokens=tokens)
        parts = load_parts(model, torch.device("cpu"), torch.float32)
        classes = ClassSet((concept.token, concept.class_word), (concept.token, concept.class_word), ((), ()))
        diffusion = replace(READ_AT, seed=options.seed)
        reader = Reader(parts, classes, PromptConfig(), diffusion, ResizeConfig(), RunConfig(device="cpu"))
        paths = [path for subset in SUBSETS for path in sorted((root / concept.name / subset / "images").iterdir())]
        rows = {name: [read_scene(reader, path, SENTENCES[name]) for path in paths] for name in names}
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(cache, **{name: np.stack(read).astype(np.float16) for name, read in rows.items()})
    with np.load(cache) as stored:
        return {name: stored[name].astype(np.float32) for name in names}


@torch.inference_mode()
def read_scene(reader: Reader, path: Path, labels: tuple[int, ...]) -> np.ndarray:
    """Return what the layers showed of a scene, mean over noise draws: (2, layers, maps, rows, columns)."""
    available = list_layers(reader.parts.denoiser)
    cross, own = resolve_layers(available, LAYERS, "layers"), resolve_layers(available, (SELF_LAYER,), "layers")
    image_id = f"{path.parent.parent.name}/{path.stem}"
    passes = list(reader.passes(0, read_image(path), reader.plan(labels), image_id))
    weights = class_weights([item.prompt for item in passes], passes[0].text.tokens.shape[1])
    recording = run_passes(reader.parts, cross, own, passes, weights)
    latent_hw = passes[0].latent_hw
    attention = SelfAttention(*recording.queries_and_keys(own[0]), own[0].grid_hw(latent_hw))
    grid = attention.grid_hw
    by_name = {layer.name: resize_maps(recording.cross_map(layer, latent_hw), grid) for layer in cross}
    maps = torch.stack([by_name[name] for name in LAYERS])
    spread = [attention.power(one.flatten(2).transpose(1, 2), 1).transpose(1, 2).unflatten(-1, grid) for one in maps]
    return torch.stack([maps, torch.stack(spread)]).mean(2).numpy()


def read_truths(folder: Path) -> np.ndarray:
    """Return the true masks of a concept's scenes, in the order of `maps_of`."""
    paths = [path for subset in SUBSETS for path in sorted((folder / subset / "masks").iterdir())]
    return np.stack([read_mask(path) > 0 for path in paths])

"""Scenes as the diffusion model is trained on them: drawn, encoded once, kept, and drawn again in any order."""

import json
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, Float16, UInt8
from torch import Tensor
from tqdm import tqdm

from data.demo.scene import Scene, draw_portrait, draw_scene
from pseudolabel.demo.training.loop import Session

TRAINING_STREAM = 7001  # keeps the training's scenes apart from those of the world's own splits
PORTRAIT_STREAM = 7002
Words = list[tuple[str, ...]]
Labels = list[tuple[int, ...]]
Batch = tuple[Float[Tensor, "batch channels height width"], Labels, Words]


def training_scene(seed: int, index: int, portraits: Sequence[float] = (0,)) -> Scene:
    """Draw scene number `index` of the training stream; `portraits` are the odds of one, for each place in a batch."""
    random = np.random.default_rng([PORTRAIT_STREAM, seed, index])
    if random.random() < portraits[index % len(portraits)]:
        return draw_portrait(random, drawings="train")
    return draw_scene(np.random.default_rng([TRAINING_STREAM, seed, index]), drawings="train")


class SceneStream(torch.utils.data.Dataset):
    """Scenes by number, drawn when asked for: uint8 (3, 128, 128), class ids, and names of the grounds."""

    def __init__(self, seed: int, start: int, count: int, portraits: Sequence[float]) -> None:
        self.seed, self.start, self.count, self.portraits = seed, start, count, portraits

    def __len__(self) -> int:
        """Return how many scenes there are."""
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, tuple[int, ...], tuple[str, ...]]:
        """Draw one scene; its mask stays behind."""
        scene = training_scene(self.seed, self.start + index, self.portraits)
        return scene.rgb.transpose(2, 0, 1), scene.labels, scene.grounds


def scene_batches(
    seed: int, start: int, count: int, batch: int, workers: int, portraits: Sequence[float] = (0,)
) -> Iterator[Batch]:
    """Yield whole batches of the scenes from `start` to below `start + count`: pixels in [-1, 1], labels, grounds."""

    def collate(rows: list) -> Batch:
        pixels = torch.from_numpy(np.stack([row[0] for row in rows]))
        return pixels, [row[1] for row in rows], [row[2] for row in rows]

    loader = torch.utils.data.DataLoader(
        SceneStream(seed, start, count, portraits), batch, num_workers=workers, collate_fn=collate, drop_last=True
    )
    for pixels, labels, grounds in loader:
        yield pixels.float() / 127.5 - 1, labels, grounds


def drawn_scenes(session: Session, seed: int, count: int) -> UInt8[np.ndarray, "scenes 3 height width"]:
    """Return the first scenes of the training stream as pixels, drawn once and kept."""
    path = session.work_dir / "scenes.npy"
    if not path.exists():
        size = min(50, count)
        batches = scene_batches(seed, 0, count, size, session.workers)
        bar = tqdm(batches, "draw scenes", total=count // size, unit="batch")
        temporary = path.with_suffix(".tmp.npy")  # a kill must not leave half of it under the name that is looked for
        np.save(temporary, np.concatenate([((pixels + 1) * 127.5).round().byte().numpy() for pixels, _, _ in bar]))
        temporary.replace(path)
    return np.load(path, mmap_mode="r")


def random_crops(
    scenes: UInt8[np.ndarray, "scenes 3 height width"], count: int, generator: torch.Generator, size: int = 64
) -> Float[Tensor, "count 3 size size"]:
    """Return square pieces of random scenes at random places, half of them mirrored, in [-1, 1]."""
    shape = (len(scenes), scenes.shape[2] - size + 1, scenes.shape[3] - size + 1, 2)
    pieces = []
    for _ in range(count):
        scene, top, left, mirrored = (int(torch.randint(end, (), generator=generator)) for end in shape)
        piece = torch.tensor(scenes[scene, :, top : top + size, left : left + size])
        pieces.append(piece.flip(-1) if mirrored else piece)
    return torch.stack(pieces).float() / 127.5 - 1


@torch.no_grad()
def encode(
    vae: AutoencoderKL, pixels: Float[Tensor, "batch 3 height width"]
) -> Float16[Tensor, "batch channels rows columns"]:
    """Return scaled latents (the posterior's mode) of pixels in [-1, 1], in half precision."""
    with torch.autocast(pixels.device.type, torch.bfloat16):
        return (vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor).half()


def latent_batches(
    session: Session,
    vae: AutoencoderKL,
    seed: int,
    scenes: int,
    batch: int,
    first_step: int,
    order: int = 0,
    portraits: Sequence[float] = (0,),
) -> Iterator[Batch]:
    """Yield (latents, labels, grounds) from `first_step` on, without end.

    Args:
        session: Device and workers, and where the cache is kept.
        vae: The trained autoencoder.
        seed: Of the scenes and of the order they come in.
        scenes: Size of the cache (of each kind), seen again and again; 0 draws every scene afresh.
        batch: Scenes a step.
        first_step: Where a resumed training goes on: the same step gets the same scenes.
        order: Another number, another order of the cached scenes.
        portraits: For each place in a batch the odds that a portrait takes it (again from the first on after the last).

    """
    if scenes == 0:
        for pixels, labels, grounds in scene_batches(
            seed, first_step * batch, 2**40, batch, session.workers, portraits
        ):
            yield encode(vae, pixels.to(session.device)).float(), labels, grounds
        return
    kinds = [cached_latents(session, vae, seed, scenes)]
    if any(portraits):
        kinds.append(cached_latents(session, vae, seed, scenes, portraits=True))
    for step in range(first_step, 2**62):
        random = np.random.default_rng([seed + order, 1, step])
        chosen = random.integers(len(kinds[0][1]), size=batch)
        shares = np.resize(portraits, batch)
        drawn = [(*kinds[int(random.random() < share)], index) for share, index in zip(shares, chosen, strict=True)]
        latents = torch.from_numpy(np.stack([kind[index] for kind, _, _, index in drawn]))
        labels = [tuple(kind[index]) for _, kind, _, index in drawn]
        yield latents.to(session.device).float(), labels, [tuple(kind[index]) for _, _, kind, index in drawn]


def cached_latents(
    session: Session, vae: AutoencoderKL, seed: int, scenes: int, portraits: bool = False
) -> tuple[Float16[np.ndarray, "scenes channels height width"], Labels, Words]:
    """Return latents of the scenes (or portraits) with labels and grounds, encoded once and kept."""
    kind = "portrait_" if portraits else ""
    array_file, words_file = session.work_dir / f"{kind}latents.npy", session.work_dir / f"{kind}words.json"
    if not words_file.exists():
        encoded: list[np.ndarray] = []
        labels: Labels = []
        grounds: Words = []
        size = min(50, scenes)
        batches = scene_batches(seed, 0, scenes, size, session.workers, (float(portraits),))
        for pixels, present, ground in tqdm(batches, f"encode {kind}scenes", total=scenes // size, unit="batch"):
            encoded.append(encode(vae, pixels.to(session.device)).cpu().numpy())
            labels += present
            grounds += ground
        np.save(array_file, np.concatenate(encoded))
        words_file.write_text(json.dumps({"labels": labels, "grounds": grounds}), encoding="utf-8")
    words = json.loads(words_file.read_text(encoding="utf-8"))
    return np.load(array_file, mmap_mode="r"), words["labels"], words["grounds"]

"""Trains a tiny image encoder and decoder that make the shipped model's own latents, and pictures of them, for less.

    python -m pseudolabel.demo.training.train_tiny_encoder --work_dir W         # one CPU core: five minutes
    pseudolabel generate ... --model.vae data/demo/tiny_encoder

The same kind of network as TAESD (diffusers' AutoencoderTiny), by distillation on drawn scenes: the encoder learns the
latents that the model's own encoder makes of a scene, the decoder the scene from these latents. Masks and captions are
never seen. Scenes number `train_scenes` and up of the training stream, which neither sees, say when it is done; the
same command resumes after a kill.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

import data
from pseudolabel.demo.training.latents import drawn_scenes, random_crops
from pseudolabel.demo.training.loop import Session, provenance, write_log
from pseudolabel.personalize.steps import optimise, restore, save_state, schedule
from pseudolabel.softmaps.diffusion.load import weight_hashes

DEMO = Path(data.__file__).parent / "demo"
SPENT = "spent.json"


@dataclass(frozen=True)
class TinyRecipe:
    """Everything that changes the trained weights."""

    seed: int = 0
    train_scenes: int = 1_400
    held_out_scenes: int = 200
    width: int = 32
    blocks: tuple[int, ...] = (0, 1, 3)
    """Residual blocks at a whole, half and quarter of the image's side; few where the side is large."""
    steps: int = 3_000
    batch: int = 8
    lr: float = 2e-3
    decay_from: float = 0.4
    """Share of the steps after which the learning rate goes down to zero."""


def main(
    output: Path = DEMO / "tiny_encoder",
    model: Path = DEMO / "model",
    work_dir: Path = Path("runs/tiny_encoder"),
    device: Literal["cpu", "cuda"] = "cpu",
    workers: int = 1,
    save_every: int = 500,
    recipe: TinyRecipe = TinyRecipe(),
) -> None:
    """Train a tiny encoder and decoder against a model's own.

    Args:
        output: Directory of the finished autoencoder; `--model.vae` takes it.
        model: Directory of the diffusion model.
        work_dir: Drawn scenes, checkpoints and the log; the same command with the same directory resumes.
        device: Where to train.
        workers: Processes that draw scenes.
        save_every: Steps between checkpoints.
        recipe: Sizes, learning rate and the rest of what changes the result.

    """
    work_dir.mkdir(parents=True, exist_ok=True)
    session = Session(work_dir, torch.device(device), workers, save_every)
    own = AutoencoderKL.from_pretrained(model / "vae", low_cpu_mem_usage=False, torch_dtype=torch.float32)
    own.to(session.device).eval().requires_grad_(False)
    scenes = drawn_scenes(session, recipe.seed, recipe.train_scenes + recipe.held_out_scenes)
    tiny = distil(recipe, session, own, scenes[: recipe.train_scenes])
    figures = differences(own, tiny, scenes[recipe.train_scenes :], session.device)
    tiny.half().save_pretrained(output)
    record = {
        "recipe": asdict(recipe),
        "processor_seconds": round(_spent(work_dir), 1),
        **provenance(session.device),
        "parameters": {name: _parameters(getattr(tiny, name)) for name in ("encoder", "decoder")}
        | {"own_encoder": _parameters(own.encoder)},
        "figures": figures,
        "sha256": weight_hashes(output),
    }
    (output / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


def build_tiny(own: AutoencoderKL, width: int, blocks: tuple[int, ...]) -> AutoencoderTiny:
    """Return an untrained tiny autoencoder whose latents have the size and channels of another's.

    It gives scaled latents, as all tiny encoders do: its own scaling factor is 1.
    """
    widths = (width,) * len(own.config.block_out_channels)
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks[::-1],
        latent_channels=own.config.latent_channels,
        scaling_factor=1.0,
    )


def distil(
    recipe: TinyRecipe, session: Session, own: AutoencoderKL, scenes: UInt8[np.ndarray, "scenes 3 height width"]
) -> AutoencoderTiny:
    """Train on random pieces of scenes: squared error of latents, absolute error of pictures from the true latents."""
    state_file = session.work_dir / "tiny_state.pt"
    torch.manual_seed(recipe.seed)
    tiny = build_tiny(own, recipe.width, recipe.blocks).to(session.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(tiny.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=0.0)
    first = restore(state_file, session.device, tiny=tiny, optimizer=optimizer)
    spent_before = _spent(session.work_dir) - time.process_time() if first else -time.process_time()
    bar = tqdm(range(first, recipe.steps), "tiny encoder", initial=first, total=recipe.steps, unit="step")
    for step in bar:
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        pixels = random_crops(scenes, recipe.batch, generator).to(session.device)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        wanted = scaled_latents(own, pixels)
        latent_loss = (tiny.encoder(pixels) - wanted).square().mean()
        picture_loss = (tiny.decode(wanted).sample - pixels).abs().mean()
        rate = recipe.lr * schedule(step, recipe.steps, recipe.decay_from)
        optimise(latent_loss + picture_loss, tiny.parameters(), optimizer, rate)
        if step % 50 == 0:
            write_log(session.work_dir, "tiny", step, (step + 1) * recipe.batch, latent_loss.item())
            bar.set_postfix(latent=f"{latent_loss.item():.4f}", picture=f"{picture_loss.item():.4f}")
        if (step + 1) % session.save_every == 0:
            save_state(state_file, step + 1, tiny=tiny, optimizer=optimizer)
            spent = json.dumps({"processor_seconds": spent_before + time.process_time()})
            (session.work_dir / SPENT).write_text(spent, encoding="utf-8")
    return tiny.eval()


@torch.no_grad()
def scaled_latents(own: AutoencoderKL, pixels: Float[Tensor, "batch 3 height width"]) -> Tensor:
    """Return the latents that the diffusion model reads: the posterior's mode, scaled."""
    latents: Tensor = own.encode(pixels).latent_dist.mode() * own.config.scaling_factor
    return latents


@torch.no_grad()
def differences(
    own: AutoencoderKL, tiny: AutoencoderTiny, scenes: UInt8[np.ndarray, "scenes 3 height width"], device: torch.device
) -> dict[str, float]:
    """Return how far whole scenes' latents and pictures are apart.

    `latent_error`: root mean square of the difference over that of the own latents; `picture_error`,
    `own_picture_error`: mean absolute error of a scene encoded and decoded again, pixels from 0 to 1.
    """
    squares = np.zeros(2)
    errors = np.zeros(2)
    for scene in tqdm(scenes, "held-out scenes", unit="scene"):
        pixels = torch.tensor(scene)[None].to(device).float() / 127.5 - 1
        wanted, found = scaled_latents(own, pixels), tiny.encode(pixels).latents
        squares += [(found - wanted).square().mean().item(), wanted.square().mean().item()]
        pictures = (tiny.decode(found).sample, own.decode(wanted / own.config.scaling_factor).sample)
        errors += [(picture - pixels).abs().mean().item() / 2 for picture in pictures]
    return {
        "scenes": len(scenes),
        "latent_error": round(float((squares[0] / squares[1]) ** 0.5), 4),
        "picture_error": round(float(errors[0] / len(scenes)), 4),
        "own_picture_error": round(float(errors[1] / len(scenes)), 4),
    }


def _parameters(module: Any) -> int:
    return sum(value.numel() for value in module.parameters())


def _spent(work_dir: Path) -> float:
    """Return the processor time of a training up to its last checkpoint, in seconds, over all its runs."""
    path = work_dir / SPENT
    return float(json.loads(path.read_text(encoding="utf-8"))["processor_seconds"]) if path.is_file() else 0.0


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)

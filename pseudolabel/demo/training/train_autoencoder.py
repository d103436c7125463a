"""The first training of the shipped model: an autoencoder that keeps the colours and shapes of objects."""

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from pseudolabel.demo.training.latents import drawn_scenes, random_crops
from pseudolabel.demo.training.loop import Session, write_log
from pseudolabel.demo.training.model_parts import build_autoencoder
from pseudolabel.demo.training.recipe import Recipe
from pseudolabel.personalize.steps import optimise, restore, save_state, schedule


def train_autoencoder(recipe: Recipe, session: Session) -> AutoencoderKL:
    """Return the trained autoencoder, its scaling factor such that latents have unit deviation; resumes.

    The loss is absolute and squared error, with a small Kullback-Leibler term.
    """
    done, state_file = session.work_dir / "vae", session.work_dir / "vae_state.pt"
    if (done / "config.json").exists():
        return AutoencoderKL.from_pretrained(done, low_cpu_mem_usage=False).to(session.device)
    torch.manual_seed(recipe.seed)
    vae = build_autoencoder().to(session.device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.vae_lr, betas=(0.9, 0.99), weight_decay=0.01)
    first = restore(state_file, session.device, vae=vae, optimizer=optimizer)
    scenes = drawn_scenes(session, recipe.seed, recipe.vae_scenes)
    bar = tqdm(range(first, recipe.vae_steps), "autoencoder", initial=first, total=recipe.vae_steps, unit="step")
    for step in bar:
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        pixels = random_crops(scenes, recipe.vae_batch, generator).to(session.device)
        loss = autoencoder_loss(vae, pixels, generator)
        rate = recipe.vae_lr * schedule(step, recipe.vae_steps, decay_from=0.3)
        optimise(loss, vae.parameters(), optimizer, rate)
        if step % 50 == 0:
            write_log(session.work_dir, "autoencoder", step, (step + 1) * recipe.vae_batch, loss.item())
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % session.save_every == 0:
            save_state(state_file, step + 1, vae=vae, optimizer=optimizer)
    with torch.no_grad():
        pixels = torch.tensor(scenes[:256]).to(session.device).float() / 127.5 - 1
        deviation = vae.encode(pixels).latent_dist.mode().std().item()
    vae.register_to_config(scaling_factor=round(1 / deviation, 5))
    vae.save_pretrained(done)
    return vae


def autoencoder_loss(
    vae: AutoencoderKL, pixels: Float[Tensor, "batch 3 height width"], generator: torch.Generator
) -> Tensor:
    """Return the reconstruction error of a posterior sample, and how far the posterior is from a standard normal."""
    with torch.autocast(pixels.device.type, torch.bfloat16):
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(pixels.device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    error = decoded.float() - pixels
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    return error.abs().mean() + error.square().mean() + 1e-4 * divergence

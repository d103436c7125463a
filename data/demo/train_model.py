"""Trains the shipped text-to-image model on drawn scenes and their captions; masks are never seen.

    python -m data.demo.train_model --work_dir W                    # two CPU cores: under two hours
    python -m data.demo.train_model --work_dir W --device cuda      # minutes; scenes drawn on the fly
    python -m data.demo.train_model --evaluate                      # figures of data/demo/model on `val`

Two trainings in a row: an autoencoder (reconstruction, a small Kullback-Leibler term) and then a latent diffusion
model with its text encoder (v-prediction, Salimans and Ho, arXiv 2202.00512). The same command resumes after a kill.
The result is a plain Stable Diffusion directory that `diffusers.StableDiffusionPipeline.from_pretrained` loads.

Choices that matter for attention that *names* what it looks at (measured on `val`, see the model card):

* noise levels are drawn from the upper part of the schedule first and from lower down later: words are only worth
  attending to where the image no longer says what it is;
* the text encoder starts as (almost) the identity on words, so that two class words are told apart from step one.

With `latents`, `training`, `model_parts`, `measure_model` and `show_model` this is the one part of `data/` that imports
torch; nothing outside it imports them.
"""

import json
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from data.demo.captions import caption, class_word
from data.demo.latents import latent_batches, scene_batches
from data.demo.measure_model import Localisation, evaluate_model
from data.demo.model_parts import (
    build_autoencoder,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
)
from data.demo.training import Session, optimise, restore, save_state, schedule, warming_average, write_log
from data.demo.word_presence import Words, class_words, record_queries, word_presence_loss
from data.demo.world import split_scenes

MODEL_DIR = Path(__file__).parent / "model"
CONFIG = Path(__file__).parents[2] / "configs" / "pseudolabel" / "demo.yaml"


@dataclass(frozen=True)
class Recipe:
    """Everything that changes the trained weights."""

    seed: int = 0
    scenes: int = 14_000
    """Different scenes drawn, encoded once and seen again and again with flips; 0 draws every scene afresh."""
    vae_steps: int = 1_300
    vae_batch: int = 8
    vae_lr: float = 1.5e-3
    steps: int = 5_000
    batch: int = 32
    lr: float = 8e-4
    decay_from: float = 0.6
    """Share of the steps after which the learning rate goes down to zero."""
    timestep_low: tuple[int, int] = (150, 50)
    """Lower end of the noise levels at the beginning and at the end; moves between 20 % and 80 % of the steps."""
    timestep_high: int = 900
    word_loss: float = 0.3
    """Weight of `word_presence_loss`, which knows the captions' words alone; 0 trains on the diffusion loss alone."""
    pooling: tuple[float, float] = (1.0, 0.35)
    """Sharpness of its pooling before and after 69 % of the steps: sharp finds the objects, soft covers them whole."""
    empty_captions: float = 0.08
    ema: float = 0.999


def main(
    output: Path = MODEL_DIR,
    work_dir: Path = Path("runs/demo_model"),
    device: Literal["auto", "cpu", "cuda"] = "auto",
    minutes: float | None = None,
    workers: int = 2,
    evaluate: bool = False,
    save_every: int = 500,
    measured_scenes: int = 160,
    recipe: Recipe = Recipe(),
) -> None:
    """Train the shipped diffusion model, or measure it.

    Args:
        output: Directory of the finished model, in diffusers' layout.
        work_dir: Cached latents, checkpoints and the log; the same command with the same directory resumes.
        device: Where to train; `auto` takes a GPU when there is one.
        minutes: Wall time for the diffusion training; sets its number of steps from the speed of the first ones.
        workers: Processes that draw scenes.
        save_every: Steps between checkpoints and measurements.
        measured_scenes: Scenes of `val` the class accuracy is measured on while training.
        evaluate: Only measure the model in `output` on `val` and write the figures into its training.json.
        recipe: Sizes, learning rates and the rest of what changes the result.

    """
    if evaluate:
        record = json.loads((output / "training.json").read_text())
        record["figures"] = evaluate_model(output, CONFIG)
        (output / "training.json").write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps(record["figures"], indent=1))
        return
    chosen = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    session = Session(work_dir, torch.device(chosen), workers, save_every, measured_scenes)
    work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(work_dir / "tokenizer")
    vae = train_autoencoder(recipe, session)
    trained = train_diffusion(recipe, session, minutes, vae, tokenizer)
    save_pipeline(output, vae, tokenizer, trained)
    record_training(output, recipe, session, trained)


def train_autoencoder(recipe: Recipe, session: Session) -> AutoencoderKL:
    """Absolute and squared error with a small Kullback-Leibler term; sets `scaling_factor` to unit deviation."""
    done, state_file = session.work_dir / "vae", session.work_dir / "vae_state.pt"
    if (done / "config.json").exists():
        return AutoencoderKL.from_pretrained(done, low_cpu_mem_usage=False).to(session.device)
    torch.manual_seed(recipe.seed)
    vae = build_autoencoder().to(session.device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.vae_lr, betas=(0.9, 0.99), weight_decay=0.01)
    first = restore(state_file, session.device, vae=vae, optimizer=optimizer)
    size, left = recipe.vae_batch, recipe.vae_steps - first
    batches = scene_batches(recipe.seed, first * size, left * size, size, session.workers)
    bar = tqdm(range(first, recipe.vae_steps), "autoencoder", initial=first, total=recipe.vae_steps, unit="step")
    for step in bar:
        pixels = next(batches)[0].to(session.device)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        loss = autoencoder_loss(vae, pixels, generator)
        rate = recipe.vae_lr * schedule(step, recipe.vae_steps, decay_from=0.3)
        optimise(loss, vae.parameters(), optimizer, rate)
        if step % 50 == 0:
            write_log(session.work_dir, "autoencoder", step, (step + 1) * size, loss.item())
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % session.save_every == 0:
            save_state(state_file, step + 1, vae=vae, optimizer=optimizer)
    with torch.no_grad():
        pixels = next(scene_batches(recipe.seed, 0, 256, 256, 0))[0].to(session.device)
        deviation = vae.encode(pixels).latent_dist.mode().std().item()
    vae.register_to_config(scaling_factor=round(1 / deviation, 5))
    vae.save_pretrained(done)
    return vae


def autoencoder_loss(
    vae: AutoencoderKL, pixels: Float[Tensor, "batch 3 height width"], generator: torch.Generator
) -> Tensor:
    """Reconstruction error of a posterior sample, and how far the posterior is from a standard normal."""
    with torch.autocast(pixels.device.type, torch.bfloat16):
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(pixels.device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    error = decoded.float() - pixels
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    return error.abs().mean() + error.square().mean() + 1e-4 * divergence


class Trained:
    """The diffusion model in training: weights, their running average, optimiser, and what has been spent."""

    def __init__(self, recipe: Recipe, tokenizer: CLIPTokenizer, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.unet = build_unet().to(device)
        if device.type == "cpu":  # the fused kernel's backward pass takes a third longer than plain products here
            self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder = build_text_encoder(tokenizer).to(device)
        self.models = torch.nn.ModuleList([self.unet, self.text_encoder])
        self.average = torch.optim.swa_utils.AveragedModel(self.models, multi_avg_fn=warming_average(recipe.ema))
        self.queries = record_queries(self.unet)
        self.optimizer = torch.optim.AdamW(
            self.models.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda"
        )
        self.step, self.steps, self.seconds = 0, recipe.steps, 0.0

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"models": self.models, "average": self.average, "optimizer": self.optimizer}

    def save(self, work_dir: Path) -> None:
        """Write a checkpoint."""
        (work_dir / "progress.json").write_text(json.dumps({"seconds": self.seconds, "steps": self.steps}))
        save_state(work_dir / "diffusion_state.pt", self.step, **self.parts())

    def restore(self, work_dir: Path) -> None:
        """Go on from a checkpoint when there is one."""
        device = next(self.unet.parameters()).device
        self.step = restore(work_dir / "diffusion_state.pt", device, **self.parts())
        if self.step:
            saved = json.loads((work_dir / "progress.json").read_text())
            self.seconds, self.steps = saved["seconds"], saved["steps"]

    def averaged(self) -> tuple[UNet2DConditionModel, CLIPTextModel]:
        """The averaged UNet and text encoder: what is measured and shipped."""
        parts = list(self.average.module.children())
        return parts[0], parts[1]


def train_diffusion(
    recipe: Recipe, session: Session, minutes: float | None, vae: AutoencoderKL, tokenizer: CLIPTokenizer
) -> Trained:
    """Train UNet and text encoder jointly on (latent, caption) pairs; resumes from the work folder."""
    trained = Trained(recipe, tokenizer, session.device)
    trained.restore(session.work_dir)
    batches = latent_batches(session, vae, recipe.seed, recipe.scenes, recipe.batch, trained.step)
    alphas_cumprod = build_scheduler().alphas_cumprod.to(session.device)
    measure = Localisation(vae, tokenizer, session.device, split_scenes("val", session.measured_scenes))
    network = torch.compile(trained.unet) if session.device.type == "cuda" else trained.unet
    bar = tqdm(total=trained.steps, initial=trained.step, desc="diffusion", unit="step")
    first, spent, began = trained.step, trained.seconds, time.monotonic()
    while trained.step < trained.steps:
        latents, labels, grounds = next(batches)
        captions = captions_of(recipe, trained.step, labels, grounds)
        tokens = token_ids(tokenizer, captions, session.device)
        words = class_words(tokenizer, tokens, captions, labels)
        loss = training_loss(recipe, trained, network, latents, tokens, words, alphas_cumprod)
        rate = recipe.lr * schedule(trained.step, trained.steps, recipe.decay_from)
        optimise(loss, trained.models.parameters(), trained.optimizer, rate)
        trained.average.update_parameters(trained.models)
        trained.step += 1
        trained.seconds = spent + time.monotonic() - began
        if minutes is not None and trained.step - first == 60:
            trained.steps = first + max(60, int((60 * minutes - spent) / (trained.seconds - spent) * 60))
            bar.total = trained.steps
        bar.update()
        report(recipe, session, trained, loss, measure, bar)
    return trained


def report(
    recipe: Recipe, session: Session, trained: Trained, loss: Tensor, measure: Localisation, bar: "tqdm[Any]"
) -> None:
    """Log, measure and checkpoint where the step's number says so."""
    milestone = trained.step % session.save_every == 0
    if milestone or trained.step == trained.steps:
        trained.save(session.work_dir)
    if trained.step % 25 and not milestone:
        return
    accuracy = max(measure.class_accuracy(*trained.averaged(), class_word).values()) if milestone else None
    samples = trained.step * recipe.batch
    write_log(session.work_dir, "diffusion", trained.step, samples, loss.item(), accuracy, trained.seconds)
    bar.set_postfix({"loss": f"{loss.item():.4f}", **({"class_accuracy": accuracy} if accuracy else {})})


def training_loss(
    recipe: Recipe,
    trained: Trained,
    network: Any,
    latents: Float[Tensor, "batch channels height width"],
    tokens: Int[Tensor, "batch tokens"],
    words: Words,
    alphas_cumprod: Float[Tensor, " timesteps"],
) -> Tensor:
    """Squared error of the predicted velocity v = sqrt(abar) eps - sqrt(1 - abar) z, and the word-presence loss."""
    device = latents.device
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + trained.step)
    low = timestep_low(recipe, trained.step / trained.steps)
    uniform = (torch.arange(len(latents)) + torch.rand(len(latents), generator=generator)) / len(latents)
    timesteps = (low + uniform * (recipe.timestep_high - low)).long().to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    kept = alphas_cumprod[timesteps]
    signal, sigma = kept.sqrt()[:, None, None, None], (1 - kept).sqrt()[:, None, None, None]
    with torch.autocast(device.type, torch.bfloat16):
        text = trained.text_encoder(tokens).last_hidden_state
        predicted = network(signal * latents + sigma * noise, timesteps, text).sample
    loss = (predicted.float() - (signal * noise - sigma * latents)).square().mean()
    if recipe.word_loss:
        # Where noise hides the image there is nothing to recognise: each scene counts as much as is left of it.
        sharpness = recipe.pooling[trained.step >= 0.69 * trained.steps]
        loss = loss + recipe.word_loss * word_presence_loss(trained.queries, text.float(), words, kept, sharpness)
    return loss


def timestep_low(recipe: Recipe, progress: float) -> int:
    """Lower end of the sampled noise levels: `timestep_low` from its first to its second value."""
    first, last = recipe.timestep_low
    return round(first + (last - first) * min(1.0, max(0.0, (progress - 0.2) / 0.6)))


def captions_of(recipe: Recipe, step: int, labels: list[tuple[int, ...]], grounds: list[tuple[str, ...]]) -> list[str]:
    """A caption for each scene of a step's batch; some are empty, so that the model also works without words."""
    random = np.random.default_rng([recipe.seed, 2, step])
    texts = [caption(present, ground, random) for present, ground in zip(labels, grounds, strict=True)]
    return ["" if random.random() < recipe.empty_captions else text for text in texts]


def token_ids(tokenizer: CLIPTokenizer, texts: list[str], device: torch.device) -> Int[Tensor, "batch tokens"]:
    """Token ids, padded to the text encoder's window as Stable Diffusion does."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)


def save_pipeline(output: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, trained: Trained) -> None:
    """Write a Stable Diffusion directory in half precision (safetensors)."""
    unet, text_encoder = trained.averaged()
    unet.set_default_attn_processor()
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (vae, text_encoder, unet):
        part.half()
    pipeline.save_pretrained(output, safe_serialization=True)


def record_training(output: Path, recipe: Recipe, session: Session, trained: Trained) -> None:
    """Write training.json and the loss log beside the weights."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    hardware = torch.cuda.get_device_name() if session.device.type == "cuda" else f"{torch.get_num_threads()} CPU cores"
    record = {
        "recipe": asdict(recipe),
        "steps": trained.step,
        "samples": trained.step * recipe.batch,
        "seconds": round(trained.seconds),
        "hardware": hardware,
        "torch": torch.__version__,
        "commit": commit.strip(),
        "megabytes": round(sum(f.stat().st_size for f in output.rglob("*.safetensors")) / 1e6, 2),
    }
    (output / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    (output / "training_log.csv").write_text((session.work_dir / "training_log.csv").read_text())


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)

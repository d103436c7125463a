"""The third training of the shipped model: UNet and text encoder, on latents and captions."""

import time
from typing import Any

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTokenizer

from pseudolabel.demo.training.captions import class_word
from pseudolabel.demo.training.latents import latent_batches
from pseudolabel.demo.training.loop import Session, write_log
from pseudolabel.demo.training.measure_model import ClassAccuracy
from pseudolabel.demo.training.model_parts import build_scheduler
from pseudolabel.demo.training.recipe import Recipe
from pseudolabel.demo.training.trained import Trained, captions_of, noise_and_velocity, padded_ids
from pseudolabel.demo.training.word_presence import Words, class_words, word_presence_loss
from pseudolabel.personalize.steps import optimise, schedule


def train_diffusion(
    recipe: Recipe,
    session: Session,
    trained: Trained,
    minutes: float | None,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    measure: ClassAccuracy,
) -> None:
    """Train U-Net and text encoder together on pairs of latents and captions; resumes from the work folder."""
    trained.restore(session.work_dir)
    alphas_cumprod = build_scheduler().alphas_cumprod.to(session.device)
    nothing = padded_ids(tokenizer, [""], session.device)
    network = torch.compile(trained.unet) if session.device.type == "cuda" else trained.unet
    bar = tqdm(total=trained.steps, initial=trained.step, desc="diffusion", unit="step")
    first, spent, began = trained.step, trained.seconds, time.monotonic()
    batches = None
    while trained.step < trained.steps:
        start, end, portraits = phase_of(recipe, trained.step, trained.steps)
        if batches is None or trained.step == start:
            batches = latent_batches(
                session, vae, recipe.seed, recipe.scenes, recipe.batch, trained.step, portraits=portraits
            )
        latents, labels, grounds = next(batches)
        captions = captions_of(recipe, trained.step, labels, grounds)
        tokens = padded_ids(tokenizer, captions, session.device)
        words = class_words(tokenizer, tokens, labels)
        loss = training_loss(recipe, trained, network, latents, tokens, nothing, words, alphas_cumprod)
        rate = recipe.lr * schedule(trained.step - start, end - start, recipe.decay_from)
        optimise(loss, trained.models.parameters(), trained.optimizer, rate)
        trained.average.update_parameters(trained.models)
        trained.step += 1
        trained.seconds = spent + time.monotonic() - began
        if minutes is not None and trained.step - first == 60:
            trained.steps = first + max(60, int((60 * minutes - spent) / (trained.seconds - spent) * 60))
            bar.total = trained.steps
        bar.update()
        report(recipe, session, trained, loss, measure, bar)


def phase_of(recipe: Recipe, step: int, steps: int) -> tuple[int, int, list[float]]:
    """Return the first step of a step's phase, the step after its last, and the odds that its scenes are portraits.

    The first phase shows the world's own scenes, the second portraits among them; both keep their share of `steps`.
    The odds are by place in a batch: it is the place that decides how much noise a scene gets.
    """
    second = round(steps * recipe.steps / (recipe.steps + recipe.portrait_steps))
    if step < second:
        return 0, second, [0.0]
    least_noise = torch.linspace(recipe.timestep_low, recipe.timestep_high, recipe.batch + 1)[:-1]
    return second, steps, [recipe.portraits * float(least >= recipe.portraits_from) for least in least_noise]


def report(
    recipe: Recipe, session: Session, trained: Trained, loss: Tensor, measure: ClassAccuracy, bar: "tqdm[Any]"
) -> None:
    """Log, measure and checkpoint where the step's number says so."""
    milestone = trained.step % session.save_every == 0
    if milestone or trained.step == trained.steps:
        trained.save(session.work_dir)
    if trained.step % 25 and not milestone:
        return
    accuracy = max(measure.by_layer(*trained.averaged(), class_word).values()) if milestone else None
    samples = trained.step * recipe.batch
    write_log(session.work_dir, "diffusion", trained.step, samples, loss.item(), accuracy, trained.seconds)
    bar.set_postfix({"loss": f"{loss.item():.4f}", **({"class_accuracy": accuracy} if accuracy else {})})


def training_loss(
    recipe: Recipe,
    trained: Trained,
    network: Any,
    latents: Float[Tensor, "batch channels height width"],
    tokens: Int[Tensor, "batch tokens"],
    nothing: Int[Tensor, "1 tokens"],
    words: Words,
    alphas_cumprod: Float[Tensor, " timesteps"],
) -> Tensor:
    """Return the squared error of the predicted velocity plus the weighted word-presence loss."""
    device = latents.device
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + trained.step)
    uniform = (torch.arange(len(latents)) + torch.rand(len(latents), generator=generator)) / len(latents)
    timesteps = (recipe.timestep_low + uniform * (recipe.timestep_high - recipe.timestep_low)).long().to(device)
    order = torch.randperm(len(latents), generator=generator)
    told = (order >= recipe.empty_captions * len(latents)).to(device)
    kept = alphas_cumprod[timesteps]
    noised, velocity = noise_and_velocity(latents, kept, generator)
    with torch.autocast(device.type, torch.bfloat16):
        text = trained.text_encoder(tokens).last_hidden_state
        shown = torch.where(told[:, None, None], text, trained.text_encoder(nothing).last_hidden_state)
        predicted = network(noised, timesteps, shown).sample
    loss = (predicted.float() - velocity).square().mean()
    if recipe.word_loss:
        # Where noise hides the image there is nothing to recognise: each scene counts as much as is left of it.
        loss = loss + recipe.word_loss * word_presence_loss(trained.queries, text.float(), words, kept, told)
    return loss

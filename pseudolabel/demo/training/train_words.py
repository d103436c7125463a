"""The second training of the shipped model: which words name what a scene shows.

Stable Diffusion's text encoder comes from CLIP, which has learned from images and captions what words look like. This
is that part of the training, with the diffusion model's own first layers as the image encoder: see `word_presence`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL
from tqdm import tqdm
from transformers import CLIPTokenizer

from pseudolabel.demo.training.captions import class_word
from pseudolabel.demo.training.latents import latent_batches
from pseudolabel.demo.training.loop import Session, write_log
from pseudolabel.demo.training.measure_model import ClassAccuracy
from pseudolabel.demo.training.model_parts import build_scheduler
from pseudolabel.demo.training.recipe import Recipe
from pseudolabel.demo.training.trained import Trained, captions_of, noise_and_velocity, padded_ids
from pseudolabel.demo.training.word_presence import class_words, word_presence_loss
from pseudolabel.personalize.steps import optimise, restore, save_state, schedule


class _Reached(Exception):
    """Ends a forward pass at the layer that is needed last."""


@contextmanager
def ends_at(layer: Any) -> Iterator[None]:
    """Within the context a forward pass ends where this attention layer has its queries and keys."""

    def stop(*_: Any) -> None:
        raise _Reached

    handle = layer.to_v.register_forward_pre_hook(stop)
    try:
        yield
    except _Reached:
        pass
    finally:
        handle.remove()


def train_words(
    recipe: Recipe,
    session: Session,
    trained: Trained,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    measure: ClassAccuracy,
) -> None:
    """Train the text encoder and the layers below the first cross-attention on words and slightly noised scenes.

    The pass ends there, at a fifth of a whole one's cost. Self-attention is left as it is: it would bring what a place
    shows from elsewhere. Does nothing once it has been done in this work folder.
    """
    state_file = session.work_dir / "words_state.pt"
    first_query = trained.queries[0]
    learned = [p for name, p in trained.models.named_parameters() if "attn1" not in name]
    optimizer = torch.optim.AdamW(learned, lr=recipe.word_lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    first = restore(state_file, session.device, models=trained.models, optimizer=optimizer)
    batches = latent_batches(session, vae, recipe.seed, recipe.scenes, recipe.word_batch, first, order=1)
    nothing = padded_ids(tokenizer, [""], session.device)
    nobody = torch.zeros(recipe.word_batch, dtype=torch.bool, device=session.device)
    alphas_cumprod = build_scheduler().alphas_cumprod.to(session.device)
    bar = tqdm(range(first, recipe.word_steps), "words", initial=first, total=recipe.word_steps, unit="step")
    for step in bar:
        latents, labels, grounds = next(batches)
        tokens = padded_ids(tokenizer, captions_of(recipe, step, labels, grounds), session.device)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        timesteps = torch.randint(recipe.word_timesteps, (len(latents),), generator=generator).to(session.device)
        kept = alphas_cumprod[timesteps]
        noised, _ = noise_and_velocity(latents, kept, generator)
        with torch.autocast(session.device.type, torch.bfloat16):
            text = trained.text_encoder(tokens).last_hidden_state
            with ends_at(first_query.layer):
                trained.unet(noised, timesteps, trained.text_encoder(nothing).last_hidden_state)
        words = class_words(tokenizer, tokens, labels)
        loss = word_presence_loss([first_query], text.float(), words, kept, nobody)
        optimise(loss, learned, optimizer, recipe.word_lr * schedule(step, recipe.word_steps, decay_from=0.5))
        done = step + 1
        milestone = done % session.save_every == 0 or done == recipe.word_steps
        if milestone:
            save_state(state_file, done, models=trained.models, optimizer=optimizer)
        if done % 25 == 0 or milestone:
            measured = measure.by_layer(trained.unet, trained.text_encoder, class_word) if milestone else None
            accuracy = measured[next(iter(measured))] if measured else None
            write_log(session.work_dir, "words", done, done * recipe.word_batch, loss.item(), accuracy)
            bar.set_postfix({"loss": f"{loss.item():.3f}", **({"class_accuracy": accuracy} if accuracy else {})})

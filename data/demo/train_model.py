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

This is the one file of `data/` that imports torch; nothing imports it.
"""

import csv
import json
import math
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from data.classes import VOC
from data.demo.measure_model import Localisation, evaluate_model
from data.demo.world import GROUNDS, Scene, draw_scene, split_scenes

MODEL_DIR = Path(__file__).parent / "model"
TEMPLATES = ("a photo including", "a photo of", "a picture with", "")
WORDS = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}
WINDOW = 48  # tokens; three classes, eight grounds and their commas take 40
TRAINING_STREAM = 7001  # keeps the training's scenes apart from those of the world's own splits


@dataclass(frozen=True)
class Recipe:
    """Everything that changes the trained weights."""

    seed: int = 0
    scenes: int = 24_000
    """Different scenes drawn, encoded once and seen again and again with flips; 0 draws every scene afresh."""
    vae_steps: int = 1_300
    vae_batch: int = 8
    vae_lr: float = 1.5e-3
    steps: int = 5_000
    batch: int = 32
    lr: float = 8e-4
    decay_from: float = 0.6
    """Share of the steps after which the learning rate goes down to zero."""
    timestep_low: tuple[int, int] = (400, 150)
    """Lower end of the noise levels at the beginning and at the end; moves between 20 % and 80 % of the steps."""
    timestep_high: int = 980
    empty_captions: float = 0.08
    ema: float = 0.999


def main(
    output: Path = MODEL_DIR,
    work_dir: Path = Path("runs/demo_model"),
    device: Literal["auto", "cpu", "cuda"] = "auto",
    minutes: float | None = None,
    workers: int = 2,
    evaluate: bool = False,
    recipe: Recipe = Recipe(),  # noqa: B008 - frozen
) -> None:
    """Train the shipped diffusion model, or measure it.

    Args:
        output: Directory of the finished model, in diffusers' layout.
        work_dir: Cached latents, checkpoints and the log; the same command with the same directory resumes.
        device: Where to train; `auto` takes a GPU when there is one.
        minutes: Wall time for the diffusion training; sets its number of steps from the speed of the first ones.
        workers: Processes that draw scenes.
        evaluate: Only measure the model in `output` on `val` and write the figures into its training.json.
        recipe: Sizes, learning rates and the rest of what changes the result.
    """
    if evaluate:
        evaluate_model(output)
        return
    place = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(work_dir / "tokenizer")
    vae = train_autoencoder(recipe, work_dir, place, workers)
    trained = train_diffusion(recipe, work_dir, place, workers, minutes, vae, tokenizer)
    save_pipeline(output, vae, tokenizer, *trained.averaged())
    record_training(output, work_dir, recipe, trained, place)


# ---------------------------------------------------------------------------------------------------- the models


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges make one token of every word of the world and spell out the others."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    words = sorted({w for text in (*TEMPLATES, *GROUNDS, *map(class_word, range(1, 21)), "and") for w in text.split()})
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789.,'-")
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, min_frequency=0, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(words, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=WINDOW)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_autoencoder() -> AutoencoderKL:
    """Eight pixels to a cell, eight channels: 128 x 128 x 3 becomes 16 x 16 x 8."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=128,
    )


def build_unet() -> UNet2DConditionModel:
    """Three levels (16, 8 and 4 cells a side), cross-attention in all but the lowest down and up blocks."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """One transformer layer, started as (almost) the identity on words: its residual branches give zero at first."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        projection_dim=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CLIPTextModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "out_proj" in name or "fc2" in name:
                weight.zero_()
            elif "token_embedding" in name:
                weight.normal_(0, 1)
            elif "position_embedding" in name:
                weight.normal_(0, 0.1)
    return model


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's scaled-linear betas with v-prediction."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


# ---------------------------------------------------------------------------------------------------- scenes, captions


def class_word(label: int) -> str:
    """The word of a class in captions: its VOC name, two words where English writes two."""
    return WORDS.get(VOC.name(label), VOC.name(label))


def caption(scene_labels: tuple[int, ...], grounds: tuple[str, ...], random: np.random.Generator) -> str:
    """A sentence naming the classes in random order, half of the time with the grounds mixed in."""
    words = [class_word(label) for label in scene_labels]
    if random.random() < 0.5:
        words += grounds
    words = [words[i] for i in random.permutation(len(words))]
    listed = words[0] if len(words) == 1 else ", ".join(words[:-1]) + ", and " + words[-1]
    return f"{TEMPLATES[random.integers(len(TEMPLATES))]} {listed}{'.' if random.random() < 0.5 else ''}".strip()


def training_scene(seed: int, index: int) -> Scene:
    """Scene number `index` of the training stream."""
    return draw_scene(np.random.default_rng([TRAINING_STREAM, seed, index]), drawings="train")


class SceneStream(torch.utils.data.Dataset):
    """Scenes by number, drawn when asked for: uint8 (3, 128, 128), and the words a caption is made of."""

    def __init__(self, seed: int, start: int, count: int) -> None:
        self.seed, self.start, self.count = seed, start, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, tuple[int, ...], tuple[str, ...]]:
        scene = training_scene(self.seed, self.start + index)
        return scene.rgb.transpose(2, 0, 1), scene.labels, scene.grounds


def scene_batches(seed: int, start: int, count: int, batch: int, workers: int) -> Iterator[tuple[Tensor, list, list]]:
    """Batches of scenes `start` to `start + count`: pixels in [-1, 1], labels, grounds."""

    def collate(rows: list) -> tuple[Tensor, list, list]:
        pixels = torch.from_numpy(np.stack([row[0] for row in rows]))
        return pixels, [row[1] for row in rows], [row[2] for row in rows]

    loader = torch.utils.data.DataLoader(
        SceneStream(seed, start, count), batch, num_workers=workers, collate_fn=collate, drop_last=True
    )
    for pixels, labels, grounds in loader:
        yield pixels.float() / 127.5 - 1, labels, grounds


# ---------------------------------------------------------------------------------------------------- the autoencoder


def train_autoencoder(recipe: Recipe, work_dir: Path, device: torch.device, workers: int) -> AutoencoderKL:
    """Absolute and squared error with a small Kullback-Leibler term; sets `scaling_factor` to unit deviation."""
    done, state_file = work_dir / "vae", work_dir / "vae_state.pt"
    if (done / "config.json").exists():
        return AutoencoderKL.from_pretrained(done).to(device)
    torch.manual_seed(recipe.seed)
    vae = build_autoencoder().to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.vae_lr, betas=(0.9, 0.99), weight_decay=0.01)
    first = restore(state_file, device, vae=vae, optimizer=optimizer)
    batches = scene_batches(
        recipe.seed, first * recipe.vae_batch, (recipe.vae_steps - first) * recipe.vae_batch, recipe.vae_batch, workers
    )
    bar = tqdm(range(first, recipe.vae_steps), "autoencoder", initial=first, total=recipe.vae_steps, unit="step")
    for step in bar:
        pixels = next(batches)[0].to(device)
        set_learning_rate(optimizer, recipe.vae_lr * schedule(step, recipe.vae_steps, decay_from=0.3))
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        error = decoded - pixels
        loss = error.abs().mean() + error.square().mean() + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()
        optimise(loss, vae.parameters(), optimizer)
        if step % 50 == 0:
            write_log(work_dir, "autoencoder", step, (step + 1) * recipe.vae_batch, loss.item())
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if step % 500 == 499:
            save_state(state_file, step + 1, vae=vae, optimizer=optimizer)
    with torch.no_grad():
        pixels = next(scene_batches(recipe.seed, 0, 256, 256, 0))[0].to(device)
        vae.register_to_config(scaling_factor=round(1 / vae.encode(pixels).latent_dist.mode().std().item(), 5))
    vae.save_pretrained(done)
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Scaled latents (the posterior's mode) in half precision."""
    with torch.autocast(pixels.device.type, torch.bfloat16):
        return (vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor).half()


# ---------------------------------------------------------------------------------------------------- the diffusion


class Trained:
    """The diffusion model in training: weights, their running average, optimiser, and what has been spent."""

    def __init__(self, recipe: Recipe, tokenizer: CLIPTokenizer, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.unet = build_unet().to(device)
        if device.type == "cpu":  # the fused kernel's backward pass takes a third longer than plain products here
            self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder = build_text_encoder(tokenizer).to(device)
        self.models = torch.nn.ModuleList([self.unet, self.text_encoder])
        self.average = torch.optim.swa_utils.AveragedModel(
            self.models, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.ema)
        )
        self.optimizer = torch.optim.AdamW(
            self.models.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda"
        )
        self.steps, self.seconds, self.samples = recipe.steps, 0.0, 0

    def averaged(self) -> tuple[UNet2DConditionModel, CLIPTextModel]:
        """The averaged UNet and text encoder: what is measured and shipped."""
        unet, text_encoder = self.average.module
        return unet, text_encoder


def train_diffusion(
    recipe: Recipe,
    work_dir: Path,
    device: torch.device,
    workers: int,
    minutes: float | None,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
) -> Trained:
    """Train UNet and text encoder jointly on (latent, caption) pairs; resumes from `work_dir`."""
    trained = Trained(recipe, tokenizer, device)
    state_file = work_dir / "diffusion_state.pt"
    first = restore(state_file, device, models=trained.models, average=trained.average, optimizer=trained.optimizer)
    if first:
        saved = json.loads((work_dir / "progress.json").read_text())
        trained.seconds, trained.samples, trained.steps = saved["seconds"], saved["samples"], saved["steps"]
    batches = latent_batches(recipe, work_dir, device, workers, vae, first)
    betas = build_scheduler().alphas_cumprod.to(device)
    measure = Localisation(vae, tokenizer, device, split_scenes("val", 160))
    step_model = torch.compile(trained.unet) if device.type == "cuda" else trained.unet
    bar, began = tqdm(total=trained.steps, initial=first, desc="diffusion", unit="step"), time.monotonic()
    step, spent = first, trained.seconds
    while step < trained.steps:
        latents, captions = next(batches)
        set_learning_rate(trained.optimizer, recipe.lr * schedule(step, trained.steps, decay_from=recipe.decay_from))
        loss = diffusion_loss(recipe, step, trained, step_model, tokenizer, latents, captions, betas)
        optimise(loss, trained.models.parameters(), trained.optimizer)
        trained.average.update_parameters(trained.models)
        step, trained.samples, trained.seconds = (
            step + 1,
            trained.samples + recipe.batch,
            spent + time.monotonic() - began,
        )
        if minutes is not None and step - first == 60:
            trained.steps = first + max(60, int((60 * minutes - spent) / (trained.seconds - spent) * 60))
            bar.total = trained.steps
        bar.update()
        if step % 25 == 0:
            accuracy = None
            if step % 500 == 0:
                accuracy = max(measure.class_accuracy(*trained.averaged(), class_word).values())
            write_log(work_dir, "diffusion", step, trained.samples, loss.item(), accuracy, trained.seconds)
            bar.set_postfix(loss=f"{loss.item():.4f}", **({"class_accuracy": accuracy} if accuracy else {}))
        if step % 500 == 0 or step == trained.steps:
            save_state(state_file, step, models=trained.models, average=trained.average, optimizer=trained.optimizer)
            progress = {"seconds": trained.seconds, "samples": trained.samples, "steps": trained.steps}
            (work_dir / "progress.json").write_text(json.dumps(progress))
    return trained


def diffusion_loss(
    recipe: Recipe,
    step: int,
    trained: Trained,
    unet: Any,
    tokenizer: CLIPTokenizer,
    latents: Float[Tensor, "batch channels height width"],
    captions: list[str],
    alphas_cumprod: Float[Tensor, " timesteps"],
) -> Tensor:
    """Mean squared error of the predicted velocity v = sqrt(abar) eps - sqrt(1 - abar) z."""
    device = latents.device
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    low = timestep_low(recipe, step / trained.steps)
    uniform = (torch.arange(len(latents)) + torch.rand(len(latents), generator=generator)) / len(latents)
    timesteps = (low + uniform * (recipe.timestep_high - low)).long().to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    signal = alphas_cumprod[timesteps].sqrt()[:, None, None, None]
    sigma = (1 - alphas_cumprod[timesteps]).sqrt()[:, None, None, None]
    with torch.autocast(device.type, torch.bfloat16):
        text = trained.text_encoder(token_ids(tokenizer, captions, device)).last_hidden_state
        predicted = unet(signal * latents + sigma * noise, timesteps, text).sample
    return (predicted.float() - (signal * noise - sigma * latents)).square().mean()


def timestep_low(recipe: Recipe, progress: float) -> int:
    """Lower end of the sampled noise levels: `timestep_low` from its first to its second value."""
    first, last = recipe.timestep_low
    return round(first + (last - first) * min(1.0, max(0.0, (progress - 0.2) / 0.6)))


def latent_batches(
    recipe: Recipe, work_dir: Path, device: torch.device, workers: int, vae: AutoencoderKL, first: int
) -> Iterator[tuple[Tensor, list[str]]]:
    """Endless (latents, captions): from the cache of `recipe.scenes` scenes and their mirror images, or fresh."""
    if recipe.scenes == 0:
        count = max(1, recipe.steps) * recipe.batch
        fresh = scene_batches(recipe.seed, first * recipe.batch, count, recipe.batch, workers)
        for step, (pixels, labels, grounds) in enumerate(fresh, first):
            yield encode(vae, pixels.to(device)).float(), captions_of(recipe, step, labels, grounds)
        return
    latents, labels, grounds = cached_latents(recipe, work_dir, device, workers, vae)
    for step in range(first, 2**62):
        random = np.random.default_rng([recipe.seed, 1, step])
        scenes, mirrored = random.integers(len(labels), size=recipe.batch), random.integers(2, size=recipe.batch)
        chosen = torch.from_numpy(latents[mirrored, scenes]).to(device).float()
        yield chosen, captions_of(recipe, step, [labels[i] for i in scenes], [grounds[i] for i in scenes])


def captions_of(recipe: Recipe, step: int, labels: list, grounds: list) -> list[str]:
    """A caption for each scene of a step's batch; some are empty, so that the model also works without words."""
    random = np.random.default_rng([recipe.seed, 2, step])
    texts = [caption(tuple(present), tuple(ground), random) for present, ground in zip(labels, grounds, strict=True)]
    return ["" if random.random() < recipe.empty_captions else text for text in texts]


def cached_latents(
    recipe: Recipe, work_dir: Path, device: torch.device, workers: int, vae: AutoencoderKL
) -> tuple[np.ndarray, list, list]:
    """Latents (2 mirror images, scenes, 8, 16, 16) with labels and grounds, encoded once and kept in `work_dir`."""
    array_file, words_file = work_dir / "latents.npy", work_dir / "words.json"
    if not words_file.exists():
        halves: tuple[list, list] = ([], [])
        labels, grounds = [], []
        batches = scene_batches(recipe.seed, 0, recipe.scenes, 50, workers)
        for pixels, present, ground in tqdm(batches, "encode scenes", total=recipe.scenes // 50, unit="batch"):
            for half, image in zip(halves, (pixels, pixels.flip(-1)), strict=True):
                half.append(encode(vae, image.to(device)).cpu().numpy())
            labels += present
            grounds += ground
        np.save(array_file, np.stack([np.concatenate(half) for half in halves]))
        words_file.write_text(json.dumps({"labels": labels, "grounds": grounds}))
    words = json.loads(words_file.read_text())
    return np.load(array_file, mmap_mode="r"), words["labels"], words["grounds"]


def token_ids(tokenizer: CLIPTokenizer, texts: list[str], device: torch.device) -> Int[Tensor, "batch tokens"]:
    """Token ids, padded to the text encoder's window as Stable Diffusion does."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)


# ---------------------------------------------------------------------------------------------------- the loop's parts


def schedule(step: int, steps: int, decay_from: float, warm_up: int = 100) -> float:
    """Factor of the learning rate: linear warm-up, constant, linear decay to zero over the last part."""
    decay = (1 - step / steps) / (1 - decay_from)
    return min(1.0, (step + 1) / warm_up, max(0.0, decay))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = value


def optimise(loss: Tensor, parameters: Any, optimizer: torch.optim.Optimizer) -> None:
    """One clipped optimiser step; a loss that is not finite stops the training before it spoils the weights."""
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"the loss is {loss.item()}; resume with a smaller learning rate (--recipe.lr)")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def save_state(path: Path, step: int, **parts: Any) -> None:
    """Checkpoint through a temporary file, so that a kill leaves the former one."""
    temporary = path.with_suffix(".tmp")
    torch.save({"step": step} | {name: part.state_dict() for name, part in parts.items()}, temporary)
    temporary.replace(path)


def restore(path: Path, device: torch.device, **parts: Any) -> int:
    """Load a checkpoint into its parts when there is one; the step to go on from."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def write_log(
    work_dir: Path, phase: str, step: int, samples: int, loss: float, accuracy: float | None = None, seconds: float = 0
) -> None:
    """Append a row to the training log."""
    path = work_dir / "training_log.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["phase", "step", "samples", "seconds", "loss", "class_accuracy"])
        writer.writerow([phase, step, samples, round(seconds), f"{loss:.5f}", "" if accuracy is None else accuracy])


# ---------------------------------------------------------------------------------------------------- the result


def save_pipeline(
    output: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel, text_encoder: CLIPTextModel
) -> None:
    """Write a Stable Diffusion directory in half precision (safetensors)."""
    from diffusers import StableDiffusionPipeline

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
    pipeline.to("cpu", torch.float16).save_pretrained(output, safe_serialization=True)


def record_training(output: Path, work_dir: Path, recipe: Recipe, trained: Trained, device: torch.device) -> None:
    """Write training.json and the loss log beside the weights."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU cores"
    record = {
        "recipe": asdict(recipe),
        "steps": trained.steps,
        "samples": trained.samples,
        "seconds": round(trained.seconds),
        "hardware": hardware,
        "torch": torch.__version__,
        "commit": commit.strip(),
        "megabytes": round(sum(f.stat().st_size for f in output.rglob("*.safetensors")) / 1e6, 2),
    }
    (output / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    (output / "training_log.csv").write_text((work_dir / "training_log.csv").read_text())


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)

"""Trains the shipped text-to-image model on drawn scenes and their captions; masks are never seen.

    python -m pseudolabel.demo.training.train_model --work_dir W                # two CPU cores: under two hours
    python -m pseudolabel.demo.training.train_model --work_dir W --device cuda  # minutes; scenes drawn on the fly
    python -m pseudolabel.demo.training.train_model --evaluate   # figures of data/demo/model on `val`

Three trainings in a row: an autoencoder (reconstruction, a small Kullback-Leibler term); which words name what a scene
shows (contrastive, as CLIP, on the diffusion model's own first layers); and the latent diffusion model with its text
encoder (v-prediction, Salimans and Ho, arXiv 2202.00512), on the world alone and then with portraits among its scenes.
The same command resumes after a kill. The result is a plain Stable Diffusion directory that
`diffusers.StableDiffusionPipeline.from_pretrained` loads.

Choices that matter for attention that *names* what it looks at (figures in the model card):

* an autoencoder that keeps the colours and shapes of objects; what it loses no later stage can tell apart;
* the text encoder starts as (almost) the identity on words, so that two class words are told apart from step one;
* a loss that knows image-level words, before and beside the diffusion loss, which binds words to places slowly.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTokenizer

import data
from data.demo.world import split_scenes
from data.machine import REPOSITORY
from pseudolabel.demo.training.loop import Session, provenance
from pseudolabel.demo.training.measure_model import ClassAccuracy, evaluate_model
from pseudolabel.demo.training.model_parts import build_scheduler, build_tokenizer
from pseudolabel.demo.training.recipe import Recipe
from pseudolabel.demo.training.train_autoencoder import train_autoencoder
from pseudolabel.demo.training.train_diffusion import train_diffusion
from pseudolabel.demo.training.train_words import train_words
from pseudolabel.demo.training.trained import Trained
from pseudolabel.softmaps.diffusion.load import weight_hashes

MODEL_DIR = Path(data.__file__).parent / "demo" / "model"
CONFIG = REPOSITORY / "configs" / "pseudolabel" / "demo.yaml"


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
        record = json.loads((output / "training.json").read_text(encoding="utf-8"))
        record["figures"] = evaluate_model(output, CONFIG)
        (output / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(record["figures"], indent=1))
        return
    chosen = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    session = Session(work_dir, torch.device(chosen), workers, save_every)
    work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(work_dir / "tokenizer")
    vae = train_autoencoder(recipe, session)
    measure = ClassAccuracy(vae, tokenizer, session.device, split_scenes("val", measured_scenes))
    trained = Trained(recipe, tokenizer, session.device)
    train_words(recipe, session, trained, vae, tokenizer, measure)
    train_diffusion(recipe, session, trained, minutes, vae, tokenizer, measure)
    save_pipeline(output, vae, tokenizer, trained)
    record_training(output, recipe, session, trained)


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
    # transformers 5 loads a text encoder in the number format that its configuration names, diffusers the others in
    # float32: half precision is how the weights are kept, not how they are used.
    path = output / "text_encoder" / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n")


def record_training(output: Path, recipe: Recipe, session: Session, trained: Trained) -> None:
    """Write training.json and the loss log beside the weights."""
    record = {
        "recipe": asdict(recipe),
        "steps": trained.step,
        "samples": trained.step * recipe.batch,
        "seconds": round(trained.seconds),
        **provenance(session.device),
        "megabytes": round(sum(f.stat().st_size for f in output.rglob("*.safetensors")) / 1e6, 2),
        "sha256": weight_hashes(output),
    }
    (output / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (output / "training_log.csv").write_text(
        (session.work_dir / "training_log.csv").read_text(encoding="utf-8"), encoding="utf-8"
    )


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)

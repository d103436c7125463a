"""Pictures for the model card: generated scenes, attention strips and the training curve; and a count of drawn classes.

python -m pseudolabel.demo.training.show_model             # writes data/demo/model/{scenes,attention,curve}.png
python -m pseudolabel.demo.training.show_model --count     # how often the asked class is recognised in generated scenes
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from data.demo.world import GROUNDS, draw_scene, split_scenes
from pseudolabel.demo.training.captions import class_word
from pseudolabel.demo.training.measure_model import mean_map, read_config
from pseudolabel.demo.training.train_model import CONFIG, MODEL_DIR
from pseudolabel.softmaps.config import ModelConfig
from pseudolabel.softmaps.diffusion.draw import draw, painter_of
from pseudolabel.softmaps.diffusion.load import load_parts

PROMPTS = (
    "a photo including cow, and grass.",
    "a photo including dog, and snow.",
    "a photo including boat, and water.",
    "a photo including car, and road.",
    "a photo including potted plant, and brick wall.",
    "a photo including sheep, train, and sand.",
)
CLASSIFIER_STREAM = 7003
SCALE = 2  # pixels of the card's pictures for one of the scene's


def main(model: Path = MODEL_DIR, count: bool = False, images: int = 100, classifier_steps: int = 1500) -> None:
    """Draw the pictures of the model card, or count how often the asked class is recognised.

    Args:
        model: Directory of the model in diffusers' layout.
        count: Generate `images` scenes of one class each and ask a classifier trained on drawn scenes.
        images: Generated scenes for --count.
        classifier_steps: Training steps of that classifier, of 32 scenes each.

    """
    if count:
        record = json.loads((model / "training.json").read_text(encoding="utf-8"))
        record["recognised"] = count_recognised(model, images, classifier_steps)
        (model / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(record["recognised"]))
        return
    scenes = np.concatenate(list(generate(model, list(PROMPTS))), axis=1)
    enlarge(scenes).save(model / "scenes.png")
    enlarge(attention_strips(model)).save(model / "attention.png")
    draw_curve(model / "training_log.csv", model / "curve.png")
    print(f"scenes.png, attention.png and curve.png are in {model}")


def generate(model: Path, prompts: list[str], steps: int = 30, guidance: float = 5.0) -> UInt8[np.ndarray, "n h w 3"]:
    """Return scenes drawn by the model, one a prompt; the same prompts give the same scenes."""
    config = ModelConfig(id=str(model))
    painter = painter_of(load_parts(config, torch.device("cpu"), torch.float32), config)
    drawn = []
    for start in tqdm(range(0, len(prompts), 25), "generate", unit="batch"):
        batch = prompts[start : start + 25]
        drawn.append(draw(painter, batch, range(start, start + len(batch)), steps, guidance))
    return np.concatenate(drawn)


def enlarge(picture: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
    """Return a picture that is large enough to look at."""
    height, width = picture.shape[:2]
    return Image.fromarray(picture).resize((width * SCALE, height * SCALE), Image.Resampling.LANCZOS)


def attention_strips(model: Path, rows: int = 6) -> UInt8[np.ndarray, "h w 3"]:
    """Return `rows` scenes of `val` with two classes, each beside the cross-attention map of either (white: high)."""
    from data.classes import VOC
    from pseudolabel.pipeline import Pipeline

    config = read_config(CONFIG, model, model)
    pipeline = Pipeline.load(config, VOC)
    strips = []
    scenes = [scene for scene in split_scenes("val", 40) if len(scene.labels) == 2]
    for i, scene in enumerate(scenes[:rows]):
        found = pipeline.explain(scene.rgb, scene.labels, image_id=f"card_{i}")
        maps = mean_map(found.cross.values(), scene.mask.shape)
        low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
        grey = ((maps - low) / (high - low) * 255).astype(np.uint8)
        strips.append(np.concatenate([scene.rgb, *(np.repeat(m[..., None], 3, axis=2) for m in grey)], axis=1))
    half = len(strips) // 2
    return np.concatenate([np.concatenate(strips[:half]), np.concatenate(strips[half:])], axis=1)


def draw_curve(log: Path, output: Path) -> None:
    """Draw loss and class accuracy against scenes seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in csv.DictReader(log.open(encoding="utf-8")) if row["phase"] == "diffusion"]
    samples = np.array([int(row["samples"]) for row in rows])
    loss = np.array([float(row["loss"]) for row in rows])
    window = min(20, len(loss))
    smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
    measured = [(int(row["samples"]), float(row["class_accuracy"])) for row in rows if row["class_accuracy"]]
    figure, left = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    left.plot(samples[window - 1 :], smooth, color="0.6")
    left.set(xlabel="scenes seen", ylabel="loss (mean of 20 rows)")
    right = left.twinx()
    right.plot(*zip(*measured, strict=True), color="tab:blue", marker=".")
    right.set_ylabel("class accuracy, best layer", color="tab:blue")
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


# ---------------------------------------------------------------------------------------------------- what is drawn


def build_classifier() -> nn.Sequential:
    """Return a small convolutional network: 128 x 128 pixels to 20 class scores (multi-label)."""

    def block(channels_in: int, channels_out: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]

    layers = [*block(3, 24), *block(24, 48), *block(48, 96), *block(96, 160)]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(160, 20))


def train_classifier(steps: int, batch: int = 32) -> nn.Sequential:
    """Return a classifier trained on freshly drawn scenes and their image-level labels."""
    torch.manual_seed(0)
    model = build_classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for step in tqdm(range(steps), "classifier", unit="step"):
        scenes = [draw_scene(np.random.default_rng([CLASSIFIER_STREAM, step * batch + i])) for i in range(batch)]
        labels = torch.zeros(batch, 20)
        for row, scene in zip(labels, scenes, strict=True):
            row[[label - 1 for label in scene.labels]] = 1
        loss = F.binary_cross_entropy_with_logits(model(as_input(np.stack([s.rgb for s in scenes]))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return model.eval()


def as_input(rgb: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
    """Return pixels as the classifier takes them, blurred a little, as the autoencoder cannot draw fine detail."""
    pixels = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.avg_pool2d(pixels, 3, stride=1, padding=1)


def count_recognised(model: Path, images: int, steps: int) -> dict[str, Any]:
    """Count for how many scenes generated for one class and a ground the classifier's first guess is that class."""
    labels = [i % 20 + 1 for i in range(images)]
    prompts = [f"a photo including {class_word(label)}, and {GROUNDS[i % 8]}." for i, label in enumerate(labels)]
    classifier = train_classifier(steps)
    drawn = list(split_scenes("val", 400))
    alone = [scene for scene in drawn if len(scene.labels) == 1]
    with torch.no_grad():
        real = classifier(as_input(np.stack([scene.rgb for scene in alone]))).argmax(1) + 1
        generated = classifier(as_input(generate(model, prompts))).argmax(1) + 1
    right = int((generated == torch.tensor(labels)).sum())
    real_right = int((real == torch.tensor([scene.labels[0] for scene in alone])).sum())
    return {
        "generated": images,
        "recognised": right,
        "classifier_accuracy_on_drawn_scenes": round(real_right / len(alone), 3),
    }


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)

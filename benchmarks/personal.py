"""Finding one particular drawing among others of its kind, with the shipped model: learned token against class word.

    python -m benchmarks.personal --work /tmp/personal      # writes personal.md, .json and .png; under half an hour

For each of eight drawings a token is learned from five pictures, without masks (`pseudolabel personalize` with
`configs/pseudolabel/demo_personal.yaml`), and looked for in the three subsets of `data.demo.personal`. How maps are
read (layers, spreading, scaling, lambda) and cut is chosen for each rule on four of the drawings; the final table is
that of the other four alone. What is in the work folder is not computed again.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.common import DEMO_CONFIG, HERE, load_config, machine, machine_line, table, write_json, write_text
from data.classes import ClassSet
from data.demo.personal import CONCEPTS, SUBSETS, Concept, write_personal
from data.demo.scene import VISIBLE_PX
from data.images import read_image
from data.masks import read_mask
from pseudolabel.personalize.config import LookConfig, PersonalizeConfig
from pseudolabel.personalize.training import learn
from pseudolabel.softmaps.affinity import SelfAttention
from pseudolabel.softmaps.config import ModelConfig
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
READ = {"last": (3,), "first and last": (0, 3), "those of demo.yaml": (1, 2, 3)}  # indices of LAYERS
SELF = "up_blocks.1.attentions.1"
WEIGHTS = (0.25, 0.5, 1.0, 2.0)  # lambda
CUTS = np.concatenate([np.geomspace(0.002, 0.3, 40), np.linspace(0.32, 0.98, 34)])
RULES = ("class word", "token", "both, the higher one", "contrast", "class word x share")
WEIGHTED = ("contrast", "class word x share")
SENTENCES = {"class": (2,), "token": (1,), "both": (1, 2)}  # labels: 1 the token, 2 the class word


@dataclass(frozen=True)
class Choice:
    """How a rule reads its maps: layers, whether they are spread by self-attention, whether scaled to 0..1, lambda."""

    rule: str
    layers: str
    spread: bool
    scaled: bool
    weight: float = 0.0

    def text(self) -> str:
        """Say it in a table's cell."""
        parts = [
            self.layers,
            "spread" if self.spread else "as read",
            "0..1 in each scene" if self.scaled else "absolute",
        ]
        return "; ".join(parts) + (f"; lambda {self.weight:g}" if self.rule in WEIGHTED else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--work", type=Path, required=True, help="folder for scenes, tokens and maps")
    parser.add_argument("--scenes", type=int, default=30, help="scenes of each subset")
    parser.add_argument("--steps", type=int, default=None, help="training steps, in place of the config's")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, training and noise")
    parser.add_argument("--only", nargs="*", default=[], help="KIND/CONCEPT: learn and read these alone, write no page")
    parser.add_argument("--output", type=Path, default=HERE / "personal", help="name of the files, without suffix")
    options = parser.parse_args()
    root = options.work / f"scenes_{options.scenes}_{options.seed}"
    write_personal(root, options.scenes, options.seed)
    kinds = {"taught": None, "plain": LookConfig()}  # plain: textual inversion as published
    maps: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for (kind, look), concept in product(kinds.items(), CONCEPTS):
        if not options.only or f"{kind}/{concept.name}" in options.only:
            maps[kind, concept.name] = maps_of(options, root, concept, kind, look)
    if options.only:
        return
    truths = {concept.name: read_truths(root / concept.name) for concept in CONCEPTS}
    found = {kind: compare(maps, truths, kind) for kind in kinds}
    content = {"scenes": options.scenes, "seed": options.seed, "machine": machine(), "rows": found}
    write_json(options.output.with_suffix(".json"), content)
    write_text(options.output.with_suffix(".md"), report(content))
    draw_sheet(root, maps, truths, found["taught"]).save(options.output.with_suffix(".png"), optimize=True)
    print(options.output.with_suffix(".md").read_text())


def personal_config(options: argparse.Namespace, root: Path, concept: Concept, output: Path) -> PersonalizeConfig:
    """Settings as `pseudolabel personalize --config configs/pseudolabel/demo_personal.yaml` has them."""
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
    """Read all scenes of a concept with some sentences, or return what was read before."""
    if not cache.exists():
        settings = load_config(DEMO_CONFIG)
        model = replace(settings.model, id=str(HERE.parent / settings.model.id), tokens=tokens)
        parts = load_parts(model, torch.device("cpu"), torch.float32)
        classes = ClassSet((concept.token, concept.class_word), (concept.token, concept.class_word), ((), ()))
        diffusion = replace(settings.diffusion, seed=options.seed)
        run = replace(settings.run, device="cpu")
        reader = Reader(parts, classes, settings.prompt, diffusion, settings.resize, run)
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
    cross, own = resolve_layers(available, LAYERS, "layers"), resolve_layers(available, (SELF,), "layers")
    image_id = f"{path.parent.parent.name}/{path.stem}"
    passes = list(reader.passes(0, read_image(path), reader.plan(labels), image_id))
    weights = class_weights([item.prompt for item in passes], passes[0].text.tokens.shape[1])
    recording = run_passes(reader.parts, cross, own, passes, weights)
    latent_hw = (passes[0].noised.shape[-2], passes[0].noised.shape[-1])
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


def choices() -> Iterator[Choice]:
    """Yield every way of reading that is tried on the tuning half."""
    for layers, spread, scaled in product(READ, (False, True), (False, True)):
        for rule in RULES:
            for weight in WEIGHTS if rule in WEIGHTED else (0.0,):
                yield Choice(rule, layers, spread, scaled, weight)


def scores_of(maps: dict[str, np.ndarray], choice: Choice, size_hw: tuple[int, int]) -> np.ndarray:
    """Return the score of every pixel of every scene under a rule."""
    sentence = {"class word": "class", "token": "token"}.get(choice.rule, "both")
    read = maps[sentence][:, int(choice.spread), list(READ[choice.layers])].mean(1)  # scenes, maps, rows, columns
    match choice.rule:
        case "both, the higher one":
            score = np.where(read[:, 0] >= read[:, 1], read[:, 0], 0)
        case "contrast":
            score = np.maximum(0, read[:, 0] - choice.weight * read[:, 1])
        case "class word x share":
            kind = to_unit(maps["class"][:, 1, list(READ["those of demo.yaml"]), 0].mean(1))
            score = kind * read[:, 0] / np.maximum(read[:, 0] + choice.weight * read[:, 1], 1e-6)
        case _:
            score = read[:, 0]
    if choice.scaled:
        score = to_unit(score)
    return resize_maps(torch.from_numpy(score)[:, None], size_hw)[:, 0].numpy()


def to_unit(score: np.ndarray) -> np.ndarray:
    """Scale each scene's map to 0..1."""
    low, high = score.min((1, 2), keepdims=True), score.max((1, 2), keepdims=True)
    return (score - low) / np.maximum(high - low, 1e-6)


def overlaps(scores: np.ndarray, truths: np.ndarray, scenes: int) -> np.ndarray:
    """Return IoU by subset and cut: sum(I) / sum(U) over the scenes of a subset."""
    found = np.zeros((len(SUBSETS), len(CUTS)))
    for index in range(len(SUBSETS)):
        score, truth = (values[index * scenes : (index + 1) * scenes].ravel() for values in (scores, truths))
        above = np.digitize(score, CUTS)  # how many cuts a pixel is above
        predicted = np.bincount(above, minlength=len(CUTS) + 1)[::-1].cumsum()[::-1][1:]
        both = np.bincount(above[truth], minlength=len(CUTS) + 1)[::-1].cumsum()[::-1][1:]
        found[index] = both / np.maximum(predicted + truth.sum() - both, 1)
    return found


def compare(
    maps: dict[tuple[str, str], dict[str, np.ndarray]], truths: dict[str, np.ndarray], kind: str
) -> list[dict[str, Any]]:
    """Choose how each rule reads on the tuning half, and measure it on both halves."""
    halves = {half: [one.name for one in CONCEPTS if one.tuning == half] for half in (True, False)}
    size_hw = next(iter(truths.values())).shape[1:]
    scenes = len(next(iter(truths.values()))) // len(SUBSETS)
    best: dict[str, tuple[float, Choice, int]] = {}
    for choice in choices():
        found = [overlaps(scores_of(maps[kind, name], choice, size_hw), truths[name], scenes) for name in halves[True]]
        mean = np.mean(found, axis=0)[SUBSETS.index("semantic_distractor")]
        if mean.max() > best.get(choice.rule, (-1.0,))[0]:
            best[choice.rule] = (float(mean.max()), choice, int(mean.argmax()))
    rows = []
    for rule in RULES:
        _, choice, cut = best[rule]
        row: dict[str, Any] = {"rule": rule, "choice": choice.text(), "cut": round(float(CUTS[cut]), 4)}
        row["settings"] = [choice.layers, choice.spread, choice.scaled, choice.weight]
        for half, names in halves.items():
            scores = {name: scores_of(maps[kind, name], choice, size_hw) for name in names}
            found = np.stack([overlaps(scores[name], truths[name], scenes) for name in names])
            row["tuning" if half else "final"] = {
                "iou": [round(100 * float(value), 1) for value in found[:, :, cut].mean(0)],
                "oracle": [round(100 * float(value), 1) for value in found.max(2).mean(0)],
                "by_concept": {
                    name: [round(100 * float(v), 1) for v in found[i, :, cut]] for i, name in enumerate(names)
                },
                **alarms(scores, truths, CUTS[cut], scenes),
            }
        rows.append(row)
    return rows


def alarms(scores: dict[str, np.ndarray], truths: dict[str, np.ndarray], cut: float, scenes: int) -> dict[str, float]:
    """Return in how many scenes of the distractor subset it is seen: of those without it, and of those with it."""
    part = slice(scenes * SUBSETS.index("semantic_distractor"), scenes * (SUBSETS.index("semantic_distractor") + 1))
    seen = np.concatenate([(score[part] > cut).sum((1, 2)) > VISIBLE_PX for score in scores.values()])
    shown = np.concatenate([truths[name][part].any((1, 2)) for name in scores])
    rates = {"false_alarms": seen[~shown].mean() if (~shown).any() else 0.0, "found": seen[shown].mean()}
    return {name: round(100 * float(rate), 1) for name, rate in rates.items()}


def report(content: dict[str, Any]) -> str:
    """Return the Markdown page."""
    header = ["rule", *SUBSETS, "oracle: " + ", ".join(SUBSETS), "false alarms", "seen where it is"]

    def rows_of(kind: str, half: str) -> list[list[Any]]:
        return [
            [row["rule"], *row[half]["iou"], " / ".join(map(str, row[half]["oracle"])), row[half]["false_alarms"],
             row[half]["found"]]
            for row in content["rows"][kind]
        ]  # fmt: skip

    class_row, *token_rows = content["rows"]["taught"]
    best = max(token_rows, key=lambda row: row["tuning"]["iou"][1])
    gain = best["final"]["iou"][1] - class_row["final"]["iou"][1]
    concepts = {half: ", ".join(one.drawing for one in CONCEPTS if one.tuning == half) for half in (True, False)}
    by_concept = [
        [name, *(f"{values[1]}" for values in cells)]
        for half in ("tuning", "final")
        for name, *cells in zip(
            content["rows"]["taught"][0][half]["by_concept"],
            *(row[half]["by_concept"].values() for row in content["rows"]["taught"]),
            strict=True,
        )
    ]
    return (
        f"""# One particular drawing among others of its kind

{machine_line(content["machine"])} Written by `python -m benchmarks.personal`.

Eight drawings of the demo world, {content["scenes"]} scenes of each subset of each (`data.demo.personal`), a token
learned for each from five pictures without masks. IoU in percent: sum(I) / sum(U) over a concept's scenes (those
without the drawing count too: what is marked there is union), mean over concepts. Everything that is chosen (layers,
spreading, scaling, lambda, cut) is chosen for each rule by the subset `semantic_distractor` of the tuning half:
{concepts[True]}.
False alarms: scenes of `semantic_distractor` without the drawing in which more than {VISIBLE_PX} pixels are marked.
Oracle: the best cut for each concept and subset, by the truth.

Rules: `class word` is alone in its sentence, and `token` in its own. In the others both compete in one sentence, with
maps T of the token and K of the word: T where it is higher; the contrast max(0, T - lambda K); and the map of the class
word alone, scaled to 0..1, times the share T / (T + lambda K).

## Final half, on which nothing was chosen: {concepts[False]}

The token taught where to look (`look.weight` 1, pictures of others drawn by the model itself), with the rule that was
best on the tuning half ({best["rule"]}), against the class word on `semantic_distractor`: {gain:+.1f} points.

{table(header, rows_of("taught", "final"))}

Textual inversion as published (`look.weight` 0):

{table(header, rows_of("plain", "final"))}

![scene, class word, token, contrast, mask, truth](personal.png)

Scenes of `semantic_distractor` of the final half: scene, map of the class word, of the token, contrast, what is marked
by the rule `contrast`, truth.

## Tuning half

{table(header, rows_of("taught", "tuning"))}

Textual inversion as published:

{table(header, rows_of("plain", "tuning"))}

| rule | how it reads | cut |
|---|---|---:|
"""
        + "\n".join(
            f"| {row['rule']}{' (published)' if kind == 'plain' else ''} | {row['choice']} | {row['cut']} |"
            for kind in ("taught", "plain")
            for row in content["rows"][kind]
        )
        + f"""

## By drawing, `semantic_distractor`, token taught where to look

{table(["drawing", *RULES], by_concept)}
"""
    )


def draw_sheet(
    root: Path,
    maps: dict[tuple[str, str], dict[str, np.ndarray]],
    truths: dict[str, np.ndarray],
    rows: Sequence[dict[str, Any]],
) -> Image.Image:
    """Draw, for each drawing of the final half, three scenes with their maps and masks."""
    size = 96
    row = next(row for row in rows if row["rule"] == "contrast")
    layers, spread, scaled, weight = row["settings"]
    contrast = Choice("contrast", layers, spread, scaled, weight)
    lines = []
    for concept in (one for one in CONCEPTS if not one.tuning):
        truth, known = truths[concept.name], maps["taught", concept.name]
        scenes = len(truth) // len(SUBSETS)
        score = scores_of(known, contrast, truth.shape[1:])
        read = known["both"][:, int(spread), list(READ[layers])].mean(1)
        for index in (0, 1, 2):
            at = scenes + index
            path = sorted((root / concept.name / "semantic_distractor" / "images").iterdir())[index]
            high = max(read[at].max(), 1e-6)
            greys = [read[at, 1] / high, read[at, 0] / high, score[at] / max(score[at].max(), 1e-6)]
            greys += [(score[at] > row["cut"]).astype(np.float32), truth[at].astype(np.float32)]
            tiles = [Image.fromarray(read_image(path))]
            tiles += [Image.fromarray((255 * grey).clip(0, 255).astype(np.uint8)).convert("RGB") for grey in greys]
            lines.append(np.concatenate([np.asarray(tile.resize((size, size))) for tile in tiles], axis=1))
    half = len(lines) // 2
    return Image.fromarray(np.concatenate([np.concatenate(lines[:half]), np.concatenate(lines[half:])], axis=1))


if __name__ == "__main__":
    main()

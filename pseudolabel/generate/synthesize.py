"""A data set of images that nobody had to photograph: the model draws them, and its attention labels them.

Every image depends on (seed, its number) alone, so a run goes on where it stopped and a larger one begins with the
images of a smaller one. What is written:

```
JPEGImages/<id>.png          the images (lossless PNG in spite of the name)
SegmentationClass/<id>.png   their masks: class ids, 255 where undecided
Annotations/<id>.xml         class names and boxes, as Pascal VOC writes them
ImageSets/Segmentation/train.txt, labels.csv, classes.yaml
store/                       the same as a mask store, which `segtrain fit`, `refine` and `report` read
drawn.jsonl                  a line for every image drawn, those that were thrown away too: sentence, presence, labels
```
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from data.class_file import save_classes
from data.classes import ClassSet
from data.config import DataConfig
from data.console import progress_bar
from data.errors import ConfigError, StoreError
from data.exporters.annotation import voc_annotation
from data.exporters.labels import write_labels
from data.files import append_line, check_place, lines_by, write_atomically
from data.images import encode_picture
from data.masks import write_mask
from data.store.records import image_record
from data.store.source import stored_data
from data.store.store import MaskStore
from pseudolabel.config import mask_config, stored_settings
from pseudolabel.ground.config import GroundConfig
from pseudolabel.ground.presence import presence
from pseudolabel.masks.labelmap import label_map
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.diffusion.draw import check_drawing, draw, painter_of
from pseudolabel.softmaps.prompt import join_phrases
from pseudolabel.softmaps.shares import PhraseMaps

DRAWN = "drawn.jsonl"
SPLIT = "train"
TOGETHER_ON_GPU = 8  # images drawn in one batch; on a CPU one, so that an image is the same bits in any run
Absent = Literal["relabel", "drop", "keep"]


@dataclass(frozen=True)
class Recipe:
    """What is drawn and what is kept of it.

    Attributes:
        per_image: how many classes an image is asked to show, one of these.
        background: share of the sentences that name one of their first class's background words.
        absent: a class that was asked for and is not there is taken out of the labels (and an image left without any is
            thrown away), the whole image is thrown away, or nothing is done.
        presence_min: presence below which a class is not there.
        seed: another number makes another data set.
        steps: denoising steps.
        guidance: classifier-free guidance.
        size: side, or height and width, in pixels; None is the model's own.

    """

    per_image: tuple[int, ...] = (1,)
    background: float = 0.5
    absent: Absent = "relabel"
    presence_min: float = 0.5
    seed: int = 0
    steps: int = 30
    guidance: float = 5.0
    size: int | tuple[int, int] | None = None


@dataclass(frozen=True)
class Order:
    """An image to be drawn: its number, the class ids it is to show, ascending, the sentence, and the noise's seed."""

    index: int
    labels: tuple[int, ...]
    prompt: str
    noise_seed: int

    @property
    def id(self) -> str:
        """The image's id in the data set."""
        return f"drawn_{self.index:06d}"


@dataclass
class SynthesisTally:
    """What came of a data set's images: how many were kept, thrown away, and which classes were not there.

    Attributes:
        kept: images with masks.
        relabelled: kept images that lost a label.
        thrown: images thrown away.
        made: images drawn by this run.
        absent: how often each class was asked for and not there, by name.

    """

    kept: int = 0
    relabelled: int = 0
    thrown: int = 0
    made: int = 0
    absent: Counter[str] = field(default_factory=Counter)


def check_recipe(recipe: Recipe, classes: ClassSet, count: int) -> None:
    """Raise ConfigError for a number that is out of range."""
    rules = (
        ("count", count, count >= 1, "at least 1"),
        ("seed", recipe.seed, recipe.seed >= 0, "at least 0"),
        ("background", recipe.background, 0 <= recipe.background <= 1, "from 0 to 1"),
        ("presence_min", recipe.presence_min, 0 <= recipe.presence_min <= 1, "from 0 to 1"),
        (
            "per_image",
            list(recipe.per_image),
            bool(recipe.per_image) and all(1 <= number <= len(classes) for number in recipe.per_image),
            f"one or more numbers from 1 to {len(classes)}, the number of classes",
        ),
    )
    for name, value, holds, rule in rules:
        if not holds:
            raise ConfigError(f"--{name} is {value!r}: it must be {rule}; change --{name}")


def order_of(index: int, classes: ClassSet, recipe: Recipe, template: str) -> Order:
    """Return what the image of a number is to show; classes take turns, so that each is drawn equally often."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([recipe.seed, index])))
    first = index % len(classes)
    count = int(recipe.per_image[int(rng.integers(len(recipe.per_image)))])
    others = [position for position in range(len(classes)) if position != first]
    chosen = [first, *(int(position) for position in rng.permutation(others)[: count - 1])]
    words = [classes.phrases[position] for position in chosen]
    surroundings = [word for word in classes.background_words[first] if word not in words]
    if surroundings and rng.random() < recipe.background:
        words.append(surroundings[int(rng.integers(len(surroundings)))])
    labels = tuple(sorted(position + 1 for position in chosen))
    return Order(index, labels, template.format(join_phrases(words)), int(rng.integers(2**62)))


def synthesize_images(
    output: Path, classes: ClassSet, count: int, recipe: Recipe, config: GroundConfig
) -> SynthesisTally:
    """Draw the images that a data set does not have yet, and write the lists of all.

    Args:
        output: folder of the data set; started if it does not exist, continued if it does.
        classes: what is drawn.
        count: how many images are drawn, those that are thrown away counted.
        recipe: what is drawn and what is kept of it.
        config: the model, and how masks are read.

    Raises:
        ConfigError: a number out of range, or a sentence that is too long.
        StoreError: the folder holds something else, or a data set of other settings.

    """
    check_recipe(recipe, classes, count)
    check_folder(output)
    pipeline = Pipeline.load(config.generate_config, classes, cut=False)
    orders = [order_of(index, classes, recipe, config.prompt.template) for index in range(count)]
    prompts = [order.prompt for order in orders]
    size_hw = check_drawing(pipeline.parts, prompts, recipe.steps, recipe.guidance, recipe.size)
    store = _open_store(output, classes, recipe, config, pipeline)
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    done = read_drawn(output)
    left = [order for order in orders if order.index not in done]
    made = 0
    for order, record in _drawn(left, pipeline, recipe, config, size_hw, output, store):
        append_line(output / DRAWN, record)
        done[order.index] = record
        made += 1
    records = [done[index] for index in sorted(done)]
    _write_lists(output, records, classes)
    return _tally(records, made)


def check_folder(output: Path) -> None:
    """Raise StoreError unless the folder is new, empty, or holds such a data set; OSError if it cannot be written."""
    if output.exists() and not output.is_dir():
        raise StoreError(f"{output} is a file; name a new folder with --output.")
    if output.is_dir() and any(output.iterdir()) and not (output / "store" / "store.json").is_file():
        raise StoreError(f"{output} is not empty and holds no synthesised data set; name a new folder with --output.")
    check_place(output)


def _open_store(output: Path, classes: ClassSet, recipe: Recipe, config: GroundConfig, pipeline: Pipeline) -> MaskStore:
    settings = stored_settings(config.generate_config) | {"synthesis": json.loads(json.dumps(asdict(recipe)))}
    data = DataConfig(root=output.absolute(), format="voc", split=SPLIT, classes=(output / "classes.yaml").absolute())
    identity = pipeline.parts.identity()
    return MaskStore.open_or_create(
        output / "store", classes=classes, config=settings, model=identity, data=stored_data(data)
    )


def read_drawn(output: Path) -> dict[int, dict[str, Any]]:
    """Return the lines of drawn.jsonl by the image's number; the image of a torn line is drawn again."""
    return lines_by(output / DRAWN, lambda record: int(record["index"]))


def _drawn(
    orders: Sequence[Order],
    pipeline: Pipeline,
    recipe: Recipe,
    config: GroundConfig,
    size_hw: tuple[int, int],
    output: Path,
    store: MaskStore,
) -> Iterator[tuple[Order, dict[str, Any]]]:
    """Draw images, read their masks, write what is kept, and yield the line about each."""
    if not orders:
        return
    painter = painter_of(pipeline.parts, config.model)
    together = TOGETHER_ON_GPU if pipeline.parts.device.type != "cpu" else 1
    with progress_bar(total=len(orders), unit="image") as bar:
        for start in range(0, len(orders), together):
            batch = orders[start : start + together]
            prompts, seeds = [order.prompt for order in batch], [order.noise_seed for order in batch]
            images = draw(painter, prompts, seeds, recipe.steps, recipe.guidance, size_hw)
            plans = [pipeline.reader.plan(order.labels) for order in batch]
            found = pipeline.phrase_maps(list(images), plans, [order.id for order in batch])
            for order, image, maps in zip(batch, images, found, strict=True):
                yield order, _write_image(output, store, order, image, maps, recipe, config, str(pipeline.parts.device))
                bar.update()
    if pipeline.parts.device.type == "cuda":
        torch.cuda.empty_cache()


def _write_image(
    output: Path,
    store: MaskStore,
    order: Order,
    image: np.ndarray,
    maps: PhraseMaps,
    recipe: Recipe,
    config: GroundConfig,
    device: str,
) -> dict[str, Any]:
    """Write an image with its mask, unless it is thrown away; return the line about it."""
    scores = [presence(own, idle) for own, idle in zip(maps.attention, maps.idle, strict=True)]
    rows = kept_rows(scores, recipe)
    labels = tuple(order.labels[row] for row in rows)
    names = {store.classes.name(label): round(score, 4) for label, score in zip(order.labels, scores, strict=True)}
    record = {"index": order.index, "id": order.id, "prompt": order.prompt, "presence": names}
    record |= {"labels": [store.classes.name(label) for label in labels], "kept": bool(rows)}
    if not rows:
        return record
    soft = replace(maps.soft, maps=maps.soft.maps[rows], labels=labels)
    mask, argmax = label_map(image, soft, mask_config(config.generate_config), device)
    name = f"{order.id}.png"
    write_atomically(output / "JPEGImages" / name, encode_picture(image, "PNG"))
    write_mask(output / "SegmentationClass" / name, mask)
    write_atomically(output / "Annotations" / f"{order.id}.xml", voc_annotation(name, argmax, labels, store.classes))
    line = image_record(order.id, f"JPEGImages/{name}", mask, argmax, labels, store.classes, 0.0)
    store.write(order.id, mask, argmax=argmax, soft=soft, record=line | {"presence": names})
    return record


def kept_rows(scores: Sequence[float], recipe: Recipe) -> list[int]:
    """Return which of an image's classes stay its labels; none throws it away.

    >>> kept_rows([0.9, 0.2], Recipe(absent="relabel")), kept_rows([0.9, 0.2], Recipe(absent="drop"))
    ([0], [])
    """
    there = [row for row, score in enumerate(scores) if score >= recipe.presence_min]
    match recipe.absent:
        case "relabel":
            return there
        case "drop":
            return there if len(there) == len(scores) else []
        case "keep":
            return list(range(len(scores)))


def _write_lists(output: Path, records: Sequence[dict[str, Any]], classes: ClassSet) -> None:
    """Write the lists of all images that were kept, and the class file."""
    kept = [record for record in records if record["kept"]]
    ids = "".join(f"{record['id']}\n" for record in kept)
    write_atomically(output / "ImageSets" / "Segmentation" / f"{SPLIT}.txt", ids.encode())
    write_labels(output, [(f"{record['id']}.png", record["labels"]) for record in kept])
    save_classes(classes, output / "classes.yaml")


def _tally(records: Sequence[dict[str, Any]], made: int) -> SynthesisTally:
    """Count what came of all images."""
    tally = SynthesisTally(made=made)
    for record in records:
        tally.kept += record["kept"]
        tally.thrown += not record["kept"]
        missing = [name for name in record["presence"] if name not in record["labels"]]
        tally.relabelled += bool(record["kept"] and missing)
        tally.absent.update(missing if record["labels"] or not record["kept"] else ())
    return tally

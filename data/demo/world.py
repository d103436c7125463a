"""The demo world: photographs in miniature of the 20 Pascal VOC classes, with exact masks.

    python -m data.demo.world --output D --train 600 --val 200 --sheet sheet.png

`draw_scene` draws one scene; `split_scenes` draws the scenes of a split, each from its own seed stream, so that the
first hundred are the same however many are asked for; `write_world` writes splits to disk in Pascal VOC's layout.
"""

import argparse
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from data.demo.glyphs import atlas_crc32
from data.demo.grounds import GROUNDS, generator
from data.demo.scene import SIZE_PX, Instance, Scene, draw_personal_scene, draw_scene, drawing_mask
from data.errors import ConfigError, UserError
from data.files import is_free, new_folder
from data.masks import overlay, write_mask

__all__ = [
    "GROUNDS",
    "PERSONAL_DRAWING",
    "SIZE_PX",
    "TRAIN_TRUTH_FOLDER",
    "Instance",
    "Scene",
    "Split",
    "calibration_scenes",
    "draw_personal_scene",
    "draw_scene",
    "draw_sheet",
    "drawing_mask",
    "split_generator",
    "split_scenes",
    "write_world",
]

FORMAT = "pseudolabel-demo-world"
FORMAT_VERSION = 1
WORLD_VERSION = 1  # To be raised whenever the same seed gives other pixels.
TRAIN_TRUTH_FOLDER = "SegmentationClassTruth"
PERSONAL_DRAWING = "dog/service"
PERSONAL_LEARN = 5  # Scenes of the personal split that show the particular object alone.

Split = Literal["train", "val", "calibration", "shifted", "personal"]
# A split's number keeps its random streams apart from those of the others.
STREAMS: dict[Split, int] = {"train": 1, "val": 2, "calibration": 3, "shifted": 4, "personal": 5}

README = """A world drawn by `python -m data.demo.world`, in Pascal VOC's layout.

JPEGImages/               the scenes (lossless PNG in spite of the name)
Annotations/              class names and boxes of each scene's objects
SegmentationClass/        masks of every split but train
SegmentationClassTruth/   masks of train, for scoring only: training knows its image-level labels alone
ImageSets/Segmentation/   the ids of each split; "shifted" holds drawings that no other split shows
PersonalMask/             1 where a scene of the personal split shows the particular object of personal.json
world.json                what was drawn

The drawings are from Noto Color Emoji, SIL Open Font License 1.1.
"""


def split_generator(split: Split, index: int, seed: int = 0) -> np.random.Generator:
    """Return the random stream of one scene of a split: no other split, index or seed shares it."""
    return generator(seed, STREAMS[split], index)


def split_scenes(split: Split, count: int, seed: int = 0) -> Iterator[Scene]:
    """Draw the first `count` scenes of a split.

    "train", "val" and "calibration" are alike and disjoint; "shifted" shows only drawings held out of those;
    "personal" begins with PERSONAL_LEARN scenes of the particular object alone, then shows it among others.
    """
    for index in range(count):
        rng = split_generator(split, index, seed)
        match split:
            case "personal":
                yield draw_personal_scene(rng, PERSONAL_DRAWING, alone=index < PERSONAL_LEARN)
            case "shifted":
                yield draw_scene(rng, drawings="held_out")
            case _:
                yield draw_scene(rng)


def calibration_scenes(count: int = 100, seed: int = 0) -> Iterator[Scene]:
    """Draw scenes like those of train, but none of them: what thresholds and layers are chosen on."""
    return split_scenes("calibration", count, seed)


def write_world(
    root: Path,
    *,
    train: int = 600,
    val: int = 200,
    personal: int = 30,
    shifted: int = 0,
    calibration: int = 0,
    seed: int = 0,
) -> bool:
    """Draw a world and write it in Pascal VOC's layout; README.txt in it names the folders.

    Masks of `train` go to TRAIN_TRUTH_FOLDER, where a VOC reader does not look unless it is told to. The folder
    appears as a whole or not at all. If the same world is there already, nothing is done.

    Args:
        root: The folder to make; it must not exist, be empty, or hold the same world.
        train: Number of scenes of this split, as for the four others; 0 leaves a split out.
        val: See `train`.
        personal: See `train`.
        shifted: See `train`.
        calibration: See `train`.
        seed: Another number makes another world, at least 0.

    Returns:
        Whether anything was drawn.

    Raises:
        ConfigError: `root` holds something else, or a number is negative.
        UserError: another process is writing it.

    """
    counts: dict[Split, int] = {
        "train": train,
        "val": val,
        "calibration": calibration,
        "shifted": shifted,
        "personal": personal,
    }
    for name, number in [*counts.items(), ("seed", seed)]:
        if number < 0:
            raise ConfigError(f"{name} is {number}: the demo world needs 0 or more; change --{name}.")
    header = _header(counts, seed)
    if _is_there(root, header):
        return False
    with new_folder(root) as folder:
        _write_folder(folder, counts, seed)
        (folder / "world.json").write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
    return True


def _header(counts: dict[Split, int], seed: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "world_version": WORLD_VERSION,
        "drawings_crc32": atlas_crc32(),
        "seed": seed,
        "size_px": SIZE_PX,
        "scenes": counts,
    }


def _is_there(root: Path, header: dict[str, Any]) -> bool:
    """Return whether the folder holds this very world; an empty or missing one does not, anything else is an error."""
    if is_free(root):
        return False
    try:
        found = json.loads((root / "world.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == header:
        return True
    if not isinstance(found, dict):
        raise ConfigError(f"{root} is not empty and holds no demo world: choose another folder with --output.")
    different = ", ".join(key for key in header if found.get(key) != header[key])
    raise ConfigError(
        f"{root} holds a demo world with other {different or 'settings'}: remove it, or choose another folder with "
        "--output."
    )


def _write_folder(root: Path, counts: dict[Split, int], seed: int) -> None:
    folders = ("JPEGImages", "Annotations", "SegmentationClass", TRAIN_TRUTH_FOLDER, "ImageSets/Segmentation")
    for folder in folders:
        (root / folder).mkdir(parents=True)
    for split in STREAMS:
        if not counts[split]:
            continue
        ids = [f"{split}_{index:06d}" for index in range(counts[split])]
        for scene_id, scene in zip(ids, split_scenes(split, counts[split], seed), strict=True):
            _write_scene(root, scene_id, scene, TRAIN_TRUTH_FOLDER if split == "train" else "SegmentationClass")
            if split == "personal":
                (root / "PersonalMask").mkdir(exist_ok=True)
                write_mask(root / "PersonalMask" / f"{scene_id}.png", drawing_mask(scene, PERSONAL_DRAWING))
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(
            "".join(f"{name}\n" for name in ids), encoding="utf-8"
        )
        if split == "personal":
            _write_personal(root / "personal.json", ids)
    (root / "README.txt").write_text(README, encoding="utf-8")


def _write_personal(path: Path, ids: list[str]) -> None:
    content = {
        "class": PERSONAL_DRAWING.split("/", maxsplit=1)[0],
        "drawing": PERSONAL_DRAWING,
        "learn": ids[:PERSONAL_LEARN],
        "find": ids[PERSONAL_LEARN:],
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_scene(root: Path, scene_id: str, scene: Scene, truth_folder: str) -> None:
    Image.fromarray(scene.rgb).save(root / "JPEGImages" / f"{scene_id}.png", compress_level=1)
    write_mask(root / truth_folder / f"{scene_id}.png", scene.mask)
    tree = ElementTree.ElementTree(annotation(scene_id, scene))
    ElementTree.indent(tree)
    tree.write(root / "Annotations" / f"{scene_id}.xml", encoding="utf-8")


def annotation(scene_id: str, scene: Scene) -> ElementTree.Element:
    """Return the scene's annotation as Pascal VOC writes it: boxes count pixels from 1, both ends included."""
    height, width = scene.mask.shape
    top = ElementTree.Element("annotation")
    fields: dict[str, Any] = {"folder": "demo", "filename": f"{scene_id}.png", "segmented": 1}
    for name, value in fields.items():
        ElementTree.SubElement(top, name).text = str(value)
    size = ElementTree.SubElement(top, "size")
    for name, value in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(value)
    for instance in scene.instances:
        entry = ElementTree.SubElement(top, "object")
        for name, value in (("name", instance.class_name), ("truncated", 0), ("difficult", 0)):
            ElementTree.SubElement(entry, name).text = str(value)
        box = ElementTree.SubElement(entry, "bndbox")
        left, upper, right, lower = instance.box
        for name, value in (("xmin", left + 1), ("ymin", upper + 1), ("xmax", right), ("ymax", lower)):
            ElementTree.SubElement(box, name).text = str(value)
    return top


def draw_sheet(scenes: Iterable[Scene], columns: int = 10) -> Image.Image:
    """Draw scenes in rows, each above its mask laid over a faded copy."""
    scenes = list(scenes)
    gap = 6
    step_x, step_y = SIZE_PX + gap, 2 * SIZE_PX + 2 * gap
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * step_x + gap, rows * step_y + gap), "white")
    for index, scene in enumerate(scenes):
        left, top = gap + index % columns * step_x, gap + index // columns * step_y
        faded = (scene.rgb // 3 + 160).astype(np.uint8)
        sheet.paste(Image.fromarray(scene.rgb), (left, top))
        sheet.paste(Image.fromarray(overlay(faded, scene.mask, alpha=0.9)), (left, top + SIZE_PX))
    return sheet


def main(arguments: list[str] | None = None) -> None:
    """Command line: write a world, a contact sheet, or both."""
    parser = argparse.ArgumentParser(prog="python -m data.demo.world", description="Draw the demo world.")
    parser.add_argument("--output", type=Path, help="folder to write the world to")
    parser.add_argument("--sheet", type=Path, help="PNG file with 40 scenes of a split and their masks")
    parser.add_argument("--sheet_split", choices=list(STREAMS), default="val", help="split shown by --sheet")
    for split, count in {"train": 600, "val": 200, "calibration": 0, "shifted": 0, "personal": 30}.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"scenes of {split} (default {count})")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(arguments))
    sheet, sheet_split, output = options.pop("sheet"), options.pop("sheet_split"), options.pop("output")
    if sheet is None and output is None:
        parser.error("nothing to do: give --output, --sheet or both")
    if sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(split_scenes(sheet_split, 40, options["seed"])).save(sheet)
        print(f"Wrote {sheet}.")
    if output is not None:
        try:
            drawn = write_world(output, **options)
        except UserError as error:
            parser.exit(2, f"error: {error}\n")
        print(f"Wrote the demo world to {output}." if drawn else f"The demo world is in {output} already.")


if __name__ == "__main__":
    main()

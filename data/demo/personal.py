"""Scenes to find one particular drawing in, among others of its kind: the demo's set for personalised segmentation.

    python -m data.demo.personal --output D --scenes 40

In the spirit of Mug19 (arXiv 2309.04109), which cannot be had: a few pictures that show a thing alone, without masks,
to learn it from, and three kinds of scenes to find it in. See README for the layout that is written.
"""

import argparse
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data.classes import VOC
from data.demo.glyphs import Glyph, atlas_crc32, find_glyph, glyphs_of
from data.demo.grounds import generator, pick, uniform_int
from data.demo.scene import Scene, compose, draw_personal_scene, drawing_mask
from data.errors import ConfigError, UserError
from data.files import is_free, new_folder
from data.masks import write_mask

FORMAT = "pseudolabel-personal"
FORMAT_VERSION = 1
STREAM = 6  # keeps these scenes apart from those of the world's own splits
REFERENCES = 5
Subset = Literal["all", "semantic_distractor", "variant"]
SUBSETS: tuple[Subset, ...] = get_args(Subset)
VARIANT_SIDES = ((18, 28), (62, 85))  # smaller and larger than anything the references or other scenes show
BLACK_AND_WHITE = np.zeros((256, 3), np.uint8)
BLACK_AND_WHITE[1:] = 255

README = """Scenes drawn by `python -m data.demo.personal`: find one particular drawing among others of its kind.

CONCEPT/concept.yaml           the placeholder token, and the word for its kind
CONCEPT/references/*.png       the particular thing alone, to learn it from; there are no masks for these
CONCEPT/SUBSET/images/*.png    scenes to find it in
CONCEPT/SUBSET/masks/*.png     1 where the scene shows it, 0 elsewhere; all 0 where it is not there

Subsets: all (it is there, with up to two other things of any kind), semantic_distractor (one or two others of its kind
are there; it itself in two scenes of three), variant (recoloured, and smaller or larger than anywhere else, with up to
two other things of other kinds: recoloured it may look as they do).

The drawings are from Noto Color Emoji, SIL Open Font License 1.1.
"""


@dataclass(frozen=True)
class Concept:
    """A particular drawing, and the half of the set it belongs to.

    `drawing` is a name such as "dog/service"; `tuning` tells those that settings are chosen on from those that are for
    the final table alone.
    """

    drawing: str
    tuning: bool

    @property
    def name(self) -> str:
        """Name of its folder: dog_service."""
        return self.drawing.replace("/", "_")

    @property
    def class_word(self) -> str:
        """The word for its kind: dog."""
        return VOC.phrases[VOC.index(self.drawing.split("/")[0]) - 1].split()[0]

    @property
    def token(self) -> str:
        """The placeholder it is learned under: <dog-service>."""
        return f"<{self.drawing.replace('/', '-')}>"


# Chosen before anything was measured on them; half of either four are held out of the model's training.
CONCEPTS = (
    Concept("dog/service", tuning=True),
    Concept("bottle/pump-violet", tuning=True),
    Concept("bird/owl", tuning=True),
    Concept("car/taxi", tuning=True),
    Concept("cow/bison", tuning=False),
    Concept("motorbike/scooter-violet", tuning=False),
    Concept("person/firefighter", tuning=False),
    Concept("train/steam", tuning=False),
)


def scene_generator(concept: Concept, part: int, index: int, seed: int) -> np.random.Generator:
    """Return the random stream of one scene: no other concept, part (0: references), index or seed shares it."""
    return generator(seed, STREAM, zlib.crc32(concept.drawing.encode()), part, index)


def reference_scenes(concept: Concept, count: int = REFERENCES, seed: int = 0) -> Iterator[Scene]:
    """Draw the particular thing alone, `count` times."""
    for index in range(count):
        yield draw_personal_scene(scene_generator(concept, 0, index, seed), concept.drawing, alone=True)


def subset_scenes(concept: Concept, subset: Subset, count: int, seed: int = 0) -> Iterator[Scene]:
    """Draw the first `count` scenes of a subset."""
    part = 1 + SUBSETS.index(subset)
    for index in range(count):
        rng = scene_generator(concept, part, index, seed)
        match subset:
            case "all":
                yield _draw_shown(concept, rng, find_glyph(concept.drawing), of_kind=1 / 3)
            case "variant":
                angle = (60 + uniform_int(rng, 0, 61)) * (1 if rng.random() < 0.5 else -1)
                side = pick(rng, VARIANT_SIDES)
                yield _draw_shown(concept, rng, turn_hue(find_glyph(concept.drawing), angle), side)
            case "semantic_distractor":
                if index % 3 == 2:
                    yield draw_absent_scene(rng, concept.drawing)
                else:
                    yield draw_personal_scene(rng, concept.drawing)


def _draw_shown(
    concept: Concept,
    rng: np.random.Generator,
    mine: Glyph,
    side: tuple[int, int] | None = None,
    of_kind: float = 0.0,
) -> Scene:
    """Draw the particular thing with none, one or two other drawings, a share `of_kind` of which are of its kind."""
    kind = mine.class_name
    other_kinds = [name for name in VOC.names if name != kind]
    while True:
        glyphs = []
        for _ in range(uniform_int(rng, 0, 3)):
            name = kind if rng.random() < of_kind else pick(rng, other_kinds)
            glyphs.append(_other(rng, name, concept.drawing))
        place = uniform_int(rng, 0, len(glyphs) + 1)
        sides: list[tuple[int, int] | None] = [None] * len(glyphs)
        scene = compose([*glyphs[:place], mine, *glyphs[place:]], rng, sides=[*sides[:place], side, *sides[place:]])
        if [instance.drawing for instance in scene.instances].count(concept.drawing) == 1:
            return scene


def draw_absent_scene(rng: np.random.Generator, drawing: str) -> Scene:
    """Draw one or two others of a particular drawing's kind, half of the time with something else as well."""
    kind = drawing.split("/")[0]
    glyphs = [_other(rng, kind, drawing) for _ in range(uniform_int(rng, 1, 3))]
    if rng.random() < 0.5:
        glyphs.insert(0, _other(rng, pick(rng, VOC.names), drawing))
    return compose(glyphs, rng)


def _other(rng: np.random.Generator, class_name: str, drawing: str) -> Glyph:
    """Pick a drawing of a class that is not the particular one."""
    return pick(rng, [glyph for glyph in glyphs_of(class_name, "train") if glyph.name != drawing])


def turn_hue(glyph: Glyph, degrees: int) -> Glyph:
    """Turn every colour of a drawing about the grey axis, in whole numbers; its lightness stays about the same."""
    # The rotation matrix about (1, 1, 1), in 4096ths: rows sum to one, so that greys stay.
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    third, root = (1 - cosine) / 3, sine / math.sqrt(3)
    row = [round(4096 * (third - root)), round(4096 * (third + root))]
    matrix = np.array([4096 - sum(row), *row], dtype=np.int32)
    turn = np.stack([np.roll(matrix, shift) for shift in range(3)])
    levels = []
    for level in glyph.levels:
        colours = level[..., :3].astype(np.int32)
        turned = sum(colours[..., channel, None] * turn[:, channel] for channel in range(3)) // 4096
        changed = level.copy()
        changed[..., :3] = np.clip(turned, 0, level[..., 3:])  # premultiplied: alpha is the ceiling
        levels.append(changed)
    return replace(glyph, levels=tuple(levels))


def write_personal(root: Path, scenes: int = 40, seed: int = 0) -> bool:
    """Draw the set and write it; the folder appears as a whole or not at all.

    Args:
        root: folder to make; it must not exist, be empty, or hold the same set, which is then left as it is.
        scenes: scenes of each subset of each concept.
        seed: another number makes another set.

    Returns:
        Whether anything was drawn.

    Raises:
        ConfigError: `root` holds something else, or a number is out of range.
        UserError: another process is writing it.

    """
    if scenes < 1 or seed < 0:
        raise ConfigError(f"--scenes is {scenes} and --seed {seed}: at least 1 scene and a seed of at least 0.")
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "scenes": scenes, "seed": seed}
    header |= {"drawings_crc32": atlas_crc32()}
    if not is_free(root):
        if _header_of(root) == header:
            return False
        raise ConfigError(f"{root} is not empty and holds no such set: remove it, or choose another --output.")
    with new_folder(root) as folder:
        for concept in CONCEPTS:
            _write_concept(folder / concept.name, concept, scenes, seed)
        (folder / "README.txt").write_text(README, encoding="utf-8")
        (folder / "personal.json").write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
    return True


def _header_of(root: Path) -> Any:
    try:
        return json.loads((root / "personal.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_concept(folder: Path, concept: Concept, scenes: int, seed: int) -> None:
    (folder / "references").mkdir(parents=True)
    for index, scene in enumerate(reference_scenes(concept, seed=seed)):
        _save(folder / "references" / f"{index:02d}.png", scene.rgb)
    for subset in SUBSETS:
        for kind in ("images", "masks"):
            (folder / subset / kind).mkdir(parents=True)
        for index, scene in enumerate(subset_scenes(concept, subset, scenes, seed)):
            _save(folder / subset / "images" / f"{index:03d}.png", scene.rgb)
            mask = drawing_mask(scene, concept.drawing)
            write_mask(folder / subset / "masks" / f"{index:03d}.png", mask, BLACK_AND_WHITE)
    import yaml

    text = yaml.safe_dump({"token": concept.token, "class_word": concept.class_word}, sort_keys=False)
    (folder / "concept.yaml").write_text(text, encoding="utf-8")


def _save(path: Path, rgb: UInt8[np.ndarray, "height width 3"]) -> None:
    Image.fromarray(rgb).save(path, compress_level=1)


def main(arguments: list[str] | None = None) -> None:
    """Command line: write the set."""
    parser = argparse.ArgumentParser(prog="python -m data.demo.personal", description="Draw the personal set.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--scenes", type=int, default=40, help="scenes of each subset of each concept (default 40)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        drawn = write_personal(options.output, options.scenes, options.seed)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"Wrote the set to {options.output}." if drawn else f"The set is in {options.output} already.")


if __name__ == "__main__":
    main()

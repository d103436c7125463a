"""Draw one scene of the demo world: one to three objects over one or two grounds, with its exact mask.

Whole numbers throughout (see `glyphs` and `grounds`): the same seed gives the same pixels on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from data.classes import VOC
from data.demo.glyphs import Drawings, Glyph, find_glyph, glyphs_of, place
from data.demo.grounds import (
    GROUNDS,
    UPPER_GROUNDS,
    blend_grounds,
    draw_ground,
    generator,
    pick,
    random_bytes,
    uniform_int,
)

SIZE_PX = 128
SIDES, ALONE_SIDES, PORTRAIT_SIDES = (28, 62), (28, 85), (75, 90)  # Longer side in hundredths of the scene's.
PORTRAIT_DRAWINGS = 2  # The first drawings of a class sit for portraits.
VISIBLE_PX = 40  # An object counts as present with more visible pixels than this (in a scene of 128 x 128).


@dataclass(frozen=True)
class Instance:
    """One visible object: its class, its drawing ("dog/poodle") and the box of its visible pixels.

    The box is (left, top, right, bottom) in pixels, right and bottom exclusive.
    """

    class_id: int
    class_name: str
    drawing: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Scene:
    """One scene: picture, truth and words.

    `mask` holds Pascal VOC ids (0 background), `owners` which of `instances` a pixel shows (index + 1, 0 for the
    ground); `labels` are the ids in the mask, ascending; `grounds` names one or two of GROUNDS, the upper one first.
    """

    rgb: UInt8[np.ndarray, "size size 3"]
    mask: UInt8[np.ndarray, "size size"]
    owners: UInt8[np.ndarray, "size size"]
    labels: tuple[int, ...]
    grounds: tuple[str, ...]
    instances: tuple[Instance, ...]


@dataclass(frozen=True, eq=False)
class _Cutout:
    """A drawing at its place: RGBA with premultiplied colours, cropped to the scene, and its upper left corner."""

    glyph: Glyph
    rgba: UInt8[np.ndarray, "height width 4"]
    left: int
    top: int


def draw_scene(
    seed: int | np.random.Generator,
    *,
    drawings: Drawings = "train",
    grounds: Sequence[str] = GROUNDS,
    size_px: int = SIZE_PX,
) -> Scene:
    """Draw one scene of the demo world.

    Scene statistics: one, two or three classes (0.4, 0.4, 0.2) over one or two grounds; where there are fewer than
    three, one time in four two objects of a kind. An object's longer side is 0.28 to 0.62 of the scene's (up to 0.85
    alone); it is mirrored, turned by up to 20 degrees, changed in contrast (0.8 to 1.1) and colour, and may lie up to
    5 % of the scene over its border. Later objects cover earlier ones; one with too little left to see is left out.

    Args:
        seed: A number, or the generator to draw from (which then moves on).
        drawings: "train" leaves out the drawings held out for the shifted world, "held_out" takes them alone.
        grounds: The grounds to choose from, at least two.
        size_px: Height and width of the scene, at least 32.

    Returns:
        The scene. It always shows at least one object, and `labels` are exactly the classes in its mask.

    Raises:
        ValueError: for a size below 32 or unknown `drawings`.

    """
    rng = _generator(seed)
    return compose(_choose_glyphs(rng, drawings), rng, size_px, grounds=grounds)


def draw_portrait(seed: int | np.random.Generator, *, drawings: Drawings = "train", size_px: int = SIZE_PX) -> Scene:
    """Draw one object alone, upright and in the middle, as in a picture taken to show it.

    Its longer side is 0.75 to 0.90 of the scene's; one of the first two drawings of its class. No split shows such
    scenes: the shipped model learns from them, beside the world's own, what objects look like as a whole. Arguments
    and errors: see `draw_scene`.
    """
    rng = _generator(seed)
    glyph = pick(rng, glyphs_of(pick(rng, VOC.names), drawings)[:PORTRAIT_DRAWINGS])
    rgb, grounds = _draw_grounds(rng, size_px)
    side = uniform_int(rng, size_px * PORTRAIT_SIDES[0], size_px * PORTRAIT_SIDES[1] + 1) // 100
    rgba = _jitter(place(glyph, side, 0, flip=False), rng)
    rows, columns = rgba.shape[:2]
    sway = size_px // 32
    left = (size_px - columns) // 2 + uniform_int(rng, -sway, sway + 1)
    top = (size_px - rows) // 2 + uniform_int(rng, -sway, sway + 1)
    cutouts = [_Cutout(glyph, rgba, left, top)]
    return _finish(rgb, grounds, cutouts, _owners(cutouts, size_px), rng)


def draw_personal_scene(
    seed: int | np.random.Generator, drawing: str, *, alone: bool = False, size_px: int = SIZE_PX
) -> Scene:
    """Draw one particular object among one or two others of its class, half of the time with something else as well.

    Args:
        seed: A number, or the generator to draw from.
        drawing: Name of the particular drawing, as in "dog/service"; the others are drawings for training.
        alone: Draw it with nothing else, as a photograph to learn it from.
        size_px: Height and width of the scene.

    Returns:
        A scene that shows the particular drawing exactly once (see `drawing_mask`) and, unless `alone`, at least one
        other object of its class.

    Raises:
        ValueError: there is no such drawing.

    """
    rng = _generator(seed)
    particular = find_glyph(drawing)
    others = [glyph for glyph in glyphs_of(particular.class_name, "train") if glyph is not particular]
    while True:
        glyphs = [particular]
        if not alone:
            glyphs += [pick(rng, others) for _ in range(uniform_int(rng, 1, 3))]
            if len(glyphs) == 2 and rng.random() < 0.5:
                glyphs += [pick(rng, glyphs_of(pick(rng, VOC.names), "train"))]
            glyphs.insert(uniform_int(rng, 0, len(glyphs)), glyphs.pop(0))
        scene = compose(glyphs, rng, size_px)
        shown = [instance.drawing for instance in scene.instances if instance.class_name == particular.class_name]
        # What is covered too far is left out of a scene: then another one is drawn.
        if shown.count(drawing) == 1 and (alone or len(shown) > 1):
            return scene


def drawing_mask(scene: Scene, drawing: str) -> UInt8[np.ndarray, "size size"]:
    """Return 1 where the scene shows the drawing of this name, 0 elsewhere."""
    indices = [index + 1 for index, instance in enumerate(scene.instances) if instance.drawing == drawing]
    return np.isin(scene.owners, indices).astype(np.uint8)


def compose(
    glyphs: list[Glyph],
    rng: np.random.Generator,
    size_px: int = SIZE_PX,
    sides: Sequence[tuple[int, int] | None] | None = None,
    grounds: Sequence[str] = GROUNDS,
) -> Scene:
    """Draw a scene of given drawings at random places.

    Args:
        glyphs: The drawings, the first farthest back.
        rng: The generator to draw from.
        size_px: Height and width of the scene, at least 32.
        sides: For each drawing its longer side, least and most, in hundredths of the scene's; None: as in other scenes.
        grounds: The grounds to choose from, at least two.

    """
    rgb, chosen = _draw_grounds(rng, size_px, grounds)
    cutouts, owners = _arrange(glyphs, rng, size_px, sides or [None] * len(glyphs))
    return _finish(rgb, chosen, cutouts, owners, rng)


def _draw_grounds(
    rng: np.random.Generator, size_px: int, names: Sequence[str] = GROUNDS
) -> tuple[UInt8[np.ndarray, "size size 3"], tuple[str, ...]]:
    """Draw one ground, or two with a border between them; return the pixels and the names."""
    if size_px < 32:
        raise ValueError(f"size_px is {size_px}: a scene is at least 32 pixels wide")
    grounds = _choose_grounds(rng, names)
    rgb = draw_ground(grounds[0], rng, size_px)
    if len(grounds) == 2:
        rgb = blend_grounds(rgb, draw_ground(grounds[1], rng, size_px), rng)
    return rgb, grounds


def _finish(
    rgb: UInt8[np.ndarray, "size size 3"],
    grounds: tuple[str, ...],
    cutouts: list[_Cutout],
    owners: UInt8[np.ndarray, "size size"],
    rng: np.random.Generator,
) -> Scene:
    """Lay the cut-outs over the grounds, add grain, and put down what is there."""
    for cutout in cutouts:
        _paint(rgb, cutout)
    rgb = _add_noise(rgb, rng)
    class_ids = np.array([0, *(VOC.index(cutout.glyph.class_name) for cutout in cutouts)], dtype=np.uint8)
    instances = tuple(_describe(cutout.glyph, owners == index + 1) for index, cutout in enumerate(cutouts))
    labels = tuple(sorted({int(class_id) for class_id in class_ids[1:]}))
    return Scene(rgb, class_ids[owners], owners, labels, grounds, instances)


def _generator(seed: int | np.random.Generator) -> np.random.Generator:
    return seed if isinstance(seed, np.random.Generator) else generator(seed)


def _choose_glyphs(rng: np.random.Generator, drawings: Drawings) -> list[Glyph]:
    """Choose one drawing each of one to three classes, sometimes two of one class."""
    draw = rng.random()
    count = 1 if draw < 0.4 else 2 if draw < 0.8 else 3
    names = list(VOC.names)
    chosen = [names.pop(uniform_int(rng, 0, len(names))) for _ in range(count)]
    if count < 3 and rng.random() < 0.25:
        chosen.append(chosen[uniform_int(rng, 0, count)])
    return [pick(rng, glyphs_of(name, drawings)) for name in chosen]


def _choose_grounds(rng: np.random.Generator, grounds: Sequence[str]) -> tuple[str, ...]:
    """Choose one ground, or two, of which those of UPPER_GROUNDS come first: they lie above the others."""
    names = list(grounds)
    chosen = [names.pop(uniform_int(rng, 0, len(names))) for _ in range(1 if rng.random() < 0.4 else 2)]
    return tuple(sorted(chosen, key=lambda name: UPPER_GROUNDS.index(name) if name in UPPER_GROUNDS else 9))


def _arrange(
    glyphs: list[Glyph], rng: np.random.Generator, size_px: int, sides: Sequence[tuple[int, int] | None]
) -> tuple[list[_Cutout], UInt8[np.ndarray, "size size"]]:
    """Place the drawings; those with too few visible pixels are left out.

    Returns:
        The cut-outs that stay, and for every pixel the index + 1 of the uppermost one that covers more than half of
        it (0 where none does).

    """
    least_px = VISIBLE_PX * size_px * size_px // (SIZE_PX * SIZE_PX)
    usual = ALONE_SIDES if len(glyphs) == 1 else SIDES
    boxes: list[tuple[int, int, int, int]] = []
    cutouts = [
        _place_somewhere(glyph, rng, size_px, own or usual, boxes) for glyph, own in zip(glyphs, sides, strict=True)
    ]
    while True:
        owners = _owners(cutouts, size_px)
        visible = np.bincount(owners.ravel(), minlength=len(cutouts) + 1)[1:]
        if visible.min() > least_px:
            return cutouts, owners
        # Leaving an object out uncovers others, so a second round counts again. The last one drawn always stays.
        cutouts = [cutout for cutout, count in zip(cutouts, visible, strict=True) if count > least_px] or cutouts[-1:]


def _owners(cutouts: list[_Cutout], size_px: int) -> UInt8[np.ndarray, "size size"]:
    """Return for every pixel the index + 1 of the uppermost cut-out that covers more than half of it, 0 for none."""
    owners = np.zeros((size_px, size_px), dtype=np.uint8)
    for index, cutout in enumerate(cutouts):
        rows, columns = cutout.rgba.shape[:2]
        window = owners[cutout.top : cutout.top + rows, cutout.left : cutout.left + columns]
        window[cutout.rgba[..., 3] > 127] = index + 1
    return owners


def _place_somewhere(
    glyph: Glyph,
    rng: np.random.Generator,
    size_px: int,
    sides: tuple[int, int],
    boxes: list[tuple[int, int, int, int]],
) -> _Cutout:
    """Turn, size, colour and place one drawing; of two places the one that covers less of `boxes`, which it joins."""
    side = uniform_int(rng, size_px * sides[0], size_px * sides[1] + 1) // 100
    rgba = place(glyph, max(side, 8), uniform_int(rng, -20, 21), rng.random() < 0.5)
    rgba = _jitter(rgba, rng)
    rows, columns = rgba.shape[:2]
    over = size_px * 5 // 100
    best_overlap, left, top = size_px * size_px * 4, 0, 0
    for _ in range(2 if boxes else 1):
        new_left = uniform_int(rng, -over, max(1 - over, size_px + over - columns + 1))
        new_top = uniform_int(rng, -over, max(1 - over, size_px + over - rows + 1))
        box = (new_left, new_top, new_left + columns, new_top + rows)
        overlap = sum(_overlap(box, other) for other in boxes)
        if overlap < best_overlap:
            best_overlap, left, top = overlap, new_left, new_top
    boxes.append((left, top, left + columns, top + rows))
    inside = rgba[max(0, -top) : max(0, size_px - top), max(0, -left) : max(0, size_px - left)]
    return _Cutout(glyph, inside, max(0, left), max(0, top))


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> int:
    """Return how many pixels two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)


def _jitter(rgba: UInt8[np.ndarray, "height width 4"], rng: np.random.Generator) -> UInt8[np.ndarray, "height width 4"]:
    """Change contrast about the middle grey, and shift each channel (a bell of standard deviation 12)."""
    contrast = uniform_int(rng, 205, 282)  # In 256ths: 0.80 to 1.10.
    bell = random_bytes(rng, 3, 4).astype(np.int32).sum(axis=1) - 510  # Standard deviation 148.
    offset = (128 * (256 - contrast) + bell * 256 * 12 // 148).astype(np.int32)
    alpha = rgba[..., 3:].astype(np.int32)
    # Colours are premultiplied, so the constant is scaled with alpha and alpha is the ceiling.
    changed = (rgba[..., :3] * np.int32(contrast) + alpha * offset // 255) >> 8
    jittered = rgba.copy()
    jittered[..., :3] = np.clip(changed, 0, alpha)
    return jittered


def _paint(rgb: UInt8[np.ndarray, "size size 3"], cutout: _Cutout) -> None:
    """Lay a cut-out over the scene, in place."""
    rows, columns = cutout.rgba.shape[:2]
    window = rgb[cutout.top : cutout.top + rows, cutout.left : cutout.left + columns]
    through = 255 - cutout.rgba[..., 3:].astype(np.int32)
    window[:] = np.minimum(cutout.rgba[..., :3] + (window * through + 127) // 255, 255)


# A bell of standard deviation 3 in whole numbers: byte b of a uniform draw stands for NOISE[b].
NOISE = np.repeat(np.arange(-8, 9, dtype=np.int16), [1, 2, 4, 7, 14, 21, 28, 33, 36, 33, 28, 21, 14, 7, 4, 2, 1])


def _add_noise(rgb: UInt8[np.ndarray, "size size 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
    """Add the camera's grain: independent in every pixel and channel, of standard deviation 3."""
    return np.clip(rgb + NOISE[random_bytes(rng, *rgb.shape)], 0, 255).astype(np.uint8)


def _describe(glyph: Glyph, visible: Bool[np.ndarray, "size size"]) -> Instance:
    """Return the record of one object, from where it is visible."""
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return Instance(VOC.index(glyph.class_name), glyph.class_name, glyph.name, box)

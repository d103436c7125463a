"""Particular things to find among others of their kind: my mug among mugs.

Layout:
    R/<concept>/concept.yaml                  token: "<my-mug>" and class_word: mug; either may be left out
    R/<concept>/references/*.jpg              the thing alone, to learn it from; not read here
    R/<concept>/<subset>/images/01.jpg        images to find it in; any number of subsets, of any names
    R/<concept>/<subset>/masks/01.png         where it is; wholly black where the image does not show it
    R/<subset>/images, R/<subset>/masks       the same without concept folders, for one concept (R/concept.yaml)
    PerSeg: Images/<object>/NN.jpg and Annotations/<object>/NN.png; 00 is the reference, from which the object is
    learned, and is not scored. PerMIS: <video>/0.jpg, 1.jpg, 2.jpg and <video>/masks.npz.npy (an .npy file in spite of
    its name); 0 is the reference, 1 is to be segmented, as the authors' script does.

Masks:
    Everything but black is the thing. An image without its mask is an error, not an absent thing. masks.npz.npy is a
    pickle; it is read by an unpickler that builds arrays and containers alone (`data.readers.pickled`).

Metric:
    Our layout and PerSeg: sum(I) / sum(U) over a concept's images, mean over concepts; mean accuracy sum(I) / sum(true)
    and Boundary IoU likewise. PerMIS: one sum(I) / sum(U) over everything. Beside each the false-alarm rate, the share
    of images without the thing in which it is found: in PerSeg and PerMIS nearly every image shows its object, so an
    answer that marks everything is not punished, and each object is also looked for in an image of the next object.
    PerSeg's official script passes over every path that contains "00", whatever it is called (and object names with
    00), pairs truths with predictions by their order in two sorted lists, and leaves out eight objects; we do none of
    these. PerMIS' script passes over objects below 0.5 % of the image, as we do, and crops images to a square, which we
    do not.

Source:
    Xiao et al., arXiv 2309.04109 (personalised referring segmentation); Zhang et al., "Personalize Segment Anything
    Model with One Shot", ICLR 2024 (PerSeg); Samuel et al., "Where's Waldo: Diffusion Features for Personalized
    Segmentation and Retrieval", NeurIPS 2024 (PerMIS).
"""

from pathlib import Path
from typing import Any

import numpy as np

from data.errors import ConfigError, ImageError, LabelError
from data.images import IMAGE_SUFFIXES, size_of
from data.readers.pickled import PickleFault, load_npy_objects
from data.readers.targets import MaskArray, MaskFile, Target, TargetSet
from data.texts import FileKind, read_bytes, read_yaml
from data.wording import count

REFERENCES = "references"
PERSEG_REFERENCE = "00"
PERMIS_MASKS = ("masks.npz.npy", "masks.npy")
PERMIS_LEAST_SHARE = 0.005
CONCEPT_KEYS = ("token", "class_word")
CONCEPT = FileKind("the concept file", 64 * 1024, 'write `token: "<my-mug>"` and `class_word: mug`', LabelError)
MASKS = FileKind("the mask file", 2 * 1024**3, "fetch the data set again", LabelError)


def open_personal(root: Path) -> TargetSet:
    """List the targets of our own layout.

    Raises:
        ConfigError: no concept or no image in it.
        ImageError: an image without a mask, or a mask without an image.
        LabelError: a concept.yaml of another form.

    """
    single = sorted(path.parent.name for path in root.glob("*/images") if path.is_dir())
    folders = [root] if single else sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    targets: list[Target] = []
    concepts: dict[str, dict[str, str]] = {}
    for folder in folders:
        subsets = sorted(path.parent for path in folder.glob("*/images") if path.is_dir())
        if not subsets:
            continue
        concepts[folder.name] = read_concept(folder)
        for subset in subsets:
            for image, mask in _pairs(subset / "images", subset / "masks"):
                target_id = f"{folder.name}/{subset.name}/{image.stem}"
                targets.append(Target(target_id, image, folder.name, MaskFile(mask), group=subset.name))
    if not targets:
        raise ConfigError(
            f"{root} holds no <concept>/<subset>/images with images; --root must name a folder of concepts, PerSeg or "
            "PerMIS (see data/readers/personal.py)."
        )
    return TargetSet("personal", targets, concepts)


def read_concept(folder: Path) -> dict[str, str]:
    """Return what a concept's concept.yaml says; nothing where there is none.

    Raises:
        LabelError: not YAML, or not of this form.

    """
    path = folder / "concept.yaml"
    if not path.is_file():
        return {}
    content = read_yaml(path, CONCEPT)
    if not isinstance(content, dict) or not all(isinstance(content.get(key, ""), str) for key in CONCEPT_KEYS):
        raise LabelError(f'{path} must hold the lines `token: "<my-mug>"` and `class_word: mug`, each of them a text.')
    unknown = sorted(str(key) for key in set(content) - set(CONCEPT_KEYS))
    if unknown:
        raise LabelError(f"{path}: {unknown[0]!r} is unknown; it holds {' and '.join(CONCEPT_KEYS)}.")
    return {key: content[key] for key in CONCEPT_KEYS if content.get(key)}


def _pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Pair images with masks by their names without suffix, never by their order."""
    by_stem = _by_stem(images)
    drawn = _by_stem(masks) if masks.is_dir() else {}
    without = sorted(set(by_stem) - set(drawn))
    if without:
        raise ImageError(
            f"{len(without)} of {count(len(by_stem), 'image')} in {images} without a mask in {masks}, the first is "
            f"{without[0]}; an image that does not show the thing has a black mask."
        )
    orphans = sorted(set(drawn) - set(by_stem))
    if orphans:
        raise ImageError(
            f"{count(len(orphans), 'mask has', 'masks have')} no image in {images}, the first is {orphans[0]} "
            f"in {masks}."
        )
    return [(by_stem[stem], drawn[stem]) for stem in sorted(by_stem)]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            if path.stem in found:
                raise ImageError(f"{path} and {found[path.stem].name} share their name; remove one of them.")
            found[path.stem] = path
    return found


def open_perseg(root: Path) -> TargetSet:
    """List the targets of PerSeg; each object is also looked for in the first image of the next one.

    Raises:
        ConfigError: no objects.
        ImageError: an image without a mask, or the other way round.

    """
    objects = sorted(path for path in (root / "Images").iterdir() if path.is_dir() and path.name[0] != ".")
    pairs = {
        folder.name: [
            pair for pair in _pairs(folder, root / "Annotations" / folder.name) if pair[0].stem != PERSEG_REFERENCE
        ]
        for folder in objects
    }
    found = [
        Target(f"{name}/{image.stem}", image, name, MaskFile(mask), group=name)
        for name, scored in pairs.items()
        for image, mask in scored
    ]
    if not found:
        raise ConfigError(f"{root / 'Images'} holds no object folder with images besides {PERSEG_REFERENCE}.")
    concepts = {name: _object_words(name) for name in pairs}
    return TargetSet("perseg", [*found, *_absent(found)], concepts)


def _object_words(name: str) -> dict[str, str]:
    """Return the class word that an object's folder name spells: cat2 is a cat, red_teapot a red teapot."""
    word = " ".join(name.replace("_", " ").split()).rstrip("0123456789").strip()
    return {"class_word": word} if word else {}


def _absent(found: list[Target]) -> list[Target]:
    """Return each thing once more, in the first image of the next thing, where it is not."""
    first = {target.phrase: target for target in reversed(found)}
    names = list(dict.fromkeys(target.phrase for target in found))
    if len(names) < 2:
        return []
    return [
        Target(
            f"{name}/absent",
            first[other].image_path,
            name,
            MaskArray(np.zeros(size_of(first[other].image_path), bool)),
            group="absent",
        )
        for name, other in zip(names, [*names[1:], names[0]], strict=True)
    ]


def open_permis(root: Path) -> TargetSet:
    """List the targets of PerMIS; each object is also looked for in the next video's image.

    Raises:
        ConfigError: no videos.
        LabelError: a mask file that is not of the authors' form, or one that holds more than arrays.
        ImageError: an image that is missing.

    """
    found, small = [], 0
    videos = sorted(
        (path for path in root.iterdir() if _permis_masks(path) is not None),
        key=lambda path: (len(path.name), path.name),  # 2 before 10
    )
    for folder in videos:
        mask = _permis_mask(folder, frame=1)
        image = next((path for path in sorted(folder.glob("1.*")) if path.suffix.lower() in IMAGE_SUFFIXES), None)
        if image is None:
            raise ImageError(f"{folder} has masks but no image 1.jpg; unpack the images there.")
        if (mask != 0).mean() < PERMIS_LEAST_SHARE:
            small += 1
            continue
        found.append(Target(folder.name, image, folder.name, MaskArray(mask), group="permis"))
    if not found:
        raise ConfigError(f"{root} holds no <video>/{PERMIS_MASKS[0]} with an object of {PERMIS_LEAST_SHARE:.1%}.")
    concepts = {target.phrase: read_concept(root / target.phrase) for target in found}
    notes = (f"{count(small, 'object')} below {PERMIS_LEAST_SHARE:.1%} of the image left out.",) if small else ()
    return TargetSet("permis", [*found, *_absent(found)], concepts, notes)


def _permis_masks(folder: Path) -> Path | None:
    return next((folder / name for name in PERMIS_MASKS if (folder / name).is_file()), None)


def _permis_mask(folder: Path, frame: int) -> np.ndarray:
    """Return the mask of a frame: the file is a list of dictionaries, a frame each, of object id to mask."""
    path = folder / PERMIS_MASKS[0] if (folder / PERMIS_MASKS[0]).is_file() else folder / PERMIS_MASKS[1]
    try:
        frames: Any = load_npy_objects(read_bytes(path, MASKS))
    except PickleFault as error:
        raise LabelError(f"{path} is no mask file of PerMIS ({error}); do not open it with numpy.") from error
    entry = frames[frame] if isinstance(frames, list) and len(frames) > frame else None
    mask = next(iter(entry.values()), None) if isinstance(entry, dict) else None
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype.kind not in "biuf":
        raise LabelError(f"{path} holds no mask for frame {frame}: it must be a list of {{object id: mask}}, one each.")
    return mask

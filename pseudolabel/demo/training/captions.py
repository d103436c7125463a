"""What a caption of the demo world says: templates, class words and the order they come in."""

import numpy as np

from data.classes import VOC

TEMPLATES = ("a photo including", "a photo of", "a picture with", "")
WORDS = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}


def class_word(label: int) -> str:
    """Return the word of a class in captions: its VOC name, two words where English writes two."""
    return WORDS.get(VOC.name(label), VOC.name(label))


def caption(scene_labels: tuple[int, ...], grounds: tuple[str, ...], random: np.random.Generator) -> str:
    """Return a sentence that names the classes in random order, half of the time with the grounds among them."""
    words = [class_word(label) for label in scene_labels]
    if random.random() < 0.5:
        words += grounds
    words = [words[i] for i in random.permutation(len(words))]
    listed = words[0] if len(words) == 1 else ", ".join(words[:-1]) + ", and " + words[-1]
    return f"{TEMPLATES[random.integers(len(TEMPLATES))]} {listed}{'.' if random.random() < 0.5 else ''}".strip()

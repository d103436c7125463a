"""DreamBooth: the whole U-Net is trained, and a whole model is written, to be named in `--model.id`.

Source: Ruiz et al., arXiv 2208.12242, without the prior-preservation loss (pictures of the class, section 3.3).
"""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from data.files import new_folder
from pseudolabel.softmaps.diffusion.fetch import part_folders, read_settings, weight_parts
from pseudolabel.softmaps.diffusion.parts import Parts


def start_dreambooth(unet: Any) -> list[nn.Parameter]:
    """Return the weights that are trained: all of the U-Net's own."""
    unet.requires_grad_(True)
    return list(unet.parameters())


def write_model(output: Path, source: Path, parts: Parts) -> None:
    """Write a model in diffusers' layout; the folder appears as a whole or not at all.

    Args:
        output: folder to make.
        source: folder of the model that was trained: what has not changed is copied from there.
        parts: the trained model, with the token in its tokenizers and text encoders.

    """
    with new_folder(output) as folder:
        parts.denoiser.save_pretrained(folder / "unet")
        for index, (tokenizer, encoder) in enumerate(zip(parts.tokenizers, parts.text_encoders, strict=True)):
            suffix = f"_{index + 1}" if index else ""
            tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
            encoder.save_pretrained(folder / f"text_encoder{suffix}")
        for name in part_folders(weight_parts("unet", t5=False)):
            if (source / name).is_dir() and not (folder / name).exists():
                shutil.copytree(source / name, folder / name)
        index_file: dict[str, Any] = read_settings(source / "model_index.json")
        kept = {  # a part that was not fetched, a safety checker say, is named as absent
            name: [None, None] if isinstance(value, list) and not (folder / name).is_dir() else value
            for name, value in index_file.items()
        }
        (folder / "model_index.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")

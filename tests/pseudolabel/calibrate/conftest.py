"""A data set of three images and a model of four layers: a calibration on both takes a second."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from data.masks import write_mask


def draw_world(root: Path) -> Path:
    """Three images in VOC's layout with truth; the object is the bright square."""
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    names = ["a", "b", "c"]
    for name in names:
        image, mask = random.integers(0, 90, (48, 64, 3), dtype=np.uint8), np.zeros((48, 64), np.uint8)
        image[10:30, 20:40] += 150
        mask[10:30, 20:40] = 8
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg")
        write_mask(root / "SegmentationClass" / f"{name}.png", mask)
        entry = "<object><name>cat</name><difficult>0</difficult></object>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{entry}</annotation>")
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.fixture
def small_world(tmp_path):
    return draw_world(tmp_path / "world")


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory):
    """The same, for tests that do not change it."""
    return draw_world(tmp_path_factory.mktemp("calibrate") / "world")


@pytest.fixture(scope="session")
def few_layers(sd_folder, tmp_path_factory) -> Path:
    """The tiny Stable Diffusion with a U-Net of two levels and four layers."""
    root = tmp_path_factory.mktemp("few") / "sd"
    shutil.copytree(sd_folder, root, ignore=shutil.ignore_patterns("unet"))
    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        sample_size=16, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=16,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "to_q" in name or "to_k" in name:
                parameter.mul_(4)
    unet.save_pretrained(root / "unet")
    return root

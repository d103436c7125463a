from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pseudolabel.ground.config import GroundConfig
from pseudolabel.ground.localizer import Localizer
from pseudolabel.masks.config import CrfConfig
from pseudolabel.softmaps.config import AttentionConfig, DiffusionConfig, ModelConfig, ResizeConfig


@pytest.fixture(scope="session")
def ground_config(sd_folder: Path) -> GroundConfig:
    return GroundConfig(
        model=ModelConfig(id=str(sd_folder)),
        resize=ResizeConfig(long_side_px=64),
        diffusion=DiffusionConfig(draws=2),
        attention=AttentionConfig(cross_layers=("1/2", "mid"), self_layers=("up_blocks.1.attentions.1",)),
        crf=CrfConfig(iterations=2),
    )


@pytest.fixture(scope="session")
def localizer(ground_config: GroundConfig) -> Localizer:
    return Localizer.from_pretrained(config=ground_config, device="cpu", whole=True)


@pytest.fixture(scope="session")
def rgb_u8() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture
def photo(tmp_path: Path, rgb_u8: np.ndarray) -> Path:
    Image.fromarray(rgb_u8).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture(scope="session")
def ground_options(sd_folder: Path) -> list[str]:
    return [
        f"--model.id={sd_folder}", "--resize.long_side_px=64", "--diffusion.draws=2", "--device=cpu",
        "--attention.cross_layers=[1/2,mid]", "--attention.self_layers=[up_blocks.1.attentions.1]",
        "--crf.iterations=2",
    ]  # fmt: skip

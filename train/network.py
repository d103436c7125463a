"""The networks: DeepLab decoders on the encoders of segmentation-models-pytorch.

This is the only file that touches segmentation-models-pytorch. Its internals that we rely on: a model has `encoder`,
`decoder` and `segmentation_head`; `get_encoder` builds an encoder that returns a list of feature maps, coarsest last.
"""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from jaxtyping import Float
from segmentation_models_pytorch.encoders import get_encoder, get_encoder_names, get_preprocessing_params
from torch import Tensor, nn

from data.config import changed, require
from data.errors import ConfigError, ModelError
from train.encoder_weights import Loaded, load_encoder_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1]; torchvision's recipes use these, most but not all of timm's
IMAGENET_STD = (0.229, 0.224, 0.225)
SIZE_MULTIPLE = 32  # height and width of an input: the deepest feature map of an undilated encoder is 1/32

# What smp's own encoders were trained with, where that is not ImageNet's mean and deviation; smp keeps it on the hub,
# beside the weights, which a file of weights comes without. By the beginning of their names; those that cannot be
# dilated are left out.
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_DPN = ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)
_OWN_NORMALISATION = {"timm-tf_efficientnet_lite": _HALF, "dpn": _DPN}

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class NetworkConfig:
    """Which network is built."""

    architecture: Literal["deeplabv3plus", "deeplabv3", "deeplabv2"] = "deeplabv3plus"
    """Decoder: DeepLabV3+ (arXiv 1802.02611), DeepLabV3 (1706.05587) or DeepLabV2 (1606.00915)."""
    encoder: str = "resnet50"
    """Any encoder of segmentation-models-pytorch by its name; timm's with the prefix tu-, such as tu-convnext_tiny."""
    weights: str | None = "imagenet"
    """First weights of the encoder: imagenet (fetched from the hub), a local file, or null for random ones."""
    output_stride: Literal[8, 16] | None = None
    """Pixels of the image for one cell of the coarsest map; 16 for V3+, 8 for V3 and V2 when not given."""
    decoder_channels: int = 256
    """Width of the decoder; V2 has none."""
    atrous_rates: tuple[int, ...] | None = None
    """Dilations of the pyramid; 12, 24, 36 for V3 and V3+, 6, 12, 18, 24 for V2 when not given."""
    dropout: float = 0.5
    """Share of values dropped behind the pyramid while training; V2 has none."""
    enlarge: int = 1
    """Show the encoder each image at so many times its size; for small images: encoders learnt on larger ones."""
    encoder_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments for timm.create_model, for tu- encoders only, such as {channels: [32, 64, 128, 256]}."""
    mean: Rgb | None = None
    """Mean that is taken from RGB in 0 to 1 before the encoder; what its weights were trained with when not given."""
    std: Rgb | None = None
    """What RGB in 0 to 1 is divided by after that; what the encoder's weights were trained with when not given."""

    def __post_init__(self) -> None:
        require("model.network.decoder_channels", self.decoder_channels, self.decoder_channels >= 1, "at least 1")
        rates = self.atrous_rates is None or (bool(self.atrous_rates) and min(self.atrous_rates) >= 1)
        require("model.network.atrous_rates", self.atrous_rates, rates, "whole numbers of at least 1")
        require("model.network.dropout", self.dropout, 0 <= self.dropout < 1, "at least 0 and below 1")
        require("model.network.enlarge", self.enlarge, self.enlarge >= 1, "a whole number of at least 1")
        both = (self.mean is None) == (self.std is None)
        require("model.network.mean", self.mean, both, "given together with --model.network.std")
        std = self.std is None or min(self.std) > 0
        require("model.network.std", self.std, std, "three numbers above 0")

    def idle(self) -> tuple[str, ...]:
        """Return the settings that were changed and have no effect with the others."""
        return changed(self, ["decoder_channels", "dropout"] if self.architecture == "deeplabv2" else [])


class PyramidHead(nn.Module):
    """DeepLabV2's decoder: the sum of parallel dilated 3x3 convolutions, straight to class scores.

    Shape:
        - Input: a list of feature maps, of which the last, (N, in_channels, h, w), is read.
        - Output: (N, n_classes, h, w), unnormalised scores.

    Reference:
        Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully
        Connected CRFs", arXiv 1606.00915, section 3.2.
    """

    def __init__(self, in_channels: int, n_classes: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        branches = [nn.Conv2d(in_channels, n_classes, 3, padding=rate, dilation=rate) for rate in rates]
        for branch in branches:
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)  # type: ignore[arg-type]
        self.branches = nn.ModuleList(branches)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return class scores at the size of the coarsest feature map."""
        return torch.stack([branch(features[-1]) for branch in self.branches]).sum(0)


class Segmenter(nn.Module):
    """Enlarging, normalisation, encoder, decoder: RGB values in 0 to 255 in, class scores out.

    The first two are part of the network, so nobody who deploys it can get them wrong.

    Shape:
        - Input: (N, 3, H, W), float, RGB in 0..255; H and W multiples of `SIZE_MULTIPLE`.
        - Output: (N, classes with background, H, W), unnormalised scores.

    Reference:
        The decoders: DeepLabV2 arXiv 1606.00915, DeepLabV3 1706.05587, DeepLabV3+ 1802.02611.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, decoder: nn.Module, head: nn.Module, enlarge: int = 1) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = encoder, decoder, head
        self.enlarge = enlarge
        self.origin = "all tensors are random"  # where the weights come from, for people
        self.register_buffer("mean", torch.empty(1, 3, 1, 1))
        self.register_buffer("std", torch.empty(1, 3, 1, 1))
        self.normalise_with(IMAGENET_MEAN, IMAGENET_STD)

    def normalise_with(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Choose mean and deviation, of RGB in 0..1; a state dict that is loaded later brings its own."""
        self.mean.copy_(255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.std.copy_(255 * torch.tensor(std).view(1, 3, 1, 1))

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Return mean and deviation, of RGB in 0..1."""
        mean, std = ((value.double().flatten() / 255).tolist() for value in (self.mean, self.std))
        return [round(value, 7) for value in mean], [round(value, 7) for value in std]

    def forward(self, rgb: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n classes height width"]:
        """Return the class scores of each pixel."""
        seen = rgb
        if self.enlarge > 1:
            seen = F.interpolate(rgb, scale_factor=float(self.enlarge), mode="bilinear", align_corners=False)
        scores = self.head(self.decoder(self.encoder((seen - self.mean) / self.std)))
        if scores.shape[-2:] != rgb.shape[-2:]:
            scores = F.interpolate(scores, size=rgb.shape[-2:], mode="bilinear", align_corners=False)
        return scores


def build_network(config: NetworkConfig, n_classes: int, pretrained: bool = True) -> Segmenter:
    """Build a network.

    Args:
        config: which one.
        n_classes: number of classes, the background included.
        pretrained: False leaves the encoder's weights random, because others are going to be loaded.

    Raises:
        ModelError: no such encoder, one without dilation, or weights that cannot be loaded; the message says which.

    """
    weights = config.weights if pretrained else None
    hub_weights = "imagenet" if weights == "imagenet" else None
    if config.encoder_args and not config.encoder.startswith("tu-"):
        raise ConfigError("--model.network.encoder_args goes with timm encoders alone, whose names begin with tu-.")
    if config.atrous_rates is not None and len(config.atrous_rates) != 3 and config.architecture != "deeplabv2":
        raise ConfigError(f"--model.network.atrous_rates is {config.atrous_rates}; {config.architecture} takes three.")
    try:
        network = _assemble(config, n_classes, hub_weights)
    except Exception as error:  # timm, smp and the hub client raise many kinds; each becomes one sentence
        unfit = _fault_without_weights(config, n_classes) if hub_weights else error
        raise _explain(config, unfit or error, fetching=unfit is None) from error
    if hub_weights:
        network.origin = f"the encoder's tensors come from {_weights_source(config.encoder)}, the others are random"
    loaded: Loaded | None = None
    if weights is not None and hub_weights is None:
        loaded = load_encoder_weights(network.encoder, Path(weights), _whole_network(config))
        network.origin = f"{loaded.sentence(Path(weights))}; all others are random"
    network.normalise_with(*_normalisation(config, network.encoder, hub_weights, loaded))
    return network


def _normalisation(
    config: NetworkConfig, encoder: nn.Module, hub_weights: str | None, loaded: Loaded | None
) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and deviation: as configured, else as the file says, else as the encoder's recipe has them."""
    if config.mean is not None and config.std is not None:
        return config.mean, config.std
    if loaded is not None and loaded.mean is not None and loaded.std is not None:
        return loaded.mean, loaded.std
    recipe = getattr(getattr(encoder, "model", None), "pretrained_cfg", None)  # timm's
    if recipe is None and hub_weights:
        recipe = get_preprocessing_params(config.encoder, hub_weights)  # lies beside the weights, fetched with them
        plain = recipe["input_space"] == "RGB" and max(recipe["input_range"]) == 1
        if not plain:
            raise ModelError(
                f"The weights of {config.encoder!r} expect {recipe['input_space']} in {recipe['input_range']}, which "
                "the networks here do not give them; choose another --model.network.encoder."
            )
    if recipe is not None:
        return recipe.get("mean", IMAGENET_MEAN), recipe.get("std", IMAGENET_STD)
    own = (figures for name, figures in _OWN_NORMALISATION.items() if config.encoder.startswith(name))
    return next(own, (IMAGENET_MEAN, IMAGENET_STD))


def _whole_network(config: NetworkConfig) -> list[str]:
    """Return the names of the tensors of timm's whole classifier, of which a tu- encoder is the front; else none."""
    if not config.encoder.startswith("tu-"):
        return []
    import timm

    with torch.device("meta"):
        return list(timm.create_model(config.encoder.removeprefix("tu-"), **config.encoder_args).state_dict())


def _assemble(config: NetworkConfig, n_classes: int, hub_weights: str | None) -> Segmenter:
    shared: dict[str, Any] = {
        "encoder_name": config.encoder,
        "encoder_weights": _smp_weights(config.encoder, hub_weights),
        "decoder_channels": config.decoder_channels,
        "decoder_aspp_dropout": config.dropout,
        "decoder_atrous_rates": config.atrous_rates or (12, 24, 36),
        "classes": n_classes,
        **config.encoder_args,
    }
    match config.architecture:
        case "deeplabv3plus":
            model = smp.DeepLabV3Plus(encoder_output_stride=config.output_stride or 16, **shared)
        case "deeplabv3":
            model = smp.DeepLabV3(encoder_output_stride=config.output_stride or 8, **shared)
        case "deeplabv2":
            encoder = get_encoder(
                config.encoder,
                weights=shared["encoder_weights"],
                output_stride=config.output_stride or 8,
                **config.encoder_args,
            )
            head = PyramidHead(encoder.out_channels[-1], n_classes, config.atrous_rates or (6, 12, 18, 24))
            return Segmenter(encoder, head, nn.Identity(), config.enlarge)
    return Segmenter(model.encoder, model.decoder, model.segmentation_head, config.enlarge)


@contextmanager
def padding_of_whole_cells() -> Iterator[None]:
    """Let timm's SAME padding be a number that does not depend on the image; put back at the end, on exceptions too.

    Encoders that pad as TensorFlow does (tf_efficientnet*, dilated resnet*d) compute each layer's padding from its
    input's sides. Exported with free sides that becomes arithmetic on shapes around every layer: ten times the time to
    write ONNX, and a fraction that torch.export cannot write to a file at all. The sides that a network takes are
    multiples of `SIZE_MULTIPLE`, so each layer's stride divides its input, and the padding is the same for all sizes.
    """
    from timm.layers import padding

    original = padding.get_same_padding
    padding.get_same_padding = _whole_padding
    try:
        yield
    finally:
        padding.get_same_padding = original


def _whole_padding(x: int, kernel_size: int, stride: int, dilation: int) -> int:
    """Return how many pixels to add to a side of x pixels, a multiple of the stride, for x / stride cells."""
    return max((kernel_size - 1) * dilation + 1 - stride, 0)


def _smp_weights(encoder: str, hub_weights: str | None) -> Any:
    return (True if hub_weights else None) if encoder.startswith("tu-") else hub_weights


def _fault_without_weights(config: NetworkConfig, n_classes: int) -> Exception | None:
    """Return why a network cannot be built with random weights either; None where it can, and fetching was at fault."""
    try:
        _assemble(config, n_classes, None)
    except Exception as error:  # as many kinds as in `build_network`
        return error
    return None


def _explain(config: NetworkConfig, error: Exception, fetching: bool) -> ModelError:
    """Return the error for a network that could not be built: unknown name, unreachable weights, or no dilation."""
    reason = " ".join(str(error).split())[:200]
    if _is_unknown(config.encoder):
        near = difflib.get_close_matches(config.encoder, _known_encoders(), n=3)
        return ModelError(
            f"Unknown encoder {config.encoder!r}; --model.network.encoder takes a name of segmentation-models-pytorch "
            f"or tu- and a timm name{', such as ' + ', '.join(near) if near else ''}."
        )
    if fetching:
        return ModelError(
            f"The ImageNet weights of {config.encoder!r} cannot be fetched from {_weights_source(config.encoder)} "
            f"({reason}); fetch them elsewhere and give the file with --model.network.weights FILE, or train from "
            "scratch with --model.network.weights null."
        )
    return ModelError(
        f"The encoder {config.encoder!r} does not go with {config.architecture} ({reason}); DeepLab needs an encoder "
        "that can be dilated, such as resnet50: see --model.network.encoder."
    )


def _weights_source(encoder: str) -> str:
    """Return where an encoder's ImageNet weights are fetched from."""
    import timm
    from segmentation_models_pytorch.encoders import encoders

    if encoder.startswith("tu-"):
        source = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        return f"https://huggingface.co/{source.hf_hub_id}" if source and source.hf_hub_id else "timm's own address"
    settings = encoders.get(encoder, {}).get("pretrained_settings", {}).get("imagenet", {})
    return f"https://huggingface.co/{settings['repo_id']}" if "repo_id" in settings else "the hub"


def _known_encoders() -> list[str]:
    import timm

    return [*get_encoder_names(), *(f"tu-{name}" for name in timm.list_models())]


def _is_unknown(encoder: str) -> bool:
    import timm

    if encoder.startswith("tu-"):
        return not timm.is_model(encoder.removeprefix("tu-"))
    return encoder not in get_encoder_names() and not encoder.startswith("timm-")

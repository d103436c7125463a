"""The image encoder with a fraction of its memory: an image goes through it a few rows at a time.

At a megapixel and more it is the encoder that needs the most memory: three copies and more of 128 channels at the
image's own size. Here each residual block reads its input in stripes and writes what it gives over it; what lies
between its two convolutions is made twice, first for the norm's mean and deviation, which are the whole image's. So the
latent is that of the whole image up to rounding, unlike that of diffusers' `enable_tiling`, whose tiles each have norms
of their own and are blended where they overlap.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

STRIPE_ELEMENTS = 1 << 21  # of a stripe, all its channels: 4 MB in half precision; smaller ones spared no more
LEAST_ROWS = 4  # a block's two convolutions see two rows beyond a stripe
QUARTER = 4  # below a quarter of the image's side a tiny encoder's values are few

Rows = Callable[[int, int], Tensor]


@contextmanager
def in_stripes(vae: Any) -> Iterator[None]:
    """Within the context the encoder of an autoencoder (of diffusers: KL, Flux.2's, tiny) works in stripes.

    It must not be training: nothing of what a gradient needs is kept.
    """
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.resnet import ResnetBlock2D

    changed: list[nn.Module] = []

    def use(module: nn.Module, forward: Callable[..., Tensor]) -> None:
        module.forward = partial(forward, module)
        changed.append(module)

    try:
        if not hasattr(vae.encoder, "down_blocks"):
            use(vae.encoder.layers, _sequence)
        else:
            for module in vae.encoder.down_blocks.modules():
                if isinstance(module, ResnetBlock2D):
                    use(module, _residual_block)
                elif isinstance(module, Downsample2D) and module.use_conv and module.padding == 0:
                    use(module, _half_size)
        yield
    finally:
        for module in changed:
            del module.forward


def _stripes(rows: int, elements_per_row: int) -> Iterator[tuple[int, int]]:
    """Yield where stripes begin and end."""
    step = max(LEAST_ROWS, STRIPE_ELEMENTS // elements_per_row)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _residual_block(block: Any, values: Tensor, temb: None = None) -> Tensor:
    """Do what diffusers' ResnetBlock2D does without a time embedding; the values that are given are overwritten."""
    height, width = values.shape[-2:]
    stripes = list(_stripes(height, block.conv1.out_channels * width))
    first = _norm(block.norm1, values, stripes, lambda start, end: values[:, :, start:end])

    def between(piece: Tensor, top: int, bottom: int) -> Tensor:
        """Return what the first convolution makes of some rows; two fewer but at the image's own edges."""
        return _rows_of(block.conv1, block.nonlinearity(first(piece)), top == 0, bottom == height)

    def middle(start: int, end: int) -> Tensor:
        top, bottom = max(0, start - 1), min(height, end + 1)
        return between(values[:, :, top:bottom], top, bottom)

    second = _norm(block.norm2, values, stripes, middle)
    shortcut = block.conv_shortcut
    given = values if shortcut is None else values.new_empty(len(values), shortcut.out_channels, height, width)
    above = values[:, :, :0]
    for start, end in stripes:
        top, bottom = start - above.shape[2], min(height, end + 2)
        piece = torch.cat([above, values[:, :, start:bottom]], dim=2)
        above = values[:, :, max(0, end - 2) : end].clone()  # before it is written over
        hidden = block.nonlinearity(second(between(piece, top, bottom)))
        inner_top, inner_bottom = (0 if top == 0 else top + 1), (height if bottom == height else bottom - 1)
        found = _rows_of(block.conv2, hidden, inner_top == 0, inner_bottom == height)
        offset = start - (0 if inner_top == 0 else inner_top + 1)
        added = found[:, :, offset : offset + end - start]
        own = values[:, :, start:end] if shortcut is None else shortcut(values[:, :, start:end])
        given[:, :, start:end] = (own + added) / block.output_scale_factor
    return given


def _norm(
    norm: nn.GroupNorm, values: Tensor, stripes: list[tuple[int, int]], rows: Rows
) -> Callable[[Float[Tensor, "batch channels _ width"]], Tensor]:
    """Return a group norm with the mean and deviation of all rows, which are seen stripe by stripe."""
    number, mean, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for start, end in stripes:
        part = rows(start, end).float().unflatten(1, (norm.num_groups, -1)).flatten(2)
        variance, own = (each.cpu().double() for each in torch.var_mean(part, dim=2, correction=0))
        more = part.shape[2]
        apart = own - mean  # Chan, Golub and LeVeque, 1979: moments of a set from those of its parts
        mean = mean + apart * more / (number + more)
        squares = squares + variance * more + apart.square() * number * more / (number + more)
        number += more
    repeats = norm.num_channels // norm.num_groups
    deviation = (squares / number + norm.eps).sqrt()
    scale, shift = (
        each.float().repeat_interleave(repeats, dim=1)[..., None, None].to(values.device)
        for each in (1 / deviation, mean)
    )
    weight, bias = (each.float()[:, None, None] for each in (norm.weight, norm.bias))

    def apply(piece: Tensor) -> Tensor:
        return ((piece.float() - shift) * (scale * weight) + bias).to(values.dtype)

    return apply


def _rows_of(conv: nn.Conv2d, piece: Tensor, at_top: bool, at_bottom: bool) -> Tensor:
    """Apply a convolution of 3 x 3 to rows of an image; beyond its edges are zeros, elsewhere a row is lost."""
    padded = functional.pad(piece, (0, 0, int(at_top), int(at_bottom)))
    return functional.conv2d(padded, conv.weight, conv.bias, padding=(0, 1))


def _half_size(down: Any, values: Tensor) -> Tensor:
    """Do what diffusers' Downsample2D does: a convolution of 3 x 3 with stride 2 and zeros at the right and below."""
    conv, (height, width) = down.conv, values.shape[-2:]
    rows = (height + 1 - 3) // 2 + 1
    found = []
    for start, end in _stripes(rows, conv.in_channels * width * 2):
        piece = values[:, :, 2 * start : 2 * end + 1]
        padded = functional.pad(piece, (0, 1, 0, max(0, 2 * end + 1 - height)))
        found.append(functional.conv2d(padded, conv.weight, conv.bias, stride=2))
    return torch.cat(found, dim=2)


def _sequence(layers: nn.Sequential, values: Tensor) -> Tensor:
    """Run a tiny encoder's layers, those at large sides on stripes with as many rows around as they can see."""
    count, reach, scale = _at_large_sides(layers)
    height, width = values.shape[-2:]
    channels = max(layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d))
    found = []
    for start, end in _stripes(-(-height // scale), channels * width * scale):
        top, bottom = max(0, start * scale - reach), min(height, end * scale + reach)
        part = values[:, :, top:bottom]
        for layer in layers[:count]:
            part = layer(part)
        first = start - top // scale
        found.append(part[:, :, first : first + end - start])
    values = torch.cat(found, dim=2)
    for layer in layers[count:]:
        values = layer(values)
    return values


def _at_large_sides(layers: nn.Sequential) -> tuple[int, int, int]:
    """Return how many layers work above a quarter of the side, how many rows they see around one, and their scale."""
    count, reach, scale = 0, 0, 1
    for layer in layers:
        if scale >= QUARTER:
            break
        convs = [each for each in layer.modules() if isinstance(each, nn.Conv2d) and each.kernel_size[0] == 3]
        reach += scale * len(convs)
        scale *= layer.stride[0] if isinstance(layer, nn.Conv2d) else 1
        count += 1
    return count, -(-reach // scale) * scale, scale

"""Which layers and heads of a model to believe, image by image.

Source: GoCA, CVPR 2026, arXiv 2603.06178. A layer counts as much as its self-attention goes where dense features of the
model say that cells are alike; a head as much as what it adds to a cell points where the layer's whole output does.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from data.errors import ModelError
from pseudolabel.softmaps.affinity import SelfAttention
from pseudolabel.softmaps.attention import Recording
from pseudolabel.softmaps.calls import Call, pick_heads
from pseudolabel.softmaps.grids import resize_maps
from pseudolabel.softmaps.layers import Layer


def weigh_heads(call: Call, layer: Layer, module: nn.Module) -> Float[Tensor, "batch heads cells"]:
    """Return the weights of the heads that a layer is read through, from a call of its cross-attention.

    Raises:
        ModelError: joint attention, or a module without an output projection; a head that the layer does not have.

    """
    projection = getattr(module, "to_out", None)
    if layer.text != "all" or projection is None or call.values is None:
        raise ModelError(
            f"--attention.weights: the heads of {layer.name} cannot be weighed, it is no cross-attention with an "
            "output projection; use mean"
        )
    weights = head_weights(call.queries, call.keys, call.values, projection[0].weight, call.mask, call.scale)
    if layer.heads is None:
        return weights
    chosen = pick_heads(weights, layer.heads)
    return chosen / chosen.sum(dim=1, keepdim=True).clamp_min(1e-12)


def weigh_layers(
    recording: Recording, layers: Sequence[Layer], reference: Layer, latent_hw: tuple[int, int]
) -> Float[Tensor, "layers batch"]:
    """Return how much each cross-attention layer counts in each element of a batch; they sum to 1.

    Args:
        recording: with self-attention of `layers` and the features of `reference`.
        layers: the layers weighed; of several transformer blocks the mean.
        reference: whose queries of cross-attention are the dense features.
        latent_hw: height and width of the latent.

    """
    kept = recording.features[reference.blocks[-1]]
    features = kept.transpose(2, 3).flatten(1, 2).unflatten(-1, reference.grid_hw(latent_hw))
    found = []
    for layer in layers:
        blocks = [
            SelfAttention(recording.queries[block], recording.keys[block], layer.grid_hw(latent_hw))
            for block in layer.blocks
        ]
        found.append(torch.stack([layer_agreement(features, block) for block in blocks]).mean(dim=0))
    agreement = torch.stack(found)
    return agreement / agreement.sum(dim=0, keepdim=True).clamp_min(1e-12)


def head_weights(
    queries: Float[Tensor, "batch heads cells dim"],
    keys: Float[Tensor, "batch heads tokens dim"],
    values: Float[Tensor, "batch heads tokens value_dim"],
    projection: Float[Tensor, "out heads_and_value_dim"],
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Float[Tensor, "batch heads cells"]:
    """Return how much each head of a cross-attention layer counts at each cell; the heads of a cell sum to 1.

    w_n = <(A_n V_n W_n)_i, output_i> over the sum of the heads' w, A_n the head's attention, V_n its values, W_n its
    part of the output projection, output the sum over heads. No head's contribution is held: with h the heads' values
    side by side and W the whole projection, all w_n are the products of h and (h W^T) W, summed head by head.

    Where we differ: the output is without its bias, and a head that points the other way counts 0 and not less.
    """
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.float()  # of a model in half precision it is in that too, and is refused beside these
    heads = functional.scaled_dot_product_attention(
        queries.float(), keys.float(), values.float(), attn_mask=mask, scale=scale
    )
    matrix = projection.float()
    side_by_side = heads.transpose(1, 2).flatten(2)
    back = side_by_side @ matrix.T @ matrix
    along = (side_by_side * back).unflatten(-1, (heads.shape[1], -1)).sum(dim=-1).clamp_min(0)
    total = along.sum(dim=-1, keepdim=True)
    shares = torch.where(total > 0, along / total.clamp_min(1e-30), torch.full_like(along, 1 / heads.shape[1]))
    return shares.transpose(1, 2)


def layer_agreement(
    features: Float[Tensor, "batch dim height width"], attention: SelfAttention
) -> Float[Tensor, "batch"]:
    """Return how much of a layer's self-attention goes where dense features say that cells are alike, 0 to 1.

    sum(R * S), R = softmax(f f^T / sqrt(dim)), S the layer's self-attention. Where we differ: features are resized to
    the layer's grid, and the sum is divided by its number of cells, so that layers of several grids can be compared.
    """
    rows = resize_maps(features.float(), attention.grid_hw).flatten(2).transpose(1, 2)
    found = []
    for element, queries, keys in zip(rows, attention.queries, attention.keys, strict=True):
        alike = torch.softmax(element @ element.T * element.shape[-1] ** -0.5, dim=-1)
        [affinity] = SelfAttention(queries[None], keys[None], attention.grid_hw).matrix()
        found.append((alike * affinity).sum() / len(element))
    return torch.stack(found)


def blurred(maps: Float[Tensor, "batch tokens height width"], width: int) -> Float[Tensor, "batch tokens height width"]:
    """Smooth each map by a Gaussian of an odd number of cells, its deviation 0.3 ((width - 1) / 2 - 1) + 0.8.

    That is the deviation OpenCV and torchvision take for a width; GoCA's width is 5. Beyond the border the nearest cell
    is repeated. 1 or less changes nothing.
    """
    if width <= 1:
        return maps
    reach = width // 2
    offsets = torch.arange(-reach, reach + 1, device=maps.device, dtype=torch.float32)
    taps = torch.exp(-0.5 * (offsets / (0.3 * ((width - 1) / 2 - 1) + 0.8)) ** 2)
    taps = taps / taps.sum()
    flat = functional.pad(maps.flatten(0, 1)[:, None], (reach, reach, reach, reach), mode="replicate")
    smooth = functional.conv2d(functional.conv2d(flat, taps[None, None, None]), taps[None, None, :, None])
    return smooth[:, 0].unflatten(0, maps.shape[:2])

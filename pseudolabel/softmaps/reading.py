"""One batch of U-Net passes: what they looked at, as class maps, boxes and refined maps.

Joins diffusion, attention and affinity (arXiv 2309.04109, sections 3.2 and 3.3) for passes of equal size, whatever
image, noise draw, timestep, mirror image or sentence they belong to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pseudolabel.config import GenerateConfig
from pseudolabel.softmaps.affinity import SelfAttention, spread
from pseudolabel.softmaps.attention import Layer, TokenColumns
from pseudolabel.softmaps.boxes import Box, batch_boxes, box_mask
from pseudolabel.softmaps.diffusion.parts import Models, TextEmbedding
from pseudolabel.softmaps.diffusion.unet import record_attention, run_unet
from pseudolabel.softmaps.grids import common_grid, min_max, resize_maps, valid_mask, valid_sizes
from pseudolabel.softmaps.passes import Pass
from pseudolabel.softmaps.prompt import Prompt


@dataclass(frozen=True)
class Reading:
    """What was read in a batch of passes; columns are the classes of each pass's sentence, then unused ones.

    Attributes:
        cross: by layer, cross-attention on the layer's grid.
        class_maps: mean over layers on the common grid, scaled to 0..1.
        layers: self-attention of each layer read.
        boxes: of each pass and column; empty where no boxes are used.
        refined: class maps after spreading, scaled to 0..1.

    """

    cross: dict[str, Float[Tensor, "batch columns _ _"]]
    class_maps: Float[Tensor, "batch columns grid_h grid_w"]
    layers: tuple[SelfAttention, ...]
    boxes: list[list[tuple[Box, ...]]]
    refined: Float[Tensor, "batch columns grid_h grid_w"]


def read_batch(
    models: Models,
    cross_layers: Sequence[Layer],
    self_layers: Sequence[Layer],
    config: GenerateConfig,
    passes: Sequence[Pass],
    text: TextEmbedding,
) -> Reading:
    """Run passes of equal size in one batch and return what was read.

    Args:
        models: the model's parts.
        cross_layers: layers whose cross-attention is read.
        self_layers: layers whose self-attention spreads the maps.
        config: all settings.
        passes: at least one, all with latents of one size.
        text: embedding of each pass's sentence.

    """
    noised = torch.stack([item.noised for item in passes])
    latent_hw = (noised.shape[-2], noised.shape[-1])
    grid_hw = common_grid(cross_layers, self_layers, latent_hw)
    rescale = config.attention.token_rescaling
    columns, pooling = token_columns([item.prompt for item in passes], text.tokens.shape[1], rescale)
    columns, pooling = columns.to(models.device), pooling.to(models.device)
    with record_attention(models.unet, cross_layers, self_layers, columns) as recording:
        run_unet(models, noised, [item.timestep for item in passes], text, passes[0].frame.padded_hw)

    cross = {layer.name: recording.cross_map(layer, latent_hw) for layer in cross_layers}
    if rescale:
        cross = {name: _pool_tokens(maps, pooling, passes, config) for name, maps in cross.items()}
    valid = valid_mask(passes, grid_hw, config.resize.valid_only).to(models.device)
    class_maps = min_max(torch.stack([resize_maps(maps, grid_hw) for maps in cross.values()]).mean(dim=0), valid)
    layers = tuple(SelfAttention(*recording.queries_and_keys(layer), layer.grid_hw(latent_hw)) for layer in self_layers)
    boxes: list[list[tuple[Box, ...]]] = []
    masks = None
    if config.affinity.boxes and config.affinity.kind in ("caa", "iterated", "clipes"):
        boxes = batch_boxes(class_maps, valid_sizes(passes, grid_hw, config.resize.valid_only), config.affinity)
        masks = torch.stack([torch.stack([torch.from_numpy(box_mask(b, grid_hw)) for b in row]) for row in boxes])
        masks = masks.to(models.device)
    refined = spread(class_maps, layers, masks, valid, config.affinity)
    return Reading(cross, class_maps, layers, boxes, refined)


def token_columns(
    prompts: Sequence[Prompt], n_tokens: int, per_token: bool
) -> tuple[TokenColumns, Float[Tensor, "batch classes columns"]]:
    """Return how tokens are summed to columns, and how columns are then summed to classes.

    A class is the mean over its tokens. Without `per_token` the columns are the classes. With it they are the classes'
    tokens, so that each can be scaled before the mean is taken, and content tokens share out each cell's attention.
    """
    n_classes = max(len(prompt.spans) for prompt in prompts)
    classes = torch.zeros(len(prompts), n_classes, n_tokens)
    for weights, prompt in zip(classes, prompts, strict=True):
        for row, span in zip(weights, prompt.spans, strict=False):
            row[list(span)] = 1 / len(span)
    if not per_token:
        return TokenColumns(classes), torch.eye(n_classes).expand(len(prompts), -1, -1)
    content = torch.zeros(len(prompts), n_tokens, dtype=torch.bool)
    for row, prompt in zip(content, prompts, strict=True):
        row[list(prompt.content)] = True
    identity = torch.eye(n_tokens).expand(len(prompts), -1, -1)
    return TokenColumns(identity, content), classes


def _pool_tokens(
    tokens: Float[Tensor, "batch tokens height width"],
    pooling: Float[Tensor, "batch classes tokens"],
    passes: Sequence[Pass],
    config: GenerateConfig,
) -> Float[Tensor, "batch classes height width"]:
    """Scale each token's map to 0..1 and average the tokens of a class (GoCA, CVPR 2026)."""
    valid = valid_mask(passes, (tokens.shape[-2], tokens.shape[-1]), config.resize.valid_only).to(tokens.device)
    return torch.einsum("bct,bthw->bchw", pooling, min_max(tokens, valid))

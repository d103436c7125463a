"""What a model's attention layers looked at: recording them.

Every family of models ends in one function, `scaled_dot_product_attention`, with queries and keys as they are used:
after norms and rotary embedding. There they are read, whatever computed them; what is made of a call is in `calls`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from data.errors import ModelError
from pseudolabel.softmaps.calls import Call, call_of, cross_columns, pick_heads
from pseudolabel.softmaps.layers import Layer

HeadWeights = Callable[[Call, Layer, nn.Module], Tensor]
Sinks = dict[str, list[Callable[[Call], None]]]  # by name of an attention module, what wants its calls


@dataclass
class Recording:
    """What was recorded in one pass, by module name of the transformer block.

    Attributes:
        cross: columns of cross-attention, the mean over heads or, where they are weighed, their weighted sum.
        queries: of self-attention, per head.
        keys: the same.
        features: queries of cross-attention, all heads, of the block whose dense features were asked for.

    """

    cross: dict[str, Tensor] = field(default_factory=dict)
    queries: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)

    def first_columns(self, number: int) -> "Recording":
        """Return the same with only so many columns of cross-attention."""
        return replace(self, cross={block: columns[:, :number] for block, columns in self.cross.items()})

    def cross_map(
        self, layer: Layer, latent_hw: tuple[int, int], content: Bool[Tensor, "batch columns"] | None = None
    ) -> Float[Tensor, "batch columns height width"]:
        """Return the columns of a cross-attention layer on its grid, the mean over its transformer blocks.

        Args:
            layer: a layer that was recorded.
            latent_hw: height and width of the latent.
            content: where every token is a column: those that share out each cell's attention among them; the others
                become zero (GoCA, CVPR 2026). None leaves the columns as they are.

        """
        blocks = [self.cross[block] for block in layer.blocks]
        if content is not None:
            blocks = [_share_out(columns, content) for columns in blocks]
        return torch.stack(blocks).mean(dim=0).unflatten(-1, layer.grid_hw(latent_hw))

    def queries_and_keys(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Return queries and keys (batch, heads, cells, dim) of a self-attention layer, blocks' heads side by side."""
        recorded = [layer.key(block) for block in layer.blocks]
        queries = torch.cat([pick_heads(self.queries[key], layer.heads) for key in recorded], dim=1)
        keys = torch.cat([pick_heads(self.keys[key], layer.heads) for key in recorded], dim=1)
        return queries, keys


def _share_out(
    tokens: Float[Tensor, "batch tokens cells"], content: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens cells"]:
    """Let the content tokens of each cell sum to one and drop the others."""
    kept = tokens.transpose(1, 2).contiguous() * content[:, None, :]
    return (kept / kept.sum(dim=-1, keepdim=True).clamp_min(1e-12)).transpose(1, 2)


class AllRead(Exception):
    """Ends a pass after the last layer that is read; `record_attention` catches it."""


class _Watch(TorchFunctionMode):
    """Hands the arguments of scaled_dot_product_attention to the sink of the module that is running."""

    def __init__(self, sinks: Sinks, stop: bool) -> None:
        super().__init__()
        self.sinks, self.stop = sinks, stop
        self.running: str | None = None
        self.seen: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and self.running is not None:
            call = call_of(*args, **kwargs)
            for sink in self.sinks[self.running]:
                sink(call)
            self.seen.add(self.running)
            if self.stop and len(self.seen) == len(self.sinks):
                raise AllRead
        return func(*args, **kwargs)


@dataclass(frozen=True)
class _Recorder:
    """Turns calls into what is recorded; the attributes are as in `record_attention`."""

    recording: Recording
    model: nn.Module
    columns: Float[Tensor, "batch columns tokens"]
    through_keys: bool
    beside: Float[Tensor, "batch more tokens"] | None
    weigh: HeadWeights | None

    def sinks(self, cross: Sequence[Layer], self_layers: Sequence[Layer], features: Layer | None) -> Sinks:
        """Return what is to be done with the calls of each module."""
        wanted = [(block, layer.cross, self.keep_cross, layer) for layer in cross for block in layer.blocks]
        wanted += [(block, layer.cells, self.keep_cells, layer) for layer in self_layers for block in layer.blocks]
        if features is not None:
            wanted.append((features.blocks[-1], features.cross, self.keep_features, features))
        found: Sinks = {}
        for block, module, keep, layer in wanted:
            found.setdefault(f"{block}.{module}", []).append(partial(keep, block, layer))
        return found

    def keep_cross(self, block: str, layer: Layer, call: Call) -> None:
        """Record the columns of cross-attention."""
        seen = replace(call, queries=call.queries.detach()) if self.through_keys else call
        by_head = None
        if self.weigh is not None:
            by_head = self.weigh(seen, layer, self.model.get_submodule(f"{block}.{layer.cross}"))
        self.recording.cross[block] = cross_columns(seen, layer, self.columns, self.beside, by_head)

    def keep_cells(self, block: str, layer: Layer, call: Call) -> None:
        """Record queries and keys of self-attention."""
        key = layer.key(block)
        self.recording.queries[key], self.recording.keys[key] = call.among_cells(layer, self.columns.shape[-1])

    def keep_features(self, block: str, layer: Layer, call: Call) -> None:
        """Record queries of cross-attention, as dense features."""
        self.recording.features[block] = call.of_image(layer, self.columns.shape[-1]).queries


@contextmanager
def record_attention(
    model: nn.Module,
    cross: Sequence[Layer],
    self_layers: Sequence[Layer],
    columns: Float[Tensor, "batch columns tokens"],
    stop: bool = False,
    through_keys: bool = False,
    beside: Float[Tensor, "batch more tokens"] | None = None,
    weigh: HeadWeights | None = None,
    features: Layer | None = None,
) -> Iterator[Recording]:
    """Record chosen layers of every pass made inside the `with` block; the last pass is kept.

    Recorded cross-attention is reduced to the columns at once; of self-attention queries and keys are kept, never the
    map. The model computes what it computes without recording, bit for bit, and is left as it was, on exceptions too.

    Args:
        model: the denoiser.
        cross: layers whose cross-attention is read.
        self_layers: layers whose self-attention is read.
        columns: weights of the text's tokens in each column that is kept.
        stop: end the pass, and with it the block, as soon as every layer was read.
        through_keys: gradients reach the words' side of cross-attention alone, and not what the image looks like.
        beside: further columns, kept behind the others (`cross_columns`).
        weigh: returns how much each head counts at each cell of a call; None: they count alike.
        features: a layer whose queries of cross-attention are kept as `Recording.features`.

    Raises:
        ModelError: a layer was not seen, because something computes its attention in another way.

    """
    recorder = _Recorder(Recording(), model, columns, through_keys, beside, weigh)
    with _watching(model, recorder.sinks(cross, self_layers, features), stop):
        yield recorder.recording


@contextmanager
def _watching(model: nn.Module, sinks: Sinks, stop: bool) -> Iterator[None]:
    """Hand the calls of attention modules to what wants them, by module name; the end of a pass that is cut is none.

    Raises:
        ModelError: a module was not seen.

    """
    watch, hooks = _Watch(sinks, stop), list[Any]()
    try:
        for name in sinks:
            hooks += _announce(model.get_submodule(name), name, watch)
        with watch:
            yield
    except AllRead:
        return
    finally:
        for hook in hooks:
            hook.remove()
    unseen = [name for name in sinks if name not in watch.seen]
    if unseen:
        processor = type(getattr(model.get_submodule(unseen[0]), "processor", None)).__name__
        raise ModelError(
            f"The attention of {unseen[0]} ({processor}) was not seen: it must be computed by PyTorch's "
            "scaled_dot_product_attention; unset DIFFUSERS_ATTN_BACKEND, leave out --run.compile, or call "
            "set_attention_backend('native') or set_attn_processor(AttnProcessor2_0())"
        )


def _announce(module: nn.Module, name: str, watch: _Watch) -> list[Any]:
    """Let a module say when it is running."""

    def begin(*_: Any) -> None:
        watch.running = name

    def end(*_: Any) -> None:
        watch.running = None

    return [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]

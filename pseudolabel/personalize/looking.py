"""Teaching a token where to look, with the class word's own attention in place of masks.

A learned token is trained to rebuild the pictures; nothing in that asks it to tell its thing from others of the kind,
and in small models it does not. But the class word shows where the thing is in the pictures to learn from, for there it
is alone, and where the others are in pictures of others. There the token is asked for the one and against the other:

    loss = - mean over the inside of log A - mean over the outside of log(1 - A) - mean over others of log(1 - A)

with A the token's attention (softmax over all tokens, mean over heads, sum over the token's vectors), class word and
token competing in one sentence, as they are read afterwards. What the image looks like is given: gradients reach the
words' side of attention alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pseudolabel.personalize.config import LookConfig
from pseudolabel.softmaps.attention import Recording, record_attention
from pseudolabel.softmaps.diffusion.encode import add_noise
from pseudolabel.softmaps.diffusion.parts import Parts
from pseudolabel.softmaps.diffusion.unet import encode_text, run
from pseudolabel.softmaps.grids import min_max, resize_maps
from pseudolabel.softmaps.layers import Layer
from pseudolabel.softmaps.passes import stack_texts
from pseudolabel.softmaps.prompt import expand_placeholders, find_spans

ALONE = "a photo including {}."
TOGETHER = ("a photo including {0}, and {1}.", "a photo including {1}, and {0}.")
Latents = Float[Tensor, "views channels height width"]


@dataclass(frozen=True, eq=False)
class Looking:
    """What is needed to teach a token where to look.

    Attributes:
        layers: the layers it is taught in.
        own: views of the thing itself.
        others: views of others of its kind.
        own_maps: where the class word looks in these, scaled to 0..1.
        other_maps: the same for the others.

    """

    layers: tuple[Layer, ...]
    own: Latents
    others: Float[Tensor, "others channels height width"]
    own_maps: Float[Tensor, "views rows columns"]
    other_maps: Float[Tensor, "others rows columns"]


def read_maps(
    parts: Parts,
    layers: Sequence[Layer],
    latents: Latents,
    sentence: str,
    phrase: str,
    timestep: int,
    generator: torch.Generator,
) -> Float[Tensor, "views rows columns"]:
    """Return the attention of a phrase's tokens, summed over tokens, mean over layers, on the finest layer's grid.

    Args:
        parts: the model.
        layers: cross-attention layers.
        latents: of the views.
        sentence: the sentence the views are read with, which holds the phrase.
        phrase: what is read.
        timestep: noise level the views are read at.
        generator: of the noise.

    """
    text = encode_text(parts, expand_placeholders(sentence, parts.tokenizers[0]))
    weights = torch.zeros(len(latents), 1, text.tokens.shape[1], device=parts.device)
    weights[:, 0, list(find_spans(sentence, phrase, parts.tokenizers[0]))] = 1
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    noised = add_noise(latents, noise, float(parts.alphas_cumprod[timestep]))
    image_hw = (latents.shape[-2] * parts.vae_factor, latents.shape[-1] * parts.vae_factor)
    with record_attention(parts.denoiser, layers, (), weights, through_keys=True) as recording:
        run(parts, noised, [timestep] * len(latents), stack_texts([text] * len(latents)), image_hw)
    return layer_mean(recording, layers, (latents.shape[-2], latents.shape[-1]))


def layer_mean(
    recording: Recording, layers: Sequence[Layer], latent_hw: tuple[int, int]
) -> Float[Tensor, "views rows columns"]:
    """Return the mean over layers of the first column, on the finest of their grids."""
    maps = [recording.cross_map(layer, latent_hw)[:, :1] for layer in layers]
    finest = max((one.shape[-2], one.shape[-1]) for one in maps)
    return torch.stack([resize_maps(one, finest) for one in maps]).mean(0)[:, 0]


@torch.no_grad()
def class_maps(
    parts: Parts, layers: Sequence[Layer], latents: Latents, init_word: str, config: LookConfig, seed: int
) -> Float[Tensor, "views rows columns"]:
    """Return where the class word looks in each view, mean over the timesteps, scaled to 0..1."""
    found = []
    for index, latent in enumerate(latents):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        one = [
            read_maps(parts, layers, latent[None], ALONE.format(init_word), init_word, timestep, generator)
            for timestep in config.timesteps
        ]
        found.append(min_max(torch.stack(one).mean(0)[:, None], None)[0, 0])
    return torch.stack(found)


def looking_loss(
    parts: Parts,
    looking: Looking,
    token: str,
    init_word: str,
    config: LookConfig,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Return the loss of this file's docstring for `count` random views of the thing and as many of others."""
    own = torch.randint(len(looking.own), (count,), generator=generator)
    other = torch.randint(len(looking.others), (count,), generator=generator)
    timestep = config.timesteps[int(torch.randint(len(config.timesteps), (), generator=generator))]
    sentence = TOGETHER[int(torch.randint(len(TOGETHER), (), generator=generator))].format(token, init_word)
    latents = torch.cat([looking.own[own], looking.others[other]])
    looks = read_maps(parts, looking.layers, latents, sentence, token, timestep, generator).clamp(1e-5, 1 - 1e-5)
    shown, elsewhere = looking.own_maps[own], looking.other_maps[other]
    return (
        -mean_over(looks[:count].log(), shown > config.inside)
        - mean_over((1 - looks[:count]).log(), shown < config.outside)
        - mean_over((1 - looks[count:]).log(), elsewhere > config.inside)
    )


def mean_over(values: Float[Tensor, "views rows columns"], chosen: Tensor) -> Tensor:
    """Return the mean over chosen cells, 0 where there is none."""
    return (values * chosen).sum() / chosen.sum().clamp_min(1)

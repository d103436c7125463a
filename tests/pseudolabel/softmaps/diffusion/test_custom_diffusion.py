"""Custom Diffusion: merged weights against diffusers' own processors, and what is refused."""

import pytest
import torch
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from safetensors.torch import save_file

from data.errors import ModelError
from pseudolabel.softmaps.diffusion.adapters import load_custom_diffusion

WIDTH = 16
LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def custom_processors(unet, train_q_out: bool):
    """Give a U-Net diffusers' own Custom Diffusion processors with random weights and return these."""
    torch.manual_seed(5)
    state = {}
    processors = {}
    for name in unet.attn_processors:
        layer = unet.get_submodule(name.removesuffix(".processor"))
        cross = name.endswith("attn2.processor")
        processor = CustomDiffusionAttnProcessor(
            train_kv=cross, train_q_out=cross and train_q_out, hidden_size=layer.to_q.in_features,
            cross_attention_dim=layer.to_k.in_features if cross else None,
        )  # fmt: skip
        if cross:
            state |= {f"{name}.{key}": value.clone() for key, value in processor.state_dict().items()}
        processors[name] = processor
    unet.set_attn_processor(processors)
    return state


@pytest.mark.parametrize("train_q_out", [False, True])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_custom_diffusion_gives_what_diffusers_processors_give(
    train_q_out, suffix, sd_folder, plain, tmp_path, load, write
):
    theirs = load(sd_folder).denoiser
    state = custom_processors(theirs, train_q_out)
    path = tmp_path / f"custom.{suffix}"
    write(path, state, suffix == "bin")
    ours = load(sd_folder, custom_diffusion=path)
    inputs = (torch.randn(1, 4, 16, 16), torch.tensor([150]), torch.randn(1, 77, WIDTH))
    with torch.no_grad():
        expected, found, before = theirs(*inputs).sample, ours.denoiser(*inputs).sample, plain.denoiser(*inputs).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-3)
    assert ours.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    "name",
    [
        "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_x_custom_diffusion.weight",
        "no_block.attn2.processor.to_k_custom_diffusion.weight",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    ],
)
def test_custom_diffusion_that_does_not_fit_names_the_tensor(name, plain, tmp_path, layer_of):
    good = "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_custom_diffusion.weight"
    shape = layer_of(plain, LINEAR).weight.shape
    save_file({name: torch.zeros(2, 2), good: torch.zeros(shape)}, tmp_path / "c.safetensors")
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_custom_diffusion(tmp_path / "c.safetensors", plain.denoiser)
    assert layer_of(plain, LINEAR).weight.abs().sum() > 0

"""The image encoder in stripes gives the latents of the whole image, and a GPU that is full falls back to it."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ConfigError
from pseudolabel.config import stored_settings
from pseudolabel.softmaps.config import ModelConfig
from pseudolabel.softmaps.diffusion import stripes
from pseudolabel.softmaps.diffusion.encode import encode_image
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.diffusion.stripes import in_stripes

CPU = torch.device("cpu")


def trained(vae):
    """Norms that matter: their weights are not 1 and 0."""
    with torch.no_grad():
        for module in vae.encoder.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)
    usual = {"norm_num_groups": 4, "layers_per_block": 2, "latent_channels": 4}
    usual |= {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    return {
        "usual": trained(AutoencoderKL(block_out_channels=(8, 8, 16), **usual)),
        "flux2": trained(AutoencoderKLFlux2(block_out_channels=(8, 16, 16), **usual)),
        "tiny": trained(AutoencoderTiny(
            encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, latent_channels=16
        )),
    }  # fmt: skip


def latent_of(vae, pixels):
    encoded = vae.encode(pixels)
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.parameters


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["usual", "flux2", "tiny"]),
    cells=st.tuples(st.integers(1, 7), st.integers(1, 3)),
    elements=st.sampled_from([1, 1 << 11, 1 << 13, 1 << 24]),
    batch=st.integers(1, 2),
)
def test_stripes_change_a_latent_by_rounding_alone(encoders, kind, cells, elements, batch):
    """A law: whatever the size of image and stripes, the difference is below a hundred-thousandth of the latent."""
    vae = encoders[kind]
    pixels = torch.rand(batch, 3, 8 * cells[0], 8 * cells[1], generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = latent_of(vae, pixels)
    with pytest.MonkeyPatch.context() as patch, in_stripes(vae):
        patch.setattr(stripes, "STRIPE_ELEMENTS", elements)
        found = latent_of(vae, pixels)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert torch.equal(latent_of(vae, pixels), expected)  # and it is left as it was


def test_stripes_are_what_the_encoder_works_in(encoders, monkeypatch):
    """No convolution at the image's own size sees all of its rows."""
    monkeypatch.setattr(stripes, "STRIPE_ELEMENTS", 1)
    seen = []
    convolve = torch.nn.functional.conv2d
    monkeypatch.setattr(
        torch.nn.functional, "conv2d", lambda piece, *rest, **more: seen.append(piece) or convolve(piece, *rest, **more)
    )
    with in_stripes(encoders["usual"]):
        latent_of(encoders["usual"], torch.zeros(1, 3, 64, 32))
    large = {
        piece.shape[2] for piece in seen if piece.shape[3] >= 32 and piece.shape[1] > 3
    }  # the image itself is small
    assert large
    assert max(large) <= 9


def test_an_encoder_is_whole_again_after_an_error(encoders):
    vae = encoders["usual"]
    with pytest.raises(RuntimeError, match="channels"), in_stripes(vae):
        vae.encode(torch.zeros(1, 5, 32, 32))
    assert not any("forward" in module.__dict__ for module in vae.modules())


@pytest.fixture
def parts(sd_folder):
    return load_parts(ModelConfig(id=str(sd_folder)), CPU, torch.float32)


def full(*_):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_a_gpu_that_is_full_encodes_in_stripes_from_then_on(parts, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    expected = encode_image(parts, image, "mode")
    encode = parts.vae.encode

    def whole_does_not_fit(pixels):
        return encode(pixels) if any("forward" in each.__dict__ for each in parts.vae.modules()) else full()

    monkeypatch.setattr(parts.vae, "encode", whole_does_not_fit)
    for _ in range(2):
        torch.testing.assert_close(encode_image(parts, image, "mode"), expected)
        assert parts.vae_in_stripes
    monkeypatch.setattr(parts.vae, "encode", full)
    with pytest.raises(ConfigError, match=r"does not hold the image encoder on 48 x 64 px; .*--model.vae"):
        encode_image(parts, image, "mode")


def test_stripes_can_be_asked_for_and_are_no_setting_of_the_masks(sd_folder, tiny_config):
    assert load_parts(ModelConfig(id=str(sd_folder), vae_stripes=True), CPU, torch.float32).vae_in_stripes
    assert "vae_stripes" not in stored_settings(tiny_config(vae_stripes=True))["model"]


@pytest.fixture
def tiny_config():
    from data.config import DataConfig
    from pseudolabel.config import GenerateConfig

    return lambda **model: GenerateConfig(data=DataConfig(root="."), model=ModelConfig(**model))

"""Passes of tiny U-Nets, and what was recorded of them."""

from collections.abc import Callable

import pytest
import torch

from pseudolabel.softmaps.attention import Recording, record_attention


@pytest.fixture(scope="session")
def columns_for() -> Callable[[int], torch.Tensor]:
    """Return weights of two columns: token 3, and the mean of tokens 4 and 5."""

    def columns(batch: int) -> torch.Tensor:
        weights = torch.zeros(batch, 2, 77)
        weights[:, 0, 3] = 1
        weights[:, 1, 4:6] = 0.5
        return weights

    return columns


@pytest.fixture(scope="session")
def run_unet() -> Callable[..., torch.Tensor]:
    """Run a U-Net on a latent of `size` rows and eight columns more, and return its output."""

    def run(unet, size: int = 16, batch: int = 2, **kwargs) -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        sample = torch.randn(batch, 4, size, size + 8, generator=generator)
        text = torch.randn(batch, 77, unet.config.cross_attention_dim, generator=generator)
        if unet.config.addition_embed_type == "text_time":
            kwargs["added_cond_kwargs"] = {"text_embeds": torch.ones(batch, 8), "time_ids": torch.ones(batch, 6)}
        with torch.no_grad():
            return unet(sample, 150, encoder_hidden_states=text, **kwargs).sample

    return run


@pytest.fixture(scope="session")
def record(run_unet, columns_for) -> Callable[..., Recording]:
    """Return what some layers showed in one such pass."""

    def recorded(unet, cross, self_layers, stop: bool = False, **kwargs) -> Recording:
        with record_attention(unet, cross, self_layers, columns_for(2), stop) as recording:
            run_unet(unet, **kwargs)
        return recording

    return recorded


@pytest.fixture
def small_unet():
    """Two levels and four layers: to be traced, which takes time for each layer."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=16, layers_per_block=1, norm_num_groups=4, block_out_channels=(8, 8), cross_attention_dim=16,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


@pytest.fixture
def sdxl_unet(sdxl_folder):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(sdxl_folder / "unet", low_cpu_mem_usage=False).eval()

"""Number and memory formats of whole models: bfloat16 where it is multiplied, channels last where nothing changes."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from pseudolabel.config import RunConfig
from pseudolabel.softmaps.config import ModelConfig
from pseudolabel.softmaps.diffusion.load import load_model, load_parts
from pseudolabel.softmaps.diffusion.parts import pick_dtype
from pseudolabel.softmaps.diffusion.placing import place

CPU = torch.device("cpu")


def test_transformers_default_to_bfloat16_on_a_gpu(flux_folder):
    gpu = torch.device("cuda")
    assert pick_dtype("auto", gpu, "flux") == torch.bfloat16
    assert pick_dtype("auto", gpu) == pick_dtype("float16", gpu, "sd3") == torch.float16
    parts = load_model(ModelConfig(id=str(flux_folder)), RunConfig(device="cpu", dtype="bfloat16"))
    assert parts.dtype == torch.bfloat16
    assert parts.vae.decoder is None


@pytest.mark.parametrize("quick", [True, False])
def test_on_a_cpu_that_multiplies_bfloat16_transformers_run_in_it_and_unets_do_not(flux_folder, quick, monkeypatch):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: quick)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    assert load_model(ModelConfig(id=str(flux_folder)), RunConfig(device="cpu")).dtype == (
        torch.bfloat16 if quick else torch.float32
    )
    assert pick_dtype("auto", CPU, "unet") == pick_dtype("auto", torch.device("mps"), "flux") == torch.float32


def channels_are_last(module) -> set[bool]:
    weights = [
        each.weight for each in module.modules() if isinstance(each, torch.nn.Conv2d) and min(each.weight.shape) > 1
    ]
    return {weight.is_contiguous(memory_format=torch.channels_last) for weight in weights}


def test_channels_are_last_where_no_store_of_before_would_change(flux_folder, sd_folder, monkeypatch):
    flux, sd = (load_parts(ModelConfig(id=str(folder)), CPU, torch.float32) for folder in (flux_folder, sd_folder))
    assert channels_are_last(flux.vae.encoder) == {True}
    assert channels_are_last(sd.vae.encoder) == channels_are_last(sd.denoiser) == {False}
    gpu = replace(sd, device=torch.device("cuda"), denoiser=sd.denoiser.half())
    for part in (gpu.denoiser, gpu.vae, *gpu.text_encoders):
        part.to = partial(on_this_machine, part.to)
    place(gpu, ModelConfig())
    assert channels_are_last(gpu.vae.encoder) == channels_are_last(gpu.denoiser) == {True}


def on_this_machine(to, *device, **how):
    return to(**how) if how else None

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.errors import ConfigError, ModelError
from data.machine import REPOSITORY
from pseudolabel.softmaps.config import ModelConfig
from pseudolabel.softmaps.diffusion.encode import add_noise, draw_noise, encode_image, seeded_generator
from pseudolabel.softmaps.diffusion.families import cell_px, encode_text, native_px
from pseudolabel.softmaps.diffusion.fetch import MIRRORS, files_digest, find_model
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.diffusion.parts import Parts, pick_device, pick_dtype, scaled_linear_schedule

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(sd_folder) -> Parts:
    return load_parts(ModelConfig(id=str(sd_folder)), CPU, torch.float32)


@pytest.fixture
def copied(sd_folder, tmp_path):
    return shutil.copytree(sd_folder, tmp_path / "model")


def load(folder, **kwargs) -> Parts:
    return load_parts(ModelConfig(id=str(folder), **kwargs), CPU, torch.float32)


def test_sizes_come_from_the_model(models):
    assert models.vae_factor == 4
    assert cell_px(models) == 16
    assert native_px(models) == 64
    assert models.window == 77
    assert not any(parameter.requires_grad for parameter in models.denoiser.parameters())


def test_the_schedule_is_the_published_one(models):
    assert float(models.alphas_cumprod[150]) == pytest.approx(0.8278, abs=1e-4)
    torch.testing.assert_close(models.alphas_cumprod, scaled_linear_schedule())


def test_the_schedule_is_read_from_the_model(copied):
    path = copied / "scheduler" / "scheduler_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"beta_schedule": "linear"}))
    assert float(load(copied).alphas_cumprod[150]) != pytest.approx(0.8278, abs=1e-3)
    shutil.rmtree(copied / "scheduler")
    assert float(load(copied).alphas_cumprod[150]) == pytest.approx(0.8278, abs=1e-4)


def test_a_folder_without_an_index_is_an_error(tmp_path):
    with pytest.raises(ModelError, match=r"no model_index.json: --model.id must name a folder in diffusers' layout"):
        load(tmp_path)


def test_a_transformer_model_is_an_error(copied):
    (copied / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", "transformer": ["a", "b"]}))
    with pytest.raises(ModelError, match=r"holds a FluxPipeline .*Stable Diffusion 1.x"):
        load(copied)


def test_an_unsuitable_text_encoder_is_an_error(copied):
    index = json.loads((copied / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "T5EncoderModel"]
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="T5EncoderModel"):
        load(copied)


def test_an_inpainting_model_is_an_error(copied):
    from diffusers import UNet2DConditionModel

    settings = UNet2DConditionModel.load_config(copied / "unet")
    UNet2DConditionModel.from_config(settings | {"in_channels": 9}).save_pretrained(copied / "unet")
    with pytest.raises(ModelError, match="reads 9 channels but a latent has 4"):
        load(copied)


def test_a_missing_part_is_an_error(copied):
    shutil.rmtree(copied / "vae")
    with pytest.raises(ModelError, match="no folder vae"):
        load(copied)


def test_pickled_weights_are_refused(copied):
    (copied / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, copied / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors files are needed"):
        load(copied)


def test_truncated_weights_are_an_error(copied):
    path = copied / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(copied)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"])
def test_a_tensor_that_is_missing_or_has_another_name_is_an_error(copied, part):
    """The libraries would fill it with random numbers, and warn."""
    path = copied / f"{part}.safetensors"
    tensors = load_file(path)
    first = min(name for name in tensors if name.endswith("weight"))
    tensors[f"renamed.{first}"] = tensors.pop(first)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"lack 1 tensor of a \w+, the first [\w.]*{re.escape(first)}.*install newer"):
        load(copied)


def test_a_flipped_bit_in_the_shipped_weights_is_an_error(tmp_path):
    folder = shutil.copytree(REPOSITORY / "data" / "demo" / "model", tmp_path / "model")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"vae/diffusion_pytorch_model.safetensors is damaged"):
        load(folder)
    card = json.loads((folder / "training.json").read_text())
    del card["sha256"]
    (folder / "training.json").write_text(json.dumps(card))
    load(folder)
    (folder / "training.json").write_text("{")
    with pytest.raises(ModelError, match=r"Cannot read the settings .*training.json: it is not JSON"):
        load(folder)


def test_no_such_folder_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="There is no model folder"):
        find_model(ModelConfig(id=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("model_id", ["stabilityai/stable-diffusion-2-1", "nobody/nothing"])
def test_offline_an_id_that_is_not_cached_is_an_error_with_a_remedy(model_id, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=MIRRORS.get(model_id, "check the id, or name a local folder")):
        find_model(ModelConfig(id=model_id))


def test_the_digest_follows_the_weights_and_not_the_path(sd_folder, copied):
    assert files_digest(copied) == files_digest(sd_folder)
    path = copied / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert files_digest(copied) != files_digest(sd_folder)


def test_a_variant_has_files_of_its_own(copied):
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        shutil.move(copied / part / f"{stem}.safetensors", copied / part / f"{stem}.fp16.safetensors")
    assert native_px(load(copied, variant="fp16")) == 64
    with pytest.raises(ModelError, match=r"--model.variant"):
        load(copied)


def test_devices_and_number_formats():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ConfigError, match="CUDA devices"):
        pick_device("cuda:99")
    with pytest.raises(ConfigError, match="must be auto, cpu"):
        pick_device("toaster")
    assert pick_dtype("auto", CPU) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == torch.float16
    assert pick_dtype("bfloat16", CPU) == torch.bfloat16


def test_noise_depends_on_seed_image_and_draw_alone():
    shape = (4, 6, 8)
    first = draw_noise(shape, 0, "a", 0)
    torch.testing.assert_close(first, draw_noise(shape, 0, "a", 0), atol=0, rtol=0)
    for other in (draw_noise(shape, 1, "a", 0), draw_noise(shape, 0, "b", 0), draw_noise(shape, 0, "a", 1)):
        assert not torch.equal(first, other)
    torch.manual_seed(99)
    torch.testing.assert_close(first, draw_noise(shape, 0, "a", 0), atol=0, rtol=0)


def test_noise_is_standard_normal():
    noise = draw_noise((4, 100, 100), 0, "x", 0)
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1, abs=0.02)


def test_adding_noise_is_the_formula():
    clean, noise = torch.full((1, 4, 4), 2.0), torch.full((1, 4, 4), 3.0)
    torch.testing.assert_close(add_noise(clean, noise, 0.64), torch.full((1, 4, 4), 0.8 * 2 + 0.6 * 3))


def test_the_latent_is_the_posteriors_mode_or_a_sample(models):
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    mode = encode_image(models, image, "mode")
    with torch.no_grad():
        pixels = torch.from_numpy(image / 127.5 - 1).permute(2, 0, 1)[None].float()
        distribution = models.vae.encode(pixels).latent_dist
    assert mode.shape == (4, 8, 12)
    torch.testing.assert_close(mode, distribution.mode()[0] * models.vae.config.scaling_factor)
    samples = [encode_image(models, image, "sample", seeded_generator(0, name, "posterior")) for name in "aab"]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
    spread = (samples[0] - mode) / (distribution.std[0] * models.vae.config.scaling_factor)
    assert float(spread.std()) == pytest.approx(1, abs=0.2)


def test_text_is_embedded_as_the_pipelines_of_diffusers_do(models, sdxl_folder):
    text = "a photo including dog, and cat."
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    embedding = encode_text(models, text)
    reference = StableDiffusionPipeline(
        models.vae, models.text_encoders[0], models.tokenizers[0], models.denoiser, None, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    expected, _ = reference.encode_prompt(text, CPU, 1, False)
    torch.testing.assert_close(embedding.tokens, expected)
    assert embedding.pooled is None

    sdxl = load(sdxl_folder)
    embedding = encode_text(sdxl, text)
    large = StableDiffusionXLPipeline(sdxl.vae, *sdxl.text_encoders, *sdxl.tokenizers, sdxl.denoiser, None)
    expected, _, pooled, _ = large.encode_prompt(text, device=CPU, do_classifier_free_guidance=False)
    torch.testing.assert_close(embedding.tokens, expected)
    torch.testing.assert_close(embedding.pooled, pooled)


def test_a_bare_unet_has_no_text_and_no_images(bare_unet):
    models = Parts(denoiser=bare_unet)
    assert models.vae_factor == 8
    with pytest.raises(ModelError, match="prompt_embeds="):
        encode_text(models, "x")
    with pytest.raises(ModelError, match="latents="):
        encode_image(models, np.zeros((32, 32, 3), np.uint8), "mode")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model_index.json", "[]"),
        ("model_index.json", '{"unet": 3, "text_encoder": ["transformers", "CLIPTextModel"]}'),
        ("scheduler/scheduler_config.json", "[" * 100_000),
        ("scheduler/scheduler_config.json", '{"beta_start": "x"}'),
        ("scheduler/scheduler_config.json", '{"num_train_timesteps": 3}'),
        ("unet/config.json", '{"block_out_channels": "x"}'),
        ("text_encoder/config.json", '{"max_position_embeddings": "x"}'),
        ("vae/config.json", "[1]"),
    ],
)
def test_settings_of_wrong_types_are_one_error(copied, file, content):
    (copied / file).write_text(content)
    with pytest.raises(ModelError, match=r"--model\.id") as caught:
        load(copied)
    assert "\n" not in str(caught.value)

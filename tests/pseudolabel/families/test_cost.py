"""What makes transformers fit and quick: a tiny image encoder, encoders that leave, blocks that come one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from data.classes import VOC
from data.config import DataConfig
from data.errors import ConfigError, ModelError
from data.store.store import MaskStore
from pseudolabel.cli import main
from pseudolabel.config import GenerateConfig, RunConfig, stored_settings
from pseudolabel.pipeline import Pipeline
from pseudolabel.softmaps.config import AttentionConfig, DiffusionConfig, ModelConfig, ResizeConfig
from pseudolabel.softmaps.diffusion.encode import encode_image
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.diffusion.sizes import weight_bytes

CPU = torch.device("cpu")
LAYERS = {"sd": ("mid", "up_blocks.1.attentions.1"), "sdxl": ("mid", "mid")}


@pytest.fixture(scope="session")
def tiny_encoders(tmp_path_factory):
    """AutoencoderTiny for 4 and for 16 channels, a quarter of the image's side as the models here have it."""
    folders = {}
    for channels, more in ((4, {}), (16, {"shift_factor": 0.5, "scaling_factor": 2.0})):
        torch.manual_seed(channels)
        encoder = AutoencoderTiny(
            latent_channels=channels, encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), **more,
        )  # fmt: skip
        folders[channels] = tmp_path_factory.mktemp("tiny") / f"tae{channels}"
        encoder.save_pretrained(folders[channels])
    return folders


def config_of(folder, name: str = "sd3", **model) -> GenerateConfig:
    cross, cells = LAYERS.get(name, ("block:1", "block:0"))
    return GenerateConfig(
        data=DataConfig(root="."),
        model=ModelConfig(id=str(folder), **model),
        resize=ResizeConfig(long_side_px=64),
        diffusion=DiffusionConfig(draws=2),
        attention=AttentionConfig(cross_layers=(cross,), self_layers=(cells,)),
        run=RunConfig(device="cpu"),
    )


def images(count: int = 2) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8))


def maps_of(pipeline: Pipeline) -> np.ndarray:
    found = pipeline.soft_maps(images(), [(8, 12), (12,)], ["a", "b"])
    return np.concatenate([each.maps for each in found])


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart"])
def test_a_tiny_image_encoder_takes_the_place_of_the_models_own(name, request, tiny_encoders):
    folder, place = request.getfixturevalue(f"{name}_folder"), tiny_encoders[16 if name == "sd3" else 4]
    parts = load_parts(ModelConfig(id=str(folder), vae=str(place)), CPU, torch.float32)
    tiny = AutoencoderTiny.from_pretrained(place)
    [image] = images(1)
    with torch.no_grad():
        pixels = torch.from_numpy(image / 127.5 - 1).permute(2, 0, 1)[None].float()
        expected = (tiny.encode(pixels).latents[0] - tiny.config.shift_factor) * tiny.config.scaling_factor
        torch.testing.assert_close(encode_image(parts, image, "mode"), expected)
    assert parts.vae_factor == 4
    with pytest.raises(ConfigError, match=r"no posterior: use --diffusion.posterior=mode"):
        encode_image(parts, image, "sample", torch.Generator())
    plain = load_parts(ModelConfig(id=str(folder)), CPU, torch.float32)
    assert parts.fingerprint != plain.fingerprint
    own, other = (maps_of(Pipeline(each, config_of(folder, name), VOC)) for each in (plain, parts))
    assert own.shape == other.shape
    assert not np.array_equal(own, other)


def test_an_image_encoder_of_the_usual_kind_can_be_put_in_too(sd_folder):
    parts = load_parts(ModelConfig(id=str(sd_folder), vae=str(sd_folder / "vae")), CPU, torch.float32)
    plain = load_parts(ModelConfig(id=str(sd_folder)), CPU, torch.float32)
    assert torch.equal(encode_image(parts, images(1)[0], "mode"), encode_image(plain, images(1)[0], "mode"))


def test_an_image_encoder_that_does_not_fit_is_an_error(sd3_folder, tiny_encoders, tmp_path):
    def load(place):
        return load_parts(ModelConfig(id=str(sd3_folder), vae=str(place)), CPU, torch.float32)

    with pytest.raises(ModelError, match=r"latents of 4 channels at 1/4 .* reads 16 at 1/4: .*taesd3"):
        load(tiny_encoders[4])
    with pytest.raises(ModelError, match=r"no model folder .*--model\.vae"):
        load(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"no config.json: --model.vae"):
        load(tmp_path)
    with pytest.raises(ModelError, match=r"holds a SD3Transformer2DModel: --model.vae takes AutoencoderTiny"):
        load(sd3_folder / "transformer")


def test_flux2_keeps_its_own_image_encoder(flux2_folder, tiny_encoders):
    with pytest.raises(ModelError, match=r"--model.vae has no place in Flux.2"):
        load_parts(ModelConfig(id=str(flux2_folder), vae=str(tiny_encoders[4])), CPU, torch.float32)


def test_generate_says_in_the_store_which_image_encoder_it_read_with(world, sd3_folder, tiny_encoders, tmp_path):
    options = ["--resize.long_side_px=64", "--diffusion.draws=1", "--device=cpu", "--workers=0", "--limit=1",
               "--attention.cross_layers=[block:1]", "--attention.self_layers=[block:1]", f"--model.id={sd3_folder}",
               f"--model.vae={tiny_encoders[16]}", "--model.keep_text_encoders=true"]  # fmt: skip
    assert main(["generate", "--root", str(world), "--store", str(tmp_path / "s"), *options]) == 0
    model = MaskStore.open(tmp_path / "s").header["config"]["model"]
    assert model["vae"] == str(tiny_encoders[16])
    assert not {"keep_text_encoders", "offload", "t5"} & set(model)


def test_where_a_model_lies_is_no_setting_of_its_masks():
    with_all = stored_settings(config_of("x", keep_text_encoders=True, offload=True))
    assert with_all == stored_settings(config_of("x"))
    assert set(with_all["model"]) == {"id", "revision", "variant"}


def test_text_encoders_come_once_for_a_group_of_images_and_leave(flux_folder):
    pipeline = Pipeline.load(config_of(flux_folder), VOC)
    expected = maps_of(pipeline)
    pipeline = Pipeline.load(config_of(flux_folder), VOC)
    moves: list[str] = []
    for number, encoder in enumerate(pipeline.parts.text_encoders):
        to = encoder.to
        encoder.to = lambda where, number=number, to=to: moves.append(f"{number} {where}") or to(where)
    pipeline.parts.encoders_leave = True
    assert np.array_equal(maps_of(pipeline), expected)
    assert moves == ["0 cpu", "1 cpu", "0 cpu", "1 cpu"]  # to the device, which is the CPU here, and back
    maps_of(pipeline)
    assert len(moves) == 4  # the sentences are remembered


@pytest.mark.parametrize("name", ["sd", "sd3", "sd35", "flux", "pixart"])
def test_blocks_that_come_one_by_one_give_the_same_maps(name, request):
    pytest.importorskip("accelerate", reason="the extra [large] is not installed")
    folder = request.getfixturevalue(f"{name}_folder")
    expected = maps_of(Pipeline.load(config_of(folder, name), VOC))
    pipeline = Pipeline.load(config_of(folder, name, offload=True), VOC)
    for _ in range(2):  # the first pass ended before all blocks had run
        assert np.array_equal(maps_of(pipeline), expected)
    assert any("group_offloading" in str(getattr(module, "_diffusers_hook", "") and module._diffusers_hook.hooks)
               for module in pipeline.parts.denoiser.modules())  # fmt: skip


def test_without_accelerate_offloading_is_an_error_that_names_the_extra(flux_folder, monkeypatch):
    monkeypatch.setattr("diffusers.utils.import_utils._accelerate_available", False)
    with pytest.raises(ModelError, match=r"--model.offload needs accelerate: install the extra \[large\]"):
        Pipeline.load(config_of(flux_folder, offload=True), VOC)


@pytest.mark.parametrize("name", ["sd3_t5", "sd35", "flux", "pixart", "flux2"])
def test_the_weights_are_weighed_from_the_files_headers(name, request):
    """Against the model in memory, cut and without what is freed."""
    folder = request.getfixturevalue(f"{name.removesuffix('_t5')}_folder")
    config = config_of(folder, t5=name.endswith("t5"))
    found = weight_bytes(config, folder, torch.bfloat16)
    parts = Pipeline.load(config, VOC).parts

    def bytes_of(*modules) -> int:
        return 2 * sum(value.numel() for module in modules for value in module.state_dict().values())

    shared = 2 * sum(
        each.get_input_embeddings().weight.numel() for each in parts.text_encoders if "T5" in str(type(each))
    )
    assert found.denoiser == bytes_of(parts.denoiser)
    assert found.image_encoder == bytes_of(parts.vae)
    assert found.text_encoders == bytes_of(*parts.text_encoders) - shared  # a file holds T5's embedding once
    assert found.block < found.denoiser
    assert found.on_device(True, False) == found.image_encoder + max(found.denoiser, found.text_encoders)
    assert found.on_device(False, True) == found.image_encoder + found.block + found.text_encoders


def test_weighing_refuses_the_layers_that_reading_refuses(pixart_folder, sd35_folder):
    """PixArt's `attn2` is its cross-attention; only SD3.5's stands beside the joint one."""
    beside = AttentionConfig(cross_layers=("block:1",), self_layers=("block:1.attn2",))
    assert weight_bytes(replace(config_of(sd35_folder), attention=beside), sd35_folder, torch.float32).denoiser
    with pytest.raises(ModelError, match=r"self_layers names 'block:1.attn2', which this model does not have"):
        weight_bytes(replace(config_of(pixart_folder), attention=beside), pixart_folder, torch.float32)


def test_where_the_encoders_do_not_fit_the_denoiser_leaves_for_them(flux_folder, monkeypatch):
    pipeline = Pipeline.load(config_of(flux_folder), VOC)
    moves: list[str] = []
    to = pipeline.parts.denoiser.to
    pipeline.parts.denoiser.to = lambda where: moves.append(str(where)) or to(where)
    pipeline.parts.encoders_leave = True
    maps_of(pipeline)
    assert moves == []
    monkeypatch.setattr("pseudolabel.softmaps.diffusion.placing.has_room", lambda parts: False)
    pipeline.reader.embed(["another sentence"])
    assert moves == ["cpu", "cpu"]  # away, and back to the device, which is the CPU here


def test_a_unet_is_weighed_whole(sd_folder):
    found = weight_bytes(config_of(sd_folder, "sd"), sd_folder, torch.float32)
    parts = load_parts(ModelConfig(id=str(sd_folder)), CPU, torch.float32)
    assert found.denoiser == found.block == 4 * sum(value.numel() for value in parts.denoiser.state_dict().values())
    assert found.image_encoder == 4 * sum(value.numel() for value in parts.vae.state_dict().values())


def test_offload_and_compile_do_not_go_together(sd_folder):
    config = replace(config_of(sd_folder, "sd", offload=True), run=RunConfig(device="cpu", compile=True))
    with pytest.raises(ConfigError, match=r"--model.offload and --run.compile"):
        Pipeline.load(config, VOC)


@pytest.mark.gpu
def test_on_a_gpu_encoders_and_blocks_lie_in_main_memory(flux_folder):
    config = config_of(flux_folder, offload=True)
    config = GenerateConfig(config.data, config.model, config.resize, diffusion=config.diffusion,
                            attention=config.attention, run=RunConfig(device="cuda"))  # fmt: skip
    pipeline = Pipeline.load(config, VOC)
    assert pipeline.parts.dtype == torch.bfloat16
    assert np.isfinite(maps_of(pipeline)).all()
    for module in (*pipeline.parts.text_encoders, pipeline.parts.denoiser.transformer_blocks[0]):
        assert {parameter.device.type for parameter in module.parameters()} == {"cpu"}
    kept = Pipeline.load(config_of(flux_folder, keep_text_encoders=True), VOC)
    assert not kept.parts.encoders_leave

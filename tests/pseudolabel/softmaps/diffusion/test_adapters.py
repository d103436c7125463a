"""Customised generators: each form of file, against diffusers' own loader or the formula, and what is refused."""

import copy
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from safetensors.torch import save_file

from data.classes import ClassSet
from data.errors import ConfigError, ModelError
from pseudolabel.cli import gather_repeated, main
from pseudolabel.softmaps.config import ModelConfig, PromptConfig
from pseudolabel.softmaps.diffusion.adapters import load_custom_diffusion, split_scale, split_token
from pseudolabel.softmaps.diffusion.families import encode_text
from pseudolabel.softmaps.diffusion.fetch import files_digest
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.diffusion.lora import merge_lora, split_role, stability_names
from pseudolabel.softmaps.prompt import find_spans, plan_prompts

CPU = torch.device("cpu")
WIDTH = 16
TOKEN = "<my-mug>"


def load(folder, **kwargs):
    return load_parts(ModelConfig(id=str(folder), **kwargs), CPU, torch.float32)


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def plain(sd_folder):
    return load(sd_folder)


def diffusers_pipeline(folder) -> StableDiffusionPipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has much to say of the missing safety checker
        return StableDiffusionPipeline.from_pretrained(
            folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False, image_encoder=None
        )


@pytest.fixture(scope="module")
def untouched_pipeline(sd_folder) -> StableDiffusionPipeline:
    """To be copied, not changed."""
    return diffusers_pipeline(sd_folder)


def write(path, content, pickled: bool) -> str:
    if pickled:
        torch.save(content, path)
    else:
        save_file(content, path)
    return str(path)


FORMS = {
    "named.safetensors": lambda v: {TOKEN: v},
    "named.bin": lambda v: {TOKEN: v},
    "bare.pt": lambda v: v,
    "a1111.pt": lambda v: {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(v)},
        "name": TOKEN,
        "step": 500,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    },
    "a1111.safetensors": lambda v: {"emb_params": v},
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_learned_tokens_are_what_diffusers_loads(form, count, vectors, sd_folder, untouched_pipeline, tmp_path):
    content = FORMS[form](vectors[:count].clone())
    path = write(tmp_path / form, content, not form.endswith("safetensors"))
    unnamed = form in ("bare.pt", "a1111.safetensors")
    ours = load(sd_folder, tokens=(f"{TOKEN}={path}" if unnamed else path,))
    state = {TOKEN: vectors[:count]} if unnamed else content
    pipeline = copy.deepcopy(untouched_pipeline)
    pipeline.load_textual_inversion(state)
    sentence = f"a photo including {TOKEN}, and dog."
    theirs = pipeline.encode_prompt(sentence, "cpu", 1, False)[0]
    [prompt] = plan_prompts(
        (1, 2), ClassSet((TOKEN, "dog"), (TOKEN, "dog"), ((), ())), PromptConfig(), ours.tokenizers[0], 77
    )
    torch.testing.assert_close(encode_text(ours, prompt.text).tokens, theirs, rtol=0, atol=0)
    assert [len(span) for span in prompt.spans] == [count, 1]
    assert len(find_spans(sentence, TOKEN, ours.tokenizers[0])) == count


def test_a_learned_token_changes_the_embedding(vectors, sd_folder, plain, tmp_path):
    """What the test above says nothing about if both loaders did nothing."""
    ours = load(sd_folder, tokens=(write(tmp_path / "t.safetensors", {TOKEN: vectors}, False),))
    ids = ours.tokenizers[0].convert_tokens_to_ids([TOKEN, f"{TOKEN}_1", f"{TOKEN}_2"])
    torch.testing.assert_close(ours.text_encoders[0].get_input_embeddings().weight[ids], vectors)
    first = encode_text(ours, f"a photo of {TOKEN}").tokens
    assert not torch.allclose(first, encode_text(plain, f"a photo of {TOKEN}").tokens)
    assert ours.fingerprint != plain.fingerprint


def test_sdxl_takes_a_vector_for_each_encoder(vectors, sdxl_folder, tmp_path):
    both = write(tmp_path / "both.safetensors", {"clip_l": vectors, "clip_g": 2 * vectors}, False)
    parts = load(sdxl_folder, tokens=(f"{TOKEN}={both}",))
    for encoder, tokenizer, factor in zip(parts.text_encoders, parts.tokenizers, (1, 2), strict=True):
        row = encoder.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(f"{TOKEN}_2")]
        torch.testing.assert_close(row, factor * vectors[2])
    first = write(tmp_path / "one.safetensors", {TOKEN: vectors}, False)
    with pytest.raises(ModelError, match=r"this model has 2 text encoders, and each needs as many"):
        load(sdxl_folder, tokens=(first,))
    assert load(sdxl_folder, tokens=(first, first)).fingerprint != parts.fingerprint  # one file for each


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({TOKEN: torch.zeros(8)}, r"vectors of width 8, but this model's text encoder reads 16"),
        ({"dog": torch.zeros(16)}, r"'dog' is in the tokenizer's vocabulary already"),
        ({TOKEN: torch.full((16,), torch.nan)}, "not finite"),
        ({TOKEN: torch.zeros(2, 2, 16)}, r"shape \(2, 2, 16\)"),
        ({"two words": torch.zeros(16)}, "one word without spaces"),
        ({"string_to_param": {"*": torch.zeros(16)}, "name": TOKEN, "more": torch.zeros(3)}, "does not: more"),
        (torch.zeros(1, 16), r"does not say what its token is called: write TOKEN=FILE"),
        ({TOKEN: Evil()}, "holds more than weights, which is not run"),
        ([torch.zeros(16)], "holds a list, not named tensors"),
    ],
)
def test_unsuitable_embeddings_are_one_line(content, message, sd_folder, tmp_path, capsys):
    path = write(tmp_path / "t.pt", content, True)
    with pytest.raises(ModelError, match=message) as caught:
        load(sd_folder, tokens=(path,))
    assert "\n" not in str(caught.value)
    assert "this must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["t.safetensors", "t.bin", "t.pt"])
def test_damaged_files_are_one_line(name, sd_folder, tmp_path):
    (tmp_path / name).write_bytes(b"PK\x03\x04 no such thing")
    with pytest.raises(ModelError, match=r"cannot be read|damaged"):
        load(sd_folder, tokens=(str(tmp_path / name),))
    with pytest.raises(ModelError, match="There is no file"):
        load(sd_folder, tokens=(str(tmp_path / "nowhere.pt"),))


def test_a_token_given_twice_is_an_error(vectors, sd_folder, tmp_path):
    path = write(tmp_path / "t.safetensors", {TOKEN: vectors}, False)
    with pytest.raises(ModelError, match="given twice"):
        load(sd_folder, tokens=(path, path))
    both = load(sd_folder, tokens=(path, f"<other>={path}"))
    assert "<other>_2" in both.tokenizers[0].get_added_vocab()


# LoRA

LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
FLAT = "down_blocks.0.attentions.0.proj_in"  # a 1 x 1 convolution in Stable Diffusion 1.x
WIDE = "down_blocks.0.resnets.0.conv1"  # 3 x 3
TEXT = "encoder.layers.1.self_attn.q_proj"


def factors(layer, rank=2, seed=0, flat=False):
    generator = torch.Generator().manual_seed(seed)
    out, *inner = layer.weight.shape
    down = torch.randn(rank, *inner, generator=generator)
    up = torch.randn(out, rank, *([1, 1] if len(inner) == 3 else []), generator=generator)
    return (down.flatten(1), up.flatten(1)) if flat else (down, up)


def names_in(form: str) -> dict[str, tuple[str, str, str]]:
    """For each form the names of (down, up, alpha) of the layers above."""
    match form:
        case "peft":
            text = "text_encoder.text_model.encoder.layers.1.self_attn.q_proj"
            return {layer: (f"{name}.lora_A.weight", f"{name}.lora_B.weight", "") for layer, name in
                    [(each, f"unet.{each}") for each in (LINEAR, OUT, FLAT, WIDE)] + [(TEXT, text)]}  # fmt: skip
        case "processor":
            block = "mid_block.attentions.0.transformer_blocks.0"
            key, out = f"{block}.attn2.processor.to_k_lora", f"unet.{block}.attn1.processor.to_out_lora"
            return {layer: (f"{n}.down.weight", f"{n}.up.weight", "") for layer, n in ((LINEAR, key), (OUT, out))}
        case "lora":
            text = "text_encoder.text_model.encoder.layers.1.self_attn.q_proj.lora_linear_layer"
            return {
                LINEAR: (f"unet.{LINEAR}.lora.down.weight", f"unet.{LINEAR}.lora.up.weight", f"unet.{LINEAR}.alpha"),
                TEXT: (f"{text}.down.weight", f"{text}.up.weight", ""),
            }
        case "text_old":
            text = "text_encoder.text_model.encoder.layers.1.self_attn.to_q_lora"
            return {TEXT: (f"{text}.down.weight", f"{text}.up.weight", "")}
        case _:
            named = [(each, f"lora_unet_{each.replace('.', '_')}") for each in (LINEAR, OUT, FLAT, WIDE)]
            named.append((TEXT, "lora_te_text_model_encoder_layers_1_self_attn_q_proj"))
            return {layer: (f"{n}.lora_down.weight", f"{n}.lora_up.weight", f"{n}.alpha") for layer, n in named}


def layer_of(parts, name):
    owner = parts.text_encoders[0] if name == TEXT else parts.denoiser
    return next(module for own, module in owner.named_modules() if own.removeprefix("text_model.") == name)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("form", ["peft", "processor", "lora", "text_old", "kohya"])
def test_lora_is_added_to_each_layers_output(form, flat, sd_folder, plain, tmp_path):
    """Merged weights against the side path that LoRA is: layer(x) + s alpha / r B(A(x))."""
    tensors, expected = {}, {}
    for number, (layer, (down_name, up_name, alpha_name)) in enumerate(names_in(form).items()):
        module = layer_of(plain, layer)
        down, up = factors(module, seed=number, flat=flat and layer in (LINEAR, OUT, FLAT, TEXT))
        tensors |= {down_name: down, up_name: up} | ({alpha_name: torch.tensor(3.0)} if alpha_name else {})
        expected[layer] = (down, up, 1.5 if alpha_name else 1.0)
    merged = load(sd_folder, lora=(write(tmp_path / "l.safetensors", tensors, False) + ":0.5",))
    for layer, (down, up, strength) in expected.items():
        before, after = layer_of(plain, layer), layer_of(merged, layer)
        if isinstance(before, torch.nn.Conv2d):
            x = torch.randn(1, before.in_channels, 6, 6)
            shape = before.weight.shape[1:]
            inner = torch.nn.functional.conv2d(
                x, down.reshape(-1, *shape), stride=before.stride, padding=before.padding
            )
            side = torch.nn.functional.conv2d(inner, up.reshape(*up.shape[:2], 1, 1))
        else:
            x = torch.randn(2, before.in_features)
            side = x @ down.flatten(1).T @ up.flatten(1).T
        torch.testing.assert_close(after(x), before(x) + 0.5 * strength * side, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(after(x), before(x))
    untouched = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert torch.equal(merged.denoiser.get_parameter(untouched), plain.denoiser.get_parameter(untouched))
    assert merged.fingerprint != plain.fingerprint


def test_alpha_in_the_header_that_diffusers_writes_counts(sd_folder, plain, tmp_path):
    down, up = factors(layer_of(plain, LINEAR))
    tensors = {f"unet.{LINEAR}.lora_A.weight": down, f"unet.{LINEAR}.lora_B.weight": up}
    for settings, strength in (
        ({"unet.r": 2, "unet.lora_alpha": 8}, 4),
        ({"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_k": 1}}, 0.5),
        ({"unet.r": 2, "unet.lora_alpha": 8, "unet.use_rslora": True}, 8 / 2**0.5),
    ):
        save_file(tensors, tmp_path / "l.safetensors", metadata={"lora_adapter_metadata": json.dumps(settings)})
        merged = load(sd_folder, lora=(str(tmp_path / "l.safetensors"),))
        difference = layer_of(merged, LINEAR).weight - layer_of(plain, LINEAR).weight
        torch.testing.assert_close(difference, strength * (up @ down), rtol=1e-4, atol=1e-4)


def test_kohyas_names_for_sdxl_are_known(sdxl_folder, tmp_path):
    parts = load(sdxl_folder)
    names = dict(stability_names(parts.denoiser))
    # Read off Stability's published configuration for a U-Net of three levels with two residual blocks each.
    assert (
        names["down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"]
        == "input_blocks.4.1.transformer_blocks.1.attn2.to_k"
    )
    assert names["down_blocks.0.downsamplers.0.conv"] == "input_blocks.3.0.op"
    assert names["mid_block.resnets.1.conv1"] == "middle_block.2.in_layers.2"
    assert names["up_blocks.0.resnets.2.conv_shortcut"] == "output_blocks.2.0.skip_connection"
    assert names["up_blocks.0.upsamplers.0.conv"] == "output_blocks.2.2.conv"
    assert names["time_embedding.linear_2"] == "time_embed.2"
    layer = parts.denoiser.get_submodule("up_blocks.0.attentions.1.transformer_blocks.2.attn1.to_v")
    down, up = factors(layer)
    name = "lora_unet_output_blocks_1_1_transformer_blocks_2_attn1_to_v"
    second = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    fc1 = next(m for n, m in parts.text_encoders[1].named_modules() if n.endswith("layers.0.mlp.fc1"))
    down2, up2 = factors(fc1)
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
    tensors |= {f"{second}.lora_down.weight": down2, f"{second}.lora_up.weight": up2}
    merged = load(sdxl_folder, lora=(write(tmp_path / "l.safetensors", tensors, False),))
    changed = merged.denoiser.get_submodule("up_blocks.0.attentions.1.transformer_blocks.2.attn1.to_v")
    torch.testing.assert_close(changed.weight, layer.weight + up @ down)
    changed = next(m for n, m in merged.text_encoders[1].named_modules() if n.endswith("layers.0.mlp.fc1"))
    torch.testing.assert_close(changed.weight, fc1.weight + up2 @ down2)


def test_a_lora_that_does_not_fit_changes_nothing(plain):
    components = {"unet": plain.denoiser, "text_encoder": plain.text_encoders[0]}
    before = {name: value.clone() for name, value in plain.denoiser.state_dict().items()}
    down, up = factors(layer_of(plain, LINEAR))
    good = {f"unet.{LINEAR}.lora_A.weight": down, f"unet.{LINEAR}.lora_B.weight": up}
    for more, message in (
        ({"unet.no_such_block.lora_A.weight": down}, r"unet\.no_such_block\.lora_A\.weight"),
        ({f"unet.{OUT}.lora_A.weight": down}, r"attn1\.to_out\.0 \(down"),
        (
            {f"unet.{OUT}.lora_A.weight": down[:, :5], f"unet.{OUT}.lora_B.weight": up},
            r"attn1\.to_out\.0 \(down \(2, 5\)",
        ),
        ({"lora_unet_x.hada_w1_a": down}, "hada_w1_a"),
        ({f"unet.{OUT}.lora_B.bias": up}, r"lora_B\.bias"),
        ({f"unet.{LINEAR}.dora_scale": up}, "DoRA"),
    ):
        with pytest.raises(ModelError, match=message):
            merge_lora("l.safetensors", good | more, {}, 1.0, components)
    with pytest.raises(ModelError, match="DoRA"):
        merge_lora("l.safetensors", good, {"lora_adapter_metadata": '{"unet.use_dora": true}'}, 1.0, components)
    for header in (
        "[]",
        "{",
        '{"unet.lora_alpha": "x"}',
        '{"unet.alpha_pattern": {"(": 1}}',
        '{"unet.alpha_pattern": 3}',
    ):
        with pytest.raises(ModelError, match=r"The header of l\.safetensors is damaged"):
            merge_lora("l.safetensors", good, {"lora_adapter_metadata": header}, 1.0, components)
    with pytest.raises(ModelError, match=r"attn2\.to_k \(down"):
        merge_lora("l.safetensors", {name: value * torch.inf for name, value in good.items()}, {}, 1.0, components)
    with pytest.raises(ModelError, match="holds no weights"):
        merge_lora("l.safetensors", {}, {}, 1.0, components)
    assert all(torch.equal(value, plain.denoiser.state_dict()[name]) for name, value in before.items())


def test_two_spellings_of_one_layer_are_an_error():
    assert split_role("lora_unet_mid_block_proj.alpha") == ("lora_unet_mid_block_proj", "alpha")
    assert split_role("some.weight") == ("some.weight", "")


# Custom Diffusion


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
def test_custom_diffusion_gives_what_diffusers_processors_give(train_q_out, suffix, sd_folder, plain, tmp_path):
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
def test_custom_diffusion_that_does_not_fit_names_the_tensor(name, plain, tmp_path):
    good = "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_custom_diffusion.weight"
    shape = layer_of(plain, LINEAR).weight.shape
    save_file({name: torch.zeros(2, 2), good: torch.zeros(shape)}, tmp_path / "c.safetensors")
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_custom_diffusion(tmp_path / "c.safetensors", plain.denoiser)
    assert layer_of(plain, LINEAR).weight.abs().sum() > 0


# DreamBooth, settings, the store


def test_a_dreambooth_folder_is_a_model_folder(untouched_pipeline, plain, tmp_path):
    """Trained weights are saved as a whole model, as its training scripts do, and named in --model.id."""
    pipeline = copy.deepcopy(untouched_pipeline)
    with torch.no_grad():
        layer_of_unet = pipeline.unet.get_submodule(LINEAR)
        layer_of_unet.weight.add_(1)
    pipeline.save_pretrained(tmp_path / "dreambooth")
    parts = load(tmp_path / "dreambooth")
    torch.testing.assert_close(layer_of(parts, LINEAR).weight, layer_of(plain, LINEAR).weight + 1)
    assert parts.fingerprint != plain.fingerprint


def test_without_adapters_the_fingerprint_is_the_files(sd_folder, plain):
    assert plain.fingerprint == files_digest(sd_folder)


def test_the_fingerprint_follows_content_and_scale_not_the_place(vectors, sd_folder, plain, tmp_path):
    down, up = factors(layer_of(plain, LINEAR))
    tensors = {f"unet.{LINEAR}.lora_A.weight": down, f"unet.{LINEAR}.lora_B.weight": up}
    path = write(tmp_path / "l.safetensors", tensors, False)
    moved = str(shutil.copy(path, tmp_path / "m.safetensors"))
    whole, again, half = (load(sd_folder, lora=(value,)).fingerprint for value in (path, moved, f"{path}:0.5"))
    assert whole == again != half


def test_values_are_split_where_they_should(tmp_path):
    odd = tmp_path / "a=b:3.pt"
    odd.write_bytes(b"")
    assert split_token(str(odd)) == (None, odd)
    assert split_scale(str(odd)) == (odd, 1.0)
    assert split_scale("x.safetensors:-0.5")[1] == -0.5
    assert split_scale("C:x.safetensors")[1] == 1.0
    with pytest.raises(ConfigError, match="the scale must be a finite number"):
        split_scale("x.safetensors:nan")
    with pytest.raises(ConfigError, match="FILE or TOKEN=FILE"):
        split_token("=mug.pt")


def test_a_repeated_flag_is_a_list():
    given = ["generate", "--model.tokens", "a", "--b=1", "--model.tokens=[c, d]", "--model.lora", "e:2"]
    expected = ["generate", '--model.tokens=["a", "c", "d"]', "--b=1", '--model.lora=["e:2"]']
    assert gather_repeated(given) == expected
    assert gather_repeated(["--model.lora", "--b"]) == ["--model.lora", "--b"]
    assert gather_repeated(["--model.lora"]) == ["--model.lora"]


def test_adapters_are_part_of_a_store(vectors, world, tiny_options, made_store, tmp_path, capsys):
    path = write(tmp_path / "t.safetensors", {TOKEN: vectors}, False)
    other = write(tmp_path / "u.safetensors", {"<u>": vectors[:1]}, False)
    store = tmp_path / "s"
    command = ["generate", "--root", str(world), *tiny_options, "--limit=1", "--store", str(store)]
    assert main([*command, "--model.tokens", path, "--model.tokens", other]) == 0
    header = json.loads((store / "store.json").read_text())
    without = json.loads((made_store / "store.json").read_text())
    assert header["config"]["model"]["tokens"] == [path, other]
    assert header["model"]["fingerprint"] != without["model"]["fingerprint"]
    assert set(without["config"]["model"]) == {"id", "revision", "variant"}  # as stores always were
    capsys.readouterr()
    assert main(command) == 2
    assert "made with other settings" in capsys.readouterr().err
    assert main([*command, "--model.tokens", path, "--model.tokens", other]) == 0
    command[-1] = str(tmp_path / "new")
    assert main([*command, "--model.lora", str(tmp_path / "none.safetensors")]) == 2
    assert not (tmp_path / "new").exists()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: There is no file")


def test_masks_follow_the_adapter(vectors, world, tiny_options, tmp_path, plain):
    """A LoRA that is silently dropped would give the masks of the plain model."""
    store = {}
    down, up = factors(layer_of(plain, LINEAR), seed=2)
    tensors = {f"unet.{LINEAR}.lora_A.weight": 3 * down, f"unet.{LINEAR}.lora_B.weight": 3 * up}
    path = write(tmp_path / "l.safetensors", tensors, False)
    for name, more in (("plain", []), ("lora", ["--model.lora", path])):
        command = ["generate", "--root", str(world), *tiny_options, "--limit=1", "--store", str(tmp_path / name)]
        assert main([*command, *more]) == 0
        [scores] = (tmp_path / name / "scores").iterdir()
        store[name] = np.load(scores)
    assert any(not np.array_equal(store["plain"][key], store["lora"][key]) for key in store["plain"].files)

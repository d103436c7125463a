"""LoRA: each form of file against the side path that it is, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from data.errors import ModelError
from pseudolabel.softmaps.diffusion.lora import merge_lora, split_role, stability_names

LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
FLAT = "down_blocks.0.attentions.0.proj_in"  # a 1 x 1 convolution in Stable Diffusion 1.x
WIDE = "down_blocks.0.resnets.0.conv1"  # 3 x 3
TEXT = "encoder.layers.1.self_attn.q_proj"


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


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("form", ["peft", "processor", "lora", "text_old", "kohya"])
def test_lora_is_added_to_each_layers_output(form, flat, sd_folder, plain, tmp_path, load, write, layer_of, factors):
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


def test_alpha_in_the_header_that_diffusers_writes_counts(sd_folder, plain, tmp_path, load, layer_of, factors):
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


def test_kohyas_names_for_sdxl_are_known(sdxl_folder, tmp_path, load, write, factors):
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


def test_a_lora_that_does_not_fit_changes_nothing(plain, layer_of, factors):
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


def test_two_spellings_of_one_layer_are_an_error(plain, layer_of, factors):
    """One of them would be merged, and the other one silently not."""
    down, up = factors(layer_of(plain, LINEAR))
    tensors = {f"unet.{LINEAR}.lora_A.weight": down, f"unet.{LINEAR}.lora_B.weight": up}
    tensors[f"lora_unet_{LINEAR.replace('.', '_')}.lora_down.weight"] = down
    with pytest.raises(ModelError, match=r"lora_unet_mid_block_attentions_0.*lora_down\.weight"):
        merge_lora("l.safetensors", tensors, {}, 1.0, {"unet": plain.denoiser})


def test_the_role_of_a_tensor_is_the_end_of_its_name():
    assert split_role("lora_unet_mid_block_proj.alpha") == ("lora_unet_mid_block_proj", "alpha")
    assert split_role("some.weight") == ("some.weight", "")

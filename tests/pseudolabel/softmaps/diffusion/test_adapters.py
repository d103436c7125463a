"""Customised generators in settings and stores: values, fingerprints, and masks that follow them."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch

from data.errors import ConfigError
from pseudolabel.cli import gather_repeated, main
from pseudolabel.softmaps.diffusion.adapters import split_scale, split_token
from pseudolabel.softmaps.diffusion.fetch import files_digest

TOKEN = "<my-mug>"
LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def test_a_dreambooth_folder_is_a_model_folder(untouched_pipeline, plain, tmp_path, load, layer_of):
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


def test_the_fingerprint_follows_content_and_scale_not_the_place(
    vectors, sd_folder, plain, tmp_path, load, write, layer_of, factors
):
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


def test_adapters_are_part_of_a_store(vectors, world, tiny_options, made_store, tmp_path, capsys, write):
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


def test_masks_follow_the_adapter(vectors, world, tiny_options, tmp_path, plain, write, layer_of, factors):
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

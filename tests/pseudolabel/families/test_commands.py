"""Transformers through the front door: whole commands, and one line for each way in which a model does not fit."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from data.errors import ModelError
from data.machine import REPOSITORY
from data.store.store import MaskStore
from pseudolabel.cli import main
from pseudolabel.softmaps.config import ModelConfig
from pseudolabel.softmaps.diffusion.fetch import find_model, read_family
from pseudolabel.softmaps.diffusion.load import load_parts
from pseudolabel.softmaps.layers import Layer, resolve_layers

CPU = torch.device("cpu")
LAYERS = {
    "sd3": ("block:2", "block:1"), "sd3_t5": ("blocks:1-2", "block:3"), "sd35": ("block:0", "block:2"),
    "flux": ("single:0", "block:1"), "flux_dev": ("all", "single:1"), "pixart": ("blocks:0-1", "block:2"),
    "alpha": ("block:2", "block:0"), "flux2": ("single:1", "block:0"),
}  # fmt: skip


def options(folder, name="sd3", **more) -> list[str]:
    cross, cells = LAYERS[name]
    given = {
        "model.id": folder, "model.t5": name.endswith("t5"), "resize.long_side_px": 64, "diffusion.draws": 1,
        "device": "cpu", "workers": 0, "attention.cross_layers": f"[{cross}]", "attention.self_layers": f"[{cells}]",
        "crf.iterations": 2,
    } | more  # fmt: skip
    return [f"--{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in given.items()]


@pytest.fixture
def folder_of(request):
    return lambda name: request.getfixturevalue(f"{name.removesuffix('_t5')}_folder")


@pytest.mark.parametrize("family", ["sd3", "sd3_t5", "sd35", "flux", "pixart", "flux2"])
def test_generate_makes_a_store(world, family, folder_of, tmp_path):
    store, given = tmp_path / "masks", options(folder_of(family), family)
    assert main(["generate", "--root", str(world), "--store", str(store), "--limit=2", *given]) == 0
    made = MaskStore.open(store)
    assert len(made.finished_labels()) == 2
    assert made.header["config"]["model"].get("t5", False) is family.endswith("t5")
    again = load_parts(ModelConfig(id=str(folder_of(family)), t5=family.endswith("t5")), CPU, torch.float32)
    assert made.header["model"]["fingerprint"] == again.fingerprint


def test_generate_spreads_maps_by_attention_among_cells_alone(world, sd35_folder, tmp_path):
    stores = []
    for cells in ("block:1", "block:1.attn2"):
        given = options(sd35_folder, "sd35", **{"attention.self_layers": f"[{cells}]"})
        stores.append(tmp_path / cells)
        assert main(["generate", "--root", str(world), "--store", str(stores[-1]), "--limit=1", *given]) == 0
    [joint, alone] = (next(iter(sorted((store / "scores").glob("*.npz")))).read_bytes() for store in stores)
    assert joint != alone


@pytest.mark.parametrize("name", ["flux", "pixart"])
def test_calibrate_chooses_among_blocks_and_times(world, name, folder_of, tmp_path):
    output = tmp_path / "chosen.yaml"
    data = ["--root", str(world), "--data.split=val", "--output", str(output)]
    few = ["--images=1", "--timesteps=[100,400]", "--draws=1", "--crf.kind=none", "--ignore_below=0"]
    assert main(["calibrate", *data, *few, *options(folder_of(name), name)]) == 0
    chosen = yaml.safe_load(output.read_text())
    parts = load_parts(ModelConfig(id=str(folder_of(name))), CPU, torch.float32)
    from pseudolabel.softmaps.diffusion.families import list_layers

    assert resolve_layers(list_layers(parts), chosen["attention"]["cross_layers"], "flag")
    assert set(chosen["diffusion"].get("timesteps", [150])) <= {100, 400}


def test_check_and_ground_work_on_transformers(world, folder_of, tmp_path, capsys):
    assert main(["check", "--root", str(world), *options(folder_of("flux"), "flux")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("Ready")
    assert "Weights   about 0 GB at once on the device" in lines  # a tenth of a million parameters
    Image.new("RGB", (64, 48), (90, 120, 60)).save(tmp_path / "photo.png")
    asked = ["--image", str(tmp_path / "photo.png"), "--phrase", "a dog", "--phrase", "tree"]
    given = [each for each in options(folder_of("sd3"), "sd3_t5") if not each.startswith("--workers")]
    output = tmp_path / "found"
    assert main(["ground", *asked, *given, "--output", str(output), "--match.words=similarity"]) == 0
    [entry] = json.loads((output / "results.json").read_text())["images"]
    assert [phrase["words"] for phrase in entry["phrases"]] == [["a", "dog", "a", "dog"], ["tree", "tree"]]


def refused(capsys, world, store, *args) -> str:
    """Return the one line a run ends with."""
    assert main(["generate", "--root", str(world), "--store", str(store), *args]) == 2
    assert not store.exists()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "image/s]" not in line]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def copied(flux_folder, tmp_path):
    return shutil.copytree(flux_folder, tmp_path / "model")


def renamed(folder: Path, part: str, class_name: str | None) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index[part] = [None, None] if class_name is None else ["diffusers", class_name]
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda f: renamed(f, "transformer", "SanaTransformer2DModel"),
            r"SanaTransformer2DModel\); only .*SD3",
        ),
        (lambda f: renamed(f, "text_encoder_2", None), "has no text_encoder_2; it must be one of T5EncoderModel"),
        (lambda f: renamed(f, "text_encoder_2", "CLIPTextModel"), "has a text_encoder_2 of class CLIPTextModel"),
        (lambda f: shutil.rmtree(f / "text_encoder_2"), "has no folder text_encoder_2: download the whole model again"),
        (lambda f: shutil.rmtree(f / "tokenizer_2"), "has no folder tokenizer_2"),
        (lambda f: shutil.rmtree(f / "transformer"), "has no folder transformer"),
        (lambda f: (f / "transformer" / "config.json").unlink(), "transformer cannot be loaded"),
        (lambda f: (f / "text_encoder_2" / "model.safetensors").unlink(), "text_encoder_2 cannot be loaded"),
        (lambda f: (f / "tokenizer_2" / "tokenizer.json").write_text("{"), "tokenizer_2 cannot be loaded"),
    ],
)
def test_a_folder_that_does_not_fit_says_what_is_missing(world, copied, change, expected, tmp_path, capsys):
    change(copied)
    line = refused(capsys, world, tmp_path / "s", *options(copied, "flux"))
    assert re.search(expected, line), line
    assert "--model.id" in line


PUBLISHED = {  # beside what the tiny model's own settings say, those of PixArt-alpha on the hub
    "_class_name": "Transformer2DModel", "double_self_attention": False, "num_vector_embeds": None,
    "only_cross_attention": False, "use_linear_projection": False,
}  # fmt: skip


@pytest.mark.parametrize("name", ["pixart", "alpha"])
def test_pixart_is_read_under_the_class_name_its_folders_on_the_hub_have(name, folder_of, world, tmp_path, capsys):
    folder = shutil.copytree(folder_of(name), tmp_path / "model")
    renamed(folder, "transformer", "Transformer2DModel")
    settings = folder / "transformer" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | PUBLISHED))
    for model, store in ((folder_of(name), "named"), (folder, "published")):
        given = ["--root", str(world), "--store", str(tmp_path / store), "--limit=1", *options(model, name)]
        assert main(["generate", *given]) == 0
        assert "not expected" not in capsys.readouterr().err
    named, published = (MaskStore.open(tmp_path / store) for store in ("named", "published"))
    assert named.header["model"]["fingerprint"] == published.header["model"]["fingerprint"]
    [scores] = (tmp_path / "named" / "scores").glob("*.npz")
    assert scores.read_bytes() == (tmp_path / "published" / "scores" / scores.name).read_bytes()
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("PixArt", "VQDiffusion"))
    assert "Transformer2DModel); only" in refused(capsys, world, tmp_path / "s", *options(folder, name))


@pytest.mark.parametrize("missing", ["sentencepiece", "protobuf"])
def test_a_tokenizer_that_needs_sentencepiece_says_so(copied, missing, monkeypatch):
    (copied / "tokenizer_2" / "tokenizer.json").rename(copied / "tokenizer_2" / "spiece.model")
    for name in ("sentencepiece", "protobuf"):
        monkeypatch.setattr(f"transformers.utils.is_{name}_available", lambda there=name != missing: there)
    match = (
        rf"SentencePiece's, for which {missing} must be installed: install the extra \[large\], or change --model.id"
    )
    with pytest.raises(ModelError, match=match):
        load_parts(ModelConfig(id=str(copied)), CPU, torch.float32)


def test_sd3_without_its_third_encoder_is_whole_unless_it_is_asked_for(sd3_folder, tmp_path):
    folder = shutil.copytree(sd3_folder, tmp_path / "model")
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / part)
        renamed(folder, part, None)
    plain = load_parts(ModelConfig(id=str(folder)), CPU, torch.float32)
    assert plain.fingerprint == load_parts(ModelConfig(id=str(sd3_folder)), CPU, torch.float32).fingerprint
    with pytest.raises(ModelError, match="has no text_encoder_3; it must be one of T5EncoderModel"):
        load_parts(ModelConfig(id=str(folder), t5=True), CPU, torch.float32)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"attention.cross_layers": "[block:9]"}, "cross_layers names 'block:9', .* it has block:0 to block:1"),
        ({"diffusion.timesteps": "[1000]"}, "from 0 to 999"),
        ({"model.lora": "x.safetensors"}, "--model.lora can be put into U-Nets alone .* holds a FluxPipeline"),
        ({"prompt.template": "word " * 300 + "{}."}, "does not fit into the text encoder's 256 tokens"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_line(world, flux_folder, more, expected, tmp_path, capsys):
    line = refused(capsys, world, tmp_path / "s", *options(flux_folder, "flux", **more))
    assert re.search(expected, line), line


@pytest.mark.parametrize(
    "command",
    [
        ["personalize", "--images={}", "--init_word=dog", "--token=<x>", "--output={}/t.safetensors"],
        ["ground", "--prompt=a dog", "--phrase=dog", "--output={}/g"],
        ["synthesize", "--classes={}/classes.yaml", "--count=1", "--output={}/s"],
    ],
)
def test_what_only_unets_can_do_is_refused_for_transformers(command, flux_folder, tmp_path, capsys):
    for name in "ab":
        Image.new("RGB", (64, 64), (9, 9, ord(name))).save(tmp_path / f"{name}.png")
    shutil.copy(REPOSITORY / "data" / "demo" / "classes.yaml", tmp_path)
    layers = ["--attention.cross_layers=[block:1]", "--attention.self_layers=[block:1]"]
    more = [] if command[0] == "personalize" else layers
    assert main([*(each.format(tmp_path) for each in command), f"--model.id={flux_folder}", *more]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "U-Nets" in line


def test_an_image_that_is_too_large_for_sd3_is_one_line(world, sd3_folder, tmp_path, capsys):
    line = refused(capsys, world, tmp_path / "s", *options(sd3_folder, **{"resize.long_side_px": 512}))
    assert "512 px long, but this model has places for 256 px" in line


def test_an_inpainting_transformer_is_an_error(copied):
    from diffusers import FluxTransformer2DModel

    settings = FluxTransformer2DModel.load_config(copied / "transformer")
    FluxTransformer2DModel.from_config(settings | {"in_channels": 24}).save_pretrained(copied / "transformer")
    with pytest.raises(ModelError, match=r"transformer of .* reads 6 channels but a latent has 4"):
        load_parts(ModelConfig(id=str(copied)), CPU, torch.float32)


@pytest.mark.parametrize("name", ["sd3", "sd3_t5", "flux", "pixart"])
def test_what_is_fetched_is_what_is_read(name, folder_of, tmp_path, monkeypatch):
    """The hub's place is taken by a folder; the real client's filter chooses the files."""
    from huggingface_hub.utils import filter_repo_objects

    source, cache = folder_of(name), tmp_path / "cache"
    (tmp_path / "source").mkdir()
    whole = shutil.copytree(source, tmp_path / "source" / "model")
    (whole / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    (whole / "big.safetensors").write_bytes(b"x")

    def download(repo_id, revision, allow_patterns):
        names = [path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()]
        for each in filter_repo_objects(names, allow_patterns=allow_patterns):
            (cache / each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(whole / each, cache / each)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    config = ModelConfig(id="owner/model", t5=name.endswith("t5"))
    assert read_family(config) == name.removesuffix("_t5")
    assert [path.name for path in cache.rglob("*")] == ["model_index.json"]
    find_model(config)
    fetched = {path.relative_to(cache).parts[0] for path in cache.rglob("*") if path.is_file()}
    assert ("text_encoder_3" in fetched) is (name == "sd3_t5")
    assert not {"big.safetensors"} & fetched
    assert not list(cache.rglob("*.bin"))
    local = load_parts(ModelConfig(id=str(source), t5=config.t5), CPU, torch.float32)
    assert load_parts(config, CPU, torch.float32).fingerprint == local.fingerprint


def test_the_fingerprint_follows_every_file_that_is_read(sd3_folder, tmp_path):
    folder = shutil.copytree(sd3_folder, tmp_path / "model")

    def prints():
        return [load_parts(ModelConfig(id=str(folder), t5=t5), CPU, torch.float32).fingerprint for t5 in (False, True)]

    before = prints()
    assert before[0] != before[1]
    for part, follow in (("text_encoder_3", [False, True]), ("transformer", [True, True])):
        [path] = (folder / part).glob("*.safetensors")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1  # one of the places that are looked at
        path.write_bytes(content)
        after = prints()
        assert [a != b for a, b in zip(before, after, strict=True)] == follow
        before = after


def test_a_run_in_bfloat16_gives_finite_maps(world, flux_folder, tmp_path):
    store = tmp_path / "masks"
    given = options(flux_folder, "flux_dev", **{"run.dtype": "bfloat16"})
    assert main(["generate", "--root", str(world), "--store", str(store), *given, "--limit=2"]) == 0


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("sd3", (24, 0)),
        ("sd35_medium", (24, 0)),
        ("flux_schnell", (19, 38)),
        ("pixart_sigma", (28, 0)),
        ("flux2_klein", (5, 20)),
    ],
)
def test_shipped_configs_name_layers_their_models_have(name, blocks):
    path = REPOSITORY / "configs" / "pseudolabel" / f"{name}_voc12.yaml"
    given = yaml.safe_load(path.read_text())["attention"]
    layers = [
        Layer(f"{owner}.{index}", (f"{owner}.{index}",), place, 2)
        for owner, place, count in (("transformer_blocks", "block", blocks[0]),
                                    ("single_transformer_blocks", "single", blocks[1]))
        for index in range(count)
    ]  # fmt: skip
    assert resolve_layers(layers, given["cross_layers"], "attention.cross_layers")
    assert resolve_layers(layers, given["self_layers"], "attention.self_layers")
    text = path.read_text()
    assert "nobody has measured them here" in " ".join(text.replace("#", " ").split())
    stated = text.splitlines()[text.splitlines().index("resize:") :]
    assert all("#" in line or line.endswith(":") for line in stated), "each value has its source beside it"

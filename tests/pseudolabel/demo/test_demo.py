"""The demo: drawing and page here, the whole of it with the shipped model among the slow tests."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from data.classes import VOC
from data.config import DataConfig
from data.errors import UserError
from data.readers.layout import open_samples
from data.store.store import MaskStore
from pseudolabel.cli import main
from pseudolabel.demo import page, results, run
from pseudolabel.review.coverage import measure_coverage

TRUTH = run.TRAIN_TRUTH_FOLDER


@pytest.fixture(scope="session")
def finished_demo(world, made_store, tiny_options, tmp_path_factory) -> Path:
    """A folder as the demo leaves it; the tiny model and one epoch of a tiny network stand behind it."""
    from train.cli import main as segtrain

    folder = tmp_path_factory.mktemp("demo")
    (folder / "world").symlink_to(world)
    (folder / "masks").symlink_to(made_store)
    val = ["--root", str(folder / "world"), "--split", "val"]
    assert main(["generate", *val, "--store", str(folder / "masks_val"), *tiny_options]) == 0
    network = folder / "network"
    checkpoint = network / "checkpoints" / "best.ckpt"
    measured = ["--data.val.root", str(world), "--data.val.split", "val", "--trainer.accelerator", "cpu"]
    fit = [
        *("fit", "--data.store", str(made_store), "--output", str(network), *measured, "--trainer.max_epochs", "1"),
        *("--trainer.enable_progress_bar", "false", "--trainer.num_sanity_val_steps", "0"),
        *("--model.network.encoder", "tu-test_resnet", "--model.network.weights", "null"),
        *("--model.network.decoder_channels", "16", "--model.network.atrous_rates", "[1,2,3]"),
        *("--data.augment.crop", "64", "--data.batch_size", "2", "--data.workers", "0"),
    ]
    assert segtrain(fit) == 0
    test = ["test", "--ckpt_path", str(checkpoint), *measured, "--data.workers", "0"]
    assert segtrain([*test, "--report.output", str(network / "test"), "--trainer.enable_progress_bar", "false"]) == 0
    predict = ["predict", "--ckpt_path", str(checkpoint), "--data.root", str(world), "--data.split", "val"]
    assert segtrain([*predict, "--output", str(folder / "predictions"), "--device", "cpu"]) == 0
    return folder


def result_of(folder: Path) -> results.Result:
    from pseudolabel.review.score import score_store

    scores = score_store(MaskStore.open(folder / "masks"), truth=TRUTH).to_json()
    network = json.loads((folder / "network" / "test" / "scores.json").read_text())
    return results.Result([results.Step("Train", "segtrain fit <x>", 61.0)], scores, network, None, 61.0, "a machine")


def test_labels_become_masks_and_masks_a_network_that_is_scored(finished_demo):
    predictions = MaskStore.open(finished_demo / "predictions")
    assert predictions.ids() == ["val_000000", "val_000001"]
    assert main(["score", f"--store={predictions.path}"]) == 0
    from pseudolabel.review.score import score_store

    scores = json.loads((finished_demo / "network" / "test" / "scores.json").read_text())
    assert score_store(predictions).after_crf.miou == pytest.approx(scores["miou"], abs=1e-6)  # both stages agree


def test_both_stages_write_the_same_line_about_an_image(finished_demo):
    masks, predictions = (MaskStore.open(finished_demo / name) for name in ("masks_val", "predictions"))
    assert masks.header["written_by"].startswith("pseudolabel ")
    assert predictions.header["written_by"].startswith("segtrain ")
    first, second = next(masks.records()), next(predictions.records())
    own = {"presence", "crf_engine"}  # which no network says; where the CRF ran without pydensecrf
    assert [key for key in first if key not in own] == list(second)
    for store in (masks, predictions):
        coverage = measure_coverage(store)
        shares = [np.bincount(store.read_mask(i).ravel(), minlength=256) / store.read_mask(i).size for i in store.ids()]
        assert coverage.background == pytest.approx(sum(share[0] for share in shares), abs=1e-4)
        for label, total in coverage.pixels.items():
            assert total == pytest.approx(sum(share[label] for share in shares), abs=1e-4)
    assert not any(coverage.empty.values())  # a network's labels are what it found


def test_results_page_and_figure(finished_demo, tmp_path):
    run.write_results(result_of(finished_demo), finished_demo, results.QUICK)
    html = (finished_demo / "demo.html").read_text()
    assert not re.search(r"https?://|@import|url\(", html)
    assert all(f"<figcaption><bdi>{name}</bdi></figcaption>" in html for name in page.COLUMNS)
    assert "segtrain fit &lt;x&gt;" in html
    again = page.demo_page(result_of(finished_demo), finished_demo, page.strips(finished_demo, results.QUICK.shown))
    assert again == html
    figure = (finished_demo / "figure.png").read_bytes()
    assert len(figure) < 300_000
    assert Image.open(io.BytesIO(figure)).width > 600
    content = json.loads((finished_demo / "results.json").read_text())
    assert content["format_version"] == 1
    assert content["masks"]["images"] == 6


def test_no_name_changes_the_page(finished_demo):
    result = result_of(finished_demo)
    usual = page.demo_page(result, finished_demo, [])
    hostile = "</p></code><script>alert(1)</script>\" onload='x' & \u202e"
    result.machine, result.steps = hostile, [results.Step(hostile, hostile, 1.0)]
    strip = page.Strip(hostile, (1,), (np.zeros((8, 8, 3), np.uint8),) * len(page.COLUMNS))
    html = page.demo_page(result, finished_demo, [strip])
    tags = re.compile(r"<script|<[a-z]+[^>]* on[a-z]+=")
    assert len(tags.findall(html)) == len(tags.findall(usual)) == 1  # the page's own script
    shown = escape(hostile).replace("\u202e", "\\u202e")
    assert html.count(shown) == 4
    assert "\u202e" not in html


def test_the_table_names_every_figure_and_place(finished_demo):
    result = result_of(finished_demo)
    said = results.summary(result, finished_demo)
    for name in ("before CRF", "after CRF", "network trained on them", "1.0 minutes", "demo.html", "best.ckpt"):
        assert name in said
    assert "true masks" not in said
    result.network_true_masks = result.network
    assert "true masks" in results.summary(result, finished_demo)


def test_draw_only_draws_what_the_reader_reads(tmp_path, capsys):
    args = ["demo", "--quick", "--draw_only", f"--output={tmp_path / 'd'}"]
    assert main(args) == 0
    world = tmp_path / "d" / "quick" / "world"
    samples = open_samples(DataConfig(root=world)).samples
    assert len(samples) == results.QUICK.train
    assert all(sample.labels and sample.truth_path is None for sample in samples)  # true masks of train are put away
    assert main(args) == 0
    assert "Found" in capsys.readouterr().out


def test_outside_of_the_projects_folder_the_error_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "CONFIGS", tmp_path / "site-packages" / "configs")
    assert main(["demo", f"--output={tmp_path / 'd'}"]) == 2
    assert "pip install -e ." in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_a_step_that_fails_stops_the_demo(tmp_path):
    with pytest.raises(UserError, match="'Score' ended with status 2"):
        run.run_step(results.Result(), "Score", "pseudolabel", "score", "--store", str(tmp_path))


def test_a_scene_has_clear_colours():
    palette = page.scene_palette((5, 9, 20))
    shown = palette[[0, 5, 9, 20, 7, 255]].astype(int)
    distances = np.abs(shown[:, None] - shown[None]).sum(axis=-1) + 999 * np.eye(6)
    assert distances.min() > 100
    heat = np.stack([np.linspace(0, 1, 8)[None], np.zeros((1, 8))])
    tinted = page.tinted_attention(np.zeros((1, 8, 3), np.uint8), heat, palette[[5, 9]])
    assert (np.diff(tinted.astype(int).sum(axis=-1)) > 0).all()
    assert VOC.name(9) == "chair"


@pytest.mark.slow
def test_quick(tmp_path):
    assert main(["demo", "--quick", f"--output={tmp_path}", "--device=cpu"]) == 0
    folder = tmp_path / "quick"
    assert len(MaskStore.open(folder / "masks").ids()) == results.QUICK.train
    assert len(MaskStore.open(folder / "predictions").ids()) == results.QUICK.val
    assert {"demo.html", "figure.png", "results.json"} <= {path.name for path in folder.iterdir()}
    steps = [step["title"] for step in json.loads((folder / "results.json").read_text())["steps"]]
    assert steps[0] == "Draw the world"
    assert "Train a network" in steps

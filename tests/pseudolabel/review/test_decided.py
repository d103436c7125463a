"""What the report and the score say of people's decisions."""

import json

import numpy as np

from data.masks import write_mask
from data.store.review import Change, mask_hash, write_corrected, write_decision
from pseudolabel.cli import main


def decide(store, sample_id: str, looked_at: str = "", **change) -> None:
    machine = mask_hash(store.read_mask(sample_id))
    write_decision(store, sample_id, Change(**change), mask=looked_at or machine, machine=machine, who="ada")


def test_the_report_shows_decisions_and_corrected_masks(drawn, tmp_path):
    command = ["report", "--store", str(drawn.path), "--output", str(tmp_path / "r.html")]
    assert main(command) == 0
    before = (tmp_path / "r.html").read_text()
    assert "in review" not in before
    decide(drawn, "scene_0", decision="reject", wrong=("box",))
    found = write_corrected(drawn, "scene_1", np.full((48, 64), 2, np.uint8))
    decide(drawn, "scene_1", looked_at=found, decision="accept", correction=found)
    decide(drawn, "scene_2", looked_at="0" * 64, decision="accept")
    assert main(command) == 0
    page = (tmp_path / "r.html").read_text()
    for number, word in ((2, "accepted"), (1, "rejected"), (1, "corrected"), (1, "stale")):
        assert f"<b>{number}</b><span>{word} in review</span>" in page
    card = page.split("<b><bdi>scene_0</bdi></b>")[1].split('class="card"')[0]
    assert "<bdi>rejected, label box wrong</bdi>" in card
    card = page.split("<b><bdi>scene_1</bdi></b>")[1].split('class="card"')[0]
    assert "<bdi>corrected mask</bdi>" in card
    assert page.count("<bdi>corrected mask</bdi>") == 1


def test_the_score_says_what_was_decided(drawn, tmp_path, capsys):
    (tmp_path / "truth").mkdir()
    for sample_id in drawn.ids():
        write_mask(tmp_path / "truth" / f"{sample_id}.png", np.ones((48, 64), np.uint8))
    command = ["score", "--store", str(drawn.path), "--truth", str(tmp_path / "truth")]
    assert main(command) == 0
    assert "Reviewed" not in capsys.readouterr().out
    decide(drawn, "scene_0", decision="reject")
    assert main(command) == 0
    assert "Reviewed: 1 rejected; the figures are of the machine's masks" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["review"] == {"rejected": 1}

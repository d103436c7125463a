import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data.console import EXIT_PIPE
from pseudolabel import cli

HEAVY = ("torch", "diffusers", "transformers", "cv2", "numpy", "ray")


def modules_after(*args: str) -> tuple[set[str], str]:
    """Run the command line in a fresh process; return the heavy modules it imported, and its output."""
    code = (
        "import sys\nfrom pseudolabel.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"print('IMPORTED', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    output, _, names = done.stdout.rpartition("IMPORTED")
    return set(names.split()), output


def test_help_imports_nothing_heavy():
    heavy, output = modules_after("--help")
    assert heavy == set()
    assert all(name in output for name in cli.COMMANDS)


def test_help_of_a_command_needs_no_model_code():
    heavy, output = modules_after("generate", "--help")
    assert heavy == set()
    assert re.search(r"--data\.root( ROOT)?, --root ROOT", output)  # Python 3.13 says ROOT once
    assert "Noise depends on this seed" in output


def test_the_list_of_commands_says_what_each_does():
    _, output = modules_after("--help")
    said = " ".join(output.split())
    assert all(inspect.getdoc(command).splitlines()[0] in said for command in cli.COMMANDS.values())


def run_wrong(capsys, *args: str) -> str:
    """Run with wrong input: status 2, one line on stderr, which is returned."""
    try:
        status = cli.main(args)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    lines = capsys.readouterr().err.strip().splitlines()
    # A progress bar leaves its own lines, and a blank one where it is cleared.
    lines = [line for line in lines if line.startswith("error") or (line.strip() and "image" not in line)]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "subcommand"),
        (["gen"], "invalid choice: 'gen'"),
        (["generate"], "required: --store, --data.root"),
        (["generate", "--root=.", "--store=s", "--crf.iteration=3"], "--crf.iteration"),
        (["generate", "--root=.", "--store=s", "--crf.iterations=many"], "crf.iterations"),
        (["generate", "--root=.", "--store=s", "--shard=3/2"], "--run.shard is '3/2'"),
        (["generate", "--root=/none/such", "--store=s"], "/none/such"),
        (["generate", "--config=/none/such.yaml", "--root=.", "--store=s"], "such.yaml"),
        (["score", "--store=/none/such"], "no store.json"),
        (["refine", "--store=/none/such", "--output=o"], "no store.json"),
    ],
)
def test_wrong_usage_is_one_line(args, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in run_wrong(capsys, *args)
    assert list(tmp_path.iterdir()) == []


def generate(root, store, options) -> list[str]:
    return ["generate", "--root", str(root), "--store", str(store), *options]


@pytest.fixture
def copied_world(world, tmp_path):
    import shutil

    return shutil.copytree(world, tmp_path / "world")


def test_missing_model_writes_nothing(capsys, world, tiny_options, tmp_path):
    line = run_wrong(capsys, *generate(world, tmp_path / "s", [*tiny_options, "--model.id=./no/such/model"]))
    assert "./no/such/model" in line
    assert not (tmp_path / "s").exists()


def test_unreadable_image(capsys, copied_world, tiny_options, tmp_path):
    (copied_world / "JPEGImages" / "train_000002.png").write_bytes(b"no image")
    line = run_wrong(capsys, *generate(copied_world, tmp_path / "s", tiny_options))
    assert "train_000002.png" in line
    assert not list((tmp_path / "s").rglob("*.tmp"))


def test_unknown_class(capsys, copied_world, tiny_options, tmp_path):
    path = copied_world / "Annotations" / "train_000001.xml"
    path.write_text("<annotation><object><name>unicorn</name></object></annotation>")
    assert "unicorn" in run_wrong(capsys, *generate(copied_world, tmp_path / "s", tiny_options))
    assert not (tmp_path / "s").exists()


def test_empty_label_list(capsys, copied_world, tiny_options, tmp_path):
    for path in (copied_world / "Annotations").glob("train_*.xml"):
        path.write_text("<annotation></annotation>")
    assert "no labels" in run_wrong(capsys, *generate(copied_world, tmp_path / "s", tiny_options))
    assert not (tmp_path / "s").exists()


def test_store_of_another_version(capsys, world, tiny_options, tmp_path):
    header = {"format": "pseudolabel-masks", "format_version": 99}
    (tmp_path / "store.json").write_text(json.dumps(header))
    for args in (generate(world, tmp_path, tiny_options), ["report", f"--store={tmp_path}"]):
        assert "99" in run_wrong(capsys, *args)
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


def test_print_config_can_be_read_back(capsys, tmp_path, tiny_options):
    args = ["generate", "--root=somewhere", "--store=s", *tiny_options]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*args, "--print_config"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["crf"]["iterations"] == 2
    (tmp_path / "c.yaml").write_text(printed)
    with pytest.raises(SystemExit):
        cli.main(["generate", f"--config={tmp_path / 'c.yaml'}", "--print_config"])
    assert capsys.readouterr().out == printed


def test_switches_need_no_value(capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "--root=r", "--store=s", "--overwrite", "--diffusion.flip", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["run"]["overwrite"] is True
    assert printed["diffusion"]["flip"] is True


def test_interrupt_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(args) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    assert cli.main(["generate"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_configs_are_valid(capsys):
    from pseudolabel.demo.run import CONFIGS

    for path in sorted((CONFIGS / "pseudolabel").glob("*.yaml")):
        command = ["generate", "--root=r", "--store=s"]
        if path.stem.endswith("_personal"):
            command = ["personalize", "--images=i", "--init_word=mug", "--token=<mug>", "--output=o"]
        with pytest.raises(SystemExit) as stopped:
            cli.main([*command, f"--config={path}", "--print_config"])
        assert stopped.value.code == 0, capsys.readouterr().err


def test_a_reader_that_stops_early_is_no_error(tmp_path: Path):
    (tmp_path / "labels.csv").write_text("image,labels\na.jpg,cat\n")
    command = "from pseudolabel.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        f"{sys.executable} -c '{command}' check --root {tmp_path} | true; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == EXIT_PIPE
    assert done.stderr == ""


def test_paths_in_a_config_hold_wherever_one_stands(capsys, world, tmp_path, monkeypatch):
    from pseudolabel.demo.run import CONFIGS

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "own.yaml").write_text("names: [disc]\n")
    (tmp_path / "c.yaml").write_text("data: {root: elsewhere, classes: own.yaml}\nstore: elsewhere\n")

    def resolved(config) -> dict:
        with pytest.raises(SystemExit):
            cli.main(["generate", f"--config={config}", "--root=.", "--store=s", "--print_config"])
        return yaml.safe_load(capsys.readouterr().out)

    shipped = resolved(CONFIGS / "pseudolabel" / "demo.yaml")
    assert Path(shipped["model"]["id"], "model_index.json").is_file()
    assert Path(shipped["data"]["classes"]).is_file()
    assert resolved("../c.yaml")["data"]["classes"] == str(tmp_path / "own.yaml")
    with pytest.raises(SystemExit):
        cli.main(["generate", "--config=../c.yaml", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["store"] == "elsewhere"  # it is written
    assert printed["data"]["root"] == str(tmp_path / "elsewhere")
    (tmp_path / "c.yaml").write_text("data: {classes: nowhere.yaml}\nmodel: {id: nowhere/model}\n")
    assert cli.main(["check", "--config=../c.yaml", f"--root={world}"]) == 2
    printed, said = capsys.readouterr()
    assert "nowhere.yaml" in said
    assert "There is no folder nowhere/model, so it is taken for a model on the hub" in printed


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("seed_everything: 1\n".encode("utf-16"), "save it as UTF-8"),
        (b'crf: "\\0"\n', "zero character"),
        (b'data: {root: "a\\0b"}\n', "zero character"),
        (b"", "it holds nothing, and must hold settings by name; --print_config shows what one looks like"),
        (b"# nothing but a comment\n", "it holds nothing"),
        (b"photos\n", "it holds 'photos', and must hold settings by name"),
        (b"- crf\n", "it holds ['crf']"),
    ],
)
@pytest.mark.parametrize("program", ["pseudolabel", "segtrain"])
def test_config_files_that_the_parser_would_stumble_over(tmp_path, capsys, content, says, program):
    from train.cli import main as train_main

    (tmp_path / "c.yaml").write_bytes(content)
    run, command = (cli.main, "generate") if program == "pseudolabel" else (train_main, "fit")
    assert run([command, "--config", str(tmp_path / "c.yaml")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("program", ["pseudolabel", "segtrain"])
def test_an_argument_of_no_encoding_is_one_line(capsys, program):
    from train.cli import main as train_main

    run, command = (cli.main, "score") if program == "pseudolabel" else (train_main, "fit")
    assert run([command, f"--store={os.fsdecode(b'caf' + bytes([0xE9]))}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: The argument '--store=caf\\udce9' holds bytes that are no text in UTF-8; rename")
    assert error.count("\n") == 1


def test_a_config_file_may_begin_with_a_byte_order_mark(tmp_path, capsys):
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbffuse:\n  threshold: 0.25\n")
    with pytest.raises(SystemExit):
        cli.main(["generate", f"--config={tmp_path / 'c.yaml'}", "--root=.", "--store=s", "--print_config"])
    assert "threshold: 0.25" in capsys.readouterr().out

"""`pseudolabel review` as a command: where it says the page is, wrong input, Ctrl-C."""

import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from pseudolabel.cli import main

pytest.importorskip("starlette", reason="the extra [review] is not installed")


def test_the_command_says_where_and_ends_on_ctrl_c(drawn):
    command = [sys.executable, "-m", "pseudolabel.cli", "review", "--store", str(drawn.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = [process.stdout.readline() for _ in range(2)]
            assert "6 images, 0 of them decided" in said[0]
            address = re.search(r"http://127\.0\.0\.1:\d+/", said[1])[0]
            with urllib.request.urlopen(address, timeout=60):  # it answers: from now on Ctrl-C is the server's
                pass
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert "Next: segtrain fit" in rest
    assert errors == ""


def test_wrong_input_is_one_line(drawn, tmp_path, capsys):
    assert main(["review", "--store", str(tmp_path / "none")]) == 2
    assert "There is no mask store" in capsys.readouterr().err
    for options in (["--port", "70000"], ["--host", "192.0.2.1"]):
        assert main(["review", "--store", str(drawn.path), *options]) == 2
        assert options[0] in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(drawn, capsys, visitor):
    assert main(["review", "--store", str(drawn.path), "--port", str(visitor.port)]) == 2
    assert f"port {visitor.port}" in capsys.readouterr().err

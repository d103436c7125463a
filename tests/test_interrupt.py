"""Ctrl-C before a program is ready to answer it."""

import signal
import subprocess
import sys

import pytest

CTRL_C_WHILE_IMPORTING = """
import os, signal, sys
class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == {pressed!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Pressed())
from {package}.__main__ import main
sys.argv = ["program", *{arguments!r}]
sys.exit(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process that sends itself Ctrl-C ends in another way there")
@pytest.mark.parametrize(
    ("package", "pressed", "arguments"),
    [
        ("pseudolabel", "pseudolabel.cli", []),
        ("pseudolabel", "jsonargparse", []),
        ("pseudolabel", "data.readers.layout", ["generate", "--root", ".", "--store", "nowhere"]),
        ("train", "train.cli", []),
        ("train", "torch", ["predict", "--help"]),
    ],
)
def test_no_traceback_while_modules_are_imported(package, pressed, arguments, tmp_path):
    code = CTRL_C_WHILE_IMPORTING.format(package=package, pressed=pressed, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in {130, -signal.SIGINT}  # a shell calls both 130
    assert "Traceback" not in done.stderr
    assert done.stdout == ""

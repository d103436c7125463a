"""Windows and macOS: nothing is imported or called that they lack, and ids are names they can hold."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.classes import VOC
from data.errors import LabelError
from data.readers.folder import make_ids
from data.samples import check_id, is_portable
from data.store.store import MaskStore

ROOT = Path(__file__).parents[2]
# What Windows' Python lacks. The libraries beneath are imported before, because they choose their code by `os.name`;
# filelock, which looks for fcntl, is imported anew.
WITHOUT = """
import importlib.abc, multiprocessing.popen_spawn_posix, os, signal, subprocess, sys
import albumentations, cv2, jsonargparse, PIL.Image, pytorch_lightning, segmentation_models_pytorch
import torch, tqdm, yaml
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

ABSENT = ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "readline")

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in [*ABSENT, *(name for name in sys.modules if name.partition(".")[0] == "filelock")]:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Absent())
for name in ("pread", "pwrite", "sched_getaffinity", "sched_setaffinity", "fork", "forkpty", "getuid", "geteuid",
             "mkfifo", "statvfs", "fchmod", "posix_fallocate", "sysconf", "killpg", "setsid", "getpgid"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGQUIT", "alarm", "setitimer"):
    if hasattr(signal, name):
        delattr(signal, name)

def no_links(*_, **__):
    raise OSError(1314, "A required privilege is not held by the client")

os.symlink = no_links
"""
ROUND_TRIP = """
from pathlib import Path
import numpy as np
from data.class_file import load_classes
from data.store.store import MaskStore
from pseudolabel.cli import main

root, model = Path(sys.argv[1]), sys.argv[2]
assert main(["init", "--root", str(root)]) == 0
options = ["--root", str(root), "--model.id", model, "--device=cpu", "--workers=0", "--resize.long_side_px=64",
           "--diffusion.draws=1", "--attention.cross_layers=[mid]", "--crf.iterations=1",
           "--attention.self_layers=[up_blocks.1.attentions.1]"]
assert main(["check", *options]) == 0
assert main(["generate", *options, "--store", str(root.parent / "masks")]) == 0
store = MaskStore.open(root.parent / "masks")
assert store.ids() == ["cat__1", "cat__2"]
mask = store.read_mask("cat__1")
store.write("again", mask, argmax=mask, soft=store.read_soft("cat__1"), record={"image": "cat/1.png", "labels": [1]})
np.testing.assert_array_equal(store.read_mask("again"), mask)
export = ["export", "--store", str(store.path), "--format", "voc", "--images", "link", "--output"]
assert main([*export, str(root.parent / "voc")]) == 0
assert len(list((root.parent / "voc" / "JPEGImages").iterdir())) == 3
"""


def modules() -> list[str]:
    paths = [path for package in ("data", "pseudolabel", "train") for path in (ROOT / package).rglob("*.py")]
    names = [path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in paths]
    return sorted(name.removesuffix(".__init__") for name in names)


def test_everything_imports_and_stage_one_runs_without_posix(tmp_path, sd_folder):
    """The demo's training and Ray's engine too; train/predictor.py stands alone and needs onnxruntime."""
    wanted = [name for name in modules() if name != "train.predictor"]
    assert len(wanted) > 120
    for name in ("1.png", "2.png"):
        path = tmp_path / "photos" / "cat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)).save(path)
    code = "\n".join([WITHOUT, *(f"import {name}" for name in wanted), ROUND_TRIP])
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "photos"), str(sd_folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "name", ["con", "aux.jpg", "NUL", "com1", "LPT9.tar", "a:b", "what?", "a*b", 'a"b', "a<b>", "a|b", "dot.", "space "]
)
def test_ids_made_from_file_names_are_names_everywhere(name):
    made = make_ids([f"{name}.png", f"x/{name}.png", "plain.png"])
    assert all(is_portable(sample_id) for sample_id in made)
    assert made == [check_id(sample_id) for sample_id in made]
    assert len(set(made)) == 3
    assert made[2] == "plain"


def test_ids_of_lists_and_stores_are_refused_on_windows_alone(monkeypatch):
    assert check_id("2024-05-01T10:00:00") == "2024-05-01T10:00:00"
    monkeypatch.setattr("data.samples._WINDOWS", True)
    with pytest.raises(LabelError, match="no file name on Windows"):
        check_id("2024-05-01T10:00:00")


def test_a_long_device_name_is_an_id_all_the_same():
    [made] = make_ids(["con." + 300 * "x" + ".png"])
    assert check_id(made).startswith("_con.")
    assert is_portable(made)


def test_a_file_held_open_elsewhere_is_waited_for(tmp_path, monkeypatch):
    """On Windows a file that somebody reads cannot be replaced for a moment."""
    import os

    tries, replace = [], os.replace

    def held(source, target):
        tries.append(target)
        if len(tries) < 3:
            raise PermissionError(13, "in use")
        replace(source, target)

    store = MaskStore.create(tmp_path / "s", classes=VOC, config={}, model={}, data={})
    mask = np.zeros((2, 3), np.uint8)
    monkeypatch.setattr("data.files.os.replace", held)
    with pytest.raises(PermissionError):
        store.write("a", mask, argmax=mask, soft=None, record={})
    tries.clear()
    monkeypatch.setattr("data.files._WINDOWS", True)
    store.write("a", mask, argmax=mask, soft=None, record={})
    np.testing.assert_array_equal(store.read_mask("a"), mask)

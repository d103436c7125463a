"""What the benchmarks share: which machine and commit, tables, settings from a file."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import auto_cli

from data.class_file import load_classes
from data.files import write_atomically
from data.machine import available_cpus, commit
from data.wording import count
from pseudolabel.config import GenerateConfig

HERE = Path(__file__).parent
DEMO_MODEL = HERE.parent / "data/demo/model"
DEMO_CLASSES = load_classes(HERE.parent / "data/demo/classes.yaml")
DEMO_CONFIG = HERE.parent / "configs/pseudolabel/demo.yaml"


def machine(device: str = "cpu") -> dict[str, str]:
    """Return what the figures were measured on and with."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    hardware = f"{count(available_cpus(), 'core')} of {cpu}"
    if device == "cuda":
        hardware = f"{torch.cuda.get_device_name()}, {hardware}"
    return {"hardware": hardware, "torch": torch.__version__, "commit": commit(marked=False)}


def machine_line(found: dict[str, str]) -> str:
    """Return what `machine` found as one sentence."""
    return f"Measured on {found['hardware']}, torch {found['torch']}, commit {found['commit']}."


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table; the first column is text, the others are set to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def write_text(path: Path, text: str) -> None:
    """Write a text that ends in one line break, atomically."""
    write_atomically(path, (text.rstrip() + "\n").encode())


def load_config(path: Path | None, root: Path = Path()) -> GenerateConfig:
    """Read settings as `pseudolabel --config` does; without a file, the defaults."""
    given = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path is not None else {}
    given["data"] = given.get("data", {}) | {"root": str(root)}
    return auto_cli(_as_given, args=["--settings", json.dumps(given)], as_positional=False)


def _as_given(settings: GenerateConfig) -> GenerateConfig:
    return settings

"""The command `check`: what a run would meet, before it."""

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pseudolabel.config import GenerateConfig

if TYPE_CHECKING:
    from data.checks import DataReport


@dataclass
class ModelReport:
    """What is known of the model before a run; None where it was not found out."""

    id: str
    seconds_per_image: float | None = None
    memory_gb: float | None = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check(json: bool = False, examine: int | None = None, **settings: Any) -> None:
    """Look over labels, images, model and memory before a run; write nothing.

    The exit status is 0 only if `pseudolabel generate` with the same settings would succeed.

    Args:
        json: Print one JSON object instead of text.
        examine: Open at most this many images, spread evenly; all if not given.
        **settings: The fields of GenerateConfig.

    """
    from data.checks import check_data
    from data.errors import ConfigError

    config = GenerateConfig(**settings)
    data = check_data(config.data, config.run.on_error == "skip", examine, _progress)
    model = check_model(config, data)
    _print_report(data, model, json)
    problems = [*data.problems, *model.problems]
    if problems:
        raise ConfigError(f"{len(problems)} problems would stop a run, the first: {problems[0]}")


def check_model(config: GenerateConfig, data: "DataReport") -> ModelReport:
    """Look at the model without loading its weights.

    Args:
        config: all settings.
        data: the data set's report; its sizes decide what memory and time are needed.

    Returns:
        The report; its problems would stop a run.

    """
    report = ModelReport(config.model.id)
    folder = Path(config.model.id)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        report.problems.append(
            f"The folder {folder} is no diffusers model (no model_index.json); --model.id must name one."
        )
    if not folder.is_dir() and folder.is_absolute():
        report.problems.append(f"There is no model folder {folder}; --model.id must name one, or a model on the hub.")
    return report


def _progress(positions: Iterable[int]) -> Iterable[int]:
    from tqdm import tqdm

    return tqdm(positions, desc="images", unit="image", disable=not sys.stderr.isatty())


def _print_report(data: "DataReport", model: ModelReport, as_json: bool) -> None:
    from json import dumps

    from data.checks import report_lines

    minutes = model.seconds_per_image and round(model.seconds_per_image * data.labelled / 60, 1)
    if as_json:
        ready = not data.problems and not model.problems
        content = {"format": "pseudolabel-check", "format_version": 1, "ready": ready, "minutes": minutes}
        print(dumps({**content, "data": data.to_json(), "model": asdict(model)}, ensure_ascii=False))
        return
    lines = [*report_lines(data), f"Model     {model.id}"]
    if minutes is not None:
        lines.append(f"Time      about {minutes:g} minutes")
    if model.memory_gb is not None:
        lines.append(f"Memory    about {model.memory_gb:g} GB")
    lines += [f"warning: {text}" for text in model.warnings] + [f"problem: {text}" for text in model.problems]
    ready = not data.problems and not model.problems
    print("\n".join([*lines, "Ready: pseudolabel generate would run." if ready else "Not ready."]))

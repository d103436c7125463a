"""The command `check`: what a run would meet, before it."""

import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from data.config import require
from data.errors import ConfigError
from data.wording import count, plural, printable
from pseudolabel.config import GenerateConfig

if TYPE_CHECKING:
    from data.readers.checks import DataReport
    from pseudolabel.generate.preflight import ModelReport


def check(json: bool = False, examine: int | None = None, measure: bool = False, **settings: Any) -> None:
    """Look over labels, images, model and memory before a run; write nothing.

    The exit status is 0 only if `pseudolabel generate` with the same settings would succeed.

    Args:
        json: Print one JSON object instead of text.
        examine: Open at most this many images, spread evenly; all if not given.
        measure: Fetch a model from the hub to time it; one in a local folder is always timed.
        **settings: The fields of GenerateConfig.

    """
    from data.readers.checks import check_data
    from pseudolabel.generate.preflight import check_model

    require("examine", examine, examine is None or examine >= 1, "at least 1")
    config = GenerateConfig(**settings)
    data = check_data(config.data, config.run.on_error == "skip", examine, _progress)
    model = check_model(config, data, measure)
    # Where the model is here it is timed, and nothing need be computed.
    unknown = not model.problems and config.model.folder is None and model.seconds_per_image is None
    device = _device(config) if unknown else None
    _print_report(data, model, json, device)
    problems = [*data.problems, *model.problems]
    if problems:
        raise ConfigError(f"{count(len(problems), 'problem')} would stop a run, the first: {problems[0]}")


def _progress(positions: Iterable[int]) -> Iterable[int]:
    from tqdm import tqdm

    return tqdm(positions, desc="images", unit="image", disable=not sys.stderr.isatty())


def _minutes(data: "DataReport", model: "ModelReport") -> float | None:
    if model.seconds_per_image is None:
        return None
    readable = data.labelled - len(data.unreadable)
    return round(((model.startup_seconds or 0.0) + model.seconds_per_image * readable) / 60, 1)


def _device(config: GenerateConfig) -> str:
    from pseudolabel.softmaps.diffusion.parts import pick_device

    return str(pick_device(config.run.device))


def _print_report(data: "DataReport", model: "ModelReport", as_json: bool, advise_for: str | None) -> None:
    from json import dumps

    from data.readers.checks import report_lines
    from pseudolabel.generate.advice import advice_lines, advise

    advised = () if advise_for is None else advise(advise_for)
    minutes = _minutes(data, model)
    if as_json:
        ready = not data.problems and not model.problems
        content = {"format": "pseudolabel-check", "format_version": 1, "ready": ready, "minutes": minutes}
        content |= {"data": data.to_json(), "model": asdict(model), "advice": [asdict(one) for one in advised]}
        print(dumps(content))
        return
    lines = [*report_lines(data), f"Model     {printable(model.id)}"]
    if minutes is not None:
        lines.append(f"Time      about {minutes:g} {plural(minutes, 'minute')}")
    if model.weights_gb is not None:
        lines.append(f"Weights   about {model.weights_gb:g} GB at once on the device")
    if model.memory_gb is not None:
        beside = (
            f", and up to {model.workers_memory_gb:g} GB in {count(model.workers, 'worker process')}"
            if model.workers
            else ""
        )
        lines.append(f"Memory    about {model.memory_gb:g} GB{beside}")
    found = [f"warning: {text}" for text in model.warnings] + [f"problem: {text}" for text in model.problems]
    lines += [printable(line) for line in found]
    lines += advice_lines(str(advise_for), advised) if advised else []
    ready = not data.problems and not model.problems
    print("\n".join([*lines, "Ready: pseudolabel generate would run." if ready else "Not ready."]))

"""Config files: where the paths in them lead, and values in them that nothing would read."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.errors import ConfigError
from data.machine import REPOSITORY

# Settings that name what is read. What is written, and ground truth, which lies below the data's root, are not among
# them; nor is the store of `generate`.
_READ = re.compile(
    r"(?:^|\.)(?:data\.(?:val\.)?(?:root|classes|labels|store)|model\.(?:id|network\.weights)|ckpt_path|images|root|store)$"
)


def find_beside(value: str, config: Path) -> str:
    """Return where a relative path that a config file names leads.

    It is looked for beside the working folder, then beside the config file, then in the project's folder; what is in
    none of them stays as it is, and whoever reads it says that it is missing.

    Args:
        value: what the file says.
        config: the config file.

    Returns:
        The path as it stands where it is beside the working folder, else the absolute path of what was found.

    """
    path = Path(value).expanduser()
    if not value.strip() or path.is_absolute() or path.exists():
        return value
    places = (config.absolute().parent / path, REPOSITORY / path)
    return next((os.path.normpath(place) for place in places if place.exists()), value)


def check_groups(settings: Any, options: Iterable[str], config: Path) -> None:
    """Raise ConfigError where a config file gives a single value to a group of settings, which would be passed over.

    Args:
        settings: what was parsed from the file: a namespace of jsonargparse, whose keys are dotted.
        options: names of all settings there are, dotted.
        config: the config file.

    """
    known = [option for option in options if not option.endswith(".help")]
    for key, value in settings.items():
        inner = next((option for option in known if option.startswith(f"{key}.")), None)
        if inner is not None and value is not None and not isinstance(value, str | dict):
            raise ConfigError(
                f"The config file {config} gives {key} the value {value!r}, but {key} is a group of settings; write "
                f"them below it, indented, such as {inner.removeprefix(f'{key}.')} (--{inner})."
            )


def find_paths(settings: Any, config: Path, written: Iterable[str] = ()) -> None:
    """Put what `find_beside` gives in the place of each relative path that a config file names for reading.

    Args:
        settings: what was parsed from the file: a namespace of jsonargparse, whose keys are dotted.
        config: the config file.
        written: settings that this command writes to, though others read them.

    """
    for key, value in list(settings.items()):
        if isinstance(value, str | Path) and key not in written and _READ.search(key.replace(".init_args.", ".")):
            found = find_beside(str(value), config)
            if found != str(value):
                settings[key] = type(value)(found)

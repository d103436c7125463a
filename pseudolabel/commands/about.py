"""The command `about`: what is installed here and what can run, for a person and for a report of a fault."""

from typing import Any

from data.wording import printable


def about(json: bool = False) -> None:
    """Say what is installed here, which devices there are, and which models need not be fetched.

    Args:
        json: Print one JSON object instead of text.

    """
    from json import dumps

    found = describe()
    print(dumps({"format": "pseudolabel-about", "format_version": 1, **found}, indent=1) if json else text(found))


def describe() -> dict[str, Any]:
    """Return versions, devices, models at hand, and extras with what each would add."""
    from data.about import DISTRIBUTION, EXTRAS, installed, system, versions
    from data.machine import REPOSITORY, available_cpus, available_memory_bytes, commit

    memory, (at_hand, cache_fault) = available_memory_bytes(), models()
    extras = {}
    for name, adds in EXTRAS.items():
        missing = [package for package, found in versions(name).items() if found is None]
        extras[name] = {"adds": adds, "missing": missing}
    return {
        "version": installed(DISTRIBUTION) or "not installed, run from its folder",
        "commit": commit(),
        "folder": str(REPOSITORY),
        "system": system(),
        "cores": available_cpus(),
        "free_memory_gb": None if memory is None else round(memory / 1e9, 1),
        "devices": devices(),
        "packages": versions() | versions("train"),
        "extras": extras,
        "models": at_hand,
        "hub_cache_fault": cache_fault,
    }


def devices() -> list[str]:
    """Return the accelerators torch can use, with their memory."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index}, {properties.name}, {properties.total_memory / 1e9:.0f} GB")
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def models() -> tuple[list[str], str]:
    """Return the diffusion models at hand, shipped or in the hub's cache, and why that cache cannot be read, if so.

    A report of a fault is made where things are broken, so a cache that cannot be read is said and stops nothing.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from pseudolabel.demo.run import MODEL

    found = [str(MODEL)] if (MODEL / "model_index.json").is_file() else []
    try:
        cached = scan_cache_dir().repos
    except CacheNotFound:
        return found, ""
    except (ValueError, RuntimeError, OSError) as error:  # a file in its place, a link to itself, no permission
        return found, " ".join(str(error).split())
    whole = {
        repository.repo_id
        for repository in cached
        for revision in repository.revisions
        if any(file.file_name == "model_index.json" for file in revision.files)
    }
    return [*found, *sorted(whole)], ""


def text(found: dict[str, Any]) -> str:
    """Return the lines for a person."""
    memory = "" if found["free_memory_gb"] is None else f", {found['free_memory_gb']:g} GB of memory free"
    lines = [
        f"Version   {found['version']} (commit {found['commit']}), {found['folder']}",
        f"System    {found['system']}; {found['cores']} cores{memory}",
        f"Devices   {'; '.join(found['devices']) or 'no GPU that torch can use'}",
        "Packages  " + ", ".join(f"{name} {version or 'MISSING'}" for name, version in found["packages"].items()),
        *(f"Model     {model}" for model in found["models"]),
    ]
    if found["hub_cache_fault"]:
        lines.append(f"Cache     the hub's cannot be read: {printable(found['hub_cache_fault'])}")
    for name, extra in found["extras"].items():
        state = f"not installed ({', '.join(extra['missing'])})" if extra["missing"] else "installed"
        lines.append(f"Extra     [{name}] {state}: {extra['adds']}")
    return "\n".join(lines)

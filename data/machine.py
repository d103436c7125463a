"""Which machine and which version this is: processor, cores, memory, commit."""

import os
import platform
import subprocess
import sys
from pathlib import Path

from data.about import DISTRIBUTION, installed

REPOSITORY = Path(__file__).resolve().parents[1]  # or where the packages are installed


def describe_machine(device: str) -> str:
    """Return processor, number of cores and device in a few words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
            if "model name" in line
        )
        name = next(lines, name)
    return f"{name}, {available_cpus()} cores, device {device}"


def commit(marked: bool = True) -> str:
    """Return the commit of the project's folder, or "unknown"; `marked` says where files differ from it ("-dirty")."""
    command = ["git", "describe", "--always", *(["--dirty"] if marked else [])]
    try:
        found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def available_cpus() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_bytes() -> int | None:
    """Return the most memory this process has held; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes


def available_memory_bytes() -> int | None:
    """Return how much memory could be taken now without swapping; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = next((line.split()[1] for line in file if line.startswith("MemAvailable:")), None)
    except OSError:  # not Linux
        found = None
    return None if found is None else int(found) * 1024


def written_by(program: str) -> str:
    """Return a program's name with the installed version, as files name what wrote them."""
    found = installed(DISTRIBUTION)
    return f"{program} of an unknown version" if found is None else f"{program} {found}"

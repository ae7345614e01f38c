"""Facts about the machine on which results are computed: processor, load and versions of libraries."""

import contextlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["machine", "waited"]


def machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Return the processor, its cores, its load (average number of processes over the last minute) and versions.

    The versions are those of Python, xcnn, NumPy, llvmlite and `packages`. An unknown value is None, and so is the
    version of a package that is not installed.
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in dict.fromkeys(["xcnn", "numpy", "llvmlite", *packages]):
        versions[name] = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"cpu": _processor(), "cores": os.cpu_count(), "load": _load(), "versions": versions}


def waited() -> float | None:
    """Return the total seconds for which the threads of this process have waited for a core; None if unknown.

    They wait while other processes compute; times measured meanwhile are too long.
    """
    try:
        tasks = [path.read_text("ascii").split() for path in Path("/proc/self/task").glob("*/schedstat")]
    except OSError:
        return None
    return sum(int(delay) for _, delay, _ in tasks) / 1e9 if tasks else None


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _processor() -> str | None:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else found[1].strip()

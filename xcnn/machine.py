"""What something was computed on: the processor, how busy it was with other things, and the versions of libraries."""

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
    """Describe the processor, its load (how many processes wanted a core in the last minute) and versions.

    What the system does not tell is None.

    Parameters
    ----------
    packages : to give the versions of, beside Python's, xcnn's, NumPy's and Numba's; None if not installed.
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in dict.fromkeys(["xcnn", "numpy", "numba", *packages]):
        versions[name] = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"cpu": _processor(), "cores": os.cpu_count(), "load": _load(), "versions": versions}


def waited() -> float | None:
    """Return how long this process's threads have waited for a core so far, in seconds, summed; None where unknown.

    They wait while others compute: what is measured meanwhile is not what the machine can do.
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

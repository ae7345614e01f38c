"""What figures were measured on: the processor, what else it had to do, and the versions of the libraries."""

import contextlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xcnn

__all__ = ["machine"]


def machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Describe the processor, its load (how many processes wanted a core in the last minute) and versions.

    What the system does not tell is None.

    Parameters
    ----------
    packages : to give the versions of, beside those of Python, xcnn and NumPy; None for one that is not installed.
    """
    versions: dict[str, str | None] = {"python": platform.python_version(), "xcnn": xcnn.__version__}
    for name in dict.fromkeys(["numpy", *packages]):
        versions[name] = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"cpu": _processor(), "cores": os.cpu_count(), "load": _load(), "versions": versions}


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

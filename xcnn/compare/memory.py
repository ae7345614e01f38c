"""How much memory this process takes for something. Linux alone tells; elsewhere it is None."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

__all__ = ["growth"]


def growth() -> Callable[[], int | None]:
    """Begin to watch; call what is returned for the bytes at the peak since, over what is held now.

    The peak is begun anew where the system can: importing a library may have taken more than it holds now.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    before = _resident("VmRSS")

    def grown() -> int | None:
        peak = _resident("VmHWM")
        return None if before is None or peak is None else max(0, peak - before)

    return grown


def _resident(what: str) -> int | None:
    """Read the resident memory, now (VmRSS) or at its peak (VmHWM), in bytes.

    Not `ru_maxrss`: a process that was started with exec begins with its parent's.
    """
    try:
        found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])

"""The GPU calls of a step, kernel launches and copies, counted by PyTorch's profiler.

It uses CUPTI, which sees the calls of every library in the process.
"""

import importlib
import re
from dataclasses import dataclass

from xcnn.compare.contestants import Step

__all__ = ["COPIES", "LAUNCHES", "STEPS", "UNCOUNTED", "Launches", "launches", "profiled"]

STEPS = 4
"""Number of steps over which the calls are counted."""

LAUNCHES = re.compile(r"cu(da)?(Launch\w*Kernel|GraphLaunch)")
"""Prefixes of the runtime and driver calls that launch a kernel or a graph of kernels."""

COPIES = re.compile(r"cu(da)?Mem(cpy|set)")
"""Prefixes of the calls that copy or fill memory."""


@dataclass(frozen=True)
class Launches:
    """The mean number of GPU calls per step.

    Attributes
    ----------
    kernels : launches; a graph counts once. None if not counted.
    copies : copies and fills of memory. None if not counted.
    missing : why the calls could not be counted.
    """

    kernels: float | None = None
    copies: float | None = None
    missing: str | None = None


UNCOUNTED = Launches()
"""The launches of a contestant on the CPU, or of a yardstick."""


def profiled(step: Step) -> list[tuple[str, int]]:
    """Run `STEPS` steps under PyTorch's profiler, and return its events (name, count).

    Raises
    ------
    RuntimeError, ImportError
        If PyTorch cannot profile here.
    """
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise RuntimeError(f"PyTorch {torch.__version__}, whose profiler counts, has no CUDA here")
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profiler:
        for _ in range(STEPS):
            step()
    return [(event.key, event.count) for event in profiler.key_averages()]


def launches(step: Step) -> Launches:
    """Return the number of GPU calls of a warm step, or why they cannot be counted."""
    try:
        events = profiled(step)
    except Exception as error:  # a failing profiler must not lose the other measurements
        return Launches(missing=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
    kernels, copies = (sum(times for name, times in events if calls.match(name)) for calls in (LAUNCHES, COPIES))
    if not kernels:
        return Launches(missing="the profiler recorded no launches; it may lack permission")
    return Launches(kernels / STEPS, copies / STEPS)

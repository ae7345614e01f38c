"""How often a step makes a GPU do something: kernels that are launched, and copies.

PyTorch's profiler counts, through CUPTI, which sees the calls of the whole process, whichever library makes them.
"""

import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from xcnn.compare.contestants import Step

__all__ = ["COPIES", "LAUNCHES", "STEPS", "UNCOUNTED", "Launches", "count", "launches", "profiled"]

STEPS = 4
"""So many are counted."""

LAUNCHES = re.compile(r"cu(da)?(Launch\w*Kernel|GraphLaunch)")
"""How the calls begin that start kernels, by the runtime or the driver: one, or all of a graph."""

COPIES = re.compile(r"cu(da)?Mem(cpy|set)")
"""How the calls begin that copy or fill memory."""


@dataclass(frozen=True)
class Launches:
    """What a step calls for, the mean of several.

    Attributes
    ----------
    kernels : launches, that of a graph counting once; None where they were not counted.
    copies : memory copied or filled; None likewise.
    missing : why they were not counted.
    """

    kernels: float | None = None
    copies: float | None = None
    missing: str | None = None


UNCOUNTED = Launches()
"""Of what launches nothing, or was not asked."""


def count(events: Iterable[tuple[str, int]]) -> tuple[int, int]:
    """Give the launches, and the copies, among a profiler's events: (name, how often).

    >>> count([("cudaLaunchKernel_v7000", 3), ("cuLaunchKernel", 2), ("cudaMemcpyAsync", 1), ("aten::add", 3)])
    (5, 1)
    """
    seen = list(events)
    launched, copied = (sum(times for name, times in seen if calls.match(name)) for calls in (LAUNCHES, COPIES))
    return launched, copied


def profiled(step: Step) -> list[tuple[str, int]]:
    """Run `STEPS` steps under PyTorch's profiler; give its events.

    Raises
    ------
    RuntimeError, ImportError
        Where it cannot, with the reason.
    """
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise RuntimeError(f"PyTorch {torch.__version__}, whose profiler counts, has no CUDA here")
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profiler:
        for _ in range(STEPS):
            step()
    return [(event.key, event.count) for event in profiler.key_averages()]


def launches(step: Step, profiled: Callable[[Step], Iterable[tuple[str, int]]] = profiled) -> Launches:
    """Count what a step calls for; where that cannot be done, say why.

    Parameters
    ----------
    step : warm.
    profiled : runs `STEPS` of them and gives the events.
    """
    try:
        kernels, copies = count(profiled(step))
    except Exception as error:  # whatever a profiler fails of, all else was measured
        return Launches(missing=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
    if not kernels:
        return Launches(missing="the profiler saw no launch at all; it may not be permitted to look")
    return Launches(kernels / STEPS, copies / STEPS)

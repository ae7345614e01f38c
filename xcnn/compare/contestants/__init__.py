"""Who takes part in a benchmark: xcnn on each device, and its peers. A file each, by its name.

Such a file has one function, `opened(case, device, way)`, a context that gives the step to be timed: a function without
arguments that returns the loss of a training step or the scores of an inference as a host value. All start from the
same weights and see the same batch, which lies where the library wants it. Another peer is a file and a line in
`PEERS`. A library is imported inside the functions: it may be missing. A yardstick has one function more,
`work(device)`: how much a step does.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from xcnn.compare.case import Case
from xcnn.compare.gpu import CPU, entered, hardware

__all__ = ["ENVIRONMENT", "PEERS", "YARDSTICKS", "Contestant", "Step"]

Step = Callable[[], Any]

PEERS: dict[str, dict[str, tuple[str, ...]]] = {
    "torch": {
        "cpu": ("NCHW", "channels_last", "NCHW 1 thread", "channels_last 1 thread"),
        "cuda": ("NCHW", "channels_last", "NCHW compiled", "NCHW graphs"),
    },
    "jax": {"cpu": ("NCHW", "NHWC")},
}
"""The peers by the name of their library in `device.LIBRARIES`, with the ways that each is measured in on a kind of
hardware: the memory layout, then whether compiled, or compiled and captured, and whether on one thread instead of all,
which is faster where there is little to do."""

YARDSTICKS: dict[str, tuple[str, ...]] = {"cpu": ("sgemm",), "cuda": ("sgemm", "copy")}
"""What each kind of hardware is measured with beside the contestants: a matrix product, copies in its memory."""

ENVIRONMENT: dict[str, dict[str, str]] = {
    "sgemm": {"CUPY_TF32": "0"},  # TF32 is no float32 arithmetic, whatever we were told to use
    "jax": {"JAX_PLATFORMS": "cpu"},  # else it takes most of a GPU's memory for itself
}
"""The environment variables that a contestant's process is started with."""


@dataclass(frozen=True)
class Contestant:
    """One who is timed.

    Attributes
    ----------
    name : `"xcnn"`, a peer, or a yardstick.
    device : where it computes, by the string of its library's device.
    way : of a peer.
    """

    name: str
    device: str = CPU
    way: str = ""

    def __str__(self) -> str:
        where = self.device if self.name not in PEERS else self.hardware.removeprefix(CPU)
        return " ".join(word for word in (self.name, where, self.way) if word)

    @property
    def hardware(self) -> str:
        """What it computes on: contestants with the same are compared."""
        return hardware(self.device)

    @property
    def variant(self) -> str:
        """What tells it from others of its name: the device of xcnn, the way of a peer."""
        return self.way or self.device

    @contextlib.contextmanager
    def opened(self, case: Case) -> Iterator[Step]:
        """Make ready; the first step is still cold."""
        with entered(self.device), self._module().opened(case, self.device, self.way) as step:
            yield step

    def work(self) -> int:
        """Say how much a step of a yardstick does."""
        return int(self._module().work(self.device))

    def _module(self) -> Any:
        return importlib.import_module(f"{__name__}.{self.name}")

"""Who takes part in a benchmark: xcnn on each device, and its peers. A file each, by its name.

Such a file has one function, `opened(case, variant)`, a context that gives the step to be timed: a function without
arguments that returns the loss of a training step or the scores of an inference as a host value. All start from the
same weights and see the same batch, which lies where the library wants it. Another peer is a file and a line in
`PEERS`. A library is imported inside the functions: it may be missing.
"""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from xcnn.compare.case import Case

__all__ = ["PEERS", "SGEMM", "Contestant", "Step"]

Step = Callable[[], Any]

PEERS: dict[str, tuple[str, ...]] = {
    "torch": ("NCHW", "channels_last", "NCHW 1 thread", "channels_last 1 thread"),
    "jax": ("NCHW", "NHWC"),
}
"""The peers by the name of their library in `device.LIBRARIES`, with the ways that each is measured in: the memory
layout, and whether on one thread instead of all, which is faster where there is little to do."""


@dataclass(frozen=True)
class Contestant:
    """One who is timed.

    Attributes
    ----------
    name : `"xcnn"`, a peer, or `"sgemm"`.
    variant : the device of xcnn, the way of a peer.
    """

    name: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.variant}".rstrip()

    def opened(self, case: Case) -> AbstractContextManager[Step]:
        """Make ready; the first step is still cold."""
        found: AbstractContextManager[Step]
        found = importlib.import_module(f"{__name__}.{self.name}").opened(case, self.variant)
        return found


SGEMM = Contestant("sgemm")
"""The yardstick: a large matrix product."""

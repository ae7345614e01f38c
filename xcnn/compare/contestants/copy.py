"""The yardstick of memory: copies of a large array within a device."""

import contextlib
from collections.abc import Iterator

import numpy as np

from xcnn.compare.case import Case
from xcnn.compare.contestants import Step
from xcnn.devices import device as open_device

__all__ = ["BYTES", "COPIES", "opened", "work"]

BYTES = 2**28
"""Size of the array: larger than caches."""

COPIES = 16
"""Copies per step, enough to make the wait for the last one negligible."""


def work(device: str) -> int:
    """Return the bytes that a step reads and writes."""
    return 2 * BYTES * COPIES


@contextlib.contextmanager
def opened(case: Case, device: str, way: str) -> Iterator[Step]:
    """Yield the copies."""
    where = open_device(device)
    source = where.asarray(np.ones(BYTES // 4, np.float32))
    target = where.xp.zeros_like(source)

    def step() -> float:
        for _ in range(COPIES):
            target[...] = source
        return float(target[0])

    yield step

"""Keep freed memory for the next array, instead of returning it to the system and getting it back page by page.

Every step allocates arrays of the same sizes. At first the C library of Linux takes each array of 128 KiB or more from
the system and returns it when it is freed; so it does with what is free at the end of its own memory. Writing to fresh
pages then takes up to half of a step. The library adapts to the first: the largest block of up to 32 MiB that was ever
freed becomes its threshold, so it is enough to free one such block, without writing to it. Larger arrays are returned
at once as before. To the second it does not adapt; how much may be free is a setting of the process.

To prevent both, set `MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_` (see mallopt(3)) or `GLIBC_TUNABLES`.
"""

import contextlib
import ctypes
import os

import numpy as np

__all__ = ["keep_freed_memory"]

_MOST = 32 << 20
_ROOM = 64 << 10
"""Upper bound of the bytes that the C library adds to a block."""

_TRIM_THRESHOLD, _FREE = -1, 1 << 30
"""M_TRIM_THRESHOLD of mallopt, and its value."""

_OWN = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}


def keep_freed_memory() -> None:
    """Make the C library keep freed arrays of up to 32 MiB, and 1 GiB of free memory in total."""
    if _OWN.isdisjoint(os.environ):
        np.empty(_MOST - _ROOM, np.uint8)
        with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
            ctypes.CDLL(None).mallopt(_TRIM_THRESHOLD, _FREE)

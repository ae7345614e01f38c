"""Keeping freed memory for the next array, instead of returning it to the system and getting it back page by page.

The arrays of a step have the sizes of the last one's. At first the C library of Linux takes each array of 128 KiB or
more from the system and returns it when it is freed; writing to fresh pages then takes up to a third of a step. It
learns: the largest block of up to 32 MiB that was ever freed becomes its threshold. So freeing one such block, which is
never written to, is enough. No setting changes, and larger arrays are returned at once as before.

Whoever does not want this sets `MALLOC_MMAP_THRESHOLD_` (see mallopt(3)), which makes the library learn nothing.
"""

import numpy as np

__all__ = ["keep_freed_memory"]

_MOST = 32 << 20
_ROOM = 64 << 10
"""What the C library adds to a block."""


def keep_freed_memory() -> None:
    """Let the C library keep arrays of up to 32 MiB that are freed, and 64 MiB of free memory in all."""
    np.empty(_MOST - _ROOM, np.uint8)

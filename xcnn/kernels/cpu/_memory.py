"""Keep freed memory for the next array, instead of returning it to the system and getting it back page by page.

Every step allocates arrays of the same sizes. At first the C library of Linux takes each array of 128 KiB or
more from the system and returns it when it is freed; writing to fresh pages then takes up to a third of a step. The
library adapts: the largest block of up to 32 MiB that was ever freed becomes its threshold. So it is enough to free one
such block, without writing to it. No setting changes, and larger arrays are returned at once as before.

To prevent this, set `MALLOC_MMAP_THRESHOLD_` (see mallopt(3)): the library then does not adapt.
"""

import numpy as np

__all__ = ["keep_freed_memory"]

_MOST = 32 << 20
_ROOM = 64 << 10
"""Upper bound of the bytes that the C library adds to a block."""


def keep_freed_memory() -> None:
    """Make the C library keep freed arrays of up to 32 MiB, and 64 MiB of free memory in total."""
    np.empty(_MOST - _ROOM, np.uint8)

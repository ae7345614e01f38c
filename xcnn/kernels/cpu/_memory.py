"""Keeping freed memory for the next array, instead of giving it back to the system and taking it page by page again.

The arrays of one step have the sizes of the last one's. The C library of Linux returns large blocks at once and then
gets them back zeroed, one fault per page: writing a fresh array of 128 MB takes three times as long as one reused.
"""

import contextlib
import ctypes
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGE = 1 << 30


def keep_freed_memory() -> None:
    """Let this process keep blocks of up to 1 GiB that are freed. Does nothing where the C library is not glibc."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _LARGE)

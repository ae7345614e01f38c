"""How compiled code is compiled. It needs Numba, and so does whoever imports it."""

from collections.abc import Callable
from typing import Any

from numba import njit

__all__ = ["compiled"]

compiled: Callable[[Any], Any] = njit(nogil=True, cache=True, error_model="numpy")
"""Compile a function at its first call, for good: the machine code is kept on disk."""

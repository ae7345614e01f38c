"""The parts of CuPy that the kernels here use; no other file here imports CuPy."""

from typing import Any

from array_api_compat import cupy as namespace
from cupy import RawModule, ascontiguousarray, empty, matmul

__all__ = ["RawModule", "address", "ascontiguousarray", "empty", "matmul", "namespace"]


def address(array: Any) -> int:
    """Return the address of the first element of an array in the memory of the device."""
    return int(array.data.ptr)

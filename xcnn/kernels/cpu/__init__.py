"""Kernels for NumPy arrays."""

import importlib.util

__all__: list[str] = []

if importlib.util.find_spec("numba") is not None:
    from xcnn.kernels.cpu import conv, linear  # noqa: F401

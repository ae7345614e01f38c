"""Kernels for NumPy arrays. A later module's kernel takes the place of an earlier one's of the same name."""

from xcnn.kernels.cpu import columns  # noqa: F401
from xcnn.kernels.cpu._memory import keep_freed_memory

__all__: list[str] = []

try:
    from numba import config

    compiles = not config.DISABLE_JIT
except ImportError:  # it is not there, or not for this NumPy
    compiles = False
if compiles:
    from xcnn.kernels.cpu import activation, conv, cross_entropy, linear, norm, optim, pool  # noqa: F401

keep_freed_memory()

"""Kernels for NumPy arrays. Those of a module imported later are tried first."""

import logging

from xcnn.kernels.cpu import columns  # noqa: F401  isort: skip
from xcnn.kernels.cpu import each  # noqa: F401  isort: skip
from xcnn.kernels.cpu._memory import keep_freed_memory

__all__: list[str] = []

try:
    import llvmlite.binding  # noqa: F401
except ModuleNotFoundError:  # it is optional
    compiles = False
except Exception as error:  # such as one that was built for another system
    compiles = False
    logging.getLogger("xcnn").warning("llvmlite cannot be used, so everything is slower: %r", error)
else:
    compiles = True
if compiles:
    try:
        from xcnn.kernels.cpu import (  # noqa: F401
            conv,
            cross_entropy,
            dropout,
            elementwise,
            interpolate,
            linear,
            norm,
            optim,
            pair,
            permute,
            pool,
            record,
            softmax,
        )
    except Exception as error:
        logging.getLogger("xcnn").warning("compiled kernels cannot be used, so everything is slower: %r", error)

keep_freed_memory()

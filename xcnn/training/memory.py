"""Devices that run out of memory: everything the batch took is freed, and one sentence says what to try."""

import gc
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from xcnn.devices import Device, free_memory, out_of_memory
from xcnn.errors import OutOfMemoryError

__all__ = ["memory_error", "ran_out", "within_memory"]

T = TypeVar("T")


def within_memory(function: Callable[..., T], images: Any, *rest: Any, where: Device) -> T:
    """Return `function(images, *rest)`; where memory runs out, free what the call took.

    Raises
    ------
    OutOfMemoryError
        See `memory_error`.
    """
    try:
        return function(images, *rest)
    except Exception as error:
        if not ran_out(error, where):
            raise
    raise memory_error(
        np.shape(images) if isinstance(images, list) else images.shape, where
    )  # out here nothing holds the exception any more


def ran_out(error: Exception, where: Device) -> bool:
    """Return whether memory ran out, and if so, release the arrays that the exception holds through its traceback."""
    if not out_of_memory(error, where):
        return False
    link: BaseException | None = error
    while link is not None:
        link.__traceback__, link = None, link.__context__
    return True


def memory_error(shape: Sequence[int], where: Device, updating: bool = False) -> OutOfMemoryError:
    """Return freed memory to the device, and return the error that says what to try.

    Parameters
    ----------
    shape : of the batch.
    where : the device whose memory ran out.
    updating : whether the optimizer had begun to change the weights.
    """
    gc.collect()
    free_memory(where)
    n, *size = shape
    smaller = f"a batch size of {n // 2}" if n > 1 else "smaller images"
    return OutOfMemoryError(
        f"out of memory on {where.name} with {n} image{'s' * (n > 1)} of {tuple(size)} at a time: "
        f"try {smaller}, or a smaller network{'; some weights have changed already' * updating}"
    )

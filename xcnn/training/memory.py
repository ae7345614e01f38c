"""Running out of memory on a device: the memory of the batch is freed, and one error suggests a fix."""

import gc
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from xcnn.devices import Device, free_memory, out_of_memory
from xcnn.errors import OutOfMemoryError

__all__ = ["memory_error", "ran_out", "within_memory"]

T = TypeVar("T")


def within_memory(function: Callable[..., T], images: Any, *rest: Any, where: Device) -> T:
    """Return `function(images, *rest)`; if memory runs out, free what it has allocated and raise `memory_error`."""
    try:
        return function(images, *rest)
    except Exception as error:
        if not ran_out(error, where):
            raise
    # Outside the except block nothing refers to the exception any more.
    raise memory_error(np.shape(images) if isinstance(images, list) else images.shape, where)


def ran_out(error: Exception, where: Device) -> bool:
    """Return whether memory ran out; if so, release the arrays to which the traceback of the exception refers."""
    if not out_of_memory(error, where):
        return False
    link: BaseException | None = error
    while link is not None:
        link.__traceback__, link = None, link.__context__
    return True


def memory_error(
    shape: Sequence[int], where: Device, updating: bool = False, accumulate: int | None = None
) -> OutOfMemoryError:
    """Return the error for a batch of this shape, after returning freed memory to the device.

    `updating` is whether the optimizer has begun to change the weights, and `accumulate` the number of parts in which
    a step computes the batch.
    """
    gc.collect()
    free_memory(where)
    n, *size = shape
    smaller = f"a batch size of {n // 2}" if n > 1 else "smaller images"
    if accumulate is not None and n > accumulate:
        smaller += f", accumulate={2 * accumulate} (the same batch in {2 * accumulate} parts)"
    return OutOfMemoryError(
        f"out of memory on {where.name} with {n} image{'s' * (n > 1)} of {tuple(size)} at a time: "
        f"try {smaller}, or a smaller network{'; some weights have already changed' * updating}"
    )

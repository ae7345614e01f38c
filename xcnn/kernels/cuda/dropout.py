"""Dropout with the numbers of the host's generator, drawn on the device without any transfer."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cuda._launch import launch, supports
from xcnn.kernels.cuda._library import empty, namespace

__all__ = ["dropout"]

_STREAM = np.dtype([("state", "2u8"), ("increment", "2u8")])
_HALF = (1 << 64) - 1


def _halves(number: int) -> tuple[int, int]:
    return number >> 64, number & _HALF


def _take(generator: np.random.Generator, count: int) -> tuple[np.ndarray, int, bool]:
    """Advance a generator by `count` float32 numbers.

    Return its earlier state: the stream as kernels take it, and the half of 64 bits that was left over, if any.
    """
    bits: Any = generator.bit_generator
    before = bits.state
    stream = np.zeros((), _STREAM)
    stream["state"], stream["increment"] = (_halves(before["state"][name]) for name in ("state", "inc"))
    leftover, ahead = before["uinteger"], bool(before["has_uint32"])
    draws, odd = divmod(count - ahead, 2)
    bits.advance(draws)
    if odd:  # half of the next 64 bits is taken
        last = int(bits.random_raw())
        bits.state = {**bits.state, "has_uint32": 1, "uinteger": last >> 32}
    return stream, leftover, ahead


@kernel(namespace)
def dropout(x: Any, p: float, generator: np.random.Generator) -> Any:
    """Drop elements according to the next numbers of the generator."""
    if not supports(x) or type(generator.bit_generator) is not np.random.PCG64:
        return NotImplemented
    scale = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    y, mask = empty(x.shape, x.dtype), empty(x.shape, np.uint8)
    pairs = -(-(x.size + 1) // 2)
    launch("drop", pairs, x, y, mask, x.size, *_take(generator, x.size), p, scale)

    def backward(dy: Any, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return (None,)
        dx = empty(dy.shape, dy.dtype)
        launch("drop_gradient", dx.size, dy, mask, dx, dx.size, scale)
        return (dx,)

    return y, backward

"""Padding layers."""

from collections.abc import Sequence

from xcnn import ops
from xcnn.nn._layer import Layer
from xcnn.nn._module import options

__all__ = ["Pad"]


@options
class Pad(Layer, op=ops.pad):
    """Pad or crop the last axes by `pad = (left, right, top, bottom, ...)`, the last axis first; see `ops.pad`."""

    pad: Sequence[int]
    mode: str = "constant"
    value: float = 0.0

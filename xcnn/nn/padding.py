"""Padding layers."""

from collections.abc import Sequence
from dataclasses import dataclass

from xcnn import ops
from xcnn.nn._layer import Layer

__all__ = ["Pad"]


@dataclass(eq=False, repr=False)
class Pad(Layer, op=ops.pad):
    """Pad the last axes by `pad = (left, right, top, bottom, ...)`, the last axis first; `ops.pad` has the modes."""

    pad: Sequence[int]
    mode: str = "constant"
    value: float = 0.0

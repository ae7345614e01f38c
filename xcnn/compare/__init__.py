"""Devices side by side: the error of every op and layer in units of a budget, how far training parts, and speed."""

from xcnn.compare.batches import batches
from xcnn.compare.budget import BUDGETS, WIDE, Budget, Error
from xcnn.compare.layers import LayerError, layer_errors
from xcnn.compare.op import op_errors
from xcnn.compare.speed import Speed, SpeedError, speed
from xcnn.compare.steps import PARTING, distances

__all__ = [
    "BUDGETS",
    "PARTING",
    "WIDE",
    "Budget",
    "Error",
    "LayerError",
    "Speed",
    "SpeedError",
    "batches",
    "distances",
    "layer_errors",
    "op_errors",
    "speed",
]

"""Devices side by side: the error of every op and layer in units of a budget, how far training parts, and speed."""

from xcnn.compare.batches import batches
from xcnn.compare.budget import BUDGETS, WIDE, Budget, Error
from xcnn.compare.finding import Finding, nearest
from xcnn.compare.layers import layer_errors
from xcnn.compare.markdown import markdown
from xcnn.compare.op import op_errors
from xcnn.compare.speed import Speed, SpeedError, speed
from xcnn.compare.steps import PARTING, distances

__all__ = [
    "BUDGETS",
    "PARTING",
    "WIDE",
    "Budget",
    "Error",
    "Finding",
    "Speed",
    "SpeedError",
    "batches",
    "distances",
    "layer_errors",
    "markdown",
    "nearest",
    "op_errors",
    "speed",
]

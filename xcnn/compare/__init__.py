"""Devices side by side: the error of every op and layer in units of a budget, how far training parts, and speed."""

from xcnn.compare.budget import BUDGETS, Budget, Error
from xcnn.compare.layers import LayerError, layer_errors
from xcnn.compare.op import op_errors

__all__ = ["BUDGETS", "Budget", "Error", "LayerError", "layer_errors", "op_errors"]

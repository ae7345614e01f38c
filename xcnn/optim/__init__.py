"""Optimizers: rules that turn gradients into new parameters."""

from xcnn.optim.optimizer import Optimizer
from xcnn.optim.rules import OPTIMIZERS, SGD

__all__ = ["OPTIMIZERS", "SGD", "Optimizer"]

"""Optimizers, parameter groups, learning-rate schedules and gradient clipping.

    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = optim.CosineAnnealingLR(optimizer, T_max=epochs)

After each backward pass: `optim.clip_grad_norm_(model.parameters(), 1.0)`, `optimizer.step()`. Schedules count epochs,
and `schedule.step()` comes after each; with `unit="step"`, the default of `OneCycleLR`, it comes after each step.
"""

from xcnn.optim.clip import clip_grad_norm_, clip_grad_value_
from xcnn.optim.decay import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
)
from xcnn.optim.groups import param_groups
from xcnn.optim.named import SCHEDULES, make_schedule
from xcnn.optim.one_cycle import OneCycleLR
from xcnn.optim.optimizer import Optimizer
from xcnn.optim.plateau import ReduceLROnPlateau
from xcnn.optim.rules import OPTIMIZERS, SGD, Adam, AdamW, RMSprop
from xcnn.optim.schedule import Schedule

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "Optimizer",
    "PolynomialLR",
    "RMSprop",
    "ReduceLROnPlateau",
    "Schedule",
    "SequentialLR",
    "StepLR",
    "clip_grad_norm_",
    "clip_grad_value_",
    "make_schedule",
    "param_groups",
]

"""Optimizers, learning-rate schedules and gradient clipping.

    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = optim.CosineAnnealingLR(optimizer, T_max=steps)

After each backward pass: `optim.clip_grad_norm_(model.parameters(), 1.0)`, `optimizer.step()`, `schedule.step()`.
"""

from xcnn.optim.clip import clip_grad_norm_, clip_grad_value_
from xcnn.optim.optimizer import Optimizer
from xcnn.optim.rules import OPTIMIZERS, SGD, Adam, AdamW, RMSprop
from xcnn.optim.schedule import (
    SCHEDULES,
    CosineAnnealingLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    Schedule,
    SequentialLR,
    StepLR,
    make_schedule,
)

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "LinearLR",
    "OneCycleLR",
    "Optimizer",
    "RMSprop",
    "ReduceLROnPlateau",
    "Schedule",
    "SequentialLR",
    "StepLR",
    "clip_grad_norm_",
    "clip_grad_value_",
    "make_schedule",
]

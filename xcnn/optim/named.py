"""Optimizers and schedules by the names that the command line gives them."""

import math
from collections.abc import Callable

from xcnn._check import integer
from xcnn.errors import UsageError, unknown
from xcnn.optim.optimizer import Optimizer
from xcnn.optim.rules import SGD, Adam, AdamW, RMSprop
from xcnn.optim.schedule import (
    CosineAnnealingLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    Schedule,
    SequentialLR,
    StepLR,
)

__all__ = ["OPTIMIZERS", "SCHEDULES", "make_schedule"]

OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "rmsprop": RMSprop}
"""Every update rule by name."""


def make_schedule(
    name: str, optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: int = 0
) -> Schedule | None:
    """Make a schedule for a whole training run; the optimizer's `lr` is its peak.

    To resume a run, make it from a fresh optimizer, then load the state of both.

    The caller steps it after every optimizer step if its `unit` is `"step"`, and with the validation loss after every
    epoch if it is `"epoch"` (`plateau` alone).

    Parameters
    ----------
    name : a key of `SCHEDULES`: `constant`; `step`, a tenth after each third of the epochs; `cosine`, down to 0;
        `one-cycle`, which leaves momentum and betas as they are (`OneCycleLR` itself can cycle them too);
        `plateau`, a tenth when the validation loss has not fallen for 10 epochs.
    optimizer : whose learning rates to change.
    total_steps : optimizer steps of the run.
    steps_per_epoch : optimizer steps of one epoch.
    warmup : steps in which the learning rate rises from near 0 first; the schedule covers the steps after them. In
        `one-cycle` it is the length of the cycle's own rise (0: three tenths of the run).

    Returns
    -------
    The schedule, or None where the learning rate does not change.

    Raises
    ------
    UsageError
        For an unknown name, a warm-up longer than the run, or a warm-up with `plateau`, which counts no steps.
    """
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    total_steps = integer("make_schedule", "total_steps", total_steps, 1)
    steps_per_epoch = integer("make_schedule", "steps_per_epoch", steps_per_epoch, 1)
    warmup = integer("make_schedule", "warmup", warmup, 0)
    if warmup >= total_steps:
        raise UsageError(f"make_schedule: warmup of {warmup} steps leaves nothing of a run of {total_steps}")
    return SCHEDULES[name](optimizer, total_steps, steps_per_epoch, warmup)


def _constant(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: int) -> Schedule | None:
    return _rise(optimizer, warmup) if warmup else None


def _step(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: int) -> Schedule:
    third = math.ceil((total_steps - warmup) / steps_per_epoch / 3) * steps_per_epoch
    return _after(warmup, StepLR(optimizer, third))


def _cosine(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: int) -> Schedule:
    return _after(warmup, CosineAnnealingLR(optimizer, total_steps - warmup))


def _one_cycle(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: int) -> Schedule:
    groups = optimizer.param_groups
    return OneCycleLR(
        optimizer,
        [group["lr"] for group in groups],
        total_steps,
        pct_start=(warmup + 1) / total_steps if warmup else 0.3,
        cycle_momentum=False,  # whoever gave a momentum means it
    )


def _plateau(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: int) -> Schedule:
    if warmup:
        raise UsageError("make_schedule: plateau counts epochs and takes no warmup; choose another schedule")
    return ReduceLROnPlateau(optimizer)


def _rise(optimizer: Optimizer, steps: int) -> Schedule:
    return LinearLR(optimizer, start_factor=1 / (steps + 1), total_iters=steps)


def _after(warmup: int, schedule: Schedule) -> Schedule:
    if not warmup:
        return schedule
    return SequentialLR(schedule.optimizer, [_rise(schedule.optimizer, warmup), schedule], [warmup])


SCHEDULES: dict[str, Callable[[Optimizer, int, int, int], Schedule | None]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
    "plateau": _plateau,
}
"""Every schedule by name: functions (optimizer, total_steps, steps_per_epoch, warmup); call them by `make_schedule`."""

"""Schedules by name, for whole training runs."""

import math
from collections.abc import Callable

from xcnn._check import integer
from xcnn._plugins import find
from xcnn.errors import UsageError, explained
from xcnn.optim.decay import CosineAnnealingLR, LinearLR, PolynomialLR, SequentialLR, StepLR
from xcnn.optim.one_cycle import OneCycleLR
from xcnn.optim.optimizer import Optimizer
from xcnn.optim.plateau import ReduceLROnPlateau
from xcnn.optim.schedule import Schedule

__all__ = ["SCHEDULES", "make_schedule"]


@explained
def make_schedule(
    name: str, optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: int = 0
) -> Schedule | None:
    """Return a schedule for a whole training run, whose highest learning rate is the `lr` of the optimizer.

    To resume a run, create the schedule from a new optimizer, then load the state of both. `Schedule.unit` says when to
    call `step`.

    Parameters
    ----------
    name : a key of `SCHEDULES`: `constant`; `step`, times 0.1 after each third of the epochs; `cosine`, down to 0;
        `polynomial`, down to 0 along a straight line; `one-cycle`, without a cycle of the momentum; `plateau`, times
        0.1 if the validation loss has not improved for 10 epochs. Or `package.module:function`, a function like those
        of `SCHEDULES`.
    optimizer : the optimizer whose learning rates to change.
    total_steps : number of optimizer steps of the run.
    steps_per_epoch : number of optimizer steps of one epoch.
    warmup : number of steps in which the learning rate rises from near 0 before the schedule begins. In `one-cycle` it
        is the length of the rise (three tenths of the run if 0).

    Returns
    -------
    The schedule, or None if the learning rate does not change.

    Raises
    ------
    UsageError
        If the name is unknown, the warm-up is longer than the run, or `plateau` gets a warm-up.
    """
    make: Callable[..., Schedule | None] = find("schedule", name, SCHEDULES)
    total_steps = integer("make_schedule", "total_steps", total_steps)
    steps_per_epoch = integer("make_schedule", "steps_per_epoch", steps_per_epoch)
    warmup = integer("make_schedule", "warmup", warmup, 0)
    if warmup >= total_steps:
        raise UsageError(f"make_schedule: warmup must be less than total_steps={total_steps}, got {warmup}")
    return make(optimizer, total_steps, steps_per_epoch, warmup)


def _constant(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: int) -> Schedule | None:
    return _warmed(optimizer, warmup, None)


def _step(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: int) -> Schedule | None:
    third = math.ceil((total_steps - warmup) / steps_per_epoch / 3) * steps_per_epoch
    return _warmed(optimizer, warmup, StepLR(optimizer, third, unit="step"))


def _cosine(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: int) -> Schedule | None:
    return _warmed(optimizer, warmup, CosineAnnealingLR(optimizer, total_steps - warmup, unit="step"))


def _polynomial(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: int) -> Schedule | None:
    return _warmed(optimizer, warmup, PolynomialLR(optimizer, total_steps - warmup, unit="step"))


def _one_cycle(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: int) -> Schedule:
    return OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps,
        pct_start=(warmup + 1) / total_steps if warmup else 0.3,
        cycle_momentum=False,  # the user has chosen the momentum
    )


def _plateau(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: int) -> Schedule:
    if warmup:
        raise UsageError("make_schedule: plateau counts epochs and takes no warmup; choose another schedule")
    return ReduceLROnPlateau(optimizer)


def _warmed(optimizer: Optimizer, warmup: int, schedule: Schedule | None) -> Schedule | None:
    """Return a schedule with a linear warm-up before it."""
    if not warmup:
        return schedule
    rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup, unit="step")
    return rise if schedule is None else SequentialLR(optimizer, [rise, schedule], [warmup])


SCHEDULES: dict[str, Callable[[Optimizer, int, int, int], Schedule | None]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
    "polynomial": _polynomial,
    "one-cycle": _one_cycle,
    "plateau": _plateau,
}
"""Every schedule by name: functions `(optimizer, total_steps, steps_per_epoch, warmup)`; see `make_schedule`."""

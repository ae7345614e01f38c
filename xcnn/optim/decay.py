"""Schedules that are functions of the step alone, with PyTorch's names, defaults, argument order and values."""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xcnn._check import integer, number
from xcnn.errors import UsageError
from xcnn.optim.optimizer import Optimizer
from xcnn.optim.schedule import Schedule, Unit

__all__ = [
    "CosineAnnealingLR",
    "ExponentialLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "PolynomialLR",
    "SequentialLR",
    "StepLR",
]


class StepLR(Schedule):
    """Multiply the learning rate by `gamma` every `step_size` epochs.

    Parameters
    ----------
    optimizer : the optimizer whose groups to change.
    step_size : number of epochs from one change to the next.
    gamma : factor of each change.
    unit : `"step"` to count the steps of the optimizer instead of epochs.
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, *, unit: Unit = "epoch") -> None:
        self.step_size = self.first = integer("StepLR", "step_size", step_size)
        self.gamma = number("StepLR", "gamma", gamma, "(0, inf)")
        super().__init__(optimizer, unit=unit)

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        return {"lr": group["initial_lr"] * self.gamma ** (step // self.step_size)}


class MultiStepLR(Schedule):
    """Multiply the learning rate by `gamma` at each of some epochs.

    Parameters
    ----------
    optimizer : the optimizer whose groups to change.
    milestones : the epochs of the changes, counted from 0, in any order; one that is named twice counts twice.
    gamma : factor of each change.
    unit : `"step"` to count the steps of the optimizer instead of epochs.
    """

    def __init__(
        self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1, *, unit: Unit = "epoch"
    ) -> None:
        self.milestones = sorted(_milestones("MultiStepLR", milestones, 0))
        self.first = next((milestone for milestone in self.milestones if milestone), None)
        self.gamma = number("MultiStepLR", "gamma", gamma, "(0, inf)")
        super().__init__(optimizer, unit=unit)

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        return {"lr": group["initial_lr"] * self.gamma ** bisect_right(self.milestones, step)}


class ExponentialLR(Schedule):
    """Multiply the learning rate by `gamma` every epoch.

    Parameters
    ----------
    optimizer : the optimizer whose groups to change.
    gamma : factor of each change.
    unit : `"step"` to count the steps of the optimizer instead of epochs.
    """

    def __init__(self, optimizer: Optimizer, gamma: float, *, unit: Unit = "epoch") -> None:
        self.gamma = number("ExponentialLR", "gamma", gamma, "(0, inf)")
        super().__init__(optimizer, unit=unit)

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        return {"lr": group["initial_lr"] * self.gamma**step}


class PolynomialLR(Schedule):
    """Lower the learning rate to 0 in `total_iters` epochs, in proportion to `(1 - epoch / total_iters) ** power`.

    Parameters
    ----------
    optimizer : the optimizer whose groups to change.
    total_iters : number of epochs until the learning rate is 0, where it remains.
    power : 1 for a straight line; larger powers fall faster at first.
    unit : `"step"` to count the steps of the optimizer instead of epochs.
    """

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0, *, unit: Unit = "epoch") -> None:
        self.total_iters = self.end = integer("PolynomialLR", "total_iters", total_iters)
        self.power = number("PolynomialLR", "power", power, "(0, inf)")
        super().__init__(optimizer, unit=unit)

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        return {"lr": group["initial_lr"] * (1 - min(step, self.total_iters) / self.total_iters) ** self.power}


class CosineAnnealingLR(Schedule):
    """Lower the learning rate along half a cosine to `eta_min` in `T_max` epochs; afterwards it rises again.

    Parameters
    ----------
    optimizer : the optimizer whose groups to change.
    T_max : number of epochs from the highest learning rate to the lowest.
    eta_min : the lowest learning rate.
    unit : `"step"` to count the steps of the optimizer instead of epochs.

    References
    ----------
    Loshchilov and Hutter 2017, SGDR: stochastic gradient descent with warm restarts (without the restarts).
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, *, unit: Unit = "epoch") -> None:
        self.T_max = self.end = integer("CosineAnnealingLR", "T_max", T_max)
        self.eta_min = number("CosineAnnealingLR", "eta_min", eta_min, "[0, inf)")
        super().__init__(optimizer, unit=unit)

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        height = (1 + math.cos(math.pi * step / self.T_max)) / 2
        return {"lr": self.eta_min + (group["initial_lr"] - self.eta_min) * height}


class LinearLR(Schedule):
    """Change the learning rate linearly from `start_factor` to `end_factor` times its initial value, as a warm-up.

    Parameters
    ----------
    optimizer : the optimizer whose groups to change.
    start_factor, end_factor : factors of the initial learning rate.
    total_iters : number of epochs from one to the other; afterwards the learning rate is constant.
    unit : `"step"` to count the steps of the optimizer instead of epochs.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        *,
        unit: Unit = "epoch",
    ) -> None:
        self.start_factor = number("LinearLR", "start_factor", start_factor, "(0, 1]")
        self.end_factor = number("LinearLR", "end_factor", end_factor, "[0, 1]")
        self.total_iters = integer("LinearLR", "total_iters", total_iters)
        self.end = self.total_iters if self.end_factor < self.start_factor else None
        super().__init__(optimizer, unit=unit)

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        done = min(step, self.total_iters) / self.total_iters
        return {"lr": group["initial_lr"] * (self.start_factor + (self.end_factor - self.start_factor) * done)}


class LambdaLR(Schedule):
    """Multiply the initial learning rate by what a function returns for the epoch.

    Parameters
    ----------
    optimizer : the optimizer whose groups to change.
    lr_lambda : function of the epoch, counted from 0, that returns a factor of at least 0; one function, or a list of
        one per group. It is not part of the state: to resume, create the schedule with the same function.
    unit : `"step"` to count the steps of the optimizer instead of epochs.

    Examples
    --------
    >>> from xcnn import nn, optim
    >>> optimizer = optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)
    >>> schedule = optim.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
    >>> schedule.step()
    >>> schedule.get_last_lr()
    [0.05]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        *,
        unit: Unit = "epoch",
    ) -> None:
        self.lr_lambda = lr_lambda
        functions = lr_lambda if isinstance(lr_lambda, Sequence) else (lr_lambda,)
        if not all(map(callable, functions)):
            raise UsageError(f"LambdaLR: lr_lambda must be a function or a list of functions, got {lr_lambda!r}")
        super().__init__(optimizer, unit=unit)

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        groups = self.optimizer.param_groups
        functions = self.lr_lambda if isinstance(self.lr_lambda, Sequence) else [self.lr_lambda] * len(groups)
        if len(functions) != len(groups):
            got = f"{len(functions)} for {len(groups)} groups"
            raise UsageError(f"LambdaLR: lr_lambda must be one function or one per group, got {got}")
        function = next(function for function, one in zip(functions, groups, strict=True) if one is group)
        return {"lr": group["initial_lr"] * number("LambdaLR", f"lr_lambda({step})", function(step), "[0, inf)")}


class SequentialLR(Schedule):
    """Run schedules one after another; each counts from 0.

    Parameters
    ----------
    optimizer : the optimizer of all schedules.
    schedulers : schedules of one unit, which becomes that of the sequence. Do not call their `step`.
    milestones : the epochs or steps at which the second, third, ... schedule begins.

    Examples
    --------
    A warm-up of 5 epochs, then a cosine of 15:

    >>> from xcnn import nn, optim
    >>> optimizer = optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)
    >>> rise, fall = optim.LinearLR(optimizer, 0.1), optim.CosineAnnealingLR(optimizer, 15)
    >>> schedule = optim.SequentialLR(optimizer, [rise, fall], milestones=[5])
    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[Schedule], milestones: Sequence[int]) -> None:
        if not isinstance(schedulers, Sequence) or not all(isinstance(one, Schedule) for one in schedulers):
            raise UsageError(f"SequentialLR: schedulers must be a list of schedules, got {schedulers!r}")
        self.schedulers = list(schedulers)
        self.milestones = _milestones("SequentialLR", milestones, 1)
        if len(self.milestones) != len(self.schedulers) - 1:
            got = f"{len(self.milestones)} and {len(self.schedulers)}"
            raise UsageError(f"SequentialLR: milestones must be one fewer than schedulers, got {got}")
        if self.milestones != sorted(set(self.milestones)):
            raise UsageError(f"SequentialLR: milestones must increase, got {self.milestones}")
        for schedule in self.schedulers:
            kind = type(schedule).__name__
            if schedule.saved != Schedule.saved:
                raise UsageError(f"SequentialLR: {kind} depends on more than the number of steps; leave it out")
            if schedule.optimizer is not optimizer:
                raise UsageError(f"SequentialLR: the {kind} has another optimizer")
        units = [f"{type(one).__name__} counts {one.unit}s" for one in self.schedulers]
        if len({one.unit for one in self.schedulers}) > 1:
            raise UsageError(f"SequentialLR: {', '.join(units)}; give all of them the same unit")
        last = self.schedulers[-1].end
        self.end = None if last is None else last + sum(self.milestones[-1:])
        super().__init__(optimizer, unit=self.schedulers[0].unit)

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        index = bisect_right(self.milestones, step)
        return self.schedulers[index].at(step - self.milestones[index - 1] if index else step, group)


def _milestones(caller: str, value: Any, minimum: int) -> list[int]:
    """Return a list, a tuple, a range or an array (n,) of integers as a list."""
    entries = value.tolist() if isinstance(value, np.ndarray) and value.ndim == 1 else value
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise UsageError(f"{caller}: milestones must be a list of integers, got {value!r}")
    return [integer(caller, "milestones", entry, minimum) for entry in entries]

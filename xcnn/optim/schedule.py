"""Learning rates that change during training, with PyTorch's names, defaults, argument order and meaning.

All but `ReduceLROnPlateau` are pure functions of the step count: `_at(step, group)` gives the options that a group has
then, from its `initial_lr` (its `lr` when the first schedule was made). So the only state is the count, and to add a
schedule is to write `_at`.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from xcnn._check import choice, flag, integer, number
from xcnn.errors import CheckpointError, UsageError
from xcnn.optim.optimizer import Optimizer

__all__ = [
    "CosineAnnealingLR",
    "LinearLR",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "Schedule",
    "SequentialLR",
    "StepLR",
]


_ANNEAL: dict[str, Callable[[float, float, float], float]] = {
    "linear": lambda start, end, done: start * (1 - done) + end * done,
    "cos": lambda start, end, done: end + (start - end) / 2 * (1 + math.cos(math.pi * done)),
}

_SIGN = {"min": 1.0, "max": -1.0}


class Schedule:
    """Base of the schedules: making one sets the learning rates of step 0, `step()` those of the next.

    Parameters
    ----------
    optimizer : whose groups to change.

    Attributes
    ----------
    unit : `"step"` where `step()` follows every optimizer step, `"epoch"` where it ends an epoch and takes the
        validation loss. This is what a Trainer goes by.
    last_epoch : how often `step()` was called; PyTorch's name.
    """

    unit: Literal["step", "epoch"] = "step"
    _saved: tuple[str, ...] = ("last_epoch",)

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = _checked(type(self).__name__, optimizer)
        self.last_epoch = 0
        self._apply()

    def _at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of a group that this schedule decides, at a step."""
        raise NotImplementedError(f"{type(self).__name__} gives no _at(step, group)")

    def _apply(self) -> None:
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group.update(self._at(self.last_epoch, group))

    def step(self, metrics: float | None = None) -> None:
        """Move on by one; call it after `optimizer.step()`. Only schedules of the unit `"epoch"` look at `metrics`."""
        self.last_epoch += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """Return the learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers."""
        return {name: getattr(self, name) for name in self._saved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the state that `state_dict` of the same schedule gave; load the optimizer's own before it.

        Raises
        ------
        CheckpointError
            If the state is of another kind of schedule.
        """
        if set(state) != set(self._saved):
            names = f"{', '.join(self._saved)}, got {', '.join(state) or 'nothing'}"
            raise CheckpointError(f"{type(self).__name__}: the state must have {names}; is it of another schedule?")
        for name in self._saved:
            value = state[name]
            counts = name != "best"  # which is a metric, infinite at first
            if not isinstance(value, int if counts else float) or (counts and not 0 <= value < 2**53):
                raise CheckpointError(f"{type(self).__name__}: {name} in the state is {value!r}")
            setattr(self, name, value)
        self._apply()


class StepLR(Schedule):
    """Multiply the learning rate by `gamma` every `step_size` steps.

    Parameters
    ----------
    optimizer : whose groups to change.
    step_size : steps from one change to the next.
    gamma : what to multiply by.
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = integer("StepLR", "step_size", step_size, 1)
        self.gamma = number("StepLR", "gamma", gamma, "(0, inf)")
        super().__init__(optimizer)

    def _at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        return {"lr": group["initial_lr"] * self.gamma ** (step // self.step_size)}


class CosineAnnealingLR(Schedule):
    """Fall along half a cosine from the initial learning rate to `eta_min` in `T_max` steps, then back, and so on.

    Parameters
    ----------
    optimizer : whose groups to change.
    T_max : steps from the top to the bottom.
    eta_min : learning rate at the bottom.

    References
    ----------
    Loshchilov and Hutter 2017, SGDR: stochastic gradient descent with warm restarts (without the restarts).
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max = integer("CosineAnnealingLR", "T_max", T_max, 1)
        self.eta_min = number("CosineAnnealingLR", "eta_min", eta_min, "[0, inf)")
        super().__init__(optimizer)

    def _at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        height = (1 + math.cos(math.pi * step / self.T_max)) / 2
        return {"lr": self.eta_min + (group["initial_lr"] - self.eta_min) * height}


class LinearLR(Schedule):
    """Warm up: from `start_factor` straight to `end_factor` of the initial learning rate in `total_iters` steps.

    Parameters
    ----------
    optimizer : whose groups to change.
    start_factor, end_factor : shares of the initial learning rate.
    total_iters : steps from one to the other; after them it stays.
    """

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        self.start_factor = number("LinearLR", "start_factor", start_factor, "(0, 1]")
        self.end_factor = number("LinearLR", "end_factor", end_factor, "[0, 1]")
        self.total_iters = integer("LinearLR", "total_iters", total_iters, 1)
        super().__init__(optimizer)

    def _at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        done = min(step, self.total_iters) / self.total_iters
        return {"lr": group["initial_lr"] * (self.start_factor + (self.end_factor - self.start_factor) * done)}


class SequentialLR(Schedule):
    """One schedule after another, each counting from its own 0.

    Parameters
    ----------
    optimizer : whose groups to change; that of all the schedules.
    schedulers : schedules of the unit `"step"`; they are only asked for their values, so step this one alone.
    milestones : the steps at which the second, third, ... takes over.
    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[Schedule], milestones: Sequence[int]) -> None:
        self.schedulers = list(schedulers)
        self.milestones = [integer("SequentialLR", "milestones", milestone, 1) for milestone in milestones]
        if len(self.milestones) != len(self.schedulers) - 1:
            raise UsageError(
                f"SequentialLR: milestones must be one fewer than schedulers, got {len(self.milestones)} and "
                f"{len(self.schedulers)}"
            )
        if self.milestones != sorted(set(self.milestones)):
            raise UsageError(f"SequentialLR: milestones must rise, got {self.milestones}")
        for schedule in self.schedulers:
            if not isinstance(schedule, Schedule) or schedule.unit != "step":
                raise UsageError(f"SequentialLR: {type(schedule).__name__} is no function of the step; leave it out")
            if schedule.optimizer is not optimizer:
                raise UsageError(f"SequentialLR: the {type(schedule).__name__} is of another optimizer")
        super().__init__(optimizer)

    def _at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        index = bisect_right(self.milestones, step)
        return self.schedulers[index]._at(step - self.milestones[index - 1] if index else step, group)


class OneCycleLR(Schedule):
    """Rise to `max_lr`, then fall far below the start, within `total_steps` steps; the momentum goes the other way.

    Parameters
    ----------
    optimizer : whose groups to change; their own `lr` is replaced by `max_lr / div_factor`.
    max_lr : peak; one number, or one per group.
    total_steps : length of the cycle; or give `epochs` and `steps_per_epoch`.
    epochs, steps_per_epoch : their product is the length where `total_steps` is None.
    pct_start : share of the cycle that rises.
    anneal_strategy : `"cos"` or `"linear"`.
    cycle_momentum : whether to change `momentum`, or the first of `betas`, too.
    base_momentum, max_momentum : momentum at the peak, and at both ends.
    div_factor : peak over start.
    final_div_factor : start over end.
    three_phase : come down as slowly as up, and only then fall to the end.

    Raises
    ------
    UsageError
        For senseless arguments; from `step()` beyond the cycle.

    References
    ----------
    Smith and Topin 2018, Super-convergence: very fast training of neural networks using large learning rates.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
    ) -> None:
        me = "OneCycleLR"
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise UsageError("OneCycleLR: give total_steps, or epochs and steps_per_epoch")
            total_steps = integer(me, "epochs", epochs, 1) * integer(me, "steps_per_epoch", steps_per_epoch, 1)
        self.total_steps = integer(me, "total_steps", total_steps, 1)
        pct_start = number(me, "pct_start", pct_start, "[0, 0.5]" if three_phase else "[0, 1]")
        self._anneal = _ANNEAL[choice(me, "anneal_strategy", anneal_strategy, _ANNEAL)]
        low = number(me, "base_momentum", base_momentum, "[0, 1)")
        high = number(me, "max_momentum", max_momentum, "[0, 1)")
        rise = number(me, "div_factor", div_factor, "(0, inf)")
        fall = number(me, "final_div_factor", final_div_factor, "(0, inf)")
        last = self.total_steps - 1
        # The corners of the cycle: (step, learning rate over the initial one, momentum).
        self._corners = [(0.0, 1.0, high), (pct_start * self.total_steps - 1, rise, low)]
        if flag(me, "three_phase", three_phase):
            self._corners.append((2 * pct_start * self.total_steps - 2, 1.0, high))
        self._corners.append((last, 1 / fall, high))
        self._cycle_momentum = flag(me, "cycle_momentum", cycle_momentum)
        peaks = _per_group(me, "max_lr", max_lr, _checked(me, optimizer))
        if self._cycle_momentum and not {"momentum", "betas"} & optimizer.defaults.keys():
            raise UsageError(f"OneCycleLR: {type(optimizer).__name__} has no momentum; pass cycle_momentum=False")
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["initial_lr"] = peak / rise
        super().__init__(optimizer)

    def _at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        if step > self.total_steps:
            raise UsageError(f"OneCycleLR: step {step} is beyond total_steps {self.total_steps}; make the cycle longer")
        end = next((i for i, corner in enumerate(self._corners) if i and step < corner[0]), len(self._corners) - 1)
        (start, factor, momentum), (stop, next_factor, next_momentum) = self._corners[end - 1 : end + 1]
        done = min(1.0, (step - start) / (stop - start)) if stop > start else 1.0
        options: dict[str, Any] = {"lr": group["initial_lr"] * self._anneal(factor, next_factor, done)}
        if self._cycle_momentum:
            momentum = self._anneal(momentum, next_momentum, done)
            options |= {"betas": (momentum, group["betas"][1])} if "betas" in group else {"momentum": momentum}
        return options


class ReduceLROnPlateau(Schedule):
    """Multiply the learning rate by `factor` when a metric has stopped improving; step it once per epoch.

    Parameters
    ----------
    optimizer : whose groups to change.
    mode : `"min"` or `"max"`, what improving means.
    factor : what to multiply by.
    patience : epochs without improvement to sit through.
    threshold : the least change that counts as improvement.
    threshold_mode : `"rel"`, a share of the best metric, or `"abs"`.
    cooldown : epochs after a reduction in which nothing is counted.
    min_lr : least learning rate; one number, or one per group.
    eps : a change smaller than this is not made.
    """

    unit = "epoch"
    _saved = ("last_epoch", "best", "num_bad_epochs", "cooldown_counter")

    def __init__(
        self,
        optimizer: Optimizer,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        me = "ReduceLROnPlateau"
        self._sign = _SIGN[choice(me, "mode", mode, _SIGN)]
        self.factor = number(me, "factor", factor, "(0, 1)")
        self.patience = integer(me, "patience", patience, 0)
        self.relative = choice(me, "threshold_mode", threshold_mode, ("rel", "abs")) == "rel"
        self.threshold = number(me, "threshold", threshold, "[0, 1)" if self.relative else "[0, inf)")
        self.cooldown = integer(me, "cooldown", cooldown, 0)
        _per_group(me, "min_lr", min_lr, _checked(me, optimizer))
        self.min_lr = min_lr
        self.eps = number(me, "eps", eps, "[0, inf)")
        self.best = math.inf * self._sign
        self.num_bad_epochs = self.cooldown_counter = 0
        super().__init__(optimizer)

    def _at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        return {}  # the learning rate depends on what came before, so the optimizer's state holds it

    def step(self, metrics: float | None = None) -> None:
        """End an epoch.

        Parameters
        ----------
        metrics : the epoch's metric, such as the validation loss. NaN counts as no improvement.
        """
        if metrics is None:
            raise UsageError("ReduceLROnPlateau: step needs the metric of the epoch, such as the validation loss")
        self.last_epoch += 1
        metric = float(metrics)
        if self._improves(metric):
            self.best, self.num_bad_epochs = metric, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
            least_lrs = _per_group("ReduceLROnPlateau", "min_lr", self.min_lr, self.optimizer)
            for group, least in zip(self.optimizer.param_groups, least_lrs, strict=True):
                lr = max(group["lr"] * self.factor, least)
                if group["lr"] - lr > self.eps:
                    group["lr"] = lr

    def _improves(self, metric: float) -> bool:
        margin = self._sign * self.threshold
        bound = self.best * (1 - margin) if self.relative else self.best - margin
        return self._sign * metric < self._sign * bound


def _checked(caller: str, optimizer: Optimizer) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise UsageError(f"{caller}: expected an optimizer, got {type(optimizer).__name__}")
    return optimizer


def _per_group(caller: str, name: str, value: float | Sequence[float], optimizer: Optimizer) -> list[float]:
    """Return one number of at least 0 per group."""
    count = len(optimizer.param_groups)
    values = list(value) if isinstance(value, Sequence) else [value] * count
    if len(values) != count:
        raise UsageError(f"{caller}: {name} must be one number or one per group, got {len(values)} for {count} groups")
    return [number(caller, name, one, "[0, inf)") for one in values]

"""Learning rates that change during training, with PyTorch's names, defaults, argument order and meaning.

All but `ReduceLROnPlateau` are functions of the step: `at(step, group)` returns the options of a group, computed from
its `initial_lr` (its `lr` when its first schedule was created), so the only state is the number of steps.
`docs/extending.md` has an example of a schedule.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from xcnn._check import choice, flag, integer, number
from xcnn._plugins import find
from xcnn.errors import CheckpointError, Explained, UsageError, making_sense
from xcnn.optim.optimizer import Optimizer

__all__ = [
    "SCHEDULES",
    "CosineAnnealingLR",
    "LinearLR",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "Schedule",
    "SequentialLR",
    "StepLR",
    "make_schedule",
]


_ANNEAL: dict[str, Callable[[float, float, float], float]] = {
    "linear": lambda start, end, done: start * (1 - done) + end * done,
    "cos": lambda start, end, done: end + (start - end) / 2 * (1 + math.cos(math.pi * done)),
}

_SIGN = {"min": 1.0, "max": -1.0}


class Schedule(Explained):
    """Base class of the schedules. Creating one sets the learning rates of step 0; each `step()` sets the next ones.

    A subclass defines `at`. If it depends on more than the number of steps, it also overrides `step` and lists the
    attributes of its state in `saved`.

    Parameters
    ----------
    optimizer : the optimizer whose groups to change.

    Attributes
    ----------
    unit : `"step"` if `step()` must be called after every optimizer step, `"epoch"` if it must be called after every
        epoch with the validation loss.
    saved : names of the attributes that make up the state: integers of at least 0, or floats.
    last_epoch : number of calls of `step()`, with PyTorch's name.
    """

    unit: Literal["step", "epoch"] = "step"
    saved: ClassVar[tuple[str, ...]] = ("last_epoch",)

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = _checked(type(self).__name__, optimizer)
        self.last_epoch = 0
        self._apply()

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that this schedule sets in a group at a step, counted from 0, such as `{"lr": 0.1}`."""
        raise NotImplementedError(f"{type(self).__name__} must define at(step, group)")

    def _apply(self) -> None:
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group.update(self.at(self.last_epoch, group))

    def step(self, metrics: float | None = None) -> None:
        """Set the options of the next step; only schedules of the unit `"epoch"` use `metrics`."""
        self.last_epoch += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """Return the learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers."""
        return {name: getattr(self, name) for name in self.saved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` of the same schedule returned. Load the state of the optimizer first.

        Raises
        ------
        CheckpointError
            If the state belongs to another kind of schedule.
        """
        with making_sense(type(self).__name__):
            state = dict(state)
        if set(state) != set(self.saved):
            names = f"{', '.join(self.saved)}, got {', '.join(map(str, state)) or 'nothing'}"
            raise CheckpointError(f"{type(self).__name__}: the state must have {names}; does it belong to another one?")
        for name in self.saved:
            value, kind = state[name], type(getattr(self, name))
            if type(value) is not kind or (kind is int and not 0 <= value < 2**53):
                raise CheckpointError(f"{type(self).__name__}: {name} in the state is {value!r}")
        for name in self.saved:
            setattr(self, name, state[name])
        self._apply()


class StepLR(Schedule):
    """Multiply the learning rate by `gamma` every `step_size` steps.

    Parameters
    ----------
    optimizer : the optimizer whose groups to change.
    step_size : number of steps from one change to the next.
    gamma : factor of each change.
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = integer("StepLR", "step_size", step_size)
        self.gamma = number("StepLR", "gamma", gamma, "(0, inf)")
        super().__init__(optimizer)

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        return {"lr": group["initial_lr"] * self.gamma ** (step // self.step_size)}


class CosineAnnealingLR(Schedule):
    """Lower the learning rate along half a cosine to `eta_min` in `T_max` steps; afterwards it rises again.

    Parameters
    ----------
    optimizer : the optimizer whose groups to change.
    T_max : number of steps from the highest learning rate to the lowest.
    eta_min : the lowest learning rate.

    References
    ----------
    Loshchilov and Hutter 2017, SGDR: stochastic gradient descent with warm restarts (without the restarts).
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max = integer("CosineAnnealingLR", "T_max", T_max)
        self.eta_min = number("CosineAnnealingLR", "eta_min", eta_min, "[0, inf)")
        super().__init__(optimizer)

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        height = (1 + math.cos(math.pi * step / self.T_max)) / 2
        return {"lr": self.eta_min + (group["initial_lr"] - self.eta_min) * height}


class LinearLR(Schedule):
    """Change the learning rate linearly from `start_factor` to `end_factor` times its initial value, as a warm-up.

    Parameters
    ----------
    optimizer : the optimizer whose groups to change.
    start_factor, end_factor : factors of the initial learning rate.
    total_iters : number of steps from one to the other; afterwards the learning rate is constant.
    """

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        self.start_factor = number("LinearLR", "start_factor", start_factor, "(0, 1]")
        self.end_factor = number("LinearLR", "end_factor", end_factor, "[0, 1]")
        self.total_iters = integer("LinearLR", "total_iters", total_iters)
        super().__init__(optimizer)

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        done = min(step, self.total_iters) / self.total_iters
        return {"lr": group["initial_lr"] * (self.start_factor + (self.end_factor - self.start_factor) * done)}


class SequentialLR(Schedule):
    """Run schedules one after another; each counts its steps from 0.

    Parameters
    ----------
    optimizer : the optimizer of all schedules.
    schedulers : schedules of the unit `"step"`. Do not call their `step`.
    milestones : the steps at which the second, third, ... schedule begins.
    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[Schedule], milestones: Sequence[int]) -> None:
        if not isinstance(schedulers, Sequence) or not isinstance(milestones, Sequence):
            raise UsageError("SequentialLR: schedulers and milestones must be lists")
        self.schedulers = list(schedulers)
        self.milestones = [integer("SequentialLR", "milestones", milestone) for milestone in milestones]
        if len(self.milestones) != len(self.schedulers) - 1:
            got = f"{len(self.milestones)} and {len(self.schedulers)}"
            raise UsageError(f"SequentialLR: milestones must be one fewer than schedulers, got {got}")
        if self.milestones != sorted(set(self.milestones)):
            raise UsageError(f"SequentialLR: milestones must increase, got {self.milestones}")
        for schedule in self.schedulers:
            kind = type(schedule).__name__
            if not isinstance(schedule, Schedule) or schedule.unit != "step":
                raise UsageError(f"SequentialLR: {kind} does not count steps; leave it out")
            if schedule.optimizer is not optimizer:
                raise UsageError(f"SequentialLR: the {kind} has another optimizer")
        super().__init__(optimizer)

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        index = bisect_right(self.milestones, step)
        return self.schedulers[index].at(step - self.milestones[index - 1] if index else step, group)


class OneCycleLR(Schedule):
    """Raise the learning rate to `max_lr`, then lower it far below the first; momentum changes the opposite way.

    Parameters
    ----------
    optimizer : the optimizer whose groups to change; `max_lr / div_factor` replaces their `lr`.
    max_lr : the highest learning rate; one number, or one per group.
    total_steps : number of steps of the cycle, or None if `epochs` and `steps_per_epoch` are passed.
    epochs, steps_per_epoch : their product is the number of steps if `total_steps` is None.
    pct_start : share of the cycle in which the learning rate rises.
    anneal_strategy : `"cos"` or `"linear"`.
    cycle_momentum : whether to change `momentum`, or the first of `betas`, too.
    base_momentum, max_momentum : momentum at the highest learning rate, and at the start and the end.
    div_factor : the highest learning rate divided by the first.
    final_div_factor : the first learning rate divided by the last.
    three_phase : whether to lower the learning rate to the first one as slowly as it rose, and then to the last one.

    Raises
    ------
    UsageError
        If an argument is out of range, or `step` is called after the end of the cycle.

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
                raise UsageError("OneCycleLR: pass total_steps, or epochs and steps_per_epoch")
            total_steps = integer(me, "epochs", epochs) * integer(me, "steps_per_epoch", steps_per_epoch)
        self.total_steps = integer(me, "total_steps", total_steps)
        pct_start = number(me, "pct_start", pct_start, "[0, 0.5]" if three_phase else "[0, 1]")
        self.anneal_strategy = choice(me, "anneal_strategy", anneal_strategy, _ANNEAL)
        low = number(me, "base_momentum", base_momentum, "[0, 1)")
        high = number(me, "max_momentum", max_momentum, "[0, 1)")
        rise = number(me, "div_factor", div_factor, "(0, inf)")
        fall = number(me, "final_div_factor", final_div_factor, "(0, inf)")
        last = self.total_steps - 1
        # The corners of the cycle: (step, learning rate divided by the initial one, momentum).
        self._corners = [(0.0, 1.0, high), (pct_start * self.total_steps - 1, rise, low)]
        if flag(me, "three_phase", three_phase):
            self._corners.append((2 * pct_start * self.total_steps - 2, 1.0, high))
        self._corners.append((last, 1 / fall, high))
        self._cycle_momentum = flag(me, "cycle_momentum", cycle_momentum)
        peaks = _per_group(me, "max_lr", max_lr, optimizer)
        if self._cycle_momentum and not {"momentum", "betas"} & optimizer.defaults.keys():
            raise UsageError(f"OneCycleLR: {type(optimizer).__name__} has no momentum; pass cycle_momentum=False")
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["initial_lr"] = peak / rise
        super().__init__(optimizer)

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        if step > self.total_steps:
            raise UsageError(
                f"OneCycleLR: step {step} is after the last one; increase total_steps, which is {self.total_steps}"
            )
        anneal = _ANNEAL[self.anneal_strategy]
        end = next((i for i, corner in enumerate(self._corners) if i and step < corner[0]), len(self._corners) - 1)
        (start, factor, momentum), (stop, next_factor, next_momentum) = self._corners[end - 1 : end + 1]
        done = min(1.0, (step - start) / (stop - start)) if stop > start else 1.0
        options: dict[str, Any] = {"lr": group["initial_lr"] * anneal(factor, next_factor, done)}
        if self._cycle_momentum:
            momentum = anneal(momentum, next_momentum, done)
            options |= {"betas": (momentum, group["betas"][1])} if "betas" in group else {"momentum": momentum}
        return options


class ReduceLROnPlateau(Schedule):
    """Multiply the learning rate by `factor` when a metric has stopped improving.

    Parameters
    ----------
    optimizer : the optimizer whose groups to change.
    mode : `"min"` if a lower metric is better, `"max"` if a higher one is.
    factor : factor of each reduction.
    patience : number of epochs without improvement before a reduction.
    threshold : the smallest change that counts as an improvement.
    threshold_mode : `"rel"` if the threshold is a share of the best metric, `"abs"` if it is a difference.
    cooldown : number of epochs after a reduction in which bad epochs are not counted.
    min_lr : the lowest learning rate; one number, or one per group.
    eps : smaller changes of the learning rate are skipped.
    """

    unit = "epoch"
    saved = ("last_epoch", "best", "num_bad_epochs", "cooldown_counter")

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
        _per_group(me, "min_lr", min_lr, optimizer)
        self.min_lr = min_lr
        self.eps = number(me, "eps", eps, "[0, inf)")
        self.best = math.inf * self._sign
        self.num_bad_epochs = self.cooldown_counter = 0
        super().__init__(optimizer)

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        return {}  # `step` sets the learning rate, which is part of the optimizer's state

    def step(self, metrics: float | None = None) -> None:
        """Reduce the learning rates if the metric of this epoch requires it. NaN counts as no improvement."""
        if metrics is None:
            raise UsageError("ReduceLROnPlateau: step needs the metric of the epoch, such as the validation loss")
        try:
            metric = float(metrics)
        except (TypeError, ValueError):
            raise UsageError(f"ReduceLROnPlateau: metrics must be a number, got {metrics!r}") from None
        self.last_epoch += 1
        margin = self._sign * self.threshold
        bound = self.best * (1 - margin) if self.relative else self.best - margin
        if self._sign * metric < self._sign * bound:
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


def _checked(caller: str, optimizer: Optimizer) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise UsageError(f"{caller}: expected an optimizer, got {type(optimizer).__name__}")
    return optimizer


def _per_group(caller: str, name: str, value: float | Sequence[float], optimizer: Optimizer) -> list[float]:
    """Return one number of at least 0 for each group."""
    count = len(_checked(caller, optimizer).param_groups)
    values = list(value) if isinstance(value, Sequence) else [value] * count
    if len(values) != count:
        raise UsageError(f"{caller}: {name} must be one number or one per group, got {len(values)} for {count} groups")
    return [number(caller, name, one, "[0, inf)") for one in values]


def make_schedule(
    name: str, optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: int = 0
) -> Schedule | None:
    """Return a schedule for a whole training run, whose highest learning rate is the `lr` of the optimizer.

    To resume a run, create the schedule from a new optimizer, then load the state of both. `Schedule.unit` says when to
    call `step`.

    Parameters
    ----------
    name : a key of `SCHEDULES`: `constant`; `step`, times 0.1 after each third of the epochs; `cosine`, down to 0;
        `one-cycle`, without a cycle of the momentum; `plateau`, times 0.1 if the validation loss has not improved for
        10 epochs. Or `package.module:function`, a function like those of `SCHEDULES`.
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
    return _warmed(optimizer, warmup, StepLR(optimizer, third))


def _cosine(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: int) -> Schedule | None:
    return _warmed(optimizer, warmup, CosineAnnealingLR(optimizer, total_steps - warmup))


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
    rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return rise if schedule is None else SequentialLR(optimizer, [rise, schedule], [warmup])


SCHEDULES: dict[str, Callable[[Optimizer, int, int, int], Schedule | None]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
    "plateau": _plateau,
}
"""Every schedule by name: functions `(optimizer, total_steps, steps_per_epoch, warmup)`; see `make_schedule`."""

"""`Schedule`, the base class of learning rates that change during training.

All schedules but `ReduceLROnPlateau` are functions of the step: `at(step, group)` returns the options of a group,
computed from its `initial_lr` (its `lr` when its first schedule was created), so the only state is the number of steps.
`docs/extending.md` has an example of a schedule.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from xcnn._check import choice, number
from xcnn.errors import CheckpointError, Explained, UsageError, making_sense
from xcnn.optim.optimizer import Optimizer

__all__ = ["Schedule", "Unit", "per_group"]

Unit = Literal["epoch", "step"]
"""What a schedule counts: epochs, or steps of the optimizer."""


class Schedule(Explained):
    """Base class of the schedules. Creating one sets the learning rates of step 0; each `step()` sets the next ones.

    A subclass defines `at`. If it depends on more than the number of steps, it also overrides `step` and lists the
    attributes of its state in `saved`.

    Parameters
    ----------
    optimizer : the optimizer whose groups to change.
    unit : what to count; by default the class attribute `unit`.

    Attributes
    ----------
    unit : `"epoch"` if `step()` must be called after every epoch, with the validation loss; `"step"` if it must be
        called after every step of the optimizer. A `Trainer` does so.
    end : the step at which the learning rate is at its lowest, for a schedule that is made for a run of that length;
        otherwise None.
    first : the step at which the learning rate first changes, for a schedule that changes it now and then; otherwise
        None.
    saved : names of the attributes that make up the state: integers of at least 0, or floats.
    last_epoch : number of calls of `step()`, with PyTorch's name.
    """

    unit: Unit = "epoch"
    end: int | None = None
    first: int | None = None
    saved: ClassVar[tuple[str, ...]] = ("last_epoch",)

    def __init__(self, optimizer: Optimizer, *, unit: Unit | None = None) -> None:
        name = type(self).__name__
        if not isinstance(optimizer, Optimizer):
            raise UsageError(f"{name}: expected an optimizer, got {type(optimizer).__name__}")
        if any("lr" not in group for group in optimizer.param_groups):
            raise UsageError(f"{name}: {type(optimizer).__name__} has no learning rate lr to change")
        if unit is not None:
            self.unit = choice(name, "unit", unit, ("epoch", "step"))  # type: ignore[assignment]
        self.optimizer = optimizer
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
        """Set the options of the next step; only schedules such as `ReduceLROnPlateau` use `metrics`."""
        self.last_epoch += 1
        self._apply()

    def check_length(self, epochs: int, batches: int, done: int = 0) -> str:
        """Check that the schedule is long enough for some more epochs, of whose first some batches are done.

        Returns
        -------
        A sentence if the schedule never changes the learning rate in these epochs, if they go on where its learning
        rates rise again or are 0, or if its epochs seem to be meant as steps; otherwise an empty string.

        Raises
        ------
        UsageError
            If the schedule ends before the epochs do and has no learning rates afterwards, as `OneCycleLR`.
        """
        steps, me = epochs if self.unit == "epoch" else epochs * batches - done, type(self).__name__
        if self.first is not None and self.last_epoch == 0 and steps <= self.first and epochs > 1:
            fix = ", or unit='step' if it is meant to count steps" if self.unit == "epoch" else ""
            what = f"{self.unit} {self.first:,}, but training ends after {self.unit} {steps:,}; pass fewer{fix}"
            return f"{me} first changes the learning rate after {what}"
        if self.end is None:
            return ""
        group, last = self.optimizer.param_groups[0], self.last_epoch + steps - 1
        self.at(last + 1, group)
        if last > self.end:
            lr, lowest = self.at(last, group)["lr"], self.at(self.end, group)["lr"]
            if lr > lowest or lr == 0:
                then = "rises again" if lr > lowest else "stays 0"
                what = f"at {self.unit} {self.end:,} and then {then}, but training goes on to {self.unit} {last + 1:,}"
                return f"{me} has its lowest learning rate {what}; make the schedule as long as the training"
        if self.unit == "step" or self.end != epochs * batches or batches == 1 or epochs == 1:
            return ""
        fix = "if it is meant to count steps, pass unit='step'"
        return f"{me} ends after {self.end:,} epochs, but {self.end:,} is the number of batches; {fix}"

    def get_last_lr(self) -> list[float]:
        """Return the learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers. The arguments of the constructor are not part of it."""
        return {name: getattr(self, name) for name in self.saved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` of the same schedule returned. Load the state of the optimizer first.

        Raises
        ------
        CheckpointError
            If the state belongs to another kind of schedule.
        """
        with making_sense(type(self).__name__, state):
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


def per_group(caller: str, name: str, value: float | Sequence[float], optimizer: Optimizer) -> list[float]:
    """Return one number of at least 0 for each group."""
    if not isinstance(optimizer, Optimizer):
        raise UsageError(f"{caller}: expected an optimizer, got {type(optimizer).__name__}")
    count = len(optimizer.param_groups)
    values = list(value) if isinstance(value, Sequence) else [value] * count
    if len(values) != count:
        raise UsageError(f"{caller}: {name} must be one number or one per group, got {len(values)} for {count} groups")
    return [number(caller, name, one, "[0, inf)") for one in values]

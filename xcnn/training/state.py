"""What a trainer remembers: all that it takes to go on, given as nested dicts and looked at before it is taken back."""

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xcnn import optim
from xcnn._random import load_stream, stream_state
from xcnn.data import Loader, Pass
from xcnn.errors import CheckpointError, XcnnError
from xcnn.nn import Module
from xcnn.training.callbacks import Callback
from xcnn.training.evaluation import Batch, Metrics

__all__ = ["Epoch", "Resumable"]


@dataclass
class Epoch:
    """An epoch in the making: how many batches are trained on, what was seen in them, and how long it took."""

    batch: int = 0
    seconds: float = 0.0
    metrics: Metrics = field(default_factory=Metrics)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Epoch":
        """Make one of what `dataclasses.asdict` gave."""
        seen = state["metrics"]
        right = None if seen["correct"] is None else _count(seen["correct"])
        metrics = Metrics(_count(seen["images"]), float(seen["loss_sum"]), right)
        return cls(_count(state["batch"]), float(state["seconds"]), metrics)


def _count(value: Any) -> int:
    """Return a number of batches, images or steps from a state."""
    if not isinstance(value, int) or not 0 <= value < 2**53:
        raise ValueError(f"{value!r} counts nothing")
    return value


def _record(state: Mapping[str, Any], epoch: int) -> dict[str, Any]:
    """Return the record of an epoch from a state."""
    record = {name: state[name] for name in _RECORD}
    if (
        state.keys() != record.keys()
        or record["epoch"] != epoch
        or not all(isinstance(value, int | float | None) for value in record.values())
    ):
        raise ValueError(f"{dict(state)} is the record of no epoch")
    return {name: value if value is None else type(value)(float(value)) for name, value in record.items()}


_RECORD = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "images_per_second")


@contextlib.contextmanager
def _sense(who: str) -> Iterator[None]:
    """Turn what a state that makes no sense raises inside a `with` into one error."""
    try:
        yield
    except XcnnError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{who}: the state makes no sense: {type(error).__name__}: {error}") from None


class Resumable:
    """The state of a `Trainer`, which adds how to train."""

    def __init__(self, model: Module, optimizer: optim.Optimizer, schedule: optim.Schedule | None) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.history: list[dict[str, Any]] = []
        self.stop_reason = ""
        self.steps = 0
        self._epoch: Epoch | None = None  # the one that is not finished
        self._batches: Loader | Sequence[Batch] = ()
        self._pass: Pass | None = None  # of the loader, while there is an unfinished epoch
        self._callbacks: Sequence[Callback] = ()
        self._loaded: dict[str, Any] = {}  # the states of a loader and of callbacks that are not known yet

    @property
    def unfinished(self) -> int:
        """How many batches of an epoch that is not finished are done."""
        return 0 if self._epoch is None else self._epoch.batch

    def state_dict(self) -> dict[str, Any]:
        """Return everything that it takes to go on, in nested dicts and lists of NumPy arrays, numbers and strings.

        That is the weights, the states of optimizer, schedule, random streams, loader and callbacks, the history, and
        what is done of an epoch that is not finished. Inside `fit` it is that after the last whole step.
        """
        made = self._batches
        handed = {
            "loader": made.state_dict(self._pass) if isinstance(made, Loader) else None,
            "callbacks": {name: callback.state_dict() for name, callback in self._named_callbacks()},
        }
        return {
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "streams": {name: stream_state(generator) for name, generator in self.model.named_generators()},
            "history": [dict(record) for record in self.history],
            "steps": self.steps,
            "stop_reason": self.stop_reason,
            "epoch": None if self._epoch is None else dataclasses.asdict(self._epoch),
            **(self._loaded or handed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` of a trainer of the same parts was.

        A loader and callbacks are brought there by the next `fit`, which must be given the like. After an error the
        trainer may have some of the state, and is of no use.

        Raises
        ------
        CheckpointError
            For a state that does not fit this model, optimizer or schedule, or is none.
        """
        with _sense("Trainer"):
            streams = dict(self.model.named_generators())
            if (self.schedule is None) != (state["schedule"] is None) or state["streams"].keys() != streams.keys():
                raise CheckpointError("Trainer: the state is of other parts: another schedule, or other layers")
            self.optimizer.load_state_dict(state["optimizer"])
            if self.schedule is not None:
                self.schedule.load_state_dict(state["schedule"])
            self.model.load_state_dict(state["weights"])
            for name, generator in streams.items():
                load_stream(generator, state["streams"][name], name)
            self.history = [_record(record, number) for number, record in enumerate(state["history"], 1)]
            self.steps, self.stop_reason = _count(state["steps"]), str(state["stop_reason"])
            self._epoch = None if state["epoch"] is None else Epoch.of(state["epoch"])
            self._loaded = {"loader": state["loader"], "callbacks": dict(state["callbacks"])}

    def _hand_out(self) -> None:
        """Bring the loader and the callbacks of this `fit` to where `load_state_dict` found theirs."""
        made, loaded, self._loaded = self._batches, self._loaded, {}
        if not loaded:
            return
        with _sense("fit"):
            of_loader = loaded["loader"] is not None
            if isinstance(made, Loader) and of_loader:
                made.load_state_dict(loaded["loader"])
            if self._epoch is not None:
                if isinstance(made, Loader) != of_loader:
                    raise CheckpointError(
                        "fit: train must be a Loader where the state is of one, and else a list of batches"
                    )
                place = loaded["loader"]["pass"]["batch"] if of_loader else self._epoch.batch
                if place != self._epoch.batch or place > len(made):
                    raise CheckpointError(
                        f"fit: the state is after {self._epoch.batch} batches of the epoch, train has {len(made)} and "
                        f"its state is after {place}"
                    )
            for name, callback in self._named_callbacks():
                if name in loaded["callbacks"]:
                    callback.load_state_dict(dict(loaded["callbacks"][name]))

    def _named_callbacks(self) -> Iterator[tuple[str, Callback]]:
        """Name callbacks after their classes, numbered where there are several of one."""
        count: collections.Counter[str] = collections.Counter()
        for callback in self._callbacks:
            name = type(callback).__name__
            count[name] += 1
            yield name if count[name] == 1 else f"{name}-{count[name]}", callback

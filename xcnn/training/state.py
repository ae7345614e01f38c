"""A trainer's own state, an unfinished epoch and the history, checked when it is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xcnn._check import is_integer
from xcnn.training.evaluation import Metrics

__all__ = ["RECORD", "Epoch", "count", "record"]

RECORD = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "images_per_second")
"""What every record of the history has; callbacks may add numbers."""


@dataclass
class Epoch:
    """An epoch that is not finished.

    Attributes
    ----------
    settings : what decides its batches: `Loader.settings()`, None for other batches.
    batch : how many batches are done.
    seconds : how long they took.
    metrics : what was seen in them.
    """

    settings: dict[str, Any] | None = None
    batch: int = 0
    seconds: float = 0.0
    metrics: Metrics = field(default_factory=Metrics)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Epoch":
        """Return the epoch that `dataclasses.asdict` was given."""
        seen = state["metrics"]
        right = None if seen["correct"] is None else count(seen["correct"])
        metrics = Metrics(count(seen["images"]), float(seen["loss_sum"]), right)
        settings = None if state["settings"] is None else dict(state["settings"])
        return cls(settings, count(state["batch"]), float(state["seconds"]), metrics)


def count(value: Any) -> int:
    """Return a number of batches, images or steps of a state."""
    if not is_integer(value) or not 0 <= value < 2**53:
        raise ValueError(f"{value!r} counts nothing")
    return int(value)


def record(state: Mapping[str, Any], epoch: int) -> dict[str, Any]:
    """Return the record of an epoch of a state."""
    entries = dict(state)
    numbers = all(isinstance(name, str) and isinstance(value, int | float | None) for name, value in entries.items())
    if not numbers or entries["epoch"] != epoch or not entries.keys() >= set(RECORD):
        raise ValueError(f"{entries} is not the record of epoch {epoch}")
    # float() refuses integers beyond its range, which nothing could draw or print.
    return {name: value if value is None else type(value)(float(value)) for name, value in entries.items()}

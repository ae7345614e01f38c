"""The unfinished epoch and the history of a trainer, checked when they are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xcnn._check import is_integer
from xcnn.training.evaluation import Metrics

__all__ = ["RECORD", "Epoch", "count", "record"]

RECORD = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "images_per_second")
"""The entries of every record of the history; callbacks may add numbers."""


@dataclass
class Epoch:
    """An unfinished epoch: the `Loader.settings()`, if any, the number of batches done, their time and metrics."""

    settings: dict[str, Any] | None = None
    batch: int = 0
    seconds: float = 0.0
    metrics: Metrics = field(default_factory=Metrics)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Epoch":
        """Return the epoch from which `dataclasses.asdict` made this state."""
        seen, settings = state["metrics"], state["settings"]
        right = None if seen["correct"] is None else count(seen["correct"])
        metrics = Metrics(count(seen["images"]), float(seen["loss_sum"]), right)
        settings = None if settings is None else dict(settings)
        return cls(settings, count(state["batch"]), float(state["seconds"]), metrics)


def count(value: Any) -> int:
    """Check a number of batches, images or steps in a state and return it."""
    if not is_integer(value) or not 0 <= value < 2**53:
        raise ValueError(f"{value!r} is not a count")
    return int(value)


def record(state: Mapping[str, Any], epoch: int) -> dict[str, Any]:
    """Check the record of an epoch in a state and return it."""
    entries = dict(state)
    numbers = all(isinstance(name, str) and isinstance(value, int | float | None) for name, value in entries.items())
    if not numbers or entries["epoch"] != epoch or not entries.keys() >= set(RECORD):
        raise ValueError(f"{entries} is not the record of epoch {epoch}")
    # float() refuses integers beyond its range, which nothing could draw or print.
    return {name: value if value is None else type(value)(float(value)) for name, value in entries.items()}

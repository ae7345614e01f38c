"""The unfinished epoch and the history of a trainer, checked when they are loaded."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xcnn._check import is_integer, shown
from xcnn.errors import UsageError
from xcnn.training.evaluation import Metrics

__all__ = ["RECORD", "Epoch", "count", "digest", "plain", "record"]

RECORD = (
    "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
    "seconds", "data_seconds", "samples_per_second",
)  # fmt: skip
"""The entries of every record of the history; callbacks may add numbers."""


@dataclass
class Epoch:
    """An unfinished epoch: the `Loader.settings()`, if any, the number of batches done, their times and metrics."""

    settings: dict[str, Any] | None = None
    batch: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    metrics: Metrics = field(default_factory=Metrics)

    def state_dict(self) -> dict[str, Any]:
        """Return what `of` takes."""
        seen = self.metrics
        metrics = {name: getattr(seen, name) for name in ("samples", "loss_sum", "size", "correct", "counted")}
        return {**vars(self), "metrics": metrics}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Epoch":
        """Return the epoch of which `state_dict` returned this state."""
        seen, settings = state["metrics"], state["settings"]
        right = None if seen["correct"] is None else count(seen["correct"])
        metrics = Metrics(
            count(seen["samples"]), float(seen["loss_sum"]), float(seen["size"]), right, count(seen["counted"])
        )
        settings = None if settings is None else dict(settings)
        return cls(settings, count(state["batch"]), float(state["seconds"]), float(state["data_seconds"]), metrics)


def count(value: Any) -> int:
    """Check a number of batches, samples or steps in a state and return it."""
    if not is_integer(value) or not 0 <= value < 2**53:
        raise ValueError(f"{value!r} is not a count")
    return int(value)


def digest(state: Any) -> str:
    """Return the SHA-256 of a state: nested dicts and sequences of NumPy arrays, numbers and texts."""
    found = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping | list | tuple):
            for key, one in value.items() if isinstance(value, Mapping) else enumerate(value):
                add(f"{name}/{key}", one)
        elif isinstance(value, np.ndarray):
            found.update(f"{name} {value.dtype} {value.shape} ".encode() + value.tobytes())
        else:
            found.update(f"{name} {value!r} ".encode())

    add("", state)
    return found.hexdigest()


def plain(entries: dict[str, Any], before: dict[str, Any], caller: str) -> None:
    """Make numbers of NumPy, or of a device, in a record plain, and refuse what could not be saved and loaded again.

    Then the record is again what it was `before`, so that the history can be saved.
    """
    numbers = {name: value.item() if getattr(value, "ndim", None) == 0 else value for name, value in entries.items()}
    says = [f"a record must keep its entry {name!r}, which is gone" for name in RECORD if name not in entries]
    says += [
        f"the entry {name!r} of a record must be a number or None, got {shown(entries[name])}"
        for name, number in numbers.items()
        if not isinstance(name, str) or not isinstance(number, int | float | None)
    ]
    entries.clear()
    entries.update(before if says else numbers)
    if says:
        raise UsageError(f"{caller}: {says[0]}")


def record(state: Mapping[str, Any], epoch: int) -> dict[str, Any]:
    """Check the record of an epoch in a state and return it."""
    entries = dict(state)
    numbers = all(isinstance(name, str) and isinstance(value, int | float | None) for name, value in entries.items())
    if not numbers or entries["epoch"] != epoch or not entries.keys() >= set(RECORD):
        raise ValueError(f"{entries} is not the record of epoch {epoch}")
    # float() refuses integers beyond its range, which nothing could draw or print.
    return {name: value if value is None else type(value)(float(value)) for name, value in entries.items()}

"""Callbacks: a history file, early stopping, and keeping the best weights."""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from xcnn._check import integer
from xcnn._files import make_folder, replacing
from xcnn.errors import CheckpointError, UsageError, WriteError
from xcnn.training.trainer import Callback, Trainer

__all__ = ["EarlyStopping", "HistoryFile", "KeepBest"]


class HistoryFile(Callback):
    """Write the history of a trainer to a file: CSV with a header, or JSON lines, by its suffix.

    Each epoch appends a line. If the file does not hold the history when `fit` starts, as after a kill, it is replaced.

    Parameters
    ----------
    path : ends in `.csv` or `.jsonl`; its folder is made if it is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix not in (".csv", ".jsonl"):
            raise UsageError(f"HistoryFile: path must end in .csv or .jsonl, got {str(path)!r}")
        self._columns: tuple[str, ...] = ()
        self._size = -1  # of the file while it holds the history; -1 if it does not

    def on_fit_start(self, trainer: Trainer, batches: int | None, epochs: int) -> None:
        """Replace the file if it does not hold the history."""
        self._size = -1
        if trainer.history:
            self._replace(trainer.history)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Append the epoch."""
        if self._size < 0 or not record.keys() <= set(self._columns) or self._length() != self._size:
            self._replace(trainer.history)
            return
        line = self._lines([record])
        try:
            with self.path.open("r+b", buffering=0) as file:
                file.seek(self._size)
                try:
                    written = file.write(line)
                    if written != len(line):
                        raise OSError(28, os.strerror(28))  # the disk is full
                except OSError:
                    file.truncate(self._size)
                    raise
        except OSError as error:
            raise WriteError(f"cannot write {self.path}: {error.strerror or error}") from None
        self._size += len(line)

    def _replace(self, history: list[dict[str, Any]]) -> None:
        """Make the file hold a history, which it may do already."""
        make_folder(self.path.parent)
        self._columns = tuple(dict.fromkeys(name for record in history for name in record))
        content = (",".join(self._columns) + "\n").encode() if self.path.suffix == ".csv" else b""
        content += self._lines(history)
        if self._length() != len(content) or self.path.read_bytes() != content:
            with replacing(self.path) as temporary:
                temporary.write_bytes(content)
        self._size = len(content)

    def _length(self) -> int:
        """Return the size of the file, -1 if there is none."""
        return self.path.stat().st_size if self.path.is_file() else -1

    def _lines(self, history: Iterable[dict[str, Any]]) -> bytes:
        if self.path.suffix == ".jsonl":
            return "".join(json.dumps(record, default=float) + "\n" for record in history).encode()
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(history)
        return text.getvalue().encode()


class _Monitor(Callback):
    """Watches one entry of the records; a loss is better if smaller, everything else if larger."""

    def __init__(self, monitor: str, min_delta: float = 0.0) -> None:
        self.monitor, self.min_delta = monitor, min_delta
        self.best: float | None = None
        self.best_epoch = 0

    def _improved(self, record: dict[str, Any]) -> bool:
        value = record.get(self.monitor)
        if value is None:
            known = ", ".join(name for name, entry in record.items() if entry is not None)
            raise UsageError(f"{type(self).__name__}: no {self.monitor!r} in this run's records (there are: {known})")
        sign = -1.0 if self.monitor.endswith("loss") else 1.0
        if math.isnan(value) or (self.best is not None and not sign * (value - self.best) > self.min_delta):
            return False
        self.best, self.best_epoch = value, record["epoch"]
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and its epoch."""
        return {"monitor": self.monitor, "best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` returned, unless that watched another entry."""
        best, epoch = state.get("best"), state.get("best_epoch")
        if not isinstance(best, float | None) or not isinstance(epoch, int) or not 0 <= epoch < 2**53:
            raise CheckpointError(f"{type(self).__name__}: the state must have best and best_epoch, got {dict(state)}")
        if state.get("monitor") == self.monitor:
            self.best, self.best_epoch = best, epoch


class EarlyStopping(_Monitor):
    """End the run when an entry of the records has not improved for some epochs.

    Parameters
    ----------
    monitor : such as `"val_loss"` or `"val_accuracy"`.
    patience : epochs without improvement after which the run ends.
    min_delta : a smaller change is no improvement.
    """

    def __init__(self, monitor: str = "val_loss", patience: int = 5, min_delta: float = 0.0) -> None:
        super().__init__(monitor, min_delta)
        self.patience = integer("EarlyStopping", "patience", patience)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Compare with the best epoch."""
        if not self._improved(record) and record["epoch"] - self.best_epoch >= self.patience:
            best = "no number" if self.best is None else f"{self.best:.4g} of epoch {self.best_epoch}"
            trainer.stop(f"no better {self.monitor} than {best}")


class KeepBest(_Monitor):
    """Save whenever an entry of the records is the best so far.

    Parameters
    ----------
    save : called with the record of the epoch; see `xcnn.runs.save_checkpoint`.
    monitor : such as `"val_loss"` or `"val_accuracy"`.
    """

    def __init__(self, save: Callable[[dict[str, Any]], None], monitor: str = "val_loss") -> None:
        super().__init__(monitor)
        self.save = save

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Save if this epoch is the best."""
        if self._improved(record):
            self.save(record)

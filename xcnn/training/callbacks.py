"""What can listen to a training run: histories on disk, early stopping, the best checkpoint."""

import csv
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xcnn._files import make_folder, replacing
from xcnn.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from xcnn.training.evaluation import Metrics
    from xcnn.training.trainer import Trainer

__all__ = ["Callback", "EarlyStopping", "HistoryFile", "KeepBest"]


class Callback:
    """Base of all listeners: override what you need. `trainer.stop(reason)` ends the run after the epoch.

    One that remembers something gives it as `state_dict`, so that it is in the checkpoints of a run. Several are called
    in their order, those whose class says `comes_last` after the others.
    """

    comes_last = False

    def on_fit_start(self, trainer: "Trainer", batches: int, epochs: int) -> None:
        """Before the first epoch, with the number of batches in each and the number of the last one."""

    def on_batch_end(self, trainer: "Trainer", epoch: int, batch: int, metrics: "Metrics") -> None:
        """After every step, with the metrics of the epoch so far; epochs and batches count from 1."""

    def on_epoch_end(self, trainer: "Trainer", record: dict[str, Any]) -> None:
        """After every epoch and its validation, with the record that `fit` returns."""

    def on_interrupt(self, trainer: "Trainer") -> None:
        """When Ctrl-C or SIGTERM ends the run, after a whole step, before `fit` raises."""

    def on_note(self, message: str) -> None:
        """When there is something to tell the user of a whole run, such as what differs in one that is resumed."""

    def on_download(self, file: str, done: int, total: int | None) -> None:
        """As the bytes of a data set arrive, before a whole run starts; never for files that are there already."""

    def on_test_batch(self, trainer: "Trainer", images: int, metrics: "Metrics") -> None:
        """After every batch of the test that ends a whole run, with the number of test images and what is seen."""

    def on_fit_end(self, trainer: "Trainer") -> None:
        """At the end, whether all epochs are done, or an error or Ctrl-C ended the run."""

    def state_dict(self) -> dict[str, Any]:
        """Return what must be known to go on: numbers, strings, lists, dicts by strings, and NumPy arrays."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; called after `on_fit_start`, and only where there is a state."""


class HistoryFile(Callback):
    """Write the history of a trainer to a file after each epoch: CSV with a header, or JSON lines, by its suffix.

    Parameters
    ----------
    path : ends in `.csv` or `.jsonl`; its folder is made if it is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix not in (".csv", ".jsonl"):
            raise UsageError(f"HistoryFile: path must end in .csv or .jsonl, got {str(path)!r}")

    def on_epoch_end(self, trainer: "Trainer", record: dict[str, Any]) -> None:
        """Write all epochs: a run that was resumed may have lost some that are in the file."""
        make_folder(self.path.parent)
        with replacing(self.path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            if self.path.suffix == ".jsonl":
                file.writelines(json.dumps(one) + "\n" for one in trainer.history)
                return
            writer = csv.DictWriter(file, record, lineterminator="\n")
            writer.writeheader()
            writer.writerows(trainer.history)


class _Monitor(Callback):
    """Watches one entry of the records; losses are better when smaller, everything else when larger."""

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
        """Go on from what `state_dict` gave, unless it watched something else."""
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
    patience : epochs without improvement that are put up with.
    min_delta : a smaller change is no improvement.
    """

    def __init__(self, monitor: str = "val_loss", patience: int = 5, min_delta: float = 0.0) -> None:
        super().__init__(monitor, min_delta)
        if patience < 1:
            raise UsageError(f"EarlyStopping: patience must be at least 1, got {patience}")
        self.patience = patience

    def on_epoch_end(self, trainer: "Trainer", record: dict[str, Any]) -> None:
        """Compare with the best epoch."""
        if not self._improved(record) and record["epoch"] - self.best_epoch >= self.patience:
            best = "no number" if self.best is None else f"{self.best:.4g} of epoch {self.best_epoch}"
            trainer.stop(f"no better {self.monitor} than {best}")


class KeepBest(_Monitor):
    """Save whenever an entry of the records is better than ever before.

    Parameters
    ----------
    save : called with the record of the epoch; see `xcnn.training.save_checkpoint`.
    monitor : such as `"val_loss"` or `"val_accuracy"`.
    """

    def __init__(self, save: Callable[[dict[str, Any]], None], monitor: str = "val_loss") -> None:
        super().__init__(monitor)
        self.save = save

    def on_epoch_end(self, trainer: "Trainer", record: dict[str, Any]) -> None:
        """Save if this epoch is the best."""
        if self._improved(record):
            self.save(record)

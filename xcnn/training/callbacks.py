"""Callbacks: a history file, early stopping, and keeping the best weights."""

import csv
import difflib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xcnn._check import integer, number
from xcnn._files import make_folder, replacing, sweep
from xcnn.errors import CheckpointError, UsageError, WriteError, unknown
from xcnn.training.trainer import Callback, Trainer

__all__ = ["EarlyStopping", "HistoryFile", "KeepBest"]


class HistoryFile(Callback):
    """Write the history of a trainer to a file, as CSV with a header or as JSON lines.

    Each epoch appends a line. If the file does not match the history when `fit` starts, it is replaced.

    Parameters
    ----------
    path : a file name that ends in `.csv` or `.jsonl`. Its folder is created if it does not exist.
    """

    writes = True

    def __init__(self, path: str | Path) -> None:
        if not isinstance(path, str | Path) or Path(path).suffix not in (".csv", ".jsonl"):
            raise UsageError(f"HistoryFile: path must end in .csv or .jsonl, got {str(path)!r}")
        self.path = Path(path)
        self._columns: tuple[str, ...] = ()
        self._size: int | None = None  # of the file while it holds the history

    def on_fit_start(self, trainer: Trainer, batches: int | None, epochs: int) -> None:
        """Remove temporary files of killed processes, and replace the file if it does not match the history."""
        self._size = None
        sweep(self.path.parent, self.path.name)
        if trainer.history:
            self._replace(trainer.history)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Append the record."""
        if self._size is None or self._length() != self._size or not record.keys() <= set(self._columns):
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
        """Replace the file, unless it already holds this history."""
        make_folder(self.path.parent)
        self._columns = tuple(dict.fromkeys(name for record in history for name in record))
        content = (",".join(self._columns) + "\n").encode() if self.path.suffix == ".csv" else b""
        content += self._lines(history)
        if self._length() != len(content) or self.path.read_bytes() != content:
            with replacing(self.path) as temporary:
                temporary.write_bytes(content)
        self._size = len(content)

    def _length(self) -> int:
        """Return the size of the file, or -1 if it does not exist."""
        return self.path.stat().st_size if self.path.is_file() else -1

    def _lines(self, history: Iterable[dict[str, Any]]) -> bytes:
        if self.path.suffix == ".jsonl":
            return "".join(json.dumps(record, default=float) + "\n" for record in history).encode()
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(history)
        return text.getvalue().encode()


_BETTER = {"loss": "min", "accuracy": "max", "iou": "max", "r2": "max"}
"""Whether smaller or larger values are better, by the suffix of an entry's name."""


class _Monitor(Callback):
    """Base of callbacks that watch one entry of the records. With a trainer without a history, they begin anew."""

    def __init__(self, monitor: str, mode: str | None, min_delta: float = 0.0) -> None:
        name = type(self).__name__
        if not isinstance(monitor, str):
            raise UsageError(f"{name}: monitor must be the name of an entry, got {monitor!r}")
        if mode is None:
            mode = next((best for end, best in _BETTER.items() if monitor.endswith(end)), None)
        if mode not in ("min", "max"):
            always = [f"{part}_{figure}" for part in ("val", "train") for figure in ("loss", "accuracy")]
            near = difflib.get_close_matches(monitor, always, 1, 0.7) if mode is None else []
            hint = f"; or did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"{name}: mode must be 'min' or 'max' for the entry {monitor!r}, got {mode!r}{hint}")
        self.monitor, self.min_delta = monitor, number(name, "min_delta", min_delta, "[0, inf)")
        self._sign = -1.0 if mode == "min" else 1.0
        self.best: float | None = None
        self.best_epoch = 0

    def on_fit_start(self, trainer: Trainer, batches: int | None, epochs: int) -> None:
        """Begin anew with another trainer, and refuse an entry that the records cannot have."""
        if not trainer.history:
            self.best, self.best_epoch = None, 0
        name, me = self.monitor, type(self).__name__
        figures = ["loss", *["accuracy"] * (trainer.loss.correct is not None)]
        held_out = [f"val_{figure}" for figure in (*figures, *trainer.metrics)]
        known = [f"train_{figure}" for figure in figures] + held_out * (len(trainer.feeds) > 1)
        known += ["seconds", "data_seconds", "samples_per_second", "epoch"]
        adds = any(  # whether a callback of the user's own may add the entry
            type(callback).on_epoch_end is not Callback.on_epoch_end
            and not type(callback).__module__.startswith("xcnn.")
            for callback in trainer.callbacks
        )
        if name in known or (adds and name not in held_out):
            return
        if name in held_out:
            raise UsageError(f"{me}: the records have no {name!r} without validation data; pass fit(validation=...)")
        raise unknown(f"{me} monitor", name, known)

    def _improved(self, record: dict[str, Any]) -> bool:
        value = record.get(self.monitor)
        if value is None:
            known = ", ".join(name for name, entry in record.items() if entry is not None)
            raise UsageError(f"{type(self).__name__}: the records have no {self.monitor!r} (known: {known})")
        if math.isnan(value) or (self.best is not None and not self._sign * (value - self.best) > self.min_delta):
            return False
        self.best, self.best_epoch = value, record["epoch"]
        return True

    def describe(self, epochs: int) -> str:
        """Return which epoch of `epochs` is the best, in words.

        >>> keep = KeepBest("val_accuracy")
        >>> keep.best, keep.best_epoch = 0.93, 6
        >>> keep.describe(22)
        'epoch 6 of 22, best val_accuracy 0.93'
        """
        if self.best is None:
            return f"no epoch of {epochs}, as none has a {self.monitor}"
        return f"epoch {self.best_epoch} of {epochs}, best {self.monitor} {self.best:.4g}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}(monitor={self.monitor!r}, best={self.best}, best_epoch={self.best_epoch})"

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and its epoch."""
        return {"monitor": self.monitor, "best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, unless it belongs to another entry."""
        best, epoch = state.get("best"), state.get("best_epoch")
        if not isinstance(best, float | None) or not isinstance(epoch, int) or not 0 <= epoch < 2**53:
            raise CheckpointError(f"{type(self).__name__}: the state must hold best and best_epoch, got {dict(state)}")
        if state.get("monitor") == self.monitor:
            self.best, self.best_epoch = best, epoch


class EarlyStopping(_Monitor):
    """Stop training when an entry of the records has not improved for some epochs, counted over all calls of `fit`.

    Parameters
    ----------
    monitor : such as `"val_loss"` or `"val_accuracy"`.
    patience : the number of epochs without improvement after which training stops.
    min_delta : the improvement must be larger than this.
    mode : `"min"` if smaller is better, `"max"` if larger is. It can be left out for names that end in `loss`,
        `accuracy`, `iou` or `r2`.

    Attributes
    ----------
    best, best_epoch : the best value so far and its epoch, counted from 1; None and 0 before the first.
    """

    def __init__(
        self, monitor: str = "val_loss", patience: int = 5, min_delta: float = 0.0, mode: str | None = None
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = integer("EarlyStopping", "patience", patience)

    def on_fit_start(self, trainer: Trainer, batches: int | None, epochs: int) -> None:
        """Check the monitor; tell if the schedule has its lowest learning rates at an end that stopping early skips."""
        super().on_fit_start(trainer, batches, epochs)
        schedule, able = trainer.schedule, 1 + self.patience < epochs
        if able and schedule is not None and schedule.end is not None and schedule.last_epoch < schedule.end:
            end = f"{schedule.unit} {schedule.end:,}"
            trainer.tell(
                f"{type(schedule).__name__} has its lowest learning rates at its end, {end}, which "
                "early stopping may skip; choose a plateau, step or constant schedule, or train to the end"
            )

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Stop if the best epoch is too long ago."""
        if not self._improved(record) and record["epoch"] - self.best_epoch >= self.patience:
            best = "no number" if self.best is None else f"{self.best:.4g} of epoch {self.best_epoch}"
            trainer.stop(f"no better {self.monitor} than {best}")


class KeepBest(_Monitor):
    """Keep the weights of the epoch whose entry of the records is the best, in memory or by a function that saves them.

    The weights are those of inference: with `EMA`, the average.

    Parameters
    ----------
    monitor : such as `"val_loss"`, `"val_accuracy"`, or `"val_iou"` for one of the trainer's `metrics`.
    mode : `"min"` if smaller is better, `"max"` if larger is. It can be left out for names that end in `loss`,
        `accuracy`, `iou` or `r2`.
    save : called with the record of each epoch that is the best so far, while the model holds the weights to save, in
        the first of several processes; see `xcnn.runs.save_checkpoint`. None keeps them in memory, for `restore`.

    Attributes
    ----------
    best, best_epoch : the best value so far and its epoch, counted from 1; None and 0 before the first.
    weights : the best weights, if there is no function `save`, as `Module.state_dict` returns them; None before the
        first epoch.

    Examples
    --------
    >>> from xcnn import data, models, optim
    >>> train, test = data.load("digits")
    >>> model = models.build("report", train.shape, 10, seed=0)
    >>> best = KeepBest("val_accuracy")
    >>> trainer = Trainer(model, optim.Adam(model.parameters()), callbacks=[best])
    >>> history = trainer.fit(train, 2, validation=test)
    >>> best.restore(trainer)
    >>> trainer.evaluate(test).accuracy == best.best
    True
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        mode: str | None = None,
        save: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        super().__init__(monitor, mode)
        if save is not None and not callable(save):
            raise UsageError(f"KeepBest: save must be a function (record) or None, got {save!r}")
        self.save = save
        self.weights: dict[str, np.ndarray] | None = None

    def on_fit_start(self, trainer: Trainer, batches: int | None, epochs: int) -> None:
        """Check the monitor, and forget the weights of another trainer."""
        super().on_fit_start(trainer, batches, epochs)
        if self.best is None:
            self.weights = None

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Keep or save the weights if this epoch is the best."""
        if self._improved(record):
            with trainer.inference_weights():
                if self.save is None:
                    self.weights = trainer.model.state_dict()
                elif trainer.parallel.rank == 0:
                    self.save(record)

    def restore(self, trainer: Trainer) -> None:
        """Load the best weights into the model, for training and inference.

        Raises
        ------
        UsageError
            If no weights are kept.
        """
        if self.weights is None:
            raise UsageError("KeepBest: there are no weights to restore; call fit first, without a function save")
        trainer.model.load_state_dict(self.weights)
        with trainer.inference_weights():
            trainer.model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, its epoch, and the weights if they are kept in memory."""
        kept = {} if self.weights is None else {"weights": self.weights}
        return {**super().state_dict(), **kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, unless it belongs to another entry."""
        super().load_state_dict(state)
        weights = state.get("weights")
        if weights is not None and not (
            isinstance(weights, Mapping) and all(isinstance(array, np.ndarray) for array in weights.values())
        ):
            raise CheckpointError("KeepBest: weights must map names to arrays")
        if state.get("monitor") == self.monitor and self.save is None:
            self.weights = None if weights is None else dict(weights)
            if self.weights is None:
                self.best, self.best_epoch = None, 0  # there is nothing to restore

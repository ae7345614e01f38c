"""A folder of checkpoints that training can go on from: written as it goes by, the last few kept, the newest found.

The folder holds `step-NUMBER.safetensors`, after so many steps, and `manifest.json`: the SHA-256 of each, oldest first.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xcnn._files import locked, make_folder, replacing, sweep
from xcnn.errors import CheckpointError, UsageError, WriteError, unknown
from xcnn.training._clock import clock
from xcnn.training.callbacks import Callback
from xcnn.runs.checkpoint import Checkpoint, read_checkpoint, require_finite, write_checkpoint
from xcnn.training.evaluation import Metrics

if TYPE_CHECKING:
    from xcnn.training.trainer import Trainer

__all__ = ["Checkpoints", "Interval", "step_name"]

_MANIFEST = "manifest.json"
_FORMAT = 1
_MOST_MANIFEST = 1 << 20
_NAME = re.compile(r"step-(\d{8,12})\.safetensors")


@dataclass(frozen=True)
class Interval:
    """How often: every so many steps, epochs or minutes."""

    count: float
    unit: Literal["steps", "epochs", "minutes"]

    @classmethod
    def parse(cls, text: str, name: str = "every") -> "Interval":
        """Read an interval such as `500steps`, `2 epochs` or `10minutes`; `name` opens the error.

        Raises
        ------
        UsageError
            For anything else.

        Examples
        --------
        >>> Interval.parse("1 epoch")
        Interval(count=1.0, unit='epochs')
        """
        found = re.fullmatch(r"(\d{1,9}|\d{0,9}\.\d{1,9}) ?([a-z]+)", text.strip())
        if found is None:
            raise UsageError(
                f"{name} must be a number and a unit, such as 500steps, 1epoch or 10minutes, got {text[:40]!r}"
            )
        unit = found[2] if found[2].endswith("s") else f"{found[2]}s"
        if unit not in ("steps", "epochs", "minutes"):
            raise unknown(f"unit of {name}", found[2], ("steps", "epochs", "minutes"))
        count = float(found[1])
        if count <= 0 or (unit != "minutes" and count != int(count)):
            raise UsageError(f"{name} must be a whole number of {unit} above 0, or minutes above 0, got {text!r}")
        return cls(count, unit)  # type: ignore[arg-type]


class Checkpoints(Callback):
    """Saves everything that it takes to go on, every so often, at the end, and when Ctrl-C or SIGTERM ends the run.

    The first is written before the first step, so that there always is one. While `fit` is at work no other process may
    write into the folder.

    Parameters
    ----------
    folder : made if it is missing; of this run alone.
    every : how often, such as `"500steps"`, `"1epoch"` or `"10minutes"`.
    keep : how many of the last ones stay.
    about : what the checkpoints say of the model and the run, beside the trainer's state.

    Attributes
    ----------
    newest : the last one that was written or restored; None if there is none.
    seconds : how long this process has been writing them.

    Raises
    ------
    UsageError
        For an interval or a number without meaning.

    Examples
    --------
    In a script that may be started again, whatever ended it before::

        checkpoints = Checkpoints("run/checkpoints", every="500steps")
        checkpoints.restore(trainer)
        trainer.fit(loader, until=20, callbacks=[checkpoints])
    """

    comes_last = True  # what the others remember is to be of the same moment

    def __init__(
        self, folder: str | Path, every: str = "1epoch", keep: int = 2, about: Checkpoint | None = None
    ) -> None:
        self.folder, self.interval, self.keep = Path(folder), Interval.parse(every), keep
        if keep < 1:
            raise UsageError(f"Checkpoints: keep must be at least 1, got {keep}")
        self.about = Checkpoint() if about is None else about
        self.newest: Path | None = None
        self.seconds = 0.0
        self._held = contextlib.ExitStack()

    def on_fit_start(self, trainer: "Trainer", batches: int, epochs: int) -> None:
        """Take the folder, remove what a killed process left in it, and save where nothing is saved yet."""
        self._epochs, self._saved_at = epochs, clock()
        make_folder(self.folder)
        try:
            self._held.enter_context(locked(self.folder, f"another process writes checkpoints into {self.folder}"))
        except OSError as error:
            raise WriteError(f"cannot write into {self.folder}: {error.strerror or error}") from None
        sweep(self.folder)
        if self.newest is None:
            if self._known():
                raise UsageError(
                    f"{self.folder} has checkpoints of an earlier run: call restore(trainer) first, or choose another"
                )
            self.save(trainer)

    def on_fit_end(self, trainer: "Trainer") -> None:
        """Let go of the folder."""
        self._held.close()

    def on_batch_end(self, trainer: "Trainer", epoch: int, batch: int, metrics: Metrics) -> None:
        """Save where the interval says so."""
        count, unit = self.interval.count, self.interval.unit
        steps = unit == "steps" and trainer.steps % count == 0
        if steps or (unit == "minutes" and clock() - self._saved_at >= 60 * count):
            self.save(trainer)

    def on_epoch_end(self, trainer: "Trainer", record: dict[str, Any]) -> None:
        """Save where the interval says so, and at the end."""
        due = self.interval.unit == "epochs" and record["epoch"] % self.interval.count == 0
        if due or trainer.stop_reason or record["epoch"] == self._epochs:
            self.save(trainer, record)

    def on_interrupt(self, trainer: "Trainer") -> None:
        """Save what is learned so far."""
        self.save(trainer)

    def save(self, trainer: "Trainer", record: dict[str, Any] | None = None) -> Path:
        """Write a checkpoint of a trainer now, with the record of an epoch, and remove those that are not kept.

        Raises
        ------
        WriteError
            Where it cannot be written; those from before are as they were.
        DivergedError
            Where a weight is not finite.
        """
        start = clock()
        training = trainer.state_dict()
        weights = training.pop("weights")
        require_finite(weights, f"step {trainer.steps}")
        path = self.folder / step_name(trainer.steps)
        make_folder(self.folder)
        checkpoint = dataclasses.replace(self.about, state=weights, training=training, metrics=record or {})
        known = self._known()
        # What is later than where this course began, or came by last, is of one that was given up: it was damaged.
        latest = trainer.steps - 1 if self.newest is None else min(trainer.steps - 1, _steps(self.newest.name))
        older = {name: digest for name, digest in known.items() if _steps(name) <= latest and self._has(name)}
        if known.get(path.name):
            self._list(older)  # what it says of this file is not to be wrong for a moment
        kept = dict([*older.items(), (path.name, write_checkpoint(path, checkpoint))][-self.keep :])
        self.newest = path
        self._list(kept)
        for name in known:
            if name not in kept:
                (self.folder / name).unlink(missing_ok=True)
        self._saved_at = clock()
        self.seconds += self._saved_at - start
        return path

    def restore(self, trainer: "Trainer", tell: Callable[[str], object] | None = None) -> Checkpoint | None:
        """Bring a trainer to the newest checkpoint that is whole, and return it; None where there are none at all.

        Parameters
        ----------
        trainer : of the same parts as the one that was saved.
        tell : called with a sentence for each newer checkpoint that is missing or damaged.

        Raises
        ------
        CheckpointError
            Where none of several is whole, or it does not fit the trainer.
        """
        found = self.find(tell)
        if found is not None:
            trainer.load_state_dict({**(found.training or {}), "weights": found.state})
        return found

    def find(self, tell: Callable[[str], object] | None = None) -> Checkpoint | None:
        """Read the newest checkpoint that is whole, as `restore` does."""
        known, reasons = self._known(tell), []
        for name in reversed(known):
            try:
                found = read_checkpoint(self.folder / name, known[name])
                if found.training is None:
                    raise CheckpointError(f"{self.folder / name} holds weights and nothing to go on from")
            except CheckpointError as error:
                reasons.append(str(error))
                continue
            self.newest = self.folder / name
            if tell is not None:
                for reason in reasons:
                    tell(f"{reason}; going on from {name}, which is older")
            return found
        if reasons:
            raise CheckpointError(f"none of the {len(known)} checkpoints in {self.folder} is whole: {reasons[0]}")
        return None

    def _known(self, tell: Callable[[str], object] | None = None) -> dict[str, str | None]:
        """Return the checkpoints that the manifest lists or that are there, oldest first: SHA-256 by name."""
        there = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        known: dict[str, str | None] = {name: None for name in there if _NAME.fullmatch(name)}
        path = self.folder / _MANIFEST
        try:
            with path.open("rb") as file:
                raw = json.loads(file.read(_MOST_MANIFEST))
            if raw["format"] != _FORMAT:
                raise ValueError(f"its format is {raw['format']!r}")
            for name, digest in raw["checkpoints"].items():
                if not _NAME.fullmatch(name) or not isinstance(digest, str | None):
                    raise ValueError(f"it lists {name!r} with {digest!r}")
                known[name] = digest
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if tell is not None:
                tell(f"{path} is damaged ({error}); going by the checkpoints that are there")
        return dict(sorted(known.items(), key=lambda item: _steps(item[0])))

    def _has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def _list(self, files: dict[str, str | None]) -> None:
        """Write the manifest."""
        with replacing(self.folder / _MANIFEST) as temporary:
            temporary.write_text(json.dumps({"format": _FORMAT, "checkpoints": files}, indent=2) + "\n")


def step_name(steps: int) -> str:
    """Return the name of the checkpoint after so many steps."""
    return f"step-{steps:08d}.safetensors"


def _steps(name: str) -> int:
    """Return the number in the name of a checkpoint."""
    return int(name.removeprefix("step-").partition(".")[0])

"""`Checkpoints`: a callback that saves checkpoints from which training can resume."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xcnn._check import integer
from xcnn._files import locked, make_folder, sweep
from xcnn.errors import UsageError, WriteError, unknown
from xcnn.runs.checkpoint import Checkpoint, find_newest, require_finite, step_files, step_path, write_checkpoint
from xcnn.runs.structure import describe, try_describe
from xcnn.training import Callback, Metrics, Trainer, clock

__all__ = ["Checkpoints", "alone_in", "interval"]


_UNITS = ("steps", "epochs", "minutes")


def interval(text: Any, name: str = "every") -> tuple[float, str]:
    """Return the number and the unit of an interval such as `500steps`, `2 epochs` or `10minutes`.

    >>> interval("1 epoch")
    (1.0, 'epochs')
    """
    found = isinstance(text, str) and re.fullmatch(r"(\d{1,9}|\d{0,9}\.\d{1,9}) ?([a-z]+)", text.strip())
    if not found:
        raise UsageError(
            f"{name} must be a number and a unit, such as 500steps, 1epoch or 10minutes, got {str(text)[:40]!r}"
        )
    count, unit = float(found[1]), found[2].removesuffix("s") + "s"
    if unit not in _UNITS:
        raise unknown(f"unit of {name}", found[2], _UNITS)
    if count <= 0 or (unit != "minutes" and count != int(count)):
        raise UsageError(f"{name} must be a whole number of {unit} above 0, or minutes above 0, got {text!r}")
    return count, unit


@contextlib.contextmanager
def alone_in(folder: Path, otherwise: str) -> Iterator[None]:
    """Hold the lock of a folder inside a `with`; `otherwise` is the error if another process holds it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, otherwise))
        except OSError as error:
            raise WriteError(f"cannot write into {folder}: {error.strerror or error}") from None
        yield


def _options(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the options of each group that are the user's, not those that the schedule sets."""
    made = []
    for group in trainer.optimizer.param_groups:
        scheduled = set() if trainer.schedule is None else {"lr", *trainer.schedule.at(0, group)}
        made.append({name: value for name, value in group.items() if name not in {"params", *scheduled}})
    return made


class Checkpoints(Callback):
    """Save the complete training state at intervals, at the end, and when Ctrl-C or SIGTERM ends the training.

    The first checkpoint is written before the first step, and the last before `fit` raises `KeyboardInterrupt` or
    `SystemExit`; `restore` goes on from there. During `fit` no other process may write into the folder.

    Parameters
    ----------
    folder : the folder, created if it does not exist. It must not be shared with another run.
    every : the interval, such as `"500steps"`, `"1epoch"` or `"10minutes"`.
    keep : the number of checkpoints to keep.
    about : the description of the model and the run that each checkpoint holds.

    Attributes
    ----------
    seconds : the time that this process has spent on writing checkpoints.

    Raises
    ------
    UsageError
        If an argument is invalid.

    Examples
    --------
    A script that resumes when it is started again::

        checkpoints = Checkpoints("run/checkpoints", every="500steps")
        trainer = Trainer(model, optimizer, callbacks=[checkpoints])
        checkpoints.restore(trainer)
        trainer.fit(loader, until=20)
    """

    writes = True
    comes_last = True  # so that the states of the other callbacks include the current epoch

    def __init__(
        self, folder: str | Path, every: str = "1epoch", keep: int = 2, about: Checkpoint | None = None
    ) -> None:
        if not isinstance(folder, str | Path) or not isinstance(about, Checkpoint | None):
            raise UsageError(f"Checkpoints: folder must be a path and about a Checkpoint, got {folder!r} and {about!r}")
        self.folder, self._every = Path(folder), interval(every, "Checkpoints: every")
        self.keep = integer("Checkpoints", "keep", keep)
        self.about = Checkpoint() if about is None else about
        self.seconds = 0.0
        self._step: int | None = None  # of the newest checkpoint
        self._described: bool | None = None  # whether structures are written; None outside `fit`
        self._held = contextlib.ExitStack()

    @property
    def newest(self) -> Path | None:
        """The path of the checkpoint written or restored last; None if there is none."""
        return None if self._step is None else step_path(self.folder, self._step)

    def on_fit_start(self, trainer: Trainer, batches: int | None, epochs: int) -> None:
        """Lock the folder, remove temporary files of killed processes, and save the first checkpoint."""
        self._epochs, self._saved_at = epochs, clock()
        self._described = try_describe(trainer.model) is not None
        make_folder(self.folder)
        self._held.enter_context(alone_in(self.folder, f"another process is writing checkpoints into {self.folder}"))
        sweep(self.folder)
        if self._step is None:
            if step_files(self.folder):
                raise UsageError(
                    f"{self.folder} has checkpoints of an earlier run: call restore(trainer) first, or choose another"
                )
            self.save(trainer)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Release the lock of the folder."""
        self._described = None
        self._held.close()

    def on_batch_end(self, trainer: Trainer, epoch: int, batch: int, metrics: Metrics) -> None:
        """Save if the interval has elapsed."""
        count, unit = self._every
        steps = unit == "steps" and trainer.steps % count == 0
        if steps or (unit == "minutes" and clock() - self._saved_at >= 60 * count):
            self.save(trainer)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Save if the interval has elapsed or the training ends."""
        count, unit = self._every
        due = unit == "epochs" and record["epoch"] % count == 0
        if due or trainer.stop_reason or record["epoch"] == self._epochs:
            self.save(trainer, record)

    def on_interrupt(self, trainer: Trainer) -> None:
        """Save the current state."""
        self.save(trainer)

    def save(self, trainer: Trainer, record: dict[str, Any] | None = None) -> Path:
        """Write a checkpoint of a trainer, with the record of an epoch, and remove old ones.

        Raises
        ------
        WriteError
            If it cannot be written; the older checkpoints are unchanged.
        DivergedError
            If a weight is not finite.
        """
        start, now = clock(), trainer.steps
        state = trainer.state_dict()
        require_finite(state["weights"], f"step {now}")
        make_folder(self.folder)
        path = step_path(self.folder, now)
        known = self._described
        structure = try_describe(trainer.model) if known is None else describe(trainer.model) if known else None
        held = {"state": state["weights"], "training": state, "structure": structure}
        write_checkpoint(path, dataclasses.replace(self.about, metrics=record or {}, **held))
        # Files later than the restored checkpoint were found damaged and are removed.
        files = step_files(self.folder)
        good = [step for step in files if step < now and (self._step is None or step <= self._step)]
        for step in files.keys() - {now} - set(good[max(0, len(good) + 1 - self.keep) :]):
            files[step].unlink(missing_ok=True)
        self._step, self._saved_at = now, clock()
        self.seconds += self._saved_at - start
        return path

    def restore(self, trainer: Trainer, tell: Callable[[str], object] = lambda message: None) -> Checkpoint | None:
        """Load the newest complete checkpoint into a trainer and return it; None if there are no checkpoints.

        Parameters
        ----------
        trainer : a trainer with the same parts as the saved one.
        tell : called with a sentence that names the checkpoint, one for each newer checkpoint that is damaged, and one
            if the optimizer had other options, as those of the checkpoint are used.

        Raises
        ------
        CheckpointError
            If all checkpoints are damaged, or the newest does not fit the trainer.
        """
        found = self.find(tell)
        if found is not None and found.training is not None:
            before = _options(trainer)
            trainer.load_state_dict(found.training)
            tell(f"resuming from {self.newest}, after {trainer.steps:,} step{'s' * (trainer.steps != 1)}")
            other = dict[str, None]()
            for old, new in zip(before, _options(trainer), strict=True):
                other |= {f"{name} {new[name]}, not {old[name]}": None for name in old if old[name] != new[name]}
            if other:
                tell(f"the optimizer has the options of the checkpoint: {'; '.join(other)}; change them after restore")
        return found

    def find(self, tell: Callable[[str], object] = lambda message: None) -> Checkpoint | None:
        """Return the newest complete checkpoint as `restore` does, without a trainer to load it into."""
        found = find_newest(self.folder, tell)
        if found is None:
            return None
        self._step, checkpoint = found
        return checkpoint

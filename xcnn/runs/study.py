"""The study of a search: its trials in a folder, and Optuna, which is imported when the first study is opened.

The folder holds a folder per trial, `trial-0012`, which is that of a run, `journal.jsonl`, in which Optuna keeps the
study as JSON lines, and `trials.csv`. Of the trials that have ended, only the best keeps its weights and checkpoints.

Each process holds the lock of the trial that it trains. A trial that nobody holds and that has not ended was
interrupted, and whoever is free resumes it. All that is written into the journal is written under the lock of the
search. What is drawn for a trial depends on the seed, the number of the trial, and the trials before it: so one process
ends with the same bits however often it was killed.
"""

import contextlib
import csv
import dataclasses
import io
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xcnn._files import locked, make_folder, replacing, sweep
from xcnn.errors import (
    CheckpointError,
    DivergedError,
    OutOfMemoryError,
    UsageError,
    WriteError,
    XcnnError,
    making_sense,
)
from xcnn.runs.checkpoint import BEST, CHECKPOINTS
from xcnn.runs.folder import holds_run
from xcnn.runs.reporter import Reporter
from xcnn.runs.run import Result, train
from xcnn.runs.settings import SETTINGS, Config, plain
from xcnn.runs.vary import Variable, with_values
from xcnn.training import Callback, Trainer

__all__ = ["Search", "Study", "Trial"]

_JOURNAL, _TABLE, _LOCK, _TRIAL_LOCK = "journal.jsonl", "trials.csv", ".lock", ".trial.lock"

_NAME = "xcnn"
"""The name of the study in the journal."""

_MISTAKES = 3
"""The number of trials with mistakes in their settings after which a search without any other ends."""

_ENDED = ("complete", "pruned", "failed")
_STATES = (*_ENDED, "running", "interrupted")

_PRUNED = "worse than the median of the earlier trials"

_POLL = 0.2
"""Seconds between two looks at what other processes do."""


@dataclass(frozen=True)
class Trial:
    """A trial of a search.

    Attributes
    ----------
    number : from 0.
    values : what was chosen, by the names of what is varied: a number, or the text of a choice.
    folder : the folder of its run.
    state : `running`, or `interrupted` if no process is working on it; `complete`; `pruned`, if it ended early as it
        was worse than others; `failed`.
    value : the best value of `monitor`; None if there is none.
    epoch, epochs : the epoch of this value, and how many epochs were trained.
    seconds : the time of training.
    note : why it has ended early or failed; empty if it did not.
    test_loss, test_accuracy : of the test set; None except for the best trial of a search that has ended.
    """

    number: int
    values: dict[str, Any]
    folder: Path
    state: str = "running"
    value: float | None = None
    epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0
    note: str = ""
    test_loss: float | None = None
    test_accuracy: float | None = None

    def __post_init__(self) -> None:
        measured = [self.epoch, self.epochs, self.seconds, *([] if self.value is None else [self.value])]
        tested = [one for one in (self.test_loss, self.test_accuracy) if one is not None]
        numbers = all(type(one) in (int, float) for one in measured + tested) and all(map(math.isfinite, measured))
        if not numbers or self.state not in _STATES or not isinstance(self.note, str):
            raise ValueError(f"trial {self.number} has no valid result")  # such as from a damaged journal

    @property
    def ended(self) -> bool:
        """Whether nothing is left to train."""
        return self.state in _ENDED


@dataclass(frozen=True)
class Search:
    """The result of a search.

    Attributes
    ----------
    folder : its folder.
    monitor : by which the trials are compared.
    variables : what is varied.
    trials : in their order.
    interrupted : the exit code of the signal that ended it: 130 for Ctrl-C, 143 for SIGTERM; 0 if none did.
    """

    folder: Path
    monitor: str
    variables: tuple[Variable, ...]
    trials: tuple[Trial, ...] = field(repr=False)
    interrupted: int = 0

    @property
    def ranking(self) -> list[Trial]:
        """The complete trials, the best first."""
        sign = -1.0 if self.monitor.endswith("accuracy") else 1.0
        complete = [
            (sign * one.value, one.number) for one in self.trials if one.state == "complete" and one.value is not None
        ]
        return [self.trials[number] for _, number in sorted(complete)]

    @property
    def best(self) -> Trial | None:
        """The best complete trial; None if there is none yet."""
        return next(iter(self.ranking), None)

    def count(self, state: str) -> int:
        """Return the number of trials in a state."""
        return sum(one.state == state for one in self.trials)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise XcnnError("a search needs optuna; pip install 'optuna>=5'") from None
    return optuna


class _Lock:
    """The lock of a search. It may be taken again where it is held already, as by Optuna, which writes under it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._depth, self._held = folder, 0, contextlib.ExitStack()

    def acquire(self) -> bool:
        """Wait for the lock, and remove what a process that was killed has left of a line of the journal."""
        if not self._depth:
            self._held.enter_context(locked(self._folder, lambda: None))
            _mend(self._folder / _JOURNAL)
        self._depth += 1
        return True

    def release(self) -> None:
        """Release the lock where it was taken first."""
        self._depth -= 1
        if not self._depth:
            self._held.close()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exception: object) -> None:
        self.release()


def _no_link(path: Path) -> Path:
    """Refuse a path that leads to where a search must neither write nor remove anything."""
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link, which a search does not follow; remove it")
    return path


def _mend(path: Path) -> None:
    """Cut off a last line without its end."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


class Study:
    """The study of a search in its folder."""

    def __init__(self, folder: Path, config: Config, variables: tuple[Variable, ...], prune: bool) -> None:
        self.optuna = _optuna()
        if holds_run(folder):
            raise UsageError(f"{folder} holds a run; choose another folder", setting="out")
        make_folder(folder)
        self.folder, self.config, self.lock = folder, config, _Lock(folder)
        self.variables = {one.name: one for one in variables}
        self.distributions = {name: self._distribution(one) for name, one in self.variables.items()}
        self.settings: dict[str, Any] = {"config": plain(config), "vary": list(map(str, variables)), "prune": prune}
        pruners = self.optuna.pruners
        self.pruner = pruners.MedianPruner(n_warmup_steps=1) if prune else pruners.NopPruner()

    def __enter__(self) -> "Study":
        logging = self.optuna.logging
        self._verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.WARNING)
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.optuna.logging.set_verbosity(self._verbosity)

    def _open(self) -> None:
        storages, path = self.optuna.storages, self.folder / _JOURNAL
        try:
            _no_link(path)
            with self.lock, self.reading():
                sweep(self.folder)
                self.storage = storages.JournalStorage(storages.journal.JournalFileBackend(str(path), self.lock))
                named = {"storage": self.storage, "study_name": _NAME, "load_if_exists": True}
                self.study = self._create(pruner=self.pruner, **named)
                recorded = self.study.user_attrs.get("settings")
                if recorded is None:
                    self.study.set_user_attr("settings", self.settings)
                else:
                    self._compare(recorded)
        except OSError as error:
            raise WriteError(f"cannot write into {self.folder}: {error.strerror or error}") from None

    def _create(self, **options: Any) -> Any:
        direction = "maximize" if self.config.monitor.endswith("accuracy") else "minimize"
        return self.optuna.create_study(direction=direction, **options)

    def _distribution(self, one: Variable) -> Any:
        kinds = self.optuna.distributions
        if one.choices:
            return kinds.CategoricalDistribution(tuple(one.choices))
        kind = kinds.IntDistribution if isinstance(one.low, int) else kinds.FloatDistribution
        return kind(one.low, one.high, log=one.log)

    def _compare(self, recorded: Mapping[str, Any]) -> None:
        """Refuse other settings than those of the trials before; settings on which no result depends may differ."""
        before, now = {**plain(Config()), **recorded["config"]}, self.settings["config"]
        rows: list[tuple[str, Any, Any]] = [("vary", recorded["vary"], self.settings["vary"])]
        rows += [("prune", recorded["prune"], self.settings["prune"])]
        rows += [(name, before[name], now[name]) for name, row in SETTINGS.items() if row.fixed or row.change]
        for name, old, new in rows:
            if old != new:
                old, new = (" ".join(one) if name == "vary" else one for one in (old, new))
                hint = "go on with the same settings, or choose another folder"
                raise UsageError(f"{name} was {old} in the search in {self.folder}, now {new}; {hint}", setting=name)

    # Trials

    def trials(self) -> tuple[Trial, ...]:
        """Return all trials in their order."""
        with self.reading():
            tests, found = self.study.user_attrs, list[Trial]()
            for one in self.study.get_trials(deepcopy=False):
                result = one.user_attrs["result"] if one.state.is_finished() else {}
                tested = tests.get(f"test of trial {one.number}", {})
                found.append(Trial(one.number, dict(one.params), self.trial_folder(one.number), **result, **tested))
                reports = [*one.intermediate_values, *one.intermediate_values.values()]
                if found[-1].ended != one.state.is_finished() or not all(type(x) in (int, float) for x in reports):
                    raise ValueError(f"trial {one.number} has no valid state")
                self.values(one.number, one.params)
            return tuple(found)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turn any error of Optuna that a journal causes that makes no sense into a CheckpointError."""
        who = f"the search {self.folder / _JOURNAL}"
        try:
            with making_sense(who):
                yield
        except AssertionError as error:
            raise CheckpointError(f"{who}: the state is invalid: {error}") from None

    def values(self, number: int, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a trial, after checking that what the journal says is among what is varied."""
        who = f"the search {self.folder / _JOURNAL}: trial {number}"
        if drawn.keys() != self.variables.keys():
            raise CheckpointError(f"{who} has values for other settings")
        try:
            return {name: one.value(drawn[name]) for name, one in self.variables.items()}
        except UsageError as error:
            raise CheckpointError(f"{who}: {error}") from None

    def result(self, code: int = 0) -> Search:
        """Return the search so far."""
        found = []
        with self.lock:
            for one in self.trials():
                if not one.ended and (held := self._hold(one.number)) is not None:
                    held.close()
                    one = dataclasses.replace(one, state="interrupted")
                found.append(one)
        return Search(self.folder, self.config.monitor, tuple(self.variables.values()), tuple(found), code)

    def trial_folder(self, number: int) -> Path:
        """Return the folder of a trial."""
        return _no_link(self.folder / f"trial-{number:04d}")

    def _hold(self, number: int) -> contextlib.ExitStack | None:
        """Take the lock of a trial; None if another process holds it."""
        stack, folder = contextlib.ExitStack(), self.trial_folder(number)
        make_folder(folder)
        try:
            stack.enter_context(locked(folder, "another process works on this trial", _TRIAL_LOCK))
        except XcnnError:
            return None
        return stack

    def claim(self, most: int) -> tuple[int, contextlib.ExitStack] | None:
        """Take an interrupted trial or begin a new one; return its number and its lock, or None if none is left."""
        with self.lock, self.reading():
            known = self.study.get_trials(deepcopy=False)
            for one in known:
                if not one.state.is_finished() and (held := self._hold(one.number)) is not None:
                    return one.number, held
            number = len(known)
            if number >= most or (held := self._hold(number)) is None:
                return None
            drawn = {"params": self._draw(known), "distributions": self.distributions}
            running = self.optuna.trial.TrialState.RUNNING
            self.study.add_trial(self.optuna.trial.create_trial(state=running, **drawn))  # one line of the journal
            return number, held

    def _draw(self, known: Sequence[Any]) -> dict[str, Any]:
        """Return what to try next, by a sampler that depends on the seed and the number of the trial alone."""
        seed = int(np.random.SeedSequence([self.config.seed, len(known)]).generate_state(1)[0])
        scratch = self._create(sampler=self.optuna.samplers.TPESampler(seed=seed))
        scratch.add_trials(known)
        drawn: dict[str, Any] = scratch.ask(self.distributions).params
        return drawn

    # Work

    def work(self, most: int, callbacks: Sequence[Callback], watch: Callable[[Trial], object]) -> int:
        """Train trials until all have ended; return the exit code of a signal that has ended this, or 0."""
        told = False
        while True:
            claimed = self.claim(most)
            if claimed is None:
                left = [str(one.number) for one in self.trials()[:most] if not one.ended]
                if not left:
                    return 0
                if not told:
                    told = True
                    for one in callbacks:
                        if isinstance(one, Reporter):
                            one.on_note(f"waiting for other processes, which work on trial {', '.join(left)}")
                time.sleep(_POLL)  # one that ends early leaves its trial to this process
                continue
            number, held = claimed
            with held:
                watch(self.trials()[number])
                code = self._run(number, callbacks)
            if code:
                return code
            watch(self.trials()[number])

    def _run(self, number: int, callbacks: Sequence[Callback]) -> int:
        """Train a trial and record its result; return the exit code of a signal, or 0."""
        states, folder = self.optuna.trial.TrialState, self.trial_folder(number)
        with self.reading():
            study_id = self.storage.get_study_id_from_name(_NAME)
            trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, number)
            trial, known = self.optuna.trial.Trial(self.study, trial_id), self.storage.get_trial(trial_id)
            reports = _Reports(trial, set(known.intermediate_values), self.config.monitor)
        try:
            config = with_values(self.config, self.values(number, known.params))
            result = train(config, folder, [reports, *callbacks], resume=holds_run(folder), test=False)
        except XcnnError as error:
            burst, ended = isinstance(error, DivergedError | OutOfMemoryError), [one.state for one in self.trials()]
            hopeless = ended.count("failed") >= _MISTAKES - 1 and not {"complete", "pruned"} & set(ended)
            if not burst and (error.exit_code != UsageError.exit_code or hopeless):
                raise
            # For the sampler, values that let a run diverge are the worst; a trial that fails it would ignore.
            self._end(number, trial, states.PRUNED if burst else states.FAIL, {"state": "failed", "note": str(error)})
            return 0
        if result.interrupted:
            return result.interrupted
        record = self._record(result)
        self._end(number, trial, states.COMPLETE if record["state"] == "complete" else states.PRUNED, record)
        return 0

    def _record(self, result: Result) -> dict[str, Any]:
        """Return the fields of the `Trial`."""
        monitor, sign = self.config.monitor, -1.0 if self.config.monitor.endswith("accuracy") else 1.0
        values = [
            (sign * record[monitor], record["epoch"]) for record in result.history if math.isfinite(record[monitor])
        ]
        best, epoch = min(values, default=(None, 0))
        state, note = "pruned" if result.note == _PRUNED else "complete", result.note
        if best is None:
            state, note = "failed", "no epoch has a finite value"
        return {
            "state": state,
            "value": None if best is None else sign * best,
            "epoch": epoch,
            "epochs": len(result.history),
            "seconds": sum(record["seconds"] for record in result.history),
            "note": note,
        }

    def _end(self, number: int, trial: Any, state: Any, record: Mapping[str, Any]) -> None:
        """Record the end of a trial."""
        value = record.get("value") if state == self.optuna.trial.TrialState.COMPLETE else None
        with self.lock, self.reading():
            trial.set_user_attr("result", dict(record))
            self.study.tell(number, value, state=state)
            self.write_table()
            found = self.result()
            for one in found.trials:
                if one.ended and one is not found.best:
                    (one.folder / BEST).unlink(missing_ok=True)
                    shutil.rmtree(one.folder / CHECKPOINTS, ignore_errors=True)

    def write_table(self) -> None:
        """Write `trials.csv`."""
        text = io.StringIO()
        names = [row.name for row in dataclasses.fields(Trial) if row.name not in ("values", "folder")]
        table = csv.DictWriter(text, [*names[:1], *self.variables, *names[1:]], lineterminator="\n")
        table.writeheader()
        for one in self.trials():
            table.writerow({**{name: getattr(one, name) for name in names}, **one.values})
        with replacing(self.folder / _TABLE) as temporary:
            temporary.write_text(text.getvalue(), "utf-8")

    def test_best(self, trials: int) -> None:
        """Test the best trial, unless it has been tested or other processes go on with further trials."""
        with self.lock:
            found = self.result()
            best = found.best
            if len(found.trials) < trials or not all(one.ended for one in found.trials):
                return
            if best is None or best.test_loss is not None:
                return
            result = train(with_values(self.config, self.values(best.number, best.values)), best.folder, resume=True)
            if result.interrupted:
                raise SystemExit(result.interrupted)
            tested = {"test_loss": result.test_loss, "test_accuracy": result.test_accuracy}
            self.study.set_user_attr(f"test of trial {best.number}", tested)
            self.write_table()

    def remove_if_useless(self) -> None:
        """Remove the files of a search in which no run has begun to learn."""
        found = self.trials()
        if any(one.state in ("complete", "pruned") or holds_run(one.folder) for one in found):
            return
        with contextlib.suppress(OSError):  # it holds other files
            for one in (*(self.trial_folder(k) / _TRIAL_LOCK for k in range(len(found) + 1)), self.folder / _JOURNAL):
                one.unlink(missing_ok=True)
                if one.name == _TRIAL_LOCK and one.parent.exists():
                    one.parent.rmdir()
            for name in (_TABLE, _LOCK):
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()


class _Reports(Callback):
    """Reports each epoch to Optuna, and ends a run that is worse than the others."""

    def __init__(self, trial: Any, reported: set[int], monitor: str) -> None:
        self.trial, self.reported, self.monitor, self.epochs = trial, reported, monitor, 0

    def on_fit_start(self, trainer: Trainer, batches: int | None, epochs: int) -> None:
        """Refuse a run without held-out images."""
        if len(trainer.feeds) < 2:
            raise UsageError(
                "a search compares its trials on held-out images; set validation above 0", setting="validation"
            )
        self.epochs = epochs

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Report the epoch. One that is done again after a kill has been reported, with the same value."""
        step = record["epoch"] - 1
        if step not in self.reported:
            self.trial.report(record[self.monitor], step)
        if record["epoch"] < self.epochs and self.trial.should_prune():
            trainer.stop(_PRUNED)

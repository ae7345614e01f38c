"""A training run from settings to results, in a folder.

The folder holds `config.json`, `history.csv`, `history.jsonl`, `best.safetensors` (of the epoch that is the best by
`monitor`), and `checkpoints/`, from which an interrupted run resumes. The caller adds pictures.
"""

import contextlib
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import data, nn, optim
from xcnn._files import replacing, sweep
from xcnn.errors import (
    CheckpointError,
    DivergedError,
    OutOfMemoryError,
    UsageError,
    WriteError,
    XcnnError,
    explained,
    making_sense,
)
from xcnn.parallel.nccl import device_of, with_gpus
from xcnn.runs.beginning import Beginning, beginning, freeze, image_size, load_fitting, make_network
from xcnn.runs.checkpoint import (
    BEST,
    CHECKPOINTS,
    Checkpoint,
    read_checkpoint,
    require_finite,
    save_checkpoint,
    step_path,
)
from xcnn.runs.folder import CONFIG, HISTORY, holds_run, make_run_folder, recorded_settings, remove_run
from xcnn.runs.inverted import border_of
from xcnn.runs.parts import data_sets, make_loss, make_optimizer
from xcnn.runs.reporter import Reporter
from xcnn.runs.resume import changes, differences, load_state, origin, require_images
from xcnn.runs.saving import Checkpoints, alone_in
from xcnn.runs.settings import Config, check, plain
from xcnn.training import (
    EMA,
    Callback,
    EarlyStopping,
    HistoryFile,
    KeepBest,
    Trainer,
    clock,
    loss_named,
)
from xcnn.training.evaluation import evaluate
from xcnn.training.feed import Feed
from xcnn.training.parts import Cut
from xcnn.training.processes import ALONE, Processes

__all__ = ["Result", "train"]


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes
    ----------
    folder : the folder of the run.
    checkpoint : the file of the tested weights: those of the best epoch, or without validation the last. If the run was
        interrupted, the checkpoint from which it can resume.
    device : the full name of the device.
    history : one record per epoch, as `Trainer.fit` returns them.
    classes : the names of the classes.
    seconds : time of training and validation in this process, without the compilation of kernels.
    checkpoint_seconds : the part of `seconds` spent on writing checkpoints.
    test_loss, test_accuracy : metrics on the test set; None if the run was interrupted or not tested.
    confusion : (classes, classes) counts, a row per true class, a column per predicted one; None without a test.
    note : why the run ended early; empty if it did not.
    interrupted : the exit code of the signal that ended it: 130 for Ctrl-C, 143 for SIGTERM; 0 if none did.
    best_epoch : the epoch of the tested weights if they are those of the best epoch by `monitor`; 0 if the last.
    weights : which weights were tested, such as `epoch 6 of 22, best val_accuracy 0.93`.
    """

    folder: Path
    checkpoint: Path
    device: str
    history: list[dict[str, Any]]
    classes: tuple[str, ...]
    seconds: float
    checkpoint_seconds: float
    test_loss: float | None = None
    test_accuracy: float | None = None
    confusion: np.ndarray | None = None
    note: str = ""
    interrupted: int = 0
    best_epoch: int = 0
    weights: str = ""


@explained
def train(
    config: Config,
    folder: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    resume: bool = False,
    test: bool = True,
    parallel: Processes = ALONE,
) -> Result:
    """Train, test and save.

    Parameters
    ----------
    config : the settings.
    folder : the folder of the run, created if it does not exist. It must not be in use by another run, nor hold a run
        unless `resume` is True. None creates a new `runs/DATASET-MODEL-TIME`.
    callbacks : further callbacks; each `Reporter` among them receives all events.
    resume : whether to continue the run in the folder from its newest complete checkpoint, or from the beginning if it
        has no checkpoint. On the same device, with the same versions and settings, the results are bitwise identical
        to those without the interruption. Reporters receive a note for each difference.
    test : whether to test the weights. A run that is not tested can be resumed for its test.
    parallel : the processes that train together, such as `xcnn.parallel.MPI()`, which all call this with the same
        arguments and see the same files. The first one writes them, and its callbacks report. A run may be resumed on
        another number of processes, with the same results.

    Returns
    -------
    The result. After Ctrl-C or SIGTERM, the state is saved in a checkpoint and nothing is tested.

    Raises
    ------
    XcnnError
        If settings are invalid or cannot change in a resumed run, data are missing, the folder cannot be written or is
        in use by another run, all checkpoints are damaged, or the loss is not finite.
    """
    if folder is not None and not str(folder):
        raise UsageError("the folder must have a name, got an empty string", setting="out")
    if not isinstance(callbacks, Sequence):
        raise UsageError(f"callbacks must be a list of Callback objects, got {callbacks!r}")
    where = None if folder is None else Path(folder)
    config, parts = check(config), parallel.size
    if resume and where is not None:
        recorded = recorded_settings(where)
        parts = recorded.get("accumulate", 1)
        config = replace(config, accumulate=parts if config.accumulate is None else config.accumulate)
        changes(recorded, config)  # before a data set is loaded
        require_images(config.data_dir)
    config = replace(config, accumulate=parts if config.accumulate is None else config.accumulate)
    Cut(config.accumulate or 1, parallel)  # before the folder of the run is made
    run = _Run(config, callbacks, beginning(config, where if resume else None), parallel)
    if not resume:
        run.begin()
    elif where is None:
        raise UsageError("folder must be that of the run to resume, got None", setting="resume")
    with contextlib.ExitStack() as stack:

        def prepare() -> str:
            chosen = where if resume and where is not None else make_run_folder(where, config)
            stack.enter_context(alone_in(chosen, f"another run is using {chosen}; wait for it, or stop it"))
            if not resume and holds_run(chosen):
                raise UsageError(f"{chosen} already holds a run; resume it, or choose another folder", setting="out")
            sweep(chosen)  # temporary files of killed processes; `Checkpoints` sweeps its own folder
            return str(chosen)

        where = Path(parallel.of_first(prepare))
        run.open(where)
        if resume:
            run.resume()
        first = parallel.rank == 0
        if first:
            with replacing(where / CONFIG) as temporary:
                temporary.write_text(json.dumps(plain(run.config), indent=2) + "\n")
        try:
            return run.train_and_test(test)
        except XcnnError as error:
            kept = resume or run.has_learned() or isinstance(error, WriteError)  # such as a full disk
            if first and not kept:
                remove_run(where)
            raise


class _Run:
    """The parts of a run, built from its settings. Nothing is written before all of them are valid."""

    def __init__(
        self, config: Config, callbacks: Sequence[Callback], source: Beginning | None, parallel: Processes
    ) -> None:
        self.config, self.callbacks, self.source = config, callbacks, source
        self.device = device_of(parallel, config.device)
        self.parallel = with_gpus(parallel, self.device)
        progress = functools.partial(self.report, "on_download")
        found: list[Any] = []

        def load() -> str:
            found.extend(data_sets(config, image_size(config, source), progress, self.tell))
            return ""

        parallel.of_first(load)  # which may download files
        if not found:
            load()
        train, self.test, self.validation = found
        if not train.classes:
            raise UsageError(
                f"{config.dataset} has no names of classes, and runs train classifiers: return data sets "
                "Dataset(x, y, classes), or train on other targets in a script, with xcnn.Trainer",
                setting="dataset",
            )
        for name in ("patience", "monitor"):
            if self.validation is None and getattr(config, name) != getattr(Config, name):
                raise UsageError(f"{name} needs validation images; set validation above 0", setting=name)
        augment = [data.AUGMENTATIONS[name] for name in config.augment]
        by_default = 2 if train.lazy else int(bool(augment))
        self.workers = by_default if config.workers is None else config.workers
        self.train = data.Loader(train, config.batch_size, seed=config.seed, augment=augment, workers=self.workers)
        shape, classes = self.test.shape, self.test.classes
        self.network, name = make_network(config, source, shape, len(classes), self.tell)
        self.model, self.constants = self.network, {} if source is None else source.constants(shape[0])
        if config.normalize:
            self.constants = dict(zip(("mean", "std"), map(list, data.channel_statistics(train)), strict=True))
        if self.constants:
            self.model = nn.Sequential(nn.Normalize(**self.constants), self.network)
        freeze(self.network, config.freeze, self.tell)
        self.optimizer = make_optimizer(config, self.model.parameters())
        self.loss = make_loss(config, train)
        self.schedule = optim.make_schedule(
            config.schedule, self.optimizer, len(self.train) * config.epochs, len(self.train), warmup=config.warmup
        )
        here = origin(self.device, training=train, validation=self.validation, test=self.test)
        statistics = {"border": border_of(train), **self.constants}
        self.about = Checkpoint(name, shape, classes, config.dataset, plain(config), origin=here, statistics=statistics)

    def begin(self) -> None:
        """Load the weights that the settings name, before the first step."""
        if self.source is not None:
            load_fitting(self.network, self.source, self.tell)
            if self.constants and not self.config.normalize:
                self.tell("inputs are normalised as in this file")

    def _in_order(self, dataset: data.Dataset | None) -> data.Loader | None:
        """Return batches to evaluate, which the workers prepare."""
        return None if dataset is None else data.Loader(dataset, shuffle=False, workers=self.workers)

    def report(self, event: str, *arguments: Any) -> None:
        """Pass an event to every reporter, of several processes only in the first."""
        for callback in () if self.parallel.rank else self.callbacks:
            if isinstance(callback, Reporter):
                getattr(callback, event)(*arguments)

    def tell(self, message: str) -> None:
        """Pass a note to every reporter."""
        self.report("on_note", message)

    def open(self, folder: Path) -> None:
        """Build the callbacks that write into the folder, and the trainer."""
        config, self.folder, self.best = self.config, folder, folder / BEST
        self.checkpoints = Checkpoints(
            folder / CHECKPOINTS, config.checkpoint_every, config.keep_checkpoints, self.about
        )
        ours: list[Callback] = [] if config.ema is None else [EMA(config.ema)]
        ours += [_Finite(), *self.callbacks, *(HistoryFile(folder / name) for name in HISTORY)]
        self.kept = KeepBest(config.monitor, save=self._save_best)
        if self.validation is not None:
            ours.append(self.kept)
            if config.patience is not None:
                ours.append(EarlyStopping(config.monitor, config.patience))
        self.trainer = Trainer(
            self.model,
            self.optimizer,
            self.loss,
            self.device,
            schedule=self.schedule,
            clip_norm=config.clip_norm,
            accumulate=config.accumulate,
            parallel=self.parallel,
            sync_batch_norm=config.sync_batch_norm,
            callbacks=[*ours, self.checkpoints],
            tell=self.tell,
        )

    def _save_best(self, record: dict[str, Any]) -> None:
        save_checkpoint(self.best, self.model, replace(self.about, metrics=record))

    @property
    def newest(self) -> Path:
        """The newest checkpoint, or the first one if none is written yet."""
        return self.checkpoints.newest or step_path(self.checkpoints.folder, 0)

    def has_learned(self) -> bool:
        """Return whether a checkpoint later than the first exists."""
        return self.newest != step_path(self.checkpoints.folder, 0)

    def resume(self) -> None:
        """Load the newest complete checkpoint into the trainer."""
        found = self.checkpoints.find(self.tell)
        if found is None:
            if self.best.exists():  # it is written after the first checkpoint
                raise CheckpointError(
                    f"{self.folder} has {BEST}, but no checkpoint to resume from; start a new run with the settings of "
                    f"{self.folder / CONFIG}"
                )
            self.tell(f"{self.folder} has no checkpoint yet: starting from the beginning")
            self.begin()
            return
        with making_sense(str(self.newest)):
            changed, remarks = differences(found, self.config, self.about.origin)
            state = found.training or {}
            load_state(self.trainer, state, changed, self._best_epoch(state["callbacks"].get("KeepBest")))
        for remark in remarks:
            self.tell(remark)
        done, batch = len(self.trainer.history), self.trainer.unfinished
        within = f"epoch {done + 1}, {batch} of {len(self.train)} batches done" if batch else f"after epoch {done}"
        self.tell(f"resuming from {self.newest} ({within})")
        if not batch and (done == self.config.epochs or self.trainer.stop_reason):
            self.tell("nothing is left to train; raise epochs, or patience if the run has stopped early")

    def _best_epoch(self, kept: Any) -> int:
        """Return the epoch of the best weights on disk; 0 if the checkpoint names none or they are lost."""
        if not kept or not kept["best_epoch"]:
            return 0
        try:
            return int(read_checkpoint(self.best).metrics.get("epoch", 0))
        except CheckpointError as error:
            self.tell(f"{error}; the next epoch replaces it")
            return 0

    def train_and_test(self, test: bool = True) -> Result:
        """Train, and test the best weights if they are to be tested."""
        trainer, start, stopped, code = self.trainer, clock(), "", 0
        try:
            trainer.fit(self.train, validation=self._in_order(self.validation), until=self.config.epochs)
        except (KeyboardInterrupt, SystemExit) as stop:
            if not trainer.interrupted:
                raise  # a second signal, inside a step
            stopped, code = f"interrupted after {len(trainer.history)} of {self.config.epochs} epochs", _code(stop)
        except DivergedError as error:
            none = "no checkpoint was saved since the start"
            newest = lambda: f"the last checkpoint is {self.newest}" if self.has_learned() else none  # noqa: E731
            raise DivergedError(f"{error}; {self.parallel.of_first(newest)}") from None
        except OutOfMemoryError as error:
            raise OutOfMemoryError(f"{error}; to change the batch size, start a new run") from None
        result = Result(
            self.folder,
            self.newest,
            self.device.name,
            trainer.history,
            self.test.classes,
            clock() - start,
            self.checkpoints.seconds,
            note=stopped or trainer.stop_reason,
            interrupted=code,
        )
        if code:
            return result
        try:
            result = replace(result, **self._load_best())
            if not test:
                return result
            images = Feed("test", self._in_order(self.test), self.device, self.tell).source
            plain_loss = loss_named("cross_entropy")  # smoothing and class weights are only for training
            watch = functools.partial(self.report, "on_test_batch", trainer, len(self.test))
            # The best weights are those of inference already.
            with contextlib.nullcontext() if result.best_epoch else trainer.inference_weights():
                metrics = evaluate(self.model, images, plain_loss, self.device, watch=watch, parallel=self.parallel)
        except (KeyboardInterrupt, SystemExit) as stop:
            best = self.best if self.best.exists() else self.newest
            return replace(result, checkpoint=best, note="interrupted during the test", interrupted=_code(stop))
        return replace(result, test_loss=metrics.loss, test_accuracy=metrics.accuracy, confusion=metrics.confusion)

    def _load_best(self) -> dict[str, Any]:
        """Load the best weights, or keep the last ones if there are none, and return what the result says of them."""
        done = len(self.trainer.history)
        if self.parallel.of_first(lambda: str(self.best) if self.best.exists() else ""):
            try:
                found = read_checkpoint(self.best)
                self.model.load_state_dict(found.state)
            except CheckpointError as error:
                self.tell(f"{error}; testing the last weights")
            else:
                epoch = int(found.metrics.get("epoch", 0))
                text = self.kept.describe(done) if self.kept.best_epoch == epoch else found.weights
                return {"checkpoint": self.best, "best_epoch": epoch, "weights": text}
        return {"checkpoint": self.newest, "weights": f"last, of epoch {done}{', averaged' if self.config.ema else ''}"}


class _Finite(Callback):
    """Raises if weights are not finite at the end of an epoch, before the other callbacks report or save it."""

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        require_finite(trainer.model.state_dict(), f"epoch {record['epoch']}")


def _code(stop: BaseException) -> int:
    """Return the exit code of the signal that raised `stop`."""
    return int(stop.code or 0) if isinstance(stop, SystemExit) else 130

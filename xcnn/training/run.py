"""One training run from settings to results: data, model, optimizer, a folder that holds what came of it.

The folder: `config.json`, `history.csv`, `history.jsonl`, `best.safetensors` (best validation loss) and
`last.safetensors` (the latest epoch), `checkpoints/` with what a run that ended early goes on from. Pictures are added
by whoever started the run.
"""

import functools
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import data, models, optim
from xcnn._files import replacing, sweep
from xcnn._plugins import find
from xcnn.devices import device
from xcnn.errors import CheckpointError, DivergedError, OutOfMemoryError, UsageError, XcnnError
from xcnn.training._clock import clock
from xcnn.training.callbacks import Callback, EarlyStopping, HistoryFile, KeepBest
from xcnn.training.checkpoint import (
    BEST,
    LAST,
    Checkpoint,
    load_checkpoint,
    read_checkpoint,
    require_finite,
    save_checkpoint,
)
from xcnn.training.checkpoints import Checkpoints, step_name
from xcnn.training.config import Config, check, plain
from xcnn.training.inference import Metrics, confusion_matrix, evaluate
from xcnn.training.losses import loss_named
from xcnn.training.resume import SETTINGS, differences, origin
from xcnn.training.run_folder import CHECKPOINTS, CONFIG, alone_in, holds_run, make_run_folder, remove_run
from xcnn.training.trainer import Trainer

__all__ = ["Result", "train"]


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes
    ----------
    folder : where everything was written.
    checkpoint : the weights that were tested: the best on the validation images, or the last where there are none; if
        the run was interrupted, where it can go on from.
    device : the device's full name.
    history : one record per epoch, as `Trainer.fit` returns them.
    classes : the names of the classes.
    seconds : of training and validation in this process, without the compiling of kernels.
    checkpoint_seconds : how many of them it took to write the checkpoints that `--resume` goes on from.
    test_loss, test_accuracy : over the test set; None if the run was interrupted.
    confusion : (classes, classes) counts, a row per true class, a column per predicted one; None if interrupted.
    note : why the run ended early; empty if it did not.
    interrupted : the exit code of the signal that ended it: 130 for Ctrl-C, 143 for SIGTERM; 0 if none did.
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


@dataclass
class _Run:
    """The parts of a run, built from its settings."""

    config: Config
    folder: Path
    trainer: Trainer
    train: data.Loader
    validation: data.Loader | None
    test: data.Loader
    callbacks: Sequence[Callback]

    def __post_init__(self) -> None:
        config, test = self.config, self.test.dataset
        self.best, self.last = self.folder / BEST, self.folder / LAST
        here = origin(self.trainer.device, self.train.dataset)
        self.about = Checkpoint(config.model, test.shape, test.classes, config.dataset, plain(config), {}, here)
        self.checkpoints = Checkpoints(
            self.folder / CHECKPOINTS, config.checkpoint_every, config.keep_checkpoints, self.about
        )

    def listeners(self) -> list[Callback]:
        """Give all callbacks of the run in their order: checkpoints come when the others have done their part."""
        files = [HistoryFile(self.folder / f"history.{suffix}") for suffix in ("csv", "jsonl")]
        ours: list[Callback] = [*files, _KeepLast(self)]
        if self.validation is not None:
            ours.append(KeepBest(functools.partial(self.save, self.best)))
            if self.config.patience is not None:
                ours.append(EarlyStopping(patience=self.config.patience))
        return [*ours, *self.callbacks, self.checkpoints]

    def save(self, path: Path, record: dict[str, Any]) -> None:
        """Write the weights alone, for use, unless they are ruined: then the file from before stays."""
        require_finite(self.trainer.model.state_dict(), f"epoch {record['epoch']}")
        fields = {**vars(self.about), "metrics": record}
        save_checkpoint(path, self.trainer.model, Checkpoint(**fields))

    def tell(self, message: str) -> None:
        """Tell the listeners what the user should know."""
        for callback in self.callbacks:
            callback.on_note(message)

    def has_learned(self) -> bool:
        """Say whether there is a checkpoint of more than the first weights."""
        newest = self.checkpoints.newest
        return newest is not None and newest.name != step_name(0)

    def result(self, checkpoint: Path, seconds: float, *test: Any, **how: Any) -> "Result":
        """Give the result; `test` and `how` are its last fields."""
        trainer, saving = self.trainer, self.checkpoints.seconds
        common = (trainer.device.name, trainer.history, self.test.dataset.classes, seconds, saving)
        return Result(self.folder, checkpoint, *common, *test, **how)

    def watch(self, metrics: Metrics) -> None:
        """Tell the listeners of a batch of the test."""
        for callback in self.callbacks:
            callback.on_test_batch(self.trainer, len(self.test.dataset), metrics)


class _KeepLast(Callback):
    def __init__(self, run: _Run) -> None:
        self.run = run

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        self.run.save(self.run.last, record)

    def on_interrupt(self, trainer: Trainer) -> None:
        self.run.save(self.run.last, {"epoch": len(trainer.history), "steps": trainer.steps, "interrupted": True})


def train(
    config: Config, folder: Path | None = None, callbacks: Sequence[Callback] = (), *, resume: bool = False
) -> Result:
    """Train, test and save.

    Parameters
    ----------
    config : the settings.
    folder : made if it is missing; must not hold a run already, unless it is resumed, or be at use by another run. None
        makes a new `runs/DATASET-MODEL-TIME`.
    callbacks : further listeners, such as a progress bar.
    resume : go on with the run that the folder holds, from the newest checkpoint that is whole; from the beginning,
        where it has none yet. On the same device, with the same versions and settings, it then ends with the same bits
        as if it had never stopped. What differs is told to the callbacks (`on_note`).

    Returns
    -------
    The result. On Ctrl-C and SIGTERM too: what was learned is then in a checkpoint and in `last.safetensors`, and
    nothing is tested.

    Raises
    ------
    XcnnError
        For settings without meaning, or that cannot change in a resumed run; missing data; a folder that cannot be
        written, or that another run is at work in; checkpoints none of which is whole; a loss that is not finite.
    """
    check(config)
    parts = _prepare(config, callbacks)
    if resume:
        if folder is None or not holds_run(folder):
            raise UsageError(f"--resume {folder}: there is no run to go on with")
        where = folder
    else:
        where = make_run_folder(folder, config)
    with alone_in(where):
        if not resume and holds_run(where):
            raise UsageError(f"--out {where} holds a run already; go on with it by --resume, or choose another folder")
        run = _Run(config, where, *parts, callbacks)
        if resume:
            _go_on(run)
        with replacing(where / CONFIG) as temporary:
            temporary.write_text(json.dumps(plain(config), indent=2) + "\n")
        try:
            return _train_and_test(run)
        except (DivergedError, OutOfMemoryError):
            if not resume and not run.has_learned():
                remove_run(where)
            raise


def _train_and_test(run: _Run) -> Result:
    trainer, epochs, start = run.trainer, run.config.epochs, clock()
    try:
        trainer.fit(run.train, validation=run.validation, callbacks=run.listeners(), until=epochs)
    except (KeyboardInterrupt, SystemExit) as stop:
        if not trainer.interrupted:
            raise  # a second signal, inside a step
        note = f"interrupted after {len(trainer.history)} of {epochs} epochs"
        return run.result(run.checkpoints.newest or run.last, clock() - start, note=note, interrupted=_code(stop))
    except DivergedError as error:
        newest = run.checkpoints.newest
        kept = f"the last checkpoint is {newest}" if run.has_learned() else "nothing was learned that could be kept"
        raise DivergedError(f"{error}; {kept}") from None
    except OutOfMemoryError as error:
        raise OutOfMemoryError(f"{error}; another batch size needs a new run") from None
    seconds = clock() - start
    try:
        chosen = _load_best(run)
        plain_loss = loss_named("cross_entropy")  # label smoothing is for training
        metrics = evaluate(trainer.model, run.test, plain_loss, trainer.device, watch=run.watch)
        confusion = confusion_matrix(trainer.predict(run.test), run.test.dataset.labels)
    except (KeyboardInterrupt, SystemExit) as stop:
        chosen = run.best if run.best.exists() else run.last
        return run.result(chosen, seconds, note="interrupted during the test", interrupted=_code(stop))
    return run.result(chosen, seconds, metrics.loss, metrics.accuracy, confusion, trainer.stop_reason)


def _load_best(run: _Run) -> Path:
    """Load the best weights, unless the last, which the model has, are to be tested; return their file."""
    if run.best.exists():
        try:
            run.trainer.model.load_state_dict(load_checkpoint(run.best).state)
            return run.best
        except CheckpointError as error:
            run.tell(f"{error}; testing the last weights")
            run.save(run.last, run.trainer.history[-1])
    return run.last


def _code(stop: BaseException) -> int:
    """Return the exit code of the signal that raised this."""
    return int(stop.code or 0) if isinstance(stop, SystemExit) else 130


def _go_on(run: _Run) -> None:
    """Bring the parts of a run to where its newest checkpoint left them."""
    for place in (run.folder, run.folder / CHECKPOINTS):
        sweep(place)
    found = run.checkpoints.find(run.tell)
    if found is None:
        for weights in (run.best, run.last):  # which come after the first checkpoint
            if weights.exists():
                settings = f"start a new run, with its settings by --config {run.folder / CONFIG}"
                raise CheckpointError(f"{run.folder} has {weights.name}, but no checkpoint to go on from; {settings}")
        run.tell(f"{run.folder} has no checkpoint yet: starting from the beginning")
        return
    try:
        changed, remarks = differences(found, run.config, run.about.origin)
        _load(run, found, changed)
    except XcnnError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{run.checkpoints.newest} makes no sense: {type(error).__name__}: {error}") from None
    for remark in remarks:
        run.tell(remark)
    done, batch = len(run.trainer.history), run.trainer.unfinished
    within = f"epoch {done + 1}, {batch} of {len(run.train)} batches done" if batch else f"after epoch {done}"
    run.tell(f"going on from {run.checkpoints.newest} ({within})")
    if not batch and (done == run.config.epochs or run.trainer.stop_reason):
        run.tell("nothing is left to train; give it more --epochs, or --patience where it has stopped early")


_OPTIONS = {"lr": ("lr", "initial_lr"), "momentum": ("momentum",), "wd": ("weight_decay",)}
"""What settings give to the optimizer, by the names of its options."""


def _load(run: _Run, found: Checkpoint, changed: set[str]) -> None:
    """Load a checkpoint into the trainer, but for what settings that have changed give to the optimizer."""
    trainer = run.trainer
    state: dict[str, Any] = {**(found.training or {}), "weights": found.state}
    callbacks = dict(state["callbacks"])
    if not _best_is(run, callbacks.get("KeepBest")):
        callbacks.pop("KeepBest", None)
    groups = trainer.optimizer.param_groups
    given = [dict(group) for group in groups]
    trainer.load_state_dict({**state, "callbacks": callbacks})
    options = [option for name in _OPTIONS if name in changed for option in _OPTIONS[name]]
    for group, before in zip(groups, given, strict=True):
        group.update({option: before[option] for option in options if option in before})
    if options and trainer.schedule is not None:
        trainer.schedule.load_state_dict(trainer.schedule.state_dict())  # works out the rate of this step
    if any(SETTINGS[name].meaning for name in changed):
        trainer.stop_reason = ""  # what ended the run may not end it now


def _best_is(run: _Run, kept: Any) -> bool:
    """Say whether `best.safetensors` is the one that a checkpoint remembers.

    If not, the next epoch is the best so far. Where the file is from a later epoch, the run comes by that epoch again.
    """
    epoch = kept.get("best_epoch") if isinstance(kept, dict) else None
    if not isinstance(epoch, int) or epoch == 0:
        return False
    try:
        found = read_checkpoint(run.best).metrics.get("epoch")
    except CheckpointError as error:
        run.tell(f"{error}; the next epoch takes its place")
        return False
    return bool(found == epoch)


def _prepare(
    config: Config, callbacks: Sequence[Callback]
) -> tuple[Trainer, data.Loader, data.Loader | None, data.Loader]:
    """Build the parts from the settings; nothing is written until all of them are right."""
    where = device(config.device)
    options = {} if config.image_size is None else {"size": config.image_size}

    def arrived(file: str, done: int, total: int | None) -> None:
        for callback in callbacks:
            callback.on_download(file, done, total)

    def tell(message: str) -> None:
        for callback in callbacks:
            callback.on_note(message)

    train_set, test = data.load(config.dataset, config.data_dir, progress=arrived, **options)
    validation = None
    if config.validation > 0:
        train_set, validation = data.split(train_set, config.validation, config.seed)
    augment = [data.AUGMENTATIONS[name] for name in config.augment]
    batches = functools.partial(data.Loader, device=where, tell=tell)
    loader = batches(train_set, config.batch_size, seed=config.seed, augment=augment)
    model = models.build(config.model, test.shape, len(test.classes), config.seed)
    optimizer = _optimizer(config, model.parameters())
    schedule = optim.make_schedule(
        config.schedule, optimizer, len(loader) * config.epochs, len(loader), warmup=config.warmup
    )
    loss = loss_named("cross_entropy", label_smoothing=config.label_smoothing)
    trainer = Trainer(model, optimizer, loss, where, schedule=schedule, clip_norm=config.clip_norm)
    return trainer, loader, None if validation is None else batches(validation), batches(test)


def _optimizer(config: Config, parameters: list[Any]) -> optim.Optimizer:
    kind: Callable[..., optim.Optimizer] = find("optimizer", config.opt, optim.OPTIMIZERS)
    options = {"lr": config.lr, "momentum": config.momentum, "weight_decay": config.wd}
    known = inspect.signature(kind).parameters
    return kind(parameters, **{name: value for name, value in options.items() if name in known})

"""One training run from settings to results: data, model, optimizer, a folder that holds what came of it.

The folder: `config.json`, `history.csv`, `history.jsonl`, `best.safetensors` (best validation loss) and
`last.safetensors` (the latest epoch). Pictures are added by whoever started the run.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import data, models, optim
from xcnn._files import replacing
from xcnn.device import Device, device
from xcnn.errors import DivergedError, UsageError, XcnnError, unknown
from xcnn.training._clock import clock
from xcnn.training.callbacks import Callback, EarlyStopping, HistoryFile, KeepBest
from xcnn.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from xcnn.training.inference import Metrics, confusion_matrix, evaluate
from xcnn.training.losses import loss_named
from xcnn.training.trainer import Trainer

__all__ = ["Config", "Result", "train"]

_FILES = ("config.json", "history.csv", "history.jsonl", "best.safetensors", "last.safetensors")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a run; each is also the command-line flag of its name.

    Attributes
    ----------
    dataset
        data set by name; see `xcnn datasets`.
    data_dir
        folder that holds the data set's files, or your images; downloaded ones are kept elsewhere.
    image_size
        height and width that images of the data set `folder` are resized to (32).
    model
        network by name; see `xcnn models`.
    epochs
        passes over the training images.
    batch_size
        images per step.
    opt
        optimizer: sgd, adam, adamw, rmsprop.
    lr
        learning rate, at its peak.
    momentum
        of sgd and rmsprop.
    wd
        weight decay.
    schedule
        of the learning rate: constant, step, cosine, one-cycle, plateau.
    warmup
        steps in which the learning rate first rises.
    label_smoothing
        share of the target that is spread over all classes.
    clip_norm
        bound for the norm of all gradients.
    augment
        distortions of the training images, with commas between: flip, shift, crop, rotate, cutout.
    validation
        share of the training images that is held out to choose the best epoch.
    patience
        stop after so many epochs without a better validation loss.
    seed
        decides weights, order, augmentation and the held-out images.
    device
        where to compute: cpu, cuda, cuda:1, auto; see `xcnn devices`.
    """

    dataset: str = "digits"
    data_dir: Path | None = None
    image_size: int | None = None
    model: str = "vgg_small"
    epochs: int = 15
    batch_size: int = 64
    opt: str = "adam"
    lr: float = 3e-3
    momentum: float = 0.9
    wd: float = 0.0
    schedule: str = "one-cycle"
    warmup: int = 0
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    augment: tuple[str, ...] = ()
    validation: float = 0.1
    patience: int | None = None
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes
    ----------
    folder : where everything was written.
    checkpoint : the weights that were tested: the best on the validation images, or the last where there are none.
    device : the device's full name.
    history : one record per epoch, as `Trainer.fit` returns them.
    test_loss, test_accuracy : over the test set; None if the run was interrupted.
    confusion : (classes, classes) counts, a row per true class, a column per predicted one; None if interrupted.
    classes : their names.
    seconds : of training and validation, without the compiling of kernels.
    note : why the run ended early; empty if it did not.
    interrupted : whether Ctrl-C ended it.
    """

    folder: Path
    checkpoint: Path
    device: str
    history: list[dict[str, Any]]
    test_loss: float | None
    test_accuracy: float | None
    confusion: np.ndarray | None
    classes: tuple[str, ...]
    seconds: float
    note: str = ""
    interrupted: bool = False


@dataclass
class _Run:
    """The parts of a run, built from its settings."""

    config: Config
    folder: Path
    trainer: Trainer
    train: data.Loader
    validation: data.Dataset | None
    test: data.Dataset

    def save(self, name: str, record: dict[str, Any]) -> None:
        """Write a checkpoint, unless the weights are ruined: then the file from before stays."""
        for parameter, array in self.trainer.model.state_dict().items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise DivergedError(f"epoch {record['epoch']}: {parameter} is not finite; lower the learning rate")
        config = _plain(self.config)
        checkpoint = Checkpoint(
            self.config.model, self.test.shape, self.test.classes, self.config.dataset, config, record
        )
        save_checkpoint(self.folder / name, self.trainer.model, checkpoint)

    def watch(self, callbacks: Sequence[Callback]) -> Callable[[Metrics], None]:
        """Give what tells the listeners of every batch of the test."""

        def told(metrics: Metrics) -> None:
            for callback in callbacks:
                callback.on_test_batch(self.trainer, len(self.test), metrics)

        return told


def train(config: Config, folder: Path | None = None, callbacks: Sequence[Callback] = ()) -> Result:
    """Train, test and save.

    Parameters
    ----------
    config : the settings.
    folder : made if it is missing; must not hold a run already. None makes a new `runs/DATASET-MODEL-TIME`.
    callbacks : further listeners, such as a progress bar.

    Returns
    -------
    The result. On Ctrl-C too: the weights learned so far are then in `last.safetensors`, and nothing is tested.

    Raises
    ------
    XcnnError
        For settings without meaning, missing data, a folder that cannot be written, a loss that is not finite.
    """
    run = _prepare(config, folder, callbacks)
    folder = run.folder
    last, best = (folder / name for name in ("last.safetensors", "best.safetensors"))
    listeners: list[Callback] = [
        HistoryFile(folder / "history.csv"),
        HistoryFile(folder / "history.jsonl"),
        _KeepLast(run),
    ]
    if run.validation is not None:
        listeners.append(KeepBest(functools.partial(run.save, "best.safetensors")))
        if config.patience is not None:
            listeners.append(EarlyStopping(patience=config.patience))
    trainer, start, interrupted = run.trainer, clock(), False
    try:
        trainer.fit(run.train, config.epochs, run.validation, [*listeners, *callbacks])
    except KeyboardInterrupt:
        run.save("last.safetensors", {"epoch": len(trainer.history), "interrupted": True})
        interrupted = True
    except DivergedError as error:
        if not last.exists():
            _remove_folder(folder)
            raise
        raise DivergedError(f"{error}; {last} holds the last good epoch") from None
    seconds = clock() - start
    common = (trainer.device.name, trainer.history)
    if interrupted:
        note = f"interrupted after {len(trainer.history)} of {config.epochs} epochs"
        return Result(folder, last, *common, None, None, None, run.test.classes, seconds, note, True)
    chosen = best if best.exists() else last
    try:
        trainer.model.load_state_dict(load_checkpoint(chosen).state)
        plain = loss_named("cross_entropy")  # label smoothing is for training
        metrics = evaluate(trainer.model, run.test, plain, trainer.device, watch=run.watch(callbacks))
        confusion = confusion_matrix(trainer.predict(run.test), run.test.labels)
    except KeyboardInterrupt:
        return Result(
            folder, chosen, *common, None, None, None, run.test.classes, seconds, "interrupted during the test", True
        )
    return Result(
        folder, chosen, *common, metrics.loss, metrics.accuracy, confusion, run.test.classes, seconds,
        trainer.stop_reason,
    )  # fmt: skip


class _KeepLast(Callback):
    def __init__(self, run: _Run) -> None:
        self.run = run

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        self.run.save("last.safetensors", record)


def _prepare(config: Config, folder: Path | None, callbacks: Sequence[Callback]) -> _Run:
    """Check every setting and build the parts; nothing is written until all of them are right."""
    _check(config)
    where: Device = device(config.device)
    options = {} if config.image_size is None else {"size": config.image_size}

    def arrived(file: str, done: int, total: int | None) -> None:
        for callback in callbacks:
            callback.on_download(file, done, total)

    train_set, test = data.load(config.dataset, config.data_dir, progress=arrived, **options)
    validation = None
    if config.validation > 0:
        train_set, validation = data.split(train_set, config.validation, config.seed)
    augment = [data.AUGMENTATIONS[name] for name in config.augment]
    loader = data.Loader(train_set, config.batch_size, seed=config.seed, augment=augment)
    model = models.build(config.model, test.shape, len(test.classes), config.seed)
    optimizer = _optimizer(config, model.parameters())
    schedule = optim.make_schedule(
        config.schedule, optimizer, len(loader) * config.epochs, len(loader), warmup=config.warmup
    )
    loss = loss_named("cross_entropy", label_smoothing=config.label_smoothing)
    trainer = Trainer(model, optimizer, loss, where, schedule=schedule, clip_norm=config.clip_norm)
    return _Run(config, _make_folder(folder, config), trainer, loader, validation, test)


def _check(config: Config) -> None:
    names: list[tuple[str, str, Collection[str]]] = [
        ("data set", config.dataset, data.DATASETS),
        ("model", config.model, models.MODELS),
        ("optimizer", config.opt, optim.OPTIMIZERS),
        ("schedule", config.schedule, optim.SCHEDULES),
        *(("augmentation", name, data.AUGMENTATIONS) for name in config.augment),
    ]
    for kind, name, table in names:
        if name not in table:
            raise unknown(kind, name, table)
    for flag, good, wanted in (
        ("epochs", config.epochs >= 1, "at least 1"),
        ("batch-size", config.batch_size >= 1, "at least 1"),
        ("seed", config.seed >= 0, "0 or more"),
        ("lr", 0 < config.lr < float("inf"), "above 0"),
        ("validation", 0 <= config.validation < 1, "at least 0 and below 1"),
        ("label-smoothing", 0 <= config.label_smoothing < 1, "at least 0 and below 1"),
        ("clip-norm", config.clip_norm is None or config.clip_norm > 0, "above 0"),
        ("warmup", config.warmup >= 0, "0 or more steps"),
        ("patience", config.patience is None or config.patience >= 1, "at least 1"),
    ):
        if not good:
            raise UsageError(f"--{flag} must be {wanted}, got {getattr(config, flag.replace('-', '_'))}")
    if config.patience is not None and config.validation == 0:
        raise UsageError("--patience needs validation images; give --validation a share above 0")


def _optimizer(config: Config, parameters: list[Any]) -> optim.Optimizer:
    kind = optim.OPTIMIZERS[config.opt]
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.wd}
    if config.opt in ("sgd", "rmsprop"):
        options["momentum"] = config.momentum
    return kind(parameters, **options)


def _make_folder(folder: Path | None, config: Config) -> Path:
    if folder is not None and any((folder / name).exists() for name in _FILES):
        raise UsageError(f"--out {folder} holds a run already; choose another folder or remove it")
    text = json.dumps(_plain(config), indent=2) + "\n"
    try:
        if folder is None:
            folder = _new_folder(f"{config.dataset}-{config.model}-{datetime.now():%Y%m%d-%H%M%S}")
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "config.json") as temporary:
            temporary.write_text(text)
    except OSError as error:
        raise XcnnError(f"--out {folder or 'runs'} cannot be written: {error.strerror or error}") from None
    return folder


def _new_folder(name: str) -> Path:
    """Make a folder that no other run has, even one that starts in the same second."""
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    for number in itertools.count(1):
        folder = runs / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def _remove_folder(folder: Path) -> None:
    """Take back what a run wrote before it had anything to keep."""
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else is in it
        folder.rmdir()


def _plain(config: Config) -> dict[str, Any]:
    """Give the settings as JSON holds them, with a path that means the same from any folder."""
    fields = dataclasses.asdict(config)
    return fields | {"data_dir": None if config.data_dir is None else str(config.data_dir.resolve())}

"""`Trainer`, which trains a model on one device, and `Callback`, the base class of its callbacks."""

import collections
import contextlib
import functools
import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from xcnn import optim
from xcnn._check import flag, integer, number, shown
from xcnn._dispatch import COMPILATION
from xcnn.devices import Device
from xcnn.devices import device as open_device
from xcnn.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    UsageError,
    explained,
    making_sense,
    unknown,
    wrong_call,
)
from xcnn.nn import Module
from xcnn.training.alike import check_alike
from xcnn.training.evaluation import Metric, Metrics, evaluate, metrics_named, predict
from xcnn.training.feed import Data, Feed, dtype_of
from xcnn.training.losses import Loss, loss_named
from xcnn.training.parts import Cut
from xcnn.training.processes import Processes
from xcnn.training.signals import Signals, delayed_signals
from xcnn.training.state import Epoch, count, digest, plain, record
from xcnn.training.step import Step
from xcnn.training.terminal import watched

__all__ = ["Callback", "Trainer", "clock"]

F = TypeVar("F", bound=Callable[..., Any])


def clock() -> float:
    """Return the time in seconds since an arbitrary start. The clock pauses while kernels are compiled.

    Kernels are compiled once on a machine, when they are first called, which says nothing about the speed of training.
    """
    return COMPILATION.clock()


def _not_told(sentence: str) -> None:
    """Take the place of `tell` in all processes but the first, which would say the same."""


def _takes_data(function: F) -> F:
    """Decorate a method whose argument is data: as `explained` does, and to refuse targets as a second argument."""
    name = list(inspect.signature(function).parameters)[2]

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        second = arguments[2] if len(arguments) > 2 else None
        if getattr(second, "shape", ()) or isinstance(second, list | tuple):
            who = f"{function.__name__}: {name}"
            raise UsageError(f"{who} must be an integer, got {shown(second)}; pass targets in a tuple, (x, y)")
        return explained(function)(*arguments, **options)

    return called  # type: ignore[return-value]


class Callback:
    """Base class of callbacks of a `Trainer`; override the methods that you need.

    Callbacks are called in the order in which they are given, those whose class sets `comes_last` after all others.
    Call `trainer.stop(reason)` to end training after the epoch. An unknown method `on_...` is refused.

    Attributes
    ----------
    comes_last : whether callbacks of this class are called after all others.
    writes : whether callbacks of this class write or show something, so that of several processes only the first calls
        them. They must not call `evaluate` or `predict` of a trainer, for which it would wait for the others.
    shows_progress : whether callbacks of this class show progress, so that `fit` does not by itself.
    events : the names of further methods `on_...`, if a subclass defines some and calls them itself.
    """

    comes_last = False
    writes = False
    shows_progress = False
    events: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not isinstance(cls.events, tuple | list) or not all(isinstance(name, str) for name in cls.events):
            raise UsageError(f"{cls.__name__}: events must be a tuple of names of methods, got {cls.events!r}")
        known = {name for base in cls.__mro__ for name in vars(base).get("events", ())}
        known |= {name for name in vars(Callback) if name.startswith("on_")}
        for name in dir(cls):
            if name.startswith("on_") and name not in known and callable(getattr(cls, name)):
                raise unknown(f"method of the callback {cls.__name__}", name, known)
        for name in vars(Callback).keys() & vars(cls).keys():
            if inspect.isfunction(vars(cls)[name]) and not name.startswith("_"):
                arguments = inspect.signature(vars(Callback)[name]).parameters
                if wrong := wrong_call(f"{cls.__name__}.{name}", vars(cls)[name], arguments, {}):
                    raise UsageError(f"{wrong}; it is called as {name}({', '.join(arguments)})")
        if "__init__" in vars(cls):
            cls.__init__ = explained(cls.__init__)  # type: ignore[method-assign]

    def on_fit_start(self, trainer: "Trainer", batches: int | None, epochs: int) -> None:
        """Called before the first epoch, with the batches per epoch (None if unknown) and the last epoch."""

    def on_batch_end(self, trainer: "Trainer", epoch: int, batch: int, metrics: Metrics) -> None:
        """Called after every step, with the metrics of the epoch so far; epochs and batches count from 1."""

    def on_epoch_end(self, trainer: "Trainer", record: dict[str, Any]) -> None:
        """Called after an epoch and its validation, with the record that `fit` returns; you may add numbers."""

    def on_interrupt(self, trainer: "Trainer") -> None:
        """Called after the step in which Ctrl-C or SIGTERM arrived, before `fit` raises."""

    def on_fit_end(self, trainer: "Trainer") -> None:
        """Called at the end, even if an error or Ctrl-C ended the training."""

    def exchange_weights(self, trainer: "Trainer") -> None:
        """Exchange the weights of the model with others for evaluation and saving; the next call exchanges them back.

        `Trainer.inference_weights` calls it; `EMA` is an example.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save: numbers, strings, lists, dicts with string keys, and NumPy arrays."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned. `Trainer.load_state_dict` calls it, before `on_fit_start`."""


class Trainer:
    """Trains a model on one device.

    Parameters
    ----------
    model : the model, which is moved to the device.
    optimizer : built on `model.parameters()`.
    loss : a name in `xcnn.training.LOSSES`, a `Loss`, or a function `(output, target) -> (loss, backward)`.
    device : where to compute: `"cpu"`, `"cuda"`, `"cuda:1"`, `"auto"`, ...; see `xcnn.device`.
    schedule : a schedule from `xcnn.optim`, built on the optimizer. It is stepped after every epoch, with the
        validation loss (the training loss without validation), or after every batch if its `unit` is `"step"`.
    clip_norm, clip_value : the largest norm of all gradients together, and the largest absolute value of an entry; None
        for no limit.
    metrics : further figures of the validation, as functions by name, such as `{"iou": mean_iou}`, whose value is
        `val_iou` in the records. A function takes the targets and the predictions of the whole data set, which are
        those of `predict`, and returns a number; functions of scikit-learn that take both arrays can be passed. For
        them, the predictions of the whole data set are kept in the memory of the host.
    accumulate : the number of parts in which a step computes its batch, one after the other, to take less memory, or on
        several processes. By default it is the number of processes. Part p of P begins with sample `p * n // P`. The
        gradients are added in an order that depends on P alone, each with its share in the mean (`Loss.size`: samples,
        class indices that count, or class weights), so that but for rounding the result is that of the whole batch;
        except that batch norm computes with the statistics of each part, and moves its running ones to their mean,
        that dropout draws other numbers for each part, and that augmentations that mix examples do so within a part.
    parallel : the processes that train together, such as `xcnn.parallel.MPI()`; None for this one alone. Each has the
        same model, data and arguments, computes its share of the parts, and makes the same update. The result depends
        on `accumulate`, but not on the number of processes.
    sync_batch_norm : whether batch norm computes with the statistics of the whole batch instead of those of each part,
        as in one part. All parts of a process are then computed at the same time, layer by layer, so that more of them
        take no less memory. Layers must not depend on the numbers in which batch norms they call.
    callbacks : `Callback` objects that `fit` calls.
    tell : called with a sentence that the user should read, such as that a data set does not fit into the memory of the
        device; of several processes only in the first.

    Attributes
    ----------
    callbacks : in the order in which they are called.
    history : one record per finished epoch, as `fit` returns them.
    stop_reason : why a callback ended the last `fit` before its last epoch; empty if none did.
    steps : the number of batches that the model has been trained on.
    interrupted : whether Ctrl-C or SIGTERM ended the last `fit`.
    parallel : the processes that train together.
    accumulate : the number of parts of a batch.
    make_progress : of the class: function that makes the callback with which `fit` shows progress.
    """

    make_progress: ClassVar[Callable[[], Callback]]

    @explained
    def __init__(
        self,
        model: Module,
        optimizer: optim.Optimizer,
        loss: str | Loss | Callable[..., Any] = "cross_entropy",
        device: str | Device = "cpu",
        *,
        schedule: optim.Schedule | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        metrics: Mapping[str, Metric] | None = None,
        accumulate: int | None = None,
        parallel: Processes | None = None,
        sync_batch_norm: bool = False,
        callbacks: Sequence[Callback] = (),
        tell: Callable[[str], object] = warnings.warn,
    ) -> None:
        for name, value, kind in (("model", model, Module), ("optimizer", optimizer, optim.Optimizer)):
            if not isinstance(value, kind):
                raise UsageError(f"Trainer: {name} must be an instance of {kind.__name__}, got {value!r}")
        if schedule is not None and getattr(schedule, "optimizer", None) is not optimizer:
            raise UsageError(f"Trainer: schedule must be a schedule of the same optimizer or None, got {schedule!r}")
        if isinstance(schedule, optim.ReduceLROnPlateau) and schedule.mode == "max":
            raise UsageError(
                "Trainer: schedule gets the loss, of which less is better; use ReduceLROnPlateau(mode='min')"
            )
        for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if limit is not None:
                number("Trainer", name, limit, "[0, inf)")
        if not isinstance(callbacks, Sequence) or not all(isinstance(callback, Callback) for callback in callbacks):
            raise UsageError(f"Trainer: callbacks must be a list of Callback objects, got {callbacks!r}")
        if not callable(tell):
            raise UsageError(f"Trainer: tell must be a function (sentence), got {tell!r}")
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.loss, self.metrics = loss_named(loss), metrics_named("Trainer", metrics)
        self.device = open_device(device)
        self.callbacks = sorted(callbacks, key=lambda callback: callback.comes_last)
        self.history: list[dict[str, Any]] = []
        self.stop_reason, self.steps, self.interrupted = "", 0, False
        self._told, self._fitting = False, False
        self._progress: Callback | None = None
        self._epoch: Epoch | None = None  # the unfinished epoch
        self._loaded = False  # whether it comes from load_state_dict and no `fit` has continued it
        self._signals = Signals()
        self._feeds: list[Feed] = []  # the training and validation data of the current `fit`
        if not isinstance(parallel, Processes | None):
            raise UsageError(
                f"Trainer: parallel must be processes such as xcnn.parallel.MPI() or None, got {parallel!r}"
            )
        self.parallel = Processes() if parallel is None else parallel
        self.tell = tell if self.parallel.rank == 0 else _not_told
        parts = self.parallel.size if accumulate is None else integer("Trainer", "accumulate", accumulate)
        self.accumulate, cut = parts, Cut(parts, self.parallel)
        sync = flag("Trainer", "sync_batch_norm", sync_batch_norm)
        self._step = Step(model, optimizer, self.loss, self.device, schedule, clip_norm, clip_value, cut, sync)
        self._exchanged = False  # whether the model holds the weights of inference
        model.to(self.device)

    @explained
    def step(self, x: Any, y: Any) -> float:
        """Train on one batch and return its loss before the update.

        The result does not depend on the number of threads. Several processes pass the same batch, of which each
        computes its parts.

        Parameters
        ----------
        x : samples (n, ...) in the model's dtype, such as images (n, c, h, w), on the host or the device.
        y : targets (n, ...), as the loss takes them; see `Loss`.

        Raises
        ------
        DivergedError
            If the loss or a gradient is not finite. The message names the layer where that begins; weights, statistics,
            random streams and the optimizer keep their state from before the step.
        OutOfMemoryError
            If the batch is too large. Its memory is freed, and unless the message says otherwise, everything keeps its
            state from before the step.
        ShapeError, DtypeError, UsageError
            If the batch does not fit the model or the loss.
        """
        with self.device.active(), self._weights(inference=False):
            loss = self._step(x, y)[1]
        self.steps += 1
        return float(loss)

    @_takes_data
    def fit(
        self,
        train: Data,
        epochs: int = 1,
        validation: Data | None = None,
        *,
        until: int | None = None,
        progress: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Train for some epochs and return one record for each.

        Floating-point arrays are converted to the dtype of the model, batch by batch. While `fit` runs, a data set in
        memory that is not augmented is kept on the device, if it takes at most 1 GiB and fits. This changes no bit of
        the results.

        Parameters
        ----------
        train : a `Loader`; a `Dataset`, arrays (x, y) (see `data.from_arrays`) or an object with `__len__` and
            `__getitem__(int)` that returns (x, y) (see `data.MapDataset`), in shuffled batches of 64; or batches
            (x, y) in their order, as a list or any other iterable.
        epochs : the number of passes over `train`. An unfinished epoch of a loaded state is finished first and counts
            as one.
        validation : evaluated after each epoch, if given.
        until : train until this many epochs are finished in all, instead of `epochs` more. If they are already, or
            if a callback had stopped the run whose state was loaded, no epoch is run.
        progress : whether to show progress on stderr; by default on a terminal and in a notebook. No effect if a
            callback shows it.

        Returns
        -------
        A list of dicts with `epoch`, `train_loss`, `train_accuracy`, `val_loss`, `val_accuracy` (None without
        validation, or if the loss has no accuracy), `seconds` (of training, without validation and the compilation of
        kernels), `data_seconds` (of these, the time of waiting for batches), `samples_per_second`, an entry such as
        `val_iou` for each of `metrics`, and what callbacks add.

        Raises
        ------
        DivergedError
            If the loss or a gradient is not finite; the message says in which epoch and batch, and in which layer.
        OutOfMemoryError
            If a batch is too large.
        DataError
            If there is no batch.
        CheckpointError
            If the loaded state is inside an epoch whose batches are not those of `train`.
        KeyboardInterrupt
            On Ctrl-C: at once while a batch is made, otherwise at the end of the step or of the epoch; a second Ctrl-C
            acts at once.
        SystemExit
            On SIGTERM, in the same way, unless the program handles it; the exit code is 143.
        """
        integer("fit", "epochs", epochs)
        if progress is not None:
            flag("fit", "progress", progress)
        if self._fitting:
            raise UsageError("fit: this trainer is already in fit; wait until it has returned")
        if self._exchanged:
            raise UsageError("fit: leave `with trainer.inference_weights()` before training on")
        first = len(self.history)
        last = first + epochs if until is None else integer("fit", "until", until)
        if not self._loaded:
            self._epoch = None  # an epoch that an interrupted `fit` left unfinished
        if last <= first or (until is not None and self._loaded and self.stop_reason and self._epoch is None):
            return []
        if self._epoch is None:
            self.stop_reason = ""
        self.interrupted, self._fitting = False, True
        try:
            where, dtype = self.device, dtype_of(self.model)
            feed = Feed("fit: train", train, where, self.tell, dtype, last - first)
            held_out = None
            if validation is not None:
                held_out = Feed("fit: validation", validation, where, self.tell, dtype, last - first)
            self._feeds = [feed] if held_out is None else [feed, held_out]
            if self.schedule is not None and feed.length is not None:
                doubt = self.schedule.check_length(last - first, feed.length, self.unfinished)
                if doubt:
                    self.tell(doubt)
            self._tell_untrained()
            self._show(watched() if progress is None else progress)
            if self._epoch is not None:
                feed.check_place(self._epoch.settings, self._epoch.batch)
            if self.parallel.size > 1:
                check_alike(self.parallel, self._facts(feed, held_out, last), self.tell)
            self._call("on_fit_start", feed.length, last)
            self._loaded = False  # not before, so that a `fit` that cannot start may be tried again
            together = self.parallel.size > 1
            with self.device.active(), delayed_signals(together) as signals:
                self._signals = signals

                def between_steps(function: Callable[[], Any]) -> Any:
                    try:
                        return signals.at_rest(function)
                    except (KeyboardInterrupt, SystemExit):
                        self._call("on_interrupt")
                        self.interrupted = True
                        raise

                for epoch in range(first + 1, last + 1):
                    record = self._train_epoch(epoch, feed, held_out, between_steps)
                    self.history.append(record)
                    for callback in self._all_callbacks():
                        before = dict(record)
                        callback.on_epoch_end(self, record)
                        plain(record, before, type(callback).__name__)
                    if together:
                        self._agree()
                    between_steps(lambda: None)
                    if self.stop_reason:
                        break
        except BaseException:
            with contextlib.suppress(Exception):  # the first exception is the one to raise
                self._end()
            raise
        self._end()
        return self.history[first:]

    def _facts(self, feed: Feed, held_out: Feed | None, last: int) -> dict[str, Any]:
        """Return what must be the same in all processes that train together."""
        schedule, step, loss = self.schedule, self._step, self.loss.function
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        return {
            "weights": digest(self.model.state_dict()),
            "random streams": digest({k: rng.bit_generator.state for k, rng in self.model.named_generators()}),
            "schedule": None if schedule is None else [type(schedule).__name__, schedule.state_dict()],
            "optimizer": [type(self.optimizer).__name__, *groups],
            "state of the optimizer": digest(self.optimizer.state_dict()),
            "loss": [getattr(loss, "__name__", type(loss).__name__), dict(self.loss.options)],
            "number of steps": self.steps,
            "last epoch": last,
            "place in the epoch": self.unfinished,
            "training data": feed.settings,
            "number of batches": feed.length,
            "examples": feed.fingerprint(),
            "validation data": None if held_out is None else [held_out.settings, held_out.length],
            "clip_norm": step.clip_norm,
            "clip_value": step.clip_value,
            "accumulate": self.accumulate,
            "sync_batch_norm": step.sync_batch_norm,
        }

    def _agree(self) -> None:
        """Stop for the reason of any process, and for the signal that any has got."""
        said = self.parallel.gather_bytes(json.dumps([self.stop_reason, self._signals.number]).encode())
        reasons, numbers = zip(*map(json.loads, said), strict=True)
        self.stop_reason = next(filter(None, reasons), "")
        self._signals.agree(max(numbers))

    def _tell_untrained(self) -> None:
        """Tell once if parameters get gradients that no optimizer uses."""
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        names = [name for name, p in self.model.named_parameters() if p.trainable and id(p) not in trained]
        if names and not self._told:
            self._told = True
            self.tell(
                f"the optimizer does not have {len(names)} of the model's parameters, such as {names[0]}, which stay "
                "as they are; freeze() their layers, which saves their gradients, or give them to the optimizer"
            )

    def __getstate__(self) -> dict[str, Any]:
        # A copy made by a callback is not in `fit`.
        return {**vars(self), "_fitting": False, "_feeds": [], "_progress": None}

    def _end(self) -> None:
        """Call `on_fit_end` of every callback, even if some raise, and then raise the first exception."""
        self._fitting, self._feeds = False, []  # and with them their copies on the device
        errors = []
        for callback in self._all_callbacks():
            try:
                callback.on_fit_end(self)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _call(self, event: str, *arguments: Any) -> None:
        for callback in self._all_callbacks():
            getattr(callback, event)(self, *arguments)

    def _all_callbacks(self) -> list[Callback]:
        made = self.callbacks if self._progress is None else [*self.callbacks, self._progress]
        return [callback for callback in made if not callback.writes] if self.parallel.rank else made

    def _show(self, progress: bool) -> None:
        """Show the progress of this `fit` or not; the callback that does so remembers what it has said."""
        if not progress or any(callback.shows_progress for callback in self.callbacks):
            self._progress = None
        elif self._progress is None:
            self._progress = type(self).make_progress()

    @property
    def feeds(self) -> tuple[Feed, ...]:
        """The data of the current `fit`: those for training, and those for validation if there are any."""
        return tuple(self._feeds)

    def _make_room(self) -> bool:
        """Free the copies of data sets on the device, and return whether there were any."""
        return any([feed.give_up() for feed in self._feeds])  # noqa: C419  # each of them

    def _train_epoch(
        self, epoch: int, feed: Feed, validation: Feed | None, between_steps: Callable[[Callable[[], Any]], Any]
    ) -> dict[str, Any]:
        now = self._epoch = self._epoch or Epoch(feed.settings)
        metrics, start, step = now.metrics, clock() - now.seconds, self._step
        made = feed.batches(epoch, now.batch, step.cut)
        with contextlib.closing(made) as batches:  # ends the workers also after an error
            while True:
                asked = clock()
                batch = between_steps(lambda: next(batches, None))
                if batch is None:
                    break
                now.data_seconds += clock() - asked
                step.notice = self._signals.number
                try:
                    seen = step.train_on(batch, count=True, make_room=self._make_room)
                except DivergedError as error:
                    raise DivergedError(f"epoch {epoch}, batch {now.batch + 1}: {error}") from None
                self._signals.agree(step.notice)
                metrics.add(*seen)
                now.batch, now.seconds = now.batch + 1, clock() - start
                self.steps += 1
                self._call("on_batch_end", epoch, now.batch, metrics)
        if not metrics.samples:
            raise DataError(f"epoch {epoch}: there is no batch to train on (an iterator gives its batches only once)")
        seconds = clock() - start
        validated = None if validation is None else self._evaluate(validation.source, confusion=False)
        if self.schedule is not None and self.schedule.unit == "epoch":
            self.schedule.step(metrics.loss if validated is None else validated.loss)
        self._epoch = None
        return {
            "epoch": epoch,
            "train_loss": metrics.loss,
            "train_accuracy": metrics.accuracy,
            "val_loss": None if validated is None else validated.loss,
            "val_accuracy": None if validated is None else validated.accuracy,
            "seconds": seconds,
            "data_seconds": now.data_seconds,
            "samples_per_second": metrics.samples / seconds,
            **({} if validated is None else {f"val_{name}": value for name, value in validated.values.items()}),
        }

    @explained
    def stop(self, reason: str) -> None:
        """End `fit` after this epoch; for callbacks. The reason becomes `stop_reason`."""
        if not isinstance(reason, str) or not reason:
            raise UsageError(f"stop: reason must be a text that is not empty, got {reason!r}")
        self.stop_reason = reason

    @_takes_data
    def evaluate(self, data: Data, batch_size: int = 256) -> Metrics:
        """Return loss, accuracy and `metrics` over a data set, in inference mode.

        The accuracy is the share of right answers: of samples, of pixels for class indices (n, h, w), of labels for
        binary cross entropy. Class indices that are ignored do not count. The mean loss is over all answers that count.

        Parameters
        ----------
        data : as `train` in `fit`; a data set is read in order and without augmentation.
        batch_size : samples at a time, for a data set.

        Raises
        ------
        DataError
            If there is no batch.
        OutOfMemoryError
            If a batch is too large.
        """
        return self._evaluate(data, batch_size)

    def _evaluate(self, data: Data, batch_size: int = 256, confusion: bool = True) -> Metrics:
        with self.inference_weights():
            return evaluate(
                self.model,
                data,
                self.loss,
                self.device,
                batch_size,
                metrics=self.metrics,
                confusion=confusion,
                parallel=self.parallel,
            )

    @explained
    def predict(self, x: Any, batch_size: int = 256) -> np.ndarray:
        """Return the predictions for some examples, on the host.

        Parameters
        ----------
        x : (n, ...), uint8, which is divided by 255, or floating point: an array of the host or of the device, a list,
            or a lazy array (see `data.Dataset`). Or what `evaluate` takes, whose targets are left out, or an iterable
            of batches x.
        batch_size : examples at a time.

        Returns
        -------
        (n, ...): probabilities if the loss defines them (for cross-entropy, the softmax of the outputs), otherwise the
        outputs.
        """
        with self.inference_weights():
            return predict(self.model, x, self.loss, self.device, batch_size, self.parallel)

    @contextlib.contextmanager
    def inference_weights(self) -> Iterator[None]:
        """Give the model the weights that are evaluated and saved, inside a `with`.

        They are those that are trained, unless a callback such as `EMA` has others. `evaluate` and `predict` use them,
        and `KeepBest` saves them. Leave the `with` before training on.

        Examples
        --------
        >>> from xcnn import nn, optim
        >>> model = nn.Sequential(nn.Linear(2, 1))
        >>> trainer = Trainer(model, optim.SGD(model.parameters()), "mse_loss")
        >>> with trainer.inference_weights():
        ...     saved = model.state_dict()
        """
        with self._weights(inference=True):
            yield

    def _weights(self, inference: bool) -> contextlib.AbstractContextManager[object]:
        """Give the model the weights of inference, or those that are trained, inside a `with`; may be nested."""
        return self._exchanging() if self._exchanged != inference else contextlib.nullcontext()

    @contextlib.contextmanager
    def _exchanging(self) -> Iterator[None]:
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        # Back in the reverse order, so that each callback gets its own arrays if there are several.
        for callback in reversed(self.callbacks) if self._exchanged else self.callbacks:
            callback.exchange_weights(self)
        self._exchanged = not self._exchanged

    @property
    def unfinished(self) -> int:
        """The number of batches done of an unfinished epoch; 0 if there is none."""
        return 0 if self._epoch is None else self._epoch.batch

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to resume, in nested dicts and lists of NumPy arrays, numbers and strings.

        The state consists of the weights, the states of optimizer, schedule, random streams and callbacks, the history,
        and the position inside an unfinished epoch. During `fit` it is the state after the last complete step.
        """
        with self._weights(inference=False):
            return self._state()

    def _state(self) -> dict[str, Any]:
        return {
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "streams": {name: rng.bit_generator.state for name, rng in self.model.named_generators()},
            "history": [dict(record) for record in self.history],
            "steps": self.steps,
            "stop_reason": self.stop_reason,
            "epoch": None if self._epoch is None else self._epoch.state_dict(),
            "callbacks": {name: callback.state_dict() for name, callback in self._named_callbacks()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of a trainer with the same parts; `fit` continues from there.

        If this raises, the trainer may have loaded a part of the state and must not be used.

        Raises
        ------
        CheckpointError
            If it is not the state of a trainer, or does not fit this model, optimizer, schedule or these callbacks.
        UsageError
            If a callback calls it during `fit`.
        """
        if self._fitting:
            raise UsageError("load_state_dict: this trainer is in fit; load a state before or after it")
        with making_sense("Trainer", state):
            streams = dict(self.model.named_generators())
            if (self.schedule is None) != (state["schedule"] is None) or state["streams"].keys() != streams.keys():
                raise CheckpointError("Trainer: the state is that of a trainer with another schedule or other layers")
            epoch, callbacks = state["epoch"], dict(state["callbacks"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.schedule is not None:
                self.schedule.load_state_dict(state["schedule"])
            self.model.load_state_dict(state["weights"])
            for name, generator in streams.items():
                with making_sense(f"Trainer: random stream {name}"):
                    generator.bit_generator.state = state["streams"][name]
            self.history = [record(one, number) for number, one in enumerate(state["history"], 1)]
            self.steps, self.stop_reason = count(state["steps"]), str(state["stop_reason"])
            self._epoch, self._loaded = None if epoch is None else Epoch.of(epoch), True
            for name, callback in self._named_callbacks():
                if name in callbacks:
                    callback.load_state_dict(dict(callbacks[name]))

    def _named_callbacks(self) -> Iterator[tuple[str, Callback]]:
        """Yield callbacks with the names of their classes, numbered if a class occurs more than once."""
        seen: collections.Counter[str] = collections.Counter()
        for callback in self.callbacks:
            name = type(callback).__name__
            seen[name] += 1
            yield name if seen[name] == 1 else f"{name}-{seen[name]}", callback

"""`Trainer`: a model, an optimizer and a loss on one device; one step, many epochs, evaluation and prediction."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from xcnn import optim
from xcnn._array import Array
from xcnn.data import Loader
from xcnn.devices import Device, on_host, to_numpy
from xcnn.devices import device as open_device
from xcnn.errors import DataError, DivergedError, UsageError, XcnnError
from xcnn.nn import Module
from xcnn.threads import one_blas_thread
from xcnn.training._clock import clock
from xcnn.training.callbacks import Callback
from xcnn.training.divergence import divergence, look, memory_error, ran_out, remember
from xcnn.training.evaluation import Batch, Data, Metrics, batches, correct, evaluate, place, predict
from xcnn.training.losses import Loss, loss_named
from xcnn.training.signals import delayed_signals
from xcnn.training.state import Epoch, Resumable

__all__ = ["Trainer"]


class Trainer(Resumable):
    """Trains a model on one device.

    Parameters
    ----------
    model : moved to the device.
    optimizer : built on `model.parameters()`.
    loss : a name in `xcnn.training.LOSSES`, a `Loss`, or a function `(output, target) -> (loss, backward)`.
    device : where to compute: `"cpu"`, `"cuda"`, `"cuda:1"`, `"auto"`, ...; see `xcnn.device`.
    schedule : a schedule from `xcnn.optim` built on the optimizer. It is stepped after every batch, so that its lengths
        count batches, not epochs; `ReduceLROnPlateau` alone is stepped after an epoch, with the validation loss.
    clip_norm, clip_value : bounds for the gradients' common norm and for each of their entries; None for none.

    Attributes
    ----------
    history : one record per finished epoch, as `fit` returns them.
    stop_reason : why a callback ended the last `fit` before its last epoch; empty if none did.
    steps : how many batches the model has been trained on.
    interrupted : whether a signal ended the last `fit` after a whole step.
    """

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
    ) -> None:
        for name, value, kind in (("model", model, Module), ("optimizer", optimizer, optim.Optimizer)):
            if not isinstance(value, kind):
                raise UsageError(f"Trainer: {name} must be an instance of {kind.__name__}, got {value!r}")
        super().__init__(model, optimizer, schedule)
        self.loss = loss_named(loss)
        self.device = open_device(device)
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self.interrupted = False
        owned = {id(parameter) for parameter in model.parameters()}
        if not all(id(parameter) in owned for parameter in self._parameters()):
            raise UsageError("Trainer: the optimizer has parameters that are not the model's; build it on this model's")
        self._buffers = [buffer for _, buffer in model.named_buffers()]
        self._random = [
            module
            for _, module in model.modules()
            if any(isinstance(v, np.random.Generator) for v in vars(module).values())
        ]
        model.to(self.device)

    def step(self, x: Any, y: Any) -> float:
        """Train on one batch and return its loss before the update.

        A loop of these is fastest inside `with one_blas_thread():` (from `xcnn.threads`), which `fit` does by itself.

        Parameters
        ----------
        x : images (n, c, h, w) in the model's dtype, on the host or the device.
        y : targets; class indices (n,) for a classifying loss.

        Raises
        ------
        DivergedError
            Where the loss or a gradient is not finite. It names the layer where that begins; weights, statistics,
            random streams and the optimizer are then as they were before this step.
        OutOfMemoryError
            Where the batch is too large. What it took is free again, and all is as before this step, too, unless it
            says otherwise.
        ShapeError, DtypeError, UsageError
            Where the batch does not fit the model or the loss.
        """
        with self.device.active():
            return self._step(x, y)[0]

    def _step(self, x: Any, y: Any, count: bool = False) -> tuple[float, int, int | None]:
        """Train on a batch and return its loss, how many images it has, and how many answers are right, if asked."""
        put_back, updating = remember(self._buffers, self._random), False
        try:
            seen = self._gradients(x, y, count, put_back)
            updating = True
            self.optimizer.step()
            if self.schedule is not None and self.schedule.unit == "step":
                self.schedule.step()
            return seen
        except Exception as error:
            if not updating:
                put_back()
            if not ran_out(error, self.device):
                raise
        # Out here nothing holds the exception any more, nor what the layers kept for it.
        self.model.zero_grad()
        if not updating and isinstance(self._batches, Loader) and self._batches.make_room():
            return self._step(x, y, count)
        raise memory_error(x, self.device, "--batch-size", updating)

    def _gradients(self, x: Any, y: Any, count: bool, put_back: Callable[[], None]) -> tuple[float, int, int | None]:
        """Give every parameter its gradient, bounded, and return what `_step` does, waiting for the device once.

        Where one of these numbers is not finite, all but the gradients is as it was before.
        """
        x, y = place(x, self.device), place(y, self.device)
        output, backward = self.model.forward(x, train=True)
        loss, loss_backward = self.loss.function(output, y)
        right = correct(self.loss, output, y) if count else None
        if not on_host(loss) or math.isfinite(loss):
            self.optimizer.zero_grad()
            backward(loss_backward()[0], need_dx=False)
        del backward, loss_backward  # and with them what they keep: a bad batch is run once more
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"]]
        value, right, finite = look(loss, right, gradients)
        if not (math.isfinite(value) and finite):
            raise self._diverged(value, output, x, y, put_back)
        if self.clip_value is not None:
            optim.clip_grad_value_(self._parameters(), self.clip_value)
        if self.clip_norm is not None:
            optim.clip_grad_norm_(self._parameters(), self.clip_norm)
        return value, output.shape[0], right

    def _diverged(self, value: float, output: Array, x: Array, y: Array, put_back: Callable[[], None]) -> XcnnError:
        """Put everything back and return the error that says where the loss, or else a gradient, began to fail."""
        put_back()
        try:
            # Ops that cannot read labels without stopping the device give NaN for those that are no class.
            if self.loss.classifies and y.ndim == 1:
                labels = to_numpy(y)
                strange = labels[(labels >= output.shape[1]) | ((labels < 0) & (labels != -100))]  # -100 is ignored
                if strange.size:
                    return UsageError(f"the labels hold {strange[0]}, the model has classes 0 .. {output.shape[1] - 1}")
            return divergence(self.model, self.loss.function, value, x, y)
        finally:
            self.model.zero_grad()  # it may hold what a backward pass made of such a loss
            put_back()

    def fit(
        self,
        train: Data,
        epochs: int = 1,
        validation: Data | None = None,
        callbacks: Sequence[Callback] = (),
        *,
        until: int | None = None,
    ) -> list[dict[str, Any]]:
        """Train for some epochs and return one record for each.

        Parameters
        ----------
        train : a `Loader`; a `Dataset` or (images, labels), in shuffled batches of 64; or a list of batches (x, y).
        epochs : passes over `train`. One that `load_state_dict` brought back unfinished is finished first, and counts.
        validation : evaluated after each epoch, if given.
        callbacks : told of every batch and epoch; see `xcnn.training.Callback`.
        until : train until so many epochs are finished, in place of `epochs`. Nothing is done where they are, or where
            the trainer was brought back to where a callback had stopped it.

        Returns
        -------
        A list of dicts with `epoch`, `train_loss`, `train_accuracy`, `val_loss`, `val_accuracy` (None without
        validation), `seconds` (of training, without validation and the compiling of kernels) and `images_per_second`.

        Raises
        ------
        DivergedError
            Where the loss or a gradient is not finite; it says in which epoch and batch, and in which layer.
        OutOfMemoryError
            Where a batch is too large.
        DataError
            Where there is no batch.
        KeyboardInterrupt
            On Ctrl-C, between two steps or at the end of an epoch; a second one is not waited with.
        SystemExit
            On SIGTERM, likewise, unless the program handles it; the exit code is 143.
        """
        for name, value in (("epochs", epochs), ("until", 1 if until is None else until)):
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"fit: {name} must be an integer of at least 1, got {value!r}")
        if not isinstance(callbacks, Sequence) or not all(isinstance(callback, Callback) for callback in callbacks):
            raise UsageError(f"fit: callbacks must be a list of Callback objects, got {callbacks!r}")
        first = len(self.history)
        last = first + epochs if until is None else until
        if not self._loaded:
            self._epoch = self._pass = None  # what an interrupted `fit` left does not count
        if last <= first or (until is not None and self._loaded and self.stop_reason and self._epoch is None):
            return []
        if self._epoch is None:
            self.stop_reason = ""
        self.interrupted = False
        self._callbacks = sorted(callbacks, key=lambda callback: callback.comes_last)
        self._batches = batches(train, self.device)
        data = validation
        if validation is not None:
            validation = batches(validation, self.device)  # once, so that they are moved once
        try:
            for callback in self._callbacks:
                callback.on_fit_start(self, len(self._batches), last)
            self._hand_out()
            with one_blas_thread(), self.device.active(), delayed_signals() as check_signals:

                def go_on() -> None:
                    try:
                        check_signals()
                    except (KeyboardInterrupt, SystemExit):
                        for callback in self._callbacks:
                            callback.on_interrupt(self)
                        self.interrupted = True
                        raise

                for epoch in range(first + 1, last + 1):
                    record = self._train_epoch(epoch, validation, go_on)
                    self.history.append(record)
                    for callback in self._callbacks:
                        callback.on_epoch_end(self, record)
                    go_on()
                    if self.stop_reason:
                        break
        finally:
            for made, given in ((self._batches, train), (validation, data)):
                if isinstance(made, Loader) and made is not given:  # nobody else can
                    made.release()
            for callback in self._callbacks:
                callback.on_fit_end(self)
        return self.history[first:]

    def _train_epoch(self, epoch: int, validation: Data | None, go_on: Callable[[], None]) -> dict[str, Any]:
        now = self._epoch = self._epoch or Epoch()
        metrics, start = now.metrics, clock() - now.seconds
        for x, y in self._rest(now.batch):
            try:
                loss, images, right = self._step(x, y, count=True)
            except DivergedError as error:
                raise DivergedError(f"epoch {epoch}, batch {now.batch + 1}: {error}") from None
            metrics.add(images, loss, right)
            now.batch, now.seconds = now.batch + 1, clock() - start
            self.steps += 1
            for callback in self._callbacks:
                callback.on_batch_end(self, epoch, now.batch, metrics)
            go_on()
        if not metrics.images:
            raise DataError(f"epoch {epoch}: there is no batch to train on (an iterator gives its batches only once)")
        seconds = clock() - start
        validated = None if validation is None else self.evaluate(validation)
        if self.schedule is not None and self.schedule.unit == "epoch":
            self.schedule.step(metrics.loss if validated is None else validated.loss)
        self._epoch = self._pass = None
        return {
            "epoch": epoch,
            "train_loss": metrics.loss,
            "train_accuracy": metrics.accuracy,
            "val_loss": None if validated is None else validated.loss,
            "val_accuracy": None if validated is None else validated.accuracy,
            "seconds": seconds,
            "images_per_second": metrics.images / seconds,
        }

    def _rest(self, batch: int) -> Iterator[Batch]:
        """Give the batches of an epoch from one on; a loader knows by itself which they are."""
        if not isinstance(self._batches, Loader):
            return itertools.islice(self._batches, batch, None)
        self._pass = iter(self._batches)
        return self._pass

    def stop(self, reason: str) -> None:
        """Ask `fit` to end after this epoch; for callbacks."""
        self.stop_reason = reason

    def evaluate(self, data: Data, batch_size: int = 256) -> Metrics:
        """Return loss and accuracy over a data set, in inference mode."""
        return evaluate(self.model, data, self.loss, self.device, batch_size)

    def predict(self, images: Any, batch_size: int = 256) -> np.ndarray:
        """Return what the network says of each image, on the host.

        Parameters
        ----------
        images : (n, c, h, w) in the model's dtype, or a `Dataset`.
        batch_size : images at a time.

        Returns
        -------
        (n, classes): probabilities where the loss gives outputs that meaning (cross-entropy: their softmax), else the
        outputs.
        """
        return predict(self.model, images, self.loss, self.device, batch_size)

    def _parameters(self) -> list[Any]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

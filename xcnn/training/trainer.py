"""`Trainer`: a model, an optimizer and a loss on one device; one step, many epochs, evaluation and prediction."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xcnn import optim
from xcnn._array import Array
from xcnn.data import Loader
from xcnn.device import Device, to_numpy
from xcnn.device import device as open_device
from xcnn.errors import DataError, DivergedError, UsageError, XcnnError
from xcnn.nn import Module
from xcnn.threads import one_blas_thread
from xcnn.training._clock import clock
from xcnn.training.callbacks import Callback
from xcnn.training.inference import Batch, Data, Metrics, batches, correct, evaluate, place, predict
from xcnn.training.interrupt import delayed_interrupt
from xcnn.training.losses import Loss, loss_named

__all__ = ["Trainer"]


class Trainer:
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
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.loss = loss_named(loss)
        self.device = open_device(device)
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self.history: list[dict[str, Any]] = []
        self.stop_reason = ""
        owned = {id(parameter) for parameter in model.parameters()}
        if not all(id(parameter) in owned for parameter in self._parameters()):
            raise UsageError("Trainer: the optimizer has parameters that are not the model's; build it on this model's")
        self._buffers = [buffer for _, buffer in model.named_buffers()]
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
            Where the loss is not finite; the model's state is then that from before this step.
        ShapeError, DtypeError, UsageError
            Where the batch does not fit the model or the loss.
        """
        return self._step(place(x, self.device), place(y, self.device))[0]

    def _step(self, x: Array, y: Array) -> tuple[float, Array]:
        """Train on a batch on the device; return its loss and the output."""
        before = [buffer.data for buffer in self._buffers]
        output, backward = self.model.forward(x, train=True)
        loss, loss_backward = self.loss.function(output, y)
        value = float(loss)
        if not math.isfinite(value):
            for buffer, array in zip(self._buffers, before, strict=True):
                buffer.data = array
            raise self._diverged(value, output, y)
        self.optimizer.zero_grad()
        backward(loss_backward()[0], need_dx=False)
        if self.clip_value is not None:
            optim.clip_grad_value_(self._parameters(), self.clip_value)
        if self.clip_norm is not None:
            optim.clip_grad_norm_(self._parameters(), self.clip_norm)
        self.optimizer.step()
        if self.schedule is not None and self.schedule.unit == "step":
            self.schedule.step()
        return value, output

    def _diverged(self, value: float, output: Array, y: Array) -> XcnnError:
        # Ops that cannot read labels without stopping the device give NaN for those that are no class.
        if self.loss.classifies and y.ndim == 1:
            labels = to_numpy(y)
            strange = labels[(labels >= output.shape[1]) | ((labels < 0) & (labels != -100))]  # -100 is ignored
            if strange.size:
                return UsageError(f"the labels hold {strange[0]}, the model has classes 0 .. {output.shape[1] - 1}")
        return DivergedError(f"the loss is {value}; lower the learning rate, clip the gradients, or check the data")

    def fit(
        self,
        train: Data,
        epochs: int = 1,
        validation: Data | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> list[dict[str, Any]]:
        """Train for some epochs and return one record for each.

        Parameters
        ----------
        train : a `Loader`; a `Dataset` or (images, labels), in shuffled batches of 64; or a list of batches (x, y).
        epochs : passes over `train`.
        validation : evaluated after each epoch, if given.
        callbacks : told of every batch and epoch; see `xcnn.training.Callback`.

        Returns
        -------
        A list of dicts with `epoch`, `train_loss`, `train_accuracy`, `val_loss`, `val_accuracy` (None without
        validation), `seconds` (of training, without validation and the compiling of kernels) and `images_per_second`.

        Raises
        ------
        DivergedError
            Where the loss is not finite; it says in which epoch and batch.
        DataError
            Where there is no batch.
        KeyboardInterrupt
            On Ctrl-C, between two steps or at the end of an epoch.
        """
        if not isinstance(epochs, int) or epochs < 1:
            raise UsageError(f"fit: epochs must be an integer of at least 1, got {epochs!r}")
        if not isinstance(callbacks, Sequence) or not all(isinstance(callback, Callback) for callback in callbacks):
            raise UsageError(f"fit: callbacks must be a list of Callback objects, got {callbacks!r}")
        made = batches(train)
        self.stop_reason = ""
        first = len(self.history)
        for callback in callbacks:
            callback.on_fit_start(self, len(made), epochs)
        try:
            with one_blas_thread(), delayed_interrupt() as check_interrupt:
                for epoch in range(first + 1, first + epochs + 1):
                    record = self._epoch(epoch, made, validation, callbacks, check_interrupt)
                    self.history.append(record)
                    for callback in callbacks:
                        callback.on_epoch_end(self, record)
                    check_interrupt()
                    if self.stop_reason:
                        break
        finally:
            for callback in callbacks:
                callback.on_fit_end(self)
        return self.history[first:]

    def _epoch(
        self,
        epoch: int,
        made: Loader | Sequence[Batch],
        validation: Data | None,
        callbacks: Sequence[Callback],
        check_interrupt: Callable[[], None],
    ) -> dict[str, Any]:
        metrics, start = Metrics(), clock()
        for batch, (x, y) in enumerate(made, 1):
            x, y = place(x, self.device), place(y, self.device)
            try:
                loss, output = self._step(x, y)
            except DivergedError as error:
                raise DivergedError(f"epoch {epoch}, batch {batch}: {error}") from None
            metrics.add(x.shape[0], loss, correct(self.loss, output, y))
            for callback in callbacks:
                callback.on_batch_end(self, epoch, batch, metrics)
            check_interrupt()
        if not metrics.images:
            raise DataError(f"epoch {epoch}: there is no batch to train on (an iterator gives its batches only once)")
        seconds = clock() - start
        validated = None if validation is None else self.evaluate(validation)
        if self.schedule is not None and self.schedule.unit == "epoch":
            self.schedule.step(metrics.loss if validated is None else validated.loss)
        return {
            "epoch": epoch,
            "train_loss": metrics.loss,
            "train_accuracy": metrics.accuracy,
            "val_loss": None if validated is None else validated.loss,
            "val_accuracy": None if validated is None else validated.accuracy,
            "seconds": seconds,
            "images_per_second": metrics.images / seconds,
        }

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

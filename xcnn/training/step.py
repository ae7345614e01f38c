"""One training step: gradients, clipping and the update. If the step fails, the state from before it is restored."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn import optim
from xcnn._array import Array
from xcnn.devices import Device, on_host, to_numpy
from xcnn.errors import UsageError, XcnnError
from xcnn.nn import Module
from xcnn.parameter import Parameter
from xcnn.training.divergence import divergence, look
from xcnn.training.feed import place
from xcnn.training.losses import Loss
from xcnn.training.memory import memory_error, ran_out

__all__ = ["Step"]


@dataclass
class Step:
    """The step of a `Trainer`; the fields are its arguments."""

    model: Module
    optimizer: optim.Optimizer
    loss: Loss
    device: Device
    schedule: optim.Schedule | None
    clip_norm: float | None
    clip_value: float | None

    def __post_init__(self) -> None:
        model = self.model
        owned = {id(parameter) for parameter in model.parameters()}
        if not all(id(parameter) in owned for parameter in self._parameters()):
            raise UsageError("Trainer: the optimizer has parameters of another model; build it from model.parameters()")
        self._buffers = [buffer for _, buffer in model.named_buffers()]
        self._random = any(True for _ in model.named_generators())

    def __call__(
        self, x: Any, y: Any, count: bool = False, make_room: Callable[[], bool] = lambda: False
    ) -> tuple[float, int, int | None]:
        """Train on a batch and return its loss, its number of images and, if `count`, its number of correct answers.

        If memory runs out before the update, `make_room` is called; if it returns True, the step is repeated.
        """
        put_back, updating = self._remember(), False
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
        # Outside the except block nothing refers to the exception any more, nor to the arrays that the layers saved.
        self.model.zero_grad()
        if not updating and make_room():
            return self(x, y, count, make_room)
        raise memory_error(np.shape(x) if isinstance(x, list) else x.shape, self.device, updating)

    def _gradients(self, x: Any, y: Any, count: bool, put_back: Callable[[], None]) -> tuple[float, int, int | None]:
        """Compute and clip all gradients and return what `__call__` returns, waiting for the device once.

        If the loss or a gradient is not finite, everything but the gradients is restored before the error is raised.
        """
        dtype = self.optimizer.param_groups[0]["params"][0].data.dtype
        x, y = place(x, self.device, dtype), place(y, self.device, dtype)
        output, backward = self.model.forward(x, train=True)
        loss, loss_backward = self.loss.function(output, y)
        right = self.loss.count_correct(output, y) if count else None
        if not on_host(loss) or math.isfinite(loss):
            self.optimizer.zero_grad()
            backward(loss_backward()[0], need_dx=False)
        del backward, loss_backward  # frees the saved arrays: a batch that diverges runs once more
        gradients = [p.grad for p in self._parameters()]
        if all(gradient is None for gradient in gradients) and math.isfinite(loss):
            raise UsageError(
                "Trainer: no parameter of the optimizer got a gradient; if all are frozen, call unfreeze() on a part "
                "of the model, such as model[-1].unfreeze()"
            )
        value, right, finite = look(loss, right, gradients)
        if not (math.isfinite(value) and finite):
            raise self._diverged(value, output, x, y, put_back)
        if self.clip_value is not None:
            optim.clip_grad_value_(self._parameters(), self.clip_value)
        if self.clip_norm is not None:
            optim.clip_grad_norm_(self._parameters(), self.clip_norm)
        return value, output.shape[0], right

    def _diverged(self, value: float, output: Array, x: Array, y: Array, put_back: Callable[[], None]) -> XcnnError:
        """Restore the state from before the step and return the error that names the layer at fault."""
        put_back()
        try:
            # Ops that cannot check labels without waiting for the device return NaN for invalid ones.
            if self.loss.classifies and y.ndim == 1:
                labels = to_numpy(y)
                wrong = labels[(labels >= output.shape[1]) | ((labels < 0) & (labels != -100))]  # -100 is ignored
                if wrong.size:
                    return UsageError(f"the labels hold {wrong[0]}, the model has classes 0 .. {output.shape[1] - 1}")
            return divergence(self.model, self.loss.function, value, x, y)
        finally:
            self.model.zero_grad()
            put_back()

    def _parameters(self) -> list[Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _remember(self) -> Callable[[], None]:
        """Return a function that restores the current running statistics and random streams."""
        arrays = [buffer.data for buffer in self._buffers]
        streams = [stream.bit_generator for _, stream in self.model.named_generators()] if self._random else []
        states = [stream.state for stream in streams]

        def put_back() -> None:
            for buffer, array in zip(self._buffers, arrays, strict=True):
                buffer.data = array
            for stream, state in zip(streams, states, strict=True):
                stream.state = state

        return put_back

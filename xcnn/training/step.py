"""One training step: gradients, clipping and the update. If the step fails, the state from before it is restored."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn import ops, optim
from xcnn._array import Array, is_kind, namespace_of
from xcnn.devices import Device, on_host, to_numpy
from xcnn.errors import ShapeError, UsageError, XcnnError
from xcnn.nn import Module
from xcnn.nn._members import members
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
    accumulate: int = 1

    def __post_init__(self) -> None:
        model = self.model
        owned = {id(parameter) for parameter in model.parameters()}
        if not all(id(parameter) in owned for parameter in self._parameters()):
            raise UsageError("Trainer: the optimizer has parameters of another model; build it from model.parameters()")
        trained = {id(parameter) for parameter in self._parameters()}
        self._untrained = [parameter for parameter in model.parameters() if id(parameter) not in trained]
        self._buffers = [buffer for _, buffer in model.named_buffers()]
        self._random = [one for _, one in model.modules() if members(one._entries(), np.random.Generator)]

    def __call__(
        self, x: Any, y: Any, count: bool = False, make_room: Callable[[], bool] = lambda: False
    ) -> tuple[Any, ...]:
        """Train on a batch and return its number of samples and its loss.

        If `count`, the number of correct answers, that of answers that count, and the size of the mean follow, as
        `Metrics.add` takes them.

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
        raise memory_error(
            np.shape(x) if isinstance(x, list) else x.shape, self.device, updating, accumulate=self.accumulate
        )

    def _gradients(self, x: Any, y: Any, count: bool, put_back: Callable[[], None]) -> tuple[Any, ...]:
        """Compute and clip all gradients and return what `__call__` returns, waiting for the device once.

        If the loss or a gradient is not finite, everything but the gradients is restored before the error is raised.
        """
        parameters = self._parameters()
        dtype = parameters[0].data.dtype
        parts = self._parts(place(x, self.device, dtype), place(y, self.device, dtype))
        samples, classes = 0, 0
        losses: list[Any] = []
        counts: list[Any] = []
        for (images, targets), share in zip(parts, self._shares(parts), strict=True):
            output, backward = self.model.forward(images, train=True)
            loss, loss_backward = self.loss(output, targets)
            samples, classes = samples + output.shape[0], output.shape[min(1, output.ndim - 1)]
            losses.append(loss if share is None else _weighed(loss, share))
            if count:
                counts += self.loss.counts(output, targets)
            like = output.shape, output.dtype
            del output
            if on_host(losses[-1]) and not math.isfinite(losses[-1]):
                del backward, loss_backward
                break
            if len(losses) == 1:
                self.optimizer.zero_grad()
                for parameter in self._untrained:  # their gradients would add up for ever
                    parameter.grad = None
            dy = self.loss.gradient(loss_backward, like)
            if share is not None:
                dy = dy * (share if on_host(share) else namespace_of(share).astype(share, dy.dtype))
            backward(dy, need_dx=False)
            del backward, loss_backward, dy  # frees the saved arrays before the next part, or a second run
        else:
            if all(p.grad is None for p in parameters):
                raise UsageError(
                    "Trainer: no parameter of the optimizer got a gradient; if all are frozen, call unfreeze() on a "
                    "part of the model, such as model[-1].unfreeze()"
                )
        gradients = [p.grad for p in parameters]
        seen, finite = look([*losses, *counts], gradients)
        value, counted = sum(seen[: len(losses)]), seen[len(losses) :]
        if not (math.isfinite(value) and finite):
            raise self._diverged(value, classes, parts, put_back)
        if self.clip_value is not None:
            optim.clip_grad_value_(parameters, self.clip_value)
        if self.clip_norm is not None:
            optim.clip_grad_norm_(parameters, self.clip_norm)
        return samples, value, *(_added(counted[column::3]) for column in range(3 if count else 0))

    def _parts(self, x: Array, y: Array) -> list[tuple[Array, Array]]:
        """Cut a batch into parts that are computed one after the other, by its shape alone."""
        n = x.shape[0] if self.accumulate > 1 and x.ndim and y.ndim else 0
        if n < 2:
            return [(x, y)]
        if y.shape[0] != n:
            raise ShapeError(f"step: x has {n} samples, y has {y.shape[0]}")
        size = -(-n // self.accumulate)
        return [(x[i:j, ...], y[i:j, ...]) for i, j in ((i, min(i + size, n)) for i in range(0, n, size))]

    def _shares(self, parts: list[tuple[Array, Array]]) -> list[Any]:
        """Return the share of each part in the mean over the batch, numbers or 0-d arrays; None for a single part."""
        if len(parts) == 1:
            return [None]
        sizes = [_entries(self.loss.size(targets)) for _, targets in parts]
        if all(map(on_host, sizes)):
            total = float(sum(sizes))
            return [float(size) / total if total else math.nan for size in sizes]
        xp, weight = namespace_of(sizes[0]), self._parameters()[0].data
        dtype = xp.float64 if weight.dtype == xp.float64 else xp.float32
        sizes = [xp.astype(size, dtype) for size in sizes]
        return [size / sum(sizes[1:], sizes[0]) for size in sizes]

    def _diverged(
        self, value: float, classes: int, parts: list[tuple[Array, Array]], put_back: Callable[[], None]
    ) -> XcnnError:
        """Restore the state from before the step and return the error that names the layer at fault."""
        put_back()
        try:
            # Ops that cannot check targets without waiting for the device return NaN for invalid ones.
            indices = self.loss.classifies and is_kind(namespace_of(parts[0][1]), parts[0][1].dtype, "integral")
            if indices:
                labels, ignored = np.concatenate([to_numpy(y).ravel() for _, y in parts]), self.loss.ignore_index
                wrong = labels[((labels >= classes) | (labels < 0)) & (labels != ignored)]
                if wrong.size:
                    return UsageError(f"the labels hold {wrong[0]}, the model has classes 0 .. {classes - 1}")
                if labels.size == 0:
                    return UsageError("the batch is empty; a batch needs at least one example")
                if (labels == ignored).all():
                    return UsageError(f"every label of the batch is {ignored}, which is ignored")
            for _, y in parts if self.loss.function is ops.binary_cross_entropy_with_logits else ():
                targets = to_numpy(y)
                outside = targets[(targets < 0.0) | (targets > 1.0)]
                if outside.size:
                    return UsageError(f"the targets hold {outside[0]}, the loss takes probabilities from 0 to 1")
            return divergence(self.model, self.loss, value, parts)
        finally:
            self.model.zero_grad()
            put_back()

    def _parameters(self) -> list[Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _remember(self) -> Callable[[], None]:
        """Return a function that restores the current running statistics and random streams."""
        arrays = [buffer.data for buffer in self._buffers]
        drawn = [stream for one in self._random for _, stream in members(one._entries(), np.random.Generator)]
        streams = [stream.bit_generator for stream in drawn]
        states = [stream.state for stream in streams]

        def put_back() -> None:
            for buffer, array in zip(self._buffers, arrays, strict=True):
                buffer.data = array
            for stream, state in zip(streams, states, strict=True):
                stream.state = state

        return put_back


def _weighed(loss: Any, share: Any) -> Any:
    """Return a loss times its share in the mean; 0 if the share is 0, as the mean of no answers is NaN."""
    if on_host(share):
        return loss * share if share else 0.0
    xp = namespace_of(share)
    return xp.where(share == 0.0, xp.zeros_like(loss), loss * xp.astype(share, loss.dtype))


def _entries(numbers: Any) -> Any:
    """Return the sum of an array, 0-d, and other numbers as they are."""
    return namespace_of(numbers).sum(numbers) if getattr(numbers, "ndim", 0) else numbers


def _added(numbers: Iterable[Any]) -> Any:
    """Return the sum of Python numbers, or None if there is none to add."""
    made = list(numbers)
    return None if any(number is None for number in made) else sum(made)

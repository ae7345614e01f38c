"""One training step: gradients, clipping and the update. If the step fails, the state from before it is restored."""

import functools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xcnn import ops, optim
from xcnn._array import is_kind, namespace_of
from xcnn.devices import Device, on_host, to_numpy
from xcnn.errors import DivergedError, UsageError, XcnnError
from xcnn.nn import Module
from xcnn.nn._members import members
from xcnn.ops._parts import alone
from xcnn.parameter import Parameter
from xcnn.training.divergence import divergence, look
from xcnn.training.feed import as_array, place
from xcnn.training.lockstep import gathered, lockstep
from xcnn.training.losses import Loss
from xcnn.training.memory import memory_error, ran_out
from xcnn.training.parts import Cut, Part, Parts, Statistics, Streams, widest
from xcnn.training.processes import Done
from xcnn.training.sums import Gradients

__all__ = ["BUCKET", "SLICE", "Step", "bucket"]

BUCKET, SLICE = 1 << 18, 1 << 15
"""The least sizes in bytes of gradients that are exchanged as one, and of what each process is sent of them."""

_FIGURES = 1
"""The tag of the exchange of losses and counts."""

Gathered = tuple[list[np.ndarray], Done]


def bucket(size: int) -> int:
    """Return from how many bytes on gradients are sent to `size` processes while the backward pass still runs.

    Many small exchanges overlap with the backward pass, but every message has a cost.
    """
    return max(BUCKET, SLICE * size)


@dataclass
class Step:
    """The step of a `Trainer`; the fields are its arguments.

    Attributes
    ----------
    notice : a number that the next step passes to all processes, and afterwards the largest that any has passed.
    """

    model: Module
    optimizer: optim.Optimizer
    loss: Loss
    device: Device
    schedule: optim.Schedule | None
    clip_norm: float | None
    clip_value: float | None
    cut: Cut = field(default_factory=Cut)
    sync_batch_norm: bool = False
    notice: int = 0

    def __post_init__(self) -> None:
        model = self.model
        owned = {id(parameter) for parameter in model.parameters()}
        if not all(id(parameter) in owned for parameter in self._parameters()):
            raise UsageError("Trainer: the optimizer has parameters of another model; build it from model.parameters()")
        trained = {id(parameter) for parameter in self._parameters()}
        self._first = self._parameters()[0]  # whose dtype batches get
        self._untrained = [parameter for parameter in model.parameters() if id(parameter) not in trained]
        self._buffers = [buffer for _, buffer in model.named_buffers()]
        self._random = [one for _, one in model.modules() if members(one._entries(), np.random.Generator)]
        self._sums = Gradients(self.cut.processes, bucket(self.cut.processes.size))

    def __call__(
        self, x: Any, y: Any, count: bool = False, make_room: Callable[[], bool] = lambda: False
    ) -> tuple[Any, ...]:
        """Train on a batch and return its number of samples and its loss, as `train_on` does."""
        return self.train_on(self.cut.parts(as_array(x), as_array(y)), count, make_room)

    def train_on(
        self, batch: Parts, count: bool = False, make_room: Callable[[], bool] = lambda: False
    ) -> tuple[Any, ...]:
        """Train on a batch and return its number of samples and its loss.

        If `count`, the number of correct answers, that of answers that count, and the size of the mean follow, as
        `Metrics.add` takes them.

        If memory runs out before the update, `make_room` is called; if it returns True, the step is repeated, unless
        other processes wait for it.
        """
        put_back, updating = self._remember(), False
        try:
            seen = self._gradients(batch, count, put_back)
            updating = True
            self.optimizer.step()
            if self.schedule is not None and self.schedule.unit == "step":
                self.schedule.step()
            return seen
        except Exception as error:
            self._sums.drop()
            if not updating:
                put_back()
            if not ran_out(error, self.device):
                raise
        # Outside the except block nothing refers to the exception any more, nor to the arrays that the layers saved.
        self.model.zero_grad()
        if not updating and self.cut.processes.size == 1 and make_room():
            return self.train_on(batch, count, make_room)
        shape = batch.samples, *(np.shape(batch.mine[0].x)[1:] if batch.mine else ())
        raise memory_error(shape, self.device, updating, accumulate=self.cut.most)

    def _gradients(self, batch: Parts, count: bool, put_back: Callable[[], None]) -> tuple[Any, ...]:
        """Compute and clip all gradients and return what `train_on` returns, waiting for the device once.

        If the loss or a gradient is not finite, everything but the gradients is restored before the error is raised.
        """
        parameters = self._parameters()
        if self.cut.whole:
            figures, classes = self._whole(batch.mine[0], count)
            gradients = [p.grad for p in parameters]
            seen, finite = look(figures, gradients)
            value = seen[0]
        else:
            figures, classes = self._in_parts(batch, count)
            gradients = [p.grad for p in parameters]
            first = _total(figures[3::4])  # not a loss, as that of no answers is NaN
            if not (on_host(first) or on_host(figures[0])):
                first = namespace_of(first).astype(first, figures[0].dtype)
            (_, *seen), finite = look([first, *figures], gradients)
            value = _mean(seen[::4], seen[3::4])
        if not (math.isfinite(value) and finite):
            raise self._diverged(value, classes, batch, seen, put_back)
        if all(grad is None for grad in gradients):
            raise UsageError(
                "Trainer: no parameter of the optimizer got a gradient; if all are frozen, call unfreeze() on a "
                "part of the model, such as model[-1].unfreeze()"
            )
        if self.clip_value is not None:
            optim.clip_grad_value_(parameters, self.clip_value)
        if self.clip_norm is not None:
            optim.clip_grad_norm_(parameters, self.clip_norm)
        return batch.samples, value, *(_added(seen[column::4]) for column in (1, 2, 3) if count)

    def _whole(self, part: Part, count: bool) -> tuple[list[Any], int]:
        """Compute the gradients of a batch of one part; return the figures of `_forward`, and the number of classes."""
        figures, classes, backward = self._forward(part, count)
        if not on_host(figures[0]) or math.isfinite(figures[0]):
            self._zero_grad()
            backward(None)
        return figures, classes

    def _in_parts(self, batch: Parts, count: bool) -> tuple[list[Any], int]:
        """Do what `_whole` does for a batch in parts, of which this process computes its own."""
        processes, several = self.cut.processes, batch.count > 1
        together = self.sync_batch_norm and several
        streams = Streams(self._streams())
        statistics = Statistics(self._buffers, processes, batch.count, bool(batch.mine))
        self._zero_grad()
        self._sums.begin(self._parameters(), batch.count)
        figures, classes = list[Any](), 0
        numbers = None if batch.mine else self._numbers([], batch.count)

        def compute(part: Part) -> bool:
            """Compute a part; return False to leave out the others, as the loss is lost."""
            nonlocal classes, numbers
            last = part is batch.mine[-1]
            streams.go_to(part.number)
            statistics.reset()
            found, classes, backward = self._forward(part, count or several)
            figures.extend(found)
            if processes.size == 1 and not together and _lost(found):
                return False
            statistics.take(part.number, last)
            if last and processes.size > 1:  # so that the numbers travel during the last backward pass
                numbers = self._numbers(look(figures)[0], batch.count)
            with self._sums.part(part.number, last and not together):
                backward(_entries(found[3]) if several else None)  # the gradient of the sum of the losses
            return True

        if together:
            self._in_lockstep([functools.partial(compute, part) for part in batch.mine], batch.count)
        elif not all(map(compute, batch.mine)):
            return figures, classes
        if numbers is not None:
            figures = self._all_figures(numbers, batch.count)
        self._sums.finish(_total(figures[3::4]) if several else None)
        statistics.finish(processes)
        streams.go_to(batch.count)
        return figures, classes

    def _in_lockstep(self, tasks: Sequence[Callable[[], bool]], count: int) -> None:
        """Compute parts whose batch norms use the statistics of all `count` parts of the batch."""
        processes, parameters = self.cut.processes, self.model.parameters()

        def active(task: Callable[[], bool]) -> bool:
            with self.device.active():  # which is that of a thread
                return task()

        def remember() -> Callable[[], None]:
            put_back, gradients = self._remember(), [parameter.grad for parameter in parameters]

            def restore() -> None:
                put_back()
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient

            return restore

        if tasks:
            counts = [len(processes.share(count, rank)) for rank in range(processes.size)]
            gather = functools.partial(gathered, processes, counts)
            lockstep([functools.partial(active, task) for task in tasks], gather, remember)

    def _forward(self, part: Part, count: bool) -> tuple[list[Any], int, Callable[[Any], None]]:
        """Compute a part forward, in training.

        Returns
        -------
        figures : the loss, and if `count` the right answers, the answers that count, and the size of the mean.
        classes : the number of classes.
        backward : a function of the weight of the loss, or None, that computes the part backward, once.
        """
        dtype = self._first.data.dtype
        images, targets = place(part.x, self.device, dtype), place(part.y, self.device, dtype)
        output, back = self.model.forward(images, train=True)
        loss, loss_back = self.loss(output, targets)
        figures = [loss, *(self.loss.counts(output, targets) if count else (None, None, None))]
        like = output.shape, output.dtype
        passes = [back, loss_back]

        def backward(weight: Any) -> None:
            back, loss_back = passes
            passes.clear()  # so that what the layers keep is freed on the way
            dy = self.loss.gradient(loss_back, like)
            if weight is not None:
                dy = dy * (float(weight) if on_host(weight) else namespace_of(dy).astype(weight, dy.dtype))
            del loss_back
            back(dy, need_dx=False)

        return figures, output.shape[min(1, output.ndim - 1)], backward

    def _zero_grad(self) -> None:
        self.optimizer.zero_grad()
        for parameter in self._untrained:  # their gradients would add up for ever
            parameter.grad = None

    def _numbers(self, figures: Sequence[Any], count: int) -> Gathered:
        """Begin to exchange the figures of the parts, and the notice, with the other processes."""
        processes = self.cut.processes
        row = np.full((1 + -(-count // processes.size), 4), np.nan)  # NaN for None; no loss of a part is None
        row[0, 0] = self.notice
        known = np.asarray([math.nan if one is None else one for one in figures], np.float64).reshape(-1, 4)
        row[1 : 1 + len(known)] = known
        return processes.begin_gather(row, _FIGURES)

    def _all_figures(self, numbers: Gathered, count: int) -> list[Any]:
        """Return the figures of all parts, and set the notice to the largest of all processes."""
        rows, done = numbers
        processes = self.cut.processes
        processes.wait(done)
        self.notice = int(max(row[0, 0] for row in rows))
        of_each = [row[1 : 1 + len(processes.share(count, rank))] for rank, row in enumerate(rows)]
        losses, *counts = np.concatenate(of_each).T.tolist()
        right, answers = ([None if math.isnan(one) else int(one) for one in column] for column in counts[:2])
        sizes = [None if math.isnan(one) else one for one in counts[2]]
        return [one for four in zip(losses, right, answers, sizes, strict=True) for one in four]

    def _diverged(
        self, value: float, classes: int, batch: Parts, figures: Sequence[Any], put_back: Callable[[], None]
    ) -> XcnnError:
        """Restore the state from before the step and return the error that names the layer at fault.

        It is the same error in all processes, that of the first one which finds a fault in its parts.
        """
        processes, found = self.cut.processes, None
        put_back()
        try:
            sure = processes.size == 1 or not any(figures[3::4])  # no part has an answer, or there is one part
            lost = sure or any(_lost(figures[4 * part.number :]) for part in batch.mine)
            if batch.mine and (lost or math.isfinite(value)):
                found = self._fault(value, classes, batch, sure)
        finally:
            self.model.zero_grad()
            put_back()
        if processes.size > 1:
            said = {} if found is None else {"kind": type(found).__name__, "says": str(found)}
            said = next(filter(None, map(json.loads, processes.gather_bytes(json.dumps(said).encode()))), {})
            kind = UsageError if said.get("kind") == "UsageError" else DivergedError
            what = ("a gradient is not finite, " if math.isfinite(value) else "") + f"the loss is {value:.4g}"
            return kind(said.get("says", f"{what}, though that of each part is finite; lower the learning rate"))
        assert found is not None
        return found

    def _fault(self, value: float, classes: int, batch: Parts, sure: bool) -> XcnnError | None:
        """Return the error that names what is wrong in the parts of this process; None if that is not `sure` there."""
        dtype = self._first.data.dtype
        parts = [(place(one.x, self.device, dtype), place(one.y, self.device, dtype)) for one in batch.mine]
        # Ops that cannot check targets without waiting for the device return NaN for invalid ones.
        if self.loss.classifies and is_kind(namespace_of(parts[0][1]), parts[0][1].dtype, "integral"):
            labels, ignored = np.concatenate([to_numpy(y).ravel() for _, y in parts]), self.loss.ignore_index
            wrong = labels[((labels >= classes) | (labels < 0)) & (labels != ignored)]
            if wrong.size:
                return UsageError(f"the labels hold {wrong[0]}, the model has classes 0 .. {classes - 1}")
            if sure and labels.size == 0:
                return UsageError("the batch is empty; a batch needs at least one example")
            if sure and (labels == ignored).all():
                return UsageError(f"every label of the batch is {ignored}, which is ignored")
        for _, y in parts if self.loss.function is ops.binary_cross_entropy_with_logits else ():
            targets = to_numpy(y)
            outside = targets[(targets < 0.0) | (targets > 1.0)]
            if outside.size:
                return UsageError(f"the targets hold {outside[0]}, the loss takes probabilities from 0 to 1")
        if not self.sync_batch_norm:
            return divergence(self.model, self.loss, value, parts, sure)
        together = [namespace_of(arrays[0]).concat(arrays) for arrays in zip(*parts, strict=True)]
        with alone():  # what is left may be one element per mean
            return divergence(self.model, self.loss, value, [(together[0], together[1])], sure)

    def _parameters(self) -> list[Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _streams(self) -> list[Any]:
        drawn = [stream for one in self._random for _, stream in members(one._entries(), np.random.Generator)]
        return [stream.bit_generator for stream in drawn]

    def _remember(self) -> Callable[[], None]:
        """Return a function that restores the current running statistics and random streams."""
        arrays = [buffer.data for buffer in self._buffers]
        streams = self._streams()
        states = [stream.state for stream in streams]

        def put_back() -> None:
            for buffer, array in zip(self._buffers, arrays, strict=True):
                if buffer.data is not array:  # as programs are checked after each change
                    buffer.data = array
            for stream, state in zip(streams, states, strict=True):
                stream.state = state

        return put_back


def _lost(figures: Sequence[Any]) -> bool:
    """Return whether the loss of a part is known not to be finite, and counts."""
    loss, size = figures[0], figures[3]
    return on_host(loss) and not math.isfinite(loss) and not (on_host(size) and not np.any(size))


def _mean(losses: Sequence[float], sizes: Sequence[Any]) -> float:
    """Return the mean of the losses of parts, by the sizes of their means; the loss of no answers is NaN."""
    if len(losses) == 1:
        return losses[0]
    weighed = [loss * size for loss, size in zip(losses, sizes, strict=True) if size]
    return float(sum(weighed) / sum(sizes)) if weighed else math.nan


def _total(sizes: Sequence[Any]) -> Any:
    """Return the sum of the sizes of the parts: a float, or a 0-d array of the device, as wide as a float."""
    entries = [_entries(size) for size in sizes if size is not None]
    entries = [one if on_host(one) else namespace_of(one).astype(one, widest(namespace_of(one))) for one in entries]
    total = sum(entries[1:], entries[0]) if entries else 1.0
    return float(total) if on_host(total) else total


def _entries(numbers: Any) -> Any:
    """Return the sum of an array, 0-d, and other numbers as they are."""
    return namespace_of(numbers).sum(numbers) if getattr(numbers, "ndim", 0) else numbers


def _added(numbers: Iterable[Any]) -> Any:
    """Return the sum of Python numbers, or None if there is none to add."""
    made = list(numbers)
    return None if any(number is None for number in made) else sum(made)

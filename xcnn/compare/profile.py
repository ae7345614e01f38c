"""Where the time of a step goes: each layer of a network, forward and backward, and what is left over.

A clock runs around the calls of every layer. It counts the host's time: on a device that works on its own (CUDA), that
is the time to launch. Time that belongs to no layer is the loss, the optimizer's update, and all that containers and
the trainer do. A layer that is watched runs by itself, so the
sum is more than a step of `Trainer` takes, which runs a ReLU with the layer before it.
"""

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from xcnn import nn
from xcnn.compare.case import Case
from xcnn.compare.contestants.xcnn import ready, stepper
from xcnn.nn._observe import observing
from xcnn.optim import Optimizer

__all__ = ["STEPS", "Row", "profile"]

STEPS = 3
"""At least so many are profiled."""


@dataclass(frozen=True)
class Row:
    """One layer, or what stands beside the layers.

    Attributes
    ----------
    name : its key in the network; empty beside the layers.
    what : its class; `"update"` for the optimizer, `"loss and the rest"`.
    forward, backward : seconds per step, the medians.
    share : of the time of the whole step.
    flops : floating-point operations of its multiply-adds, forward and backward, per step.
    """

    name: str
    what: str
    forward: float
    backward: float
    share: float
    flops: int


class _Clock:
    """Adds up time under a key; one list of sums per key, an entry per step."""

    def __init__(self) -> None:
        self.running: dict[Any, float] = defaultdict(float)
        self.steps: list[dict[Any, float]] = []

    def around(self, key: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **options)
            self.running[key] += time.perf_counter() - start
            return result

        return timed

    def lap(self) -> None:
        self.steps.append(dict(self.running))
        self.running.clear()

    def median(self, key: Any) -> float:
        return statistics.median(step.get(key, 0.0) for step in self.steps)


def profile(case: Case, device: str, seconds: float) -> list[Row]:
    """Time the layers of xcnn's step in this process.

    Parameters
    ----------
    case : what to run.
    device : by its string.
    seconds : how long, about.
    """
    clock, flops = _Clock(), case.flops()
    with ready(case, device) as training, _watched(training.model, training.optimizer, clock):
        step = clock.around("step", stepper(case, training))
        step()  # the first is cold
        clock.running.clear()
        end = time.perf_counter() + seconds
        while len(clock.steps) < STEPS or time.perf_counter() < end:
            step()
            clock.lap()
        layers = [(name, type(layer).__name__) for name, layer in training.model.modules() if not any(layer.children())]
    whole = clock.median("step")
    rows = [
        _row(name, what, clock.median((name, "forward")), clock.median((name, "backward")), whole, flops.get(name, 0))
        for name, what in layers
    ]
    if case.mode == "train":
        rows.append(_row("", "update", 0.0, clock.median("update"), whole))
    rest = whole - sum(row.forward + row.backward for row in rows)
    return [*rows, _row("", "loss and the rest" if case.mode == "train" else "the rest", max(rest, 0.0), 0.0, whole)]


def _row(name: str, what: str, forward: float, backward: float, whole: float, flops: int = 0) -> Row:
    return Row(name, what, forward, backward, (forward + backward) / whole, flops)


@contextlib.contextmanager
def _watched(model: nn.Module, optimizer: Optimizer, clock: _Clock) -> Iterator[None]:
    """Time the layers and the optimizer's step inside a `with`."""

    def observer(name: str, layer: nn.Module) -> Callable[..., tuple[Any, Any]]:
        forward = clock.around((name, "forward"), layer.forward)

        def observed(x: Any, train: bool = True) -> tuple[Any, Any]:
            y, backward = forward(x, train)
            return y, clock.around((name, "backward"), backward)

        return observed

    vars(optimizer)["step"] = clock.around("update", optimizer.step)  # shadows the method on this instance alone
    try:
        with observing(model, observer):
            yield
    finally:
        del vars(optimizer)["step"]

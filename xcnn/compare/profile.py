"""The time of a step by layer, forward and backward, and the rest.

The host's clock times the calls of every layer; on a GPU that is the time to launch. The rest is the loss, and the work
of containers and the trainer. A timed layer runs by itself, so the sum exceeds a step of `Trainer`, which runs a ReLU
together with the layer before it.
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
"""The least number of profiled steps."""


@dataclass(frozen=True)
class Row:
    """The time of a layer, of the optimizer, or of the rest.

    Attributes
    ----------
    name : key of the layer in the network; empty beside the layers.
    what : class of the layer; else `"update"`, of the optimizer, or `"loss and the rest"`.
    forward, backward : median seconds per step.
    share : of the time of the whole step.
    flops : floating-point operations of the layer's multiply-adds, forward and backward, per step.
    """

    name: str
    what: str
    forward: float
    backward: float
    share: float
    flops: int


class _Clock:
    """Adds up time per key and step."""

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
    """Time the layers of xcnn's step in this process, for about so many seconds."""
    clock, flops = _Clock(), case.flops()
    with ready(case, device) as training, _watched(training.model, training.optimizer, clock):
        step = clock.around("step", stepper(case, training))
        step()  # the first step is cold
        clock.running.clear()
        end = time.perf_counter() + seconds
        while len(clock.steps) < STEPS or time.perf_counter() < end:
            step()
            clock.lap()
        layers = [(name, type(layer).__name__) for name, layer in training.model.modules() if not any(layer.children())]
    whole = clock.median("step")

    def row(name: str, what: str, forward: float, backward: float = 0.0) -> Row:
        return Row(name, what, forward, backward, (forward + backward) / whole, flops.get(name, 0))

    rows = [row(name, what, clock.median((name, "forward")), clock.median((name, "backward"))) for name, what in layers]
    if case.mode == "train":
        rows.append(row("", "update", 0.0, clock.median("update")))
    rest = max(0.0, whole - sum(one.forward + one.backward for one in rows))
    return [*rows, row("", "loss and the rest" if case.mode == "train" else "the rest", rest)]


@contextlib.contextmanager
def _watched(model: nn.Module, optimizer: Optimizer, clock: _Clock) -> Iterator[None]:
    """Time the layers and the optimizer's step inside a `with` block."""

    def observer(name: str, layer: nn.Module) -> Callable[..., tuple[Any, Any]]:
        forward = clock.around((name, "forward"), layer.forward)

        def observed(x: Any, train: bool = True) -> tuple[Any, Any]:
            y, backward = forward(x, train)
            return y, clock.around((name, "backward"), backward)

        return observed

    vars(optimizer)["step"] = clock.around("update", optimizer.step)  # shadows the method of this instance only
    try:
        with observing(model, observer):
            yield
    finally:
        del vars(optimizer)["step"]

"""The time of a step by layer, forward and backward, and the rest.

The host's clock times the calls of every layer; on a GPU, this is the time to launch them. The rest is the loss, and
the work of containers and the trainer. Timed layers run one by one, so the sum exceeds a step of `Trainer`, which fuses
a ReLU with the layer before it.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xcnn import nn
from xcnn.compare.case import Case
from xcnn.compare.contestants.xcnn import ready, stepper
from xcnn.nn._observe import observing

__all__ = ["STEPS", "Row", "profile"]

STEPS = 3
"""The smallest number of profiled steps."""


@dataclass(frozen=True)
class Row:
    """The time of a layer, of the optimizer, or of the rest.

    Attributes
    ----------
    name : dotted name of the layer, or "".
    what : class of the layer, `"update"` for the optimizer, or `"loss and the rest"`.
    forward, backward : median seconds per step.
    share : share of the time of the whole step.
    flops : floating-point operations of the layer's multiply-adds, forward and backward, per step.
    """

    name: str
    what: str
    forward: float
    backward: float
    share: float
    flops: int


class _Stopwatch:
    """Adds up the time of functions by key, in a dictionary per step."""

    def __init__(self) -> None:
        self.steps: list[dict[Any, float]] = [defaultdict(float)]

    def around(self, key: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **options)
            self.steps[-1][key] += time.perf_counter() - start
            return result

        return timed

    def median(self, key: Any) -> float:
        return statistics.median(step.get(key, 0.0) for step in self.steps)

    def observer(self, name: str, layer: nn.Module) -> Callable[..., tuple[Any, Any]]:
        """Time the passes of a layer; an observer for `observing`."""
        forward = self.around((name, "forward"), layer.forward)

        def observed(x: Any, train: bool = True) -> tuple[Any, Any]:
            y, backward = forward(x, train)
            return y, self.around((name, "backward"), backward)

        return observed


def profile(case: Case, device: str, seconds: float) -> list[Row]:
    """Return the time by layer of xcnn's step in this process, measured for about `seconds`."""
    watch, flops = _Stopwatch(), case.flops()
    with ready(case, device) as training, observing(training.model, watch.observer):
        optimizer = training.optimizer
        vars(optimizer)["step"] = watch.around("update", optimizer.step)  # shadows the method of this instance only
        step = watch.around("step", stepper(case, training))
        step()  # the first step is cold
        watch.steps.clear()
        end = time.perf_counter() + seconds
        while len(watch.steps) < STEPS or time.perf_counter() < end:
            watch.steps.append(defaultdict(float))
            step()
        layers = [(name, type(layer).__name__) for name, layer in training.model.modules() if not any(layer.children())]
    whole = watch.median("step")

    def row(name: str, what: str, forward: float, backward: float = 0.0) -> Row:
        return Row(name, what, forward, backward, (forward + backward) / whole, flops.get(name, 0))

    rows = [row(name, what, watch.median((name, "forward")), watch.median((name, "backward"))) for name, what in layers]
    if case.mode == "train":
        rows.append(row("", "update", 0.0, watch.median("update")))
    rest = max(0.0, whole - sum(one.forward + one.backward for one in rows))
    return [*rows, row("", "loss and the rest" if case.mode == "train" else "the rest", rest)]

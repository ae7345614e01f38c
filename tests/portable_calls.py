"""List the calls of bodies that no compiled kernel takes in random networks: losses of speed that nothing else shows.

`python tests/portable_calls.py --count 60 --seed 0` trains each network for a step and infers, in float32, and prints
each body that ran portably, its share of the time, and its arguments. Those of `KNOWN` are marked.
"""

import argparse
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xcnn import models, ops
from xcnn._dispatch import BODIES, kernels

__all__ = ["KNOWN", "Portable", "portable_calls", "recorded"]

KNOWN: dict[str, tuple[str, Callable[..., bool]]] = {
    "added": ("the kernel shares large sums out to threads; NumPy adds small ones as fast", lambda x, other: True),
    "concat": ("it calls the body `joined`, which has a kernel", lambda dim, *xs: True),
    "each": ("it calls a function for each piece", lambda *arguments: True),
    "conv": (
        "strides pass over most pixels, so that few are multiplied",
        lambda x, weight, bias, axes, *_: math.prod(a.stride for a in axes) > 4 * math.prod(a.kernel for a in axes),
    ),
    "pad": ("a copy; it is a part of convolutions and pools with uneven padding only", lambda *arguments: True),
    "prelu": ("it calls the body `pair`, which has a kernel", lambda x, weight: True),
    "rearranged": ("a copy of whole rows, which NumPy makes", lambda x, shape, order, *_: order[-1] == len(order) - 1),
    "reshape": ("a view", lambda x, shape: True),
    "tracked": ("it calls the body `norm`, which has a kernel", lambda *arguments: True),
}
"""Bodies that may run portably: why, and a function of the arguments that says whether it is expected."""


class Portable:
    """A body that ran portably: seconds of all calls, and descriptions of their arguments."""

    def __init__(self, known: bool) -> None:
        self.known, self.seconds, self.calls = known, 0.0, dict[str, int]()


def told(value: Any) -> str:
    """Return a short description of an argument of a body."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(told, value))})"
    return "function" if callable(value) else repr(value)


@contextlib.contextmanager
def recorded() -> Iterator[dict[tuple[str, bool], Portable]]:
    """Record the calls that no compiled kernel takes inside a `with`, by the name of the body and whether it is known.

    The kernels in plain NumPy that replace those of convolutions and products count as portable.
    """
    table, found = kernels(np), dict[tuple[str, bool], Portable]()
    before = {name: list(some) for name, some in table.items()}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments)
            if result is not NotImplemented:
                known = name in KNOWN and KNOWN[name][1](*arguments)
                one = found.setdefault((name, known), Portable(known))
                one.seconds += time.perf_counter() - start
                what = ", ".join(map(told, arguments))
                one.calls[what] = one.calls.get(what, 0) + 1
            return result

        return call

    try:
        for name, function in BODIES.items():
            table[name] = [
                timed(name, one) if one.__module__.endswith(".columns") else one for one in before.get(name, [])
            ]
            table[name].append(timed(name, lambda *arguments, function=function: function(np, *arguments)))
        yield found
    finally:
        table.clear()
        table.update(before)


def run(name: str, batch: int) -> None:
    """Make a step of training, without the update, and infer, with a network and images of random numbers."""
    entry, model, rng = models.entry(name), models.build(name), np.random.default_rng(0)
    x = rng.standard_normal((batch, *entry.shape), np.float32)
    y, backward = model.forward(x)
    _, loss_backward = ops.cross_entropy(y, rng.integers(0, entry.classes, (batch, *y.shape[2:])))
    backward(loss_backward()[0])
    model(x)


def portable_calls(seed: int, count: int, batch: int) -> tuple[dict[tuple[str, bool], Portable], float]:
    """Run random networks; return what ran portably, and the seconds of everything, without compiling kernels."""
    seconds, total = dict[tuple[str, bool], Portable](), 0.0
    for index in range(count):
        name = models.drawn_name(seed, index)
        with recorded() as found:
            run(name, batch)  # compiles
            for one in found.values():
                one.seconds = 0.0
            start = time.perf_counter()
            run(name, batch)
            total += time.perf_counter() - start
        for key, one in found.items():
            whole = seconds.setdefault(key, Portable(one.known))
            whole.seconds += one.seconds
            whole.calls |= {f"{what} in {name}": number for what, number in one.calls.items()}
    return seconds, total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=60, help="networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--shapes", type=int, default=5, help="calls shown of each body")
    options = parser.parse_args()
    found, total = portable_calls(options.seed, options.count, options.batch)
    for (name, known), one in sorted(found.items(), key=lambda item: -item[1].seconds):
        why = f"known: {KNOWN[name][0]}" if known else "NOT KNOWN"
        print(f"{name}: {sum(one.calls.values())} calls, {one.seconds / total:.2%} of the time; {why}")
        for what in list(one.calls)[: options.shapes]:
            print(f"    {what:.200}")


if __name__ == "__main__":
    main()

"""Compare the kernels for the CPU with the portable code in random calls of every body, between guard pages.

`python tests/fuzz_kernels.py --count 1000` makes so many calls of each body, in processes that may crash. A failure is
printed with the name of the body and the number of the call: `--bodies conv --first 381 --count 1` repeats it.
"""

import argparse
import collections
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from guard_pages import guarded, guards
from kernel_calls import CALLS, BodyCall, Seed

import xcnn.nn  # noqa: F401  some bodies are there
from xcnn import threads
from xcnn._dispatch import BODIES, COMPILATION, bound, kernels, portable

__all__ = ["check", "work"]


def each(function: Callable[[np.ndarray], Any], value: Any) -> Any:
    """Apply a function to all arrays of the arguments of a body."""
    if type(value) is tuple or type(value) is list:
        return type(value)(each(function, one) for one in value)
    return function(value) if isinstance(value, np.ndarray) else value


def arrays_of(value: Any) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    each(found.append, value)
    return found


def cast(value: Any, dtype: Any) -> Any:
    return each(lambda a: a.astype(dtype) if a.dtype.kind == "f" else a, value)


def strided(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that lays out arrays otherwise, at random."""

    def change(a: np.ndarray) -> np.ndarray:
        kind = rng.integers(6)
        if kind == 0 and a.ndim:
            a = np.asfortranarray(a)
        elif kind == 1 and a.ndim:
            a = np.repeat(a, 2, axis=-1)[..., ::2]
        elif kind == 2 and a.ndim:
            axis = int(rng.integers(a.ndim))
            a = np.flip(np.flip(a, axis).copy(), axis)
        elif kind == 3 and a.ndim > 1:
            a = np.ascontiguousarray(np.moveaxis(a, 1, -1))
            a = np.moveaxis(a, -1, 1)
        elif kind == 4 and a.ndim and a.size:
            a = np.pad(a, [(1, 2)] * a.ndim)[(slice(1, -2),) * a.ndim]
        else:
            a = a.copy()
        if rng.random() < 0.5:
            a = a.view()
            a.flags.writeable = False
        return a

    return change


Kernel = Callable[..., Any]


def by_kernel(name: str, taken: collections.Counter[str]) -> Kernel:
    """Return a function that calls the kernels of a body, as the dispatcher does."""

    def call(*arguments: Any) -> Any:
        for function in kernels(np)[name]:
            result = function(*arguments)
            if result is not NotImplemented:
                run = bound(BODIES[name], np, each(lambda a: a.copy("C"), arguments))
                y = NotImplemented if run is None else run(*arguments)
                if y is not NotImplemented:  # a bound kernel gives the same bits
                    assert same_bits(y, result[0] if isinstance(result, tuple) else result), "bound"
                taken[function.__module__.rsplit(".", 1)[1]] += 1
                run = bound(BODIES[name], np, each(lambda a: a.copy("C"), arguments), whole=True)
                whole = NotImplemented if run is None else run(*arguments)
                if whole is NotImplemented:
                    return result
                first, again = (one[0] if isinstance(one, tuple) else one for one in (result, whole))
                assert same_bits(first, again), "bound, with all results"
                return whole
        taken["portable"] += 1
        result = BODIES[name](np, *arguments)
        run = bound(BODIES[name], np, each(lambda a: a.copy("C"), arguments))
        y = NotImplemented if run is None else run(*arguments)
        assert y is NotImplemented or same_bits(y, result[0] if isinstance(result, tuple) else result), "only bound"
        return result

    return call


def by_body(name: str) -> Kernel:
    def call(*arguments: Any) -> Any:
        with portable(np), np.errstate(all="ignore"):
            return BODIES[name](np, *arguments)

    return call


def started(function: Kernel, call: BodyCall, arguments: tuple[Any, ...]) -> tuple[list[Any], Any]:
    """Return the results of a body and its backward."""
    generators: list[np.random.Generator] = []
    ready = []
    for one in arguments:
        if isinstance(one, Seed):
            generators.append(one.generator())
            one = generators[-1]
        ready.append(one)
    with np.errstate(all="ignore"):
        result = function(*ready)
    if call.gradients < 0:
        results, backward = [*result] if isinstance(result, tuple) else [result], None
    else:
        results, backward = [result[0], *result[2:]], result[1]
    return [*results, *(np.asarray(g.random(3, dtype=np.float32)) for g in generators)], backward


def same_bits(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.tobytes() == b.tobytes() or (a.dtype.kind == "f" and bool(np.all(_unsigned_nan(a) == _unsigned_nan(b))))


def _unsigned_nan(a: np.ndarray) -> np.ndarray:
    """Return the bits of numbers, those of any NaN being the same."""
    return np.where(np.isnan(a), np.nan, a).astype(a.dtype).view(f"u{a.itemsize}")


def close(a: Any, b: Any) -> bool:
    """Return whether two results that NumPy computed from arrays of other strides are equal within rounding."""
    size = np.max(np.abs(a), initial=0, where=np.isfinite(a))
    return np.allclose(a, b, 1e-3, 1e-3 * size, equal_nan=True)


MORE_NAN = {"conv": 1, "conv_transpose": 0}
"""Input gradients, which may have more NaN than the portable ones, as documented: infinite weights times padding of dy.
"""


FINITE = ("max_pool", "adaptive_max", "global_max", "cross_entropy")
"""Bodies whose results may differ if dy is not finite."""


def within(
    actual: Any, wanted: Any, truth: Any, exact: bool, margin: float, more_nan: bool = False, all_or_none: bool = False
) -> str:
    """Return what is wrong with a result, given the portable one, one of more digits, and the error that is right."""
    if (actual is None) != (wanted is None):
        return f"is {'None' if actual is None else 'not None'}"
    if wanted is None:
        return ""
    actual, wanted, truth = np.asarray(actual), np.asarray(wanted), np.asarray(truth)
    if (actual.shape, actual.dtype) != (wanted.shape, wanted.dtype):
        return f"is {actual.dtype} {actual.shape} instead of {wanted.dtype} {wanted.shape}"
    if exact or wanted.dtype.kind != "f":
        wrong = ~((actual == wanted) | ((actual != actual) & (wanted != wanted)))
        places = np.argwhere(wrong)[:3].tolist()
        return f"differs at {wrong.sum()} of {wrong.size} places, such as {places}" if wrong.any() else ""
    usual = np.isfinite(wanted)
    odd = ~usual & ~((actual == wanted) | ((actual != actual) & (wanted != wanted)))
    odd |= usual & ~np.isfinite(actual)
    if all_or_none:
        odd = np.isfinite(wanted) != np.isfinite(actual)
    if more_nan:
        usual &= ~np.isnan(actual)
        odd &= ~np.isnan(actual)
    if odd.any():
        at = tuple(np.argwhere(odd)[0])
        return (
            f"is {actual[at]} instead of {wanted[at]} at {odd.sum()} of {odd.size} places, such as {list(map(int, at))}"
        )
    usual &= np.isfinite(truth)
    difference = np.abs(actual[usual].astype(np.float64) - truth[usual])
    if difference.size and difference.max() > margin:
        place = np.argwhere(usual)[int(difference.argmax())].tolist()
        return f"is off by {difference.max():.3g}, more than {margin:.3g}, at {place} of {actual.shape}"
    return ""


def margins(small: list[Any], truth: list[Any], given: Any, dtype: Any) -> list[float]:
    """Return the error that is right for each result: a few times that of the portable code, and an eps of numbers."""
    eps = float(np.finfo(dtype).eps)
    all_finite = [a[np.isfinite(a)] for a in arrays_of(given)]
    size = max(float(np.max(np.abs(a), initial=1)) for a in [*all_finite, np.ones(1)])
    found = []
    for one, true in zip(small, truth, strict=True):
        if one is None or np.asarray(one).dtype.kind != "f":
            found.append(0.0)
            continue
        with np.errstate(all="ignore"):
            error, true = np.abs(np.asarray(one, np.float64) - true), np.abs(np.asarray(true))
        finite = np.isfinite(error)
        largest = float(true[true <= np.finfo(dtype).max].max(initial=0))
        found.append(
            (12 * float(error[finite].max(initial=0)) / np.finfo(np.float32).eps + 64 * largest + 4 * size) * eps
        )
    return found


def spoiled(rng: np.random.Generator, value: Any) -> Any:
    """Put numbers that are not finite into an array or two."""
    arrays = [a for a in arrays_of(value) if a.dtype.kind == "f" and a.size]
    for a in arrays:
        if rng.random() < 0.6:
            for _ in range(int(rng.integers(1, 3))):
                a.reshape(-1)[int(rng.integers(a.size))] = rng.choice([np.nan, np.inf, -np.inf, np.inf])
    return value


def check(name: str, seed: int, total: collections.Counter[str]) -> list[str]:
    """Make one call of a body in several ways; return what is wrong."""
    rng, taken = np.random.default_rng([seed, *name.encode()]), collections.Counter[str]()
    kind = str(rng.choice(["exact", "normal", "normal", "special"], p=[0.3, 0.3, 0.2, 0.2]))
    call = CALLS[name](rng, kind == "exact")
    dtype = rng.choice([np.float32, np.float64])
    threads._PART_MICROSECONDS = int(rng.choice([1, 20, 100]))
    arguments = cast(call.arguments, dtype)
    if kind == "special":
        arguments = cast(arguments, dtype)
        places = {"conv": 2, "conv_inference": 2, "conv_transpose": 2, "linear_inference": 3}
        places["norm_gradient"] = 2  # a y of NaN comes from an x of NaN, and then all of the channel is
        spoiled(rng, arguments[: places.get(name)])
    body, kernel = by_body(name), by_kernel(name, taken)
    exact = call.exact and kind != "special"

    # The portable code in three precisions: this one, float32 and float64.
    levels = [cast(arguments, level) for level in (dtype, np.float32, np.float64)]
    (wanted, back), (small, small_back), (truth, true_back) = (started(body, call, one) for one in levels)
    count = max(0, call.gradients)
    dy, gradients = None, [[], [], []]
    if count:
        shape = np.shape(wanted[0])
        dy = rng.integers(-8, 9, shape) / 8 if kind == "exact" else rng.standard_normal(shape)
        rounds = call.activation is not None and not call.activation[1]  # infinity times a slope that rounds to 0
        if kind == "special" and name not in FINITE and not rounds:
            dy = spoiled(rng, np.array(dy))
        if call.activation is not None and not exact:
            place, jumps = call.activation
            plain = list(levels[2])
            plain[place] = None
            (z, *_), _ = started(body, call, tuple(plain))
            for jump in jumps:
                dy = np.where(np.abs(z - jump) < 1e-3 * (1 + np.abs(jump)), 0.0, dy)
        if name == "elementwise":
            for jump in (0.0, 1.0, 2.0, 3.0, -1.0, -3.0, 6.0, -0.5):  # near, not at
                near = (np.abs(levels[2][0] - jump) < 1e-5) & (levels[2][0] != jump)
                dy = np.where(near, 0.0, dy)
        dy = np.asarray(dy, dtype)
        full = (True,) * count
        with portable(np), np.errstate(all="ignore"):
            gradients = [
                list(one(np.asarray(dy, level), full))
                for one, level in ((back, dtype), (small_back, np.float32), (true_back, np.float64))
            ]

    problems: list[str] = []
    before = [a.tobytes() for a in arrays_of(arguments)]
    runs: list[list[Any]] = []
    last: Any = None
    for way in ("as they are", "behind", "before", "strided"):  # compiling fails between guards
        compiled = COMPILATION.seconds
        threads.set_num_threads({"behind": 1, "before": 3}.get(way, int(rng.choice([1, 2, 3]))))
        between = way in ("behind", "before")
        change: Any = strided(rng) if way == "strided" else np.copy
        if between:
            change = lambda a, way=way: guarded(a.shape, a.dtype, way, a)  # noqa: E731
        given = each(change, arguments)
        with guards(way) if between else contextlib.nullcontext():
            results, backward = started(kernel, call, given)
            if count:
                with np.errstate(all="ignore"):
                    given_dy = change(dy)
                    results += backward(given_dy, full)
        runs.append(results)
        if way == "strided":
            if [a.tobytes() for a in arrays_of(given)] != before:
                problems.append("an argument has changed")
            if COMPILATION.seconds > compiled:
                taken["compiled again for strides"] += 1
            last = backward
    for way, other in zip(("one thread", "three threads", "other strides"), runs[1:], strict=True):
        for place, (a, b) in enumerate(zip(runs[0], other, strict=True)):
            strides = way == "other strides" and taken["products"] + taken["portable"] + taken["columns"]
            if not same_bits(a, b) and not (strides and close(a, b)):
                problems.append(f"result {place} has other bits with {way}")
    if count:
        for needs in itertools.product((False, True), repeat=count):
            with np.errstate(all="ignore"):
                some = last(given_dy, needs)
            for place, (a, b, need) in enumerate(zip(some, runs[-1][-count:], needs, strict=True)):
                if not same_bits(a, b if need else None):
                    problems.append(f"gradient {place} is other with needs {needs}")
    limits = margins(small + gradients[1], truth + gradients[2], [levels[2], *([] if dy is None else [dy])], dtype)
    compared = zip(runs[0], wanted + gradients[0], truth + gradients[2], limits, strict=True)
    for place, (actual, portable_one, true, limit) in enumerate(compared):
        wrong = within(actual, portable_one, true, exact, limit, MORE_NAN.get(name) == place, name == "norm")
        if wrong:
            problems.append(f"result {place} {wrong}")
    total.update(taken)
    if problems:
        told = each(lambda a: list(a.shape), call.arguments)
        problems.append(f"  [{kind} {np.dtype(dtype).name} {told}]")
    return problems


def work(names: list[str], first: int, last: int, place: str = os.devnull) -> list[str]:
    """Make calls, and print and return what is wrong; the file at `place` says which call is made."""
    failures, taken = [], {name: collections.Counter[str]() for name in names}
    with open(place, "w") as now:
        for seed, name in itertools.product(range(first, last), names):
            now.seek(0)
            print(seed, name, " " * 20, file=now, flush=True)
            try:
                problems = check(name, seed, taken[name])
            except Exception as error:
                problems = [f"raises {error!r:.200}"]
            if problems:
                failures.append(f"{name} {seed}: " + "; ".join(problems))
                print(failures[-1], flush=True)
    for name in names:
        print(f"= {name}: {last - first} calls, {dict(taken[name])}", flush=True)
    return failures


_CHUNK = 100


TILES = {
    "_stacks": {"_PLANE_BYTES": 6_000, "_NEAR_BYTES": 0, "_SUM_BYTES": 6_000, "_MICROSECONDS": 1, "_CALL": -(10**9)},
    "_winograd": {"_GAIN": 1e9, "_MOST": 6_000, "_SUM_BYTES": 6_000, "_MICROSECONDS": 1, "_FEWEST": 1, "_LEAST": 8},
    "depthwise": {"_BAND_BYTES": 6_000, "_MOVE": 10**9},
    "weight_gradients": {"_CHUNK_BYTES": 6_000, "_GAIN": 10**9},
    "_winograd_gradient": {"_TILE_BYTES": 12_000, "_WIDTH": 16, "_TILES": 1},
    "each": {"_FEW": 0},
    "elementwise": {"_FEW": 0},
    "columns": {"_TILE_BYTES": 2_000, "_LEAST_MICROSECONDS": 0},
    "_matrices": {"_ROOM": 98_304, "_LEAST_ROWS": 16},
}
"""Sizes so small that small arrays are cut as large ones are, and copies and tiles so cheap that they are used."""


def cut() -> None:
    """Use these sizes."""
    kernels(np)
    for name, sizes in TILES.items():
        for key, size in sizes.items():
            setattr(sys.modules[f"xcnn.kernels.cpu.{name}"], key, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bodies", default=",".join(CALLS))
    parser.add_argument("--count", type=int, default=100, help="calls of each body")
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--cut", action="store_true", help="cut work into small tiles")
    parser.add_argument("--place", help=argparse.SUPPRESS)
    options = parser.parse_args()
    first, last = options.first, options.first + options.count
    if options.place:
        if options.cut:
            cut()
        work(options.bodies.split(","), first, last, options.place)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "now")
        while first < last:
            count = min(_CHUNK, last - first)
            chosen = (
                f"--bodies={options.bodies}",
                f"--first={first}",
                f"--count={count}",
                f"--place={place}",
                *["--cut"] * options.cut,
            )
            code = subprocess.run([sys.executable, "-X", "faulthandler", __file__, *chosen], check=False).returncode
            first += count
            if code:
                seed, name = place.read_text().split()[:2]
                print(f"{name} {seed}: the process ended with {code}", flush=True)
                first = int(seed) + 1


if __name__ == "__main__":
    main()

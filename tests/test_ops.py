"""Every op on every sample input, array library and dtype: the product that the table `OPS` spans.

An op that is new in the table is tested here without a line of its own; it must only have samples, and a loop of the
same name in `reference.py`. What is expected of a sample is worked out once, in float64 on the host: y by the
reference, gradients by central differences of the op itself (which thereby must agree with the reference).
"""

import functools
import gc
import itertools
import math
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np
import pytest
import reference
from conftest import Backend

from xcnn import ops
from xcnn._array import namespace_of
from xcnn.ops._op import OPS, Op, Sample

Arrays = dict[str, Any]

NO_GRADIENT = {
    ("batch_norm", "running_mean"),
    ("batch_norm", "running_var"),
    ("binary_cross_entropy_with_logits", "pos_weight"),
    ("binary_cross_entropy_with_logits", "weight"),
    ("cross_entropy", "weight"),
    ("nll_loss", "weight"),
}
"""Floating-point arguments that are constants: their gradient is None, as in PyTorch. Labels have none anyway."""


@dataclass(frozen=True)
class Case:
    """One sample of one op."""

    op: Op
    sample: Sample
    number: int

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        return f"{self.op.name}-{self.number}"

    def call(self, arrays: Arrays) -> tuple[tuple[Any, ...], Any]:
        """Run the op; its results always as a tuple."""
        y, backward = self.op.function(**arrays, **self.sample.options)
        return (y if type(y) is tuple else (y,)), backward

    def reference(self, arrays: Arrays) -> tuple[Any, ...]:
        y = getattr(reference, self.op.name)(**arrays, **self.sample.options)
        return y if type(y) is tuple else (y,)

    def differentiable(self, name: str, array: Any) -> bool:
        return array is not None and array.dtype.kind == "f" and (self.op.name, name) not in NO_GRADIENT


@dataclass(frozen=True)
class Expected:
    """A sample's inputs and results in float64; the inputs are float32 numbers, so that every dtype sees the same."""

    arrays: Arrays
    results: tuple[Any, ...]
    dy: np.ndarray
    gradients: list[np.ndarray | None]


def slots(case: Case, arrays: Arrays) -> Iterator[tuple[str, Any]]:
    """Each array argument with its name, in the order of the gradients; an argument of many arrays gives many."""
    for name in case.op.arrays:
        value = arrays[name]
        yield from ((name, one) for one in value) if isinstance(value, list) else ((name, value),)


def each(function: Callable[[Any], Any], arrays: Arrays) -> Arrays:
    """Apply a function to every array."""
    return {
        name: [function(one) for one in value]
        if isinstance(value, list)
        else value
        if value is None
        else function(value)
        for name, value in arrays.items()
    }


def slope(function: Callable[[float], float]) -> float:
    """The derivative at 0 by central differences of fourth order."""
    h = 1e-4
    return (8 * (function(h) - function(-h)) - (function(2 * h) - function(-2 * h))) / (12 * h)


def rounded(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32).astype(np.float64) if array.dtype.kind == "f" else array


@functools.cache
def expected(case: Case) -> Expected:
    rng = np.random.default_rng(sum(map(ord, str(case))))
    arrays = each(rounded, case.sample.draw(rng))
    results = case.reference(arrays)
    dy = rounded(rng.standard_normal(np.shape(results[0])))
    gradients: list[np.ndarray | None] = []
    for name, array in slots(case, arrays):
        if not case.differentiable(name, array):
            gradients.append(None)
            continue
        gradients.append(np.zeros(array.shape))
        for index in np.ndindex(*array.shape):
            gradients[-1][index] = slope(functools.partial(_moved, case, arrays, dy, array, index))
    return Expected(arrays, results, dy, gradients)


def _moved(case: Case, arrays: Arrays, dy: np.ndarray, array: np.ndarray, index: tuple[int, ...], step: float) -> float:
    """The sum of y * dy after one element moved."""
    old = array[index]
    array[index] = old + step
    (y, *_), _ = case.call(arrays)
    total = float(np.sum(y * dy))  # before the element goes back: y may be a view
    array[index] = old
    return total


def on(backend: Backend, dtype: str, arrays: Arrays) -> Arrays:
    """Bring arrays to an array library: numbers in `dtype`, labels as they are."""
    return each(lambda a: backend.array(a.astype(dtype) if a.dtype.kind == "f" else a), arrays)


def assert_close(actual: Any, wanted: Any, dtype: str, terms: int, slack: float = 0.0) -> None:
    """Compare with a bound that grows with the number of terms that one result may sum: 4 eps sqrt(terms) + slack."""
    wanted = np.asarray(wanted)
    size = max(1.0, float(np.max(np.abs(wanted), initial=0.0)))
    bound = 4 * np.finfo(dtype).eps * math.sqrt(terms) + slack
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=bound * size)


DIFFERENCES = 1e-9
"""How far central differences in float64 may be off, relative to the largest gradient."""

CASES = [Case(op, sample, number) for op in OPS.values() for number, sample in enumerate(op.samples)]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
def test_results_and_gradients(case: Case, backend: Backend, dtype: str) -> None:
    want = expected(case)
    terms = max(np.size(a) for a in (*want.results, *(a for _, a in slots(case, want.arrays))))
    arrays = on(backend, dtype, want.arrays)
    originals = each(lambda a: backend.to_numpy(a).tobytes(), arrays)
    dy = backend.array(want.dy.astype(dtype))

    def call(arrays: Arrays, dy: Any) -> Any:
        results, backward = case.call(arrays)
        return results, backward(dy), backward(dy)

    results, gradients, again = backend.run(call, dtype, arrays, dy)

    assert isinstance(gradients, tuple)
    sample_array = next(a for _, a in slots(case, arrays) if a is not None)

    def check(actual: Any, wanted: Any, slack: float) -> None:
        if wanted is None:
            assert actual is None
            return
        assert namespace_of(actual) is namespace_of(sample_array)
        assert array_api_compat.device(actual) == array_api_compat.device(sample_array)
        assert tuple(actual.shape) == np.shape(wanted)
        assert str(actual.dtype).endswith(dtype)
        assert_close(backend.to_numpy(actual), wanted, dtype, terms, slack)

    for actual, wanted in zip(results, want.results, strict=True):
        check(actual, wanted, 0.0)
    for actual, wanted in zip(gradients, want.gradients, strict=True):
        check(actual, wanted, DIFFERENCES)
    for first, second in zip(gradients, again, strict=True):
        assert (first is None) == (second is None)
        assert first is None or np.array_equal(backend.to_numpy(first), backend.to_numpy(second))
    assert each(lambda a: backend.to_numpy(a).tobytes(), arrays) == originals, "inputs changed"
    assert np.array_equal(backend.to_numpy(dy), want.dy.astype(dtype)), "dy changed"


@every_case
def test_gradients_are_the_slope_of_the_reference(case: Case) -> None:
    """Not the op's own slope: along one random direction of all inputs together."""
    want = expected(case)
    rng = np.random.default_rng(0)
    wanted = [a if case.differentiable(name, a) else None for name, a in slots(case, want.arrays)]
    directions = [None if a is None else rng.standard_normal(a.shape) for a in wanted]

    def moved(step: float) -> float:
        flat = iter(directions)
        arrays = {name: want.arrays[name] for name in case.op.arrays}
        arrays = {
            name: [_step(a, next(flat), step) for a in value]
            if isinstance(value, list)
            else _step(value, next(flat), step)
            for name, value in arrays.items()
        }
        return float(np.sum(case.reference(arrays)[0] * want.dy))

    _, backward = case.call(want.arrays)
    pairs = list(zip(backward(want.dy), directions, strict=True))
    actual = sum(float(np.sum(g * v)) for g, v in pairs if v is not None)
    scale = sum(float(np.sum(np.abs(g * v))) for g, v in pairs if v is not None)
    assert slope(moved) == pytest.approx(actual, rel=0, abs=DIFFERENCES * max(1.0, scale))


def _step(array: Any, direction: Any, step: float) -> Any:
    return array if direction is None else array + step * direction


@every_case
def test_needs_choose_gradients_and_change_none(case: Case) -> None:
    want = expected(case)
    _, backward = case.call(want.arrays)
    full = backward(want.dy)
    for needs in itertools.product((False, True), repeat=len(full)):
        gradients = backward(want.dy, needs)
        for wanted, gradient, need in zip(full, gradients, needs, strict=True):
            assert gradient is None if wanted is None or not need else np.array_equal(gradient, wanted)


@every_case
def test_backward_keeps_what_saves_says(case: Case) -> None:
    want = expected(case)
    results, backward = case.call(want.arrays)
    saved = backward.saved()
    absent = {name for name, array in want.arrays.items() if array is None}
    always = {name for name in case.op.saves if not name.endswith("?")}
    assert always - absent <= set(saved) <= {name.rstrip("?") for name in case.op.saves}
    known = {**want.arrays, "y": results[0]}
    for name in set(saved) & set(known):
        if known[name].dtype.kind == "f":  # labels are few, and a copy is safe from what a caller does to them
            assert np.shares_memory(saved[name], known[name]), f"{name} is a copy"
    for array in kept(backward):
        assert any(np.shares_memory(array, one) for one in saved.values()), f"keeps {array.shape} unsaid"


def kept(thing: Any) -> Iterator[np.ndarray]:
    """Every array that an object keeps alive, however deep, found by the garbage collector's own means."""
    seen: set[int] = set()
    todo = [thing]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, (type, types.ModuleType, str, int, float)):
            continue
        seen.add(id(one))
        if isinstance(one, np.ndarray):
            if one.size > 1:  # a number is no storage
                yield one
        elif isinstance(one, types.FunctionType):  # not its globals
            todo += [cell.cell_contents for cell in one.__closure__ or ()]
            todo += [*(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values()]
        else:
            todo += gc.get_referents(one)


def test_kept_finds_an_array_in_a_list_in_a_partial_in_a_closure() -> None:
    array = np.zeros(3)
    hidden = functools.partial(print, [{"a": array}])
    assert [id(a) for a in kept(lambda: hidden)] == [id(array)]


def test_every_op_is_exported_sampled_and_referenced() -> None:
    assert set(ops.__all__) == set(OPS)
    assert [name for name, op in OPS.items() if not op.samples] == []
    assert [name for name in OPS if not callable(getattr(reference, name, None))] == []


def test_every_argument_of_an_op_is_in_its_samples() -> None:
    for case in CASES:
        assert set(case.sample.arrays) == set(case.op.arrays), str(case)


@every_case
def test_only_a_loss_may_omit_dy(case: Case) -> None:
    want = expected(case)
    (y, *_), backward = case.call(want.arrays)
    if y.shape != ():
        with pytest.raises(ValueError, match=f"^{case.op.name}: only a 0-d y may omit dy"):
            backward()
        return
    for one, other in zip(backward(), backward(np.ones_like(y)), strict=True):
        assert one is other is None or np.array_equal(one, other)

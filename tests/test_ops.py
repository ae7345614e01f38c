"""Every op of the table `OPS` on every sample input, array library and dtype.

A new op is tested without any code here: it only needs samples, and a loop of the same name in `reference.py`. The
checks are those of `xcnn.testing`, which anyone can use for their own ops.
"""

import functools

import numpy as np
import pytest
import reference
from conftest import Backend

from xcnn import ops
from xcnn.ops import OPS
from xcnn.testing import Case, kept

CASES = [
    Case(op, number, getattr(reference, name, None)) for name, op in OPS.items() for number in range(len(op.samples))
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
def test_results_and_gradients(case: Case, backend: Backend, dtype: str) -> None:
    case.check_results(backend, dtype)


@every_case
def test_gradients_are_the_slope_of_the_reference(case: Case) -> None:
    case.check_reference()


@every_case
def test_needs_choose_gradients_and_change_none(case: Case) -> None:
    case.check_needs()


@every_case
def test_backward_keeps_what_saves_says(case: Case) -> None:
    case.check_saves()


def test_kept_finds_an_array_in_a_list_in_a_partial_in_a_closure() -> None:
    array = np.zeros(3)
    hidden = functools.partial(print, [{"a": array}])
    assert [id(a) for a in kept(lambda: hidden)] == [id(array)]


def test_every_op_is_exported_sampled_and_referenced() -> None:
    own = {name for name, op in OPS.items() if op.function.__module__.startswith("xcnn.ops.")}
    means = {"OPS", "Draw", "Op", "Sample", "formula", "labels", "op", "positive", "probabilities", "sample"}
    assert set(ops.__all__) - means == own
    assert [name for name in own if not OPS[name].samples] == []
    assert [name for name in own if not callable(getattr(reference, name, None))] == []


@every_case
def test_only_a_loss_may_omit_dy(case: Case) -> None:
    (y, *_), backward = case.call(case.expected.arrays)
    if y.shape != ():
        with pytest.raises(ValueError, match=f"^{case.op.name}: only a 0-d y may omit dy"):
            backward()
        return
    for one, other in zip(backward(), backward(np.ones_like(y)), strict=True):
        assert one is other is None or np.array_equal(one, other)

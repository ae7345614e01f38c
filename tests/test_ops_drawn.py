"""Ops against the reference loops, on the shapes and options that `calls.py` draws; needs no other library."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
from calls import FAMILIES, Call
from hypothesis import given, settings
from hypothesis import strategies as st

from xcnn import ops


def agrees(call: Call) -> None:
    """Check all results, and that each gradient has the shape of its array."""
    rng = np.random.default_rng(call.seed)
    arrays = call.draw(rng)
    results, backward = getattr(ops, call.name)(**arrays, **call.options)
    wanted = getattr(reference, call.name)(**arrays, **call.options)
    results, wanted = (y if type(y) is tuple else (y,) for y in (results, wanted))
    for y, expected in zip(results, wanted, strict=True):
        assert (y is None) == (expected is None)
        if y is not None:
            assert y.shape == expected.shape
            np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-9)
    gradients = backward(np.asarray(rng.standard_normal(results[0].shape)))
    for gradient, array in zip(gradients, leaves(arrays), strict=True):
        assert gradient is None or (gradient.shape == array.shape and gradient.dtype == array.dtype)


def leaves(arrays: dict[str, Any]) -> list[Any]:
    return [one for value in arrays.values() for one in (value if isinstance(value, list) else [value])]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_ops_agree_with_the_reference(family: Callable[[], st.SearchStrategy[Call]]) -> None:
    @settings(max_examples=20)
    @given(family())
    def agree(call: Call) -> None:
        agrees(call)

    agree()

"""Ops against PyTorch in float64, y and every gradient to 1e-9, on the shapes and options that `calls.py` draws."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from calls import FAMILIES, Call
from hypothesis import given
from hypothesis import strategies as st

from xcnn import ops

TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def compare(torch: Any, call: Call) -> None:
    """Run both; y and the gradient of every floating-point array must agree, for a random dy."""
    rng = np.random.default_rng(call.seed)
    arrays = call.draw(rng)
    wanted, leaves = call.in_torch(torch, arrays)
    y, backward = getattr(ops, call.name)(**arrays, **call.options)
    y = y[0] if type(y) is tuple else y
    assert y.shape == tuple(wanted.shape)
    np.testing.assert_allclose(y, wanted.detach().numpy(), rtol=TOLERANCE, atol=TOLERANCE)

    dy = np.asarray(rng.standard_normal(y.shape))
    if wanted.requires_grad:
        wanted.backward(torch.tensor(dy))
    for gradient, leaf in zip(backward(dy), leaves, strict=True):
        if leaf is None or not leaf.requires_grad:
            assert gradient is None
            continue
        wanted_gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        np.testing.assert_allclose(gradient, wanted_gradient.numpy(), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # PyTorch says so, once
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_ops_agree_with_pytorch(torch: Any, family: Callable[[], st.SearchStrategy[Call]]) -> None:
    @given(family())
    def agree(call: Call) -> None:
        compare(torch, call)

    agree()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_max_pool_passes_nan_on_as_pytorch_does(torch: Any, rank: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, *(7, 6, 5)[:rank]))
    x[(0, 1, *(3,) * rank)] = np.nan
    call = Call(f"max_pool{rank}d", {"x": x}, {"kernel_size": 3, "stride": 2, "padding": 1})
    compare(torch, call)
    assert np.isnan(getattr(ops, call.name)(x, **call.options)[0]).any()


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_returns_the_statistics_that_pytorch_stores(torch: Any, training: bool) -> None:
    rng = np.random.default_rng(0)
    x, mean, var = rng.standard_normal((4, 3, 5)), rng.standard_normal(3), rng.uniform(0.5, 2, 3)
    before = mean.copy(), var.copy()
    (_, new_mean, new_var), _ = ops.batch_norm(x, mean, var, training=training, momentum=0.3)
    assert np.array_equal(mean, before[0])
    assert np.array_equal(var, before[1])
    stored = torch.tensor(mean), torch.tensor(var)
    torch.nn.functional.batch_norm(torch.tensor(x), *stored, training=training, momentum=0.3)
    np.testing.assert_allclose(new_mean, stored[0].numpy(), rtol=TOLERANCE)
    np.testing.assert_allclose(new_var, stored[1].numpy(), rtol=TOLERANCE)


def test_the_mean_over_no_rows_is_nan_as_in_pytorch(torch: Any) -> None:
    ignored = np.full(3, -100)
    for target, x in ((ignored, np.zeros((3, 2))), (np.zeros(0, np.int64), np.zeros((0, 2)))):
        y, backward = ops.cross_entropy(x, target)
        wanted = torch.nn.functional.cross_entropy(torch.tensor(x), torch.tensor(target))
        assert np.isnan(y)
        assert wanted.isnan()
        assert not backward()[0].any()  # where PyTorch has NaN: a batch with nothing to learn from must not end a run

"""The kernel of cross entropy against the portable code, to which it leaves all errors."""

import contextlib
from typing import Any

import numpy as np
import pytest
from cuda_emulator import emulated

from xcnn import ops
from xcnn._dispatch import portable
from xcnn.errors import UsageError

pytest.importorskip("llvmlite")
torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape", [(1, 10), (7, 1), (64, 10), (2, 9001), (450, 1000), (30, 7, 5, 23), (2, 3, 2000), (9, 4, 1)]
)
@pytest.mark.parametrize(
    "options", [{}, {"reduction": "sum"}, {"ignore_index": 0}, {"ignore_index": 0, "weight": None}]
)
@pytest.mark.parametrize("scale", [1, 100])
def test_results_equal_those_of_the_portable_code(
    shape: tuple[int, ...], options: dict[str, Any], scale: float, dtype: str
) -> None:
    rng = np.random.default_rng(0)
    x, target = (scale * rng.standard_normal(shape)).astype(dtype), rng.integers(0, shape[1], (shape[0], *shape[2:]))
    y, backward = ops.cross_entropy(x, target, **options)
    with portable(np):
        wanted, wanted_backward = ops.cross_entropy(x, target, **options)
        (wanted_dx, *_) = wanted_backward(np.asarray(0.7, dtype))
    dx, *others = backward(np.asarray(0.7, dtype))
    eps = 20 * np.finfo(dtype).eps
    assert y.dtype == wanted.dtype
    np.testing.assert_allclose(y, wanted, rtol=eps, atol=eps)
    np.testing.assert_allclose(dx, wanted_dx, rtol=eps, atol=eps * scale)
    assert others == [None, None]


@pytest.mark.parametrize("label", [-1, 3, -100])
def test_a_label_out_of_range_is_refused_in_any_row(label: int) -> None:
    for place in range(3):
        target = np.zeros(3, np.int64)
        target[place] = label
        with pytest.raises(UsageError, match=f"^cross_entropy: target holds {label}, expected class indices 0 .. 2"):
            ops.cross_entropy(np.ones((3, 3), np.float32), target, ignore_index=-7)


@pytest.mark.parametrize(
    "engine", [contextlib.nullcontext, lambda: portable(np), emulated], ids=["kernels", "portable", "cuda"]
)
def test_an_ignored_row_counts_for_nothing_but_shows_that_it_is_not_finite(engine: Any) -> None:
    """As in PyTorch: it does not change the loss, and its gradient is NaN if the row has a NaN."""
    x = np.array([[np.nan, 1.0], [0.0, 0.0], [np.inf, 0.0], [3.0, -np.inf]])
    target = np.array([-100, 1, -100, -100])
    with engine(), np.errstate(invalid="ignore"):
        y, backward = ops.cross_entropy(x, target)
        dx = backward()[0]
    nan = np.nan
    assert y == pytest.approx(np.log(2))
    np.testing.assert_array_equal(dx, [[nan, nan], [0.5, -0.5], [nan, nan], [0.0, 0.0]])
    logits = torch.tensor(x, requires_grad=True)
    torch.nn.functional.cross_entropy(logits, torch.tensor(target)).backward()
    np.testing.assert_array_equal(dx, logits.grad.numpy())


def test_impossible_classes_and_enormous_scores() -> None:
    y, backward = ops.cross_entropy(np.array([[-np.inf, 0.0, 0.0], [1e30, 0.0, -1e30]]), np.array([1, 0]))
    assert y == pytest.approx(np.log(2) / 2)
    assert backward()[0].tolist() == [[0.0, -0.25, 0.25], [0.0, 0.0, 0.0]]
    assert np.isnan(ops.cross_entropy(np.array([[np.nan, 0.0]]), np.array([1]))[0])
    assert ops.cross_entropy(np.array([[-np.inf, 0.0]]), np.array([0]))[0] == np.inf


@pytest.mark.parametrize("label", [1, 10**9])
def test_labels_that_change_after_forward_do_not_change_the_gradient(label: int) -> None:
    x, target = np.random.default_rng(0).standard_normal((4, 3)), np.zeros(4, np.int64)
    wanted = ops.cross_entropy(x, target.copy())[1]()[0]
    _, backward = ops.cross_entropy(x, target)
    target[0] = label
    assert np.array_equal(backward()[0], wanted)

"""Properties of single ops that `test_ops.py` does not cover: extreme numbers, dtypes of labels, generators."""

import inspect
import math
import pickle
import re
import tracemalloc
import typing
from typing import Any

import numpy as np
import pytest

from xcnn import ops
from xcnn.ops._erf import erf
from xcnn.ops.pad import MODES, _copies


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32"])
def test_labels_may_have_any_integer_dtype(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((5, 200)), np.array([0, 100, 7, 7, 120])
    y, backward = ops.cross_entropy(x, target, ignore_index=7)
    other, other_backward = ops.cross_entropy(x, target.astype(dtype), ignore_index=7)
    assert other == y
    assert np.array_equal(other_backward()[0], backward()[0])


@pytest.mark.parametrize("sign", [1, -1])
def test_losses_of_enormous_logits_are_exact(sign: int) -> None:
    x = np.array([[1e4, -1e4]], np.float32) * sign
    y, backward = ops.cross_entropy(x, np.array([0]))
    assert y == (0.0 if sign > 0 else 2e4)
    assert np.array_equal(backward()[0], [[0, 0]] if sign > 0 else [[-1, 1]])
    y, backward = ops.binary_cross_entropy_with_logits(x, np.array([[1, 0]], np.float32))
    assert y == (0.0 if sign > 0 else 1e4)
    assert np.array_equal(backward()[0], [[0, 0]] if sign > 0 else [[-0.5, 0.5]])


def test_an_impossible_class_costs_nothing_where_the_target_is_zero() -> None:
    x = np.array([[0.0, 0.0, -np.inf]])
    y, backward = ops.cross_entropy(x, np.array([[0.5, 0.5, 0.0]]))
    assert y == pytest.approx(math.log(2))
    assert np.array_equal(backward(needs=(True, False, False))[0], [[0, 0, 0]])


ACTIVATIONS = [
    "celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "relu6", "sigmoid",
    "silu", "softplus", "softsign", "tanh",
]  # fmt: skip


@pytest.mark.parametrize("name", [*ACTIVATIONS, "abs", "erf", "negative"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations_neither_overflow_nor_hide_nan(name: str, dtype: str) -> None:
    """Warnings are errors here, so an intermediate that overflows would raise."""
    huge = np.finfo(dtype).max
    y, backward = getattr(ops, name)(np.array([huge, -huge, 0.0, np.nan], dtype))
    (dx,) = backward(np.ones(4, dtype))
    assert np.isfinite(y[:3]).all()
    assert np.isnan(y[3])
    assert np.isfinite(dx[:3]).all()


@pytest.mark.parametrize("negative_slope", [0.0, 0.1, 1.5])
def test_leaky_relu_of_infinity_is_infinity(negative_slope: float) -> None:
    y, backward = ops.leaky_relu(np.array([np.inf, 1.0]), negative_slope)
    assert y.tolist() == [np.inf, 1.0]
    assert backward(np.ones(2))[0].tolist() == [1.0, 1.0]


def test_multiply_takes_a_number_which_has_no_gradient() -> None:
    x = np.array([1.0, 2.0], np.float32)
    y, backward = ops.multiply(x, 3)
    assert y.tolist() == [3.0, 6.0]
    assert backward.saved() == {}
    dx, dother = backward(x)
    assert dother is None
    assert dx.tolist() == [3.0, 6.0]


def test_divide_takes_a_number_which_has_no_gradient() -> None:
    x = np.array([1.0, 2.0], np.float32)
    y, backward = ops.divide(x, 4)
    assert y.tolist() == [0.25, 0.5]
    assert backward.saved() == {}
    dx, dother = backward(x)
    assert dother is None
    assert dx.tolist() == [0.25, 0.5]


def test_the_mean_of_many_equal_numbers_is_one_of_them_and_that_of_none_is_nan() -> None:
    y, backward = ops.mean(np.full((1_000_000, 2), 0.1, np.float32), 0)
    assert y == pytest.approx([0.1, 0.1], rel=1e-5)  # adding one by one is off by 1 %
    y, backward = ops.mean(np.zeros((2, 0)), 1)
    assert np.isnan(y).tolist() == [True, True]
    assert backward(y)[0].shape == (2, 0)


def test_the_sum_of_many_numbers_hardly_loses_accuracy_and_that_of_none_is_zero() -> None:
    assert ops.sum(np.full((1_000_000, 2), 0.1, np.float32), 0)[0] == pytest.approx([1e5, 1e5], rel=1e-5)
    assert ops.sum(np.zeros((2, 0)), 1)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("name", "limited"), [("maximum", [2.0, 3.0]), ("minimum", [1.0, 2.0])])
def test_maximum_and_minimum_take_a_number_and_pass_nan_on(name: str, limited: list[float]) -> None:
    y, backward = getattr(ops, name)(np.array([1.0, 3.0, 2.0, np.nan]), 2)
    assert y[:3].tolist() == [*limited, 2.0]
    assert np.isnan(y[3])
    dx, dother = backward(np.full(4, 10.0))
    assert dother is None
    assert dx.tolist() == [*([0.0, 10.0] if name == "maximum" else [10.0, 0.0]), 5.0, 10.0]


def test_a_matrix_that_many_share_is_multiplied_once() -> None:
    """And its gradient is no stack of matrices that are added, which would take memory in proportion to the batch."""
    x, other = np.ones((1000, 2, 8)), np.ones((8, 8))
    y, backward = ops.matmul(x, other)
    tracemalloc.start()
    _, dother = backward(y, (False, True))
    assert tracemalloc.get_traced_memory()[1] < 1000 * 8 * 8 * 8 / 2
    tracemalloc.stop()
    assert (dother == 8 * 2000).all()


def test_slices_go_beyond_the_ends_as_those_of_python_do() -> None:
    x = np.arange(5.0)
    for start, stop, step in ((-(2**63), 2**63, 2), (2**63, -(2**63), -2), (3, 3, 1), (None, None, -1)):
        assert ops.slice(x, 0, start, stop, step)[0].tolist() == x[start:stop:step].tolist()


def test_add_takes_a_number_which_has_no_gradient() -> None:
    x = np.array([1.0, 2.0], np.float32)
    for number in (2, 2.0):
        y, backward = ops.add(x, number)
        assert y.dtype == np.float32
        assert y.tolist() == [3.0, 4.0]
        dx, dother = backward(x)
        assert dother is None
        assert dx.tolist() == x.tolist()
    y, backward = ops.add(x.sum(), x.sum())  # NumPy's 0-d results are no Python numbers: they have gradients
    assert backward()[1] == 1


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_an_empty_axis_is_empty(name: str, backend: Any) -> None:
    x = backend.array(np.zeros((2, 0), np.float32))
    y, backward = getattr(ops, name)(x)
    assert tuple(y.shape) == tuple(backward(y)[0].shape) == (2, 0)


def test_same_padding_of_a_pool_gives_the_size_divided_by_the_stride_rounded_up() -> None:
    x = np.arange(5.0).reshape(1, 5)
    assert ops.max_pool1d(x, 2, 2, "same")[0].tolist() == [[1.0, 3.0, 4.0]]  # the odd pixel comes at the end
    assert ops.avg_pool1d(x, 3, 1, "same", count_include_pad=False)[0].tolist() == [[0.5, 1.0, 2.0, 3.0, 3.5]]
    assert ops.max_pool1d(x, 2, 2, "valid")[0].tolist() == [[1.0, 3.0]]


def test_erf_is_exact_to_a_few_units_in_the_last_place() -> None:
    x = np.concatenate([np.linspace(-7, 7, 20001), np.geomspace(1e-300, 1, 1000), [np.inf, -np.inf]])
    wanted = np.array([math.erf(v) for v in x])
    assert np.max(np.abs(erf(np, x) - wanted) / np.maximum(np.abs(wanted), 1e-308)) < 4 * np.finfo(float).eps


def test_dropout_draws_from_the_generator_that_it_is_given() -> None:
    x, rng = np.ones((100, 100), np.float32), np.random.default_rng(3)
    first, backward = ops.dropout(x, 0.25, rng=rng)
    second, _ = ops.dropout(x, 0.25, rng=rng)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, ops.dropout(x, 0.25, rng=3)[0])
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.75)}
    assert np.mean(first == 0) == pytest.approx(0.25, abs=0.02)
    assert np.array_equal(backward(x)[0], first)


def test_dropout_of_channels_drops_whole_maps() -> None:
    x = np.ones((50, 8, 3, 2), np.float32)
    y, backward = ops.dropout2d(x, 0.25, rng=3)
    assert np.array_equal(y, np.broadcast_to(y[:, :, :1, :1], y.shape))
    assert np.array_equal(y[:, :, 0, 0], ops.dropout(x[:, :, 0, 0], 0.25, rng=3)[0])
    assert np.array_equal(backward(x)[0], y)
    alone, _ = ops.dropout2d(x[0], 0.25, rng=3)
    assert np.array_equal(alone, np.broadcast_to(alone[:, :1, :1], alone.shape))


def test_dropout_in_evaluation_draws_nothing() -> None:
    rng = np.random.default_rng(3)
    ops.dropout1d(np.ones((2, 5)), training=False, rng=rng)
    ops.dropout(np.ones(5), training=False, rng=rng)
    ops.dropout(np.ones(5), p=0.0, rng=rng)
    assert rng.random() == np.random.default_rng(3).random()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_max_pool_gives_its_gradient_to_the_first_of_equal_maxima(rank: int) -> None:
    x = np.ones((1, 1, *(2,) * rank))
    _, backward = getattr(ops, f"max_pool{rank}d")(x, 2)
    (dx,) = backward(np.full((1, 1, *(1,) * rank), 5.0))
    assert dx.ravel().tolist() == [5.0] + [0.0] * (2**rank - 1)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_adaptive_max_pool_gives_its_gradient_to_the_first_of_equal_maxima(rank: int) -> None:
    x = np.zeros((1, 1, *(3,) * rank))
    x[(0, 0, *(1,) * rank)] = x[(0, 0, *(1,) * (rank - 1), 2)] = 1.0
    _, backward = getattr(ops, f"adaptive_max_pool{rank}d")(x, 1)
    (dx,) = backward(np.full((1, 1, *(1,) * rank), 5.0))
    assert np.argwhere(dx).tolist() == [[0, 0, *(1,) * rank]]
    assert dx.max() == 5.0


def test_adaptive_max_pool_gives_the_gradient_of_nan_to_nan() -> None:
    y, backward = ops.adaptive_max_pool1d(np.array([[1.0, np.nan, 3.0, 4.0]]), 2)
    assert np.array_equal(y, [[np.nan, 4.0]], equal_nan=True)
    assert np.array_equal(backward(np.array([[10.0, 20.0]]))[0], [[0.0, 10.0, 0.0, 20.0]])


@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_nearest_copies_every_bit_and_an_infinite_pixel_stays_alone(size: int) -> None:
    """A product with a matrix of zeros and ones would make NaN of the other pixels."""
    x = np.array([[[0.1, np.inf, np.nan, -0.0]]], np.float32)
    y, backward = ops.interpolate(x, size=size)
    assert np.array_equal(y.view(np.int32)[0, 0], x.view(np.int32)[0, 0, np.arange(size) * 4 // size])
    dy = np.ones_like(y)
    assert backward(dy)[0].sum() == size


@pytest.mark.parametrize(("mode", "kept"), [("nearest", [0, 0, 1, 2, 3]), ("nearest-exact", [0, 1, 2, 3, 3])])
def test_a_factor_that_keeps_the_size_moves_nearest_pixels(mode: str, kept: list[int]) -> None:
    torch = pytest.importorskip("torch")
    x = np.arange(5.0)[None, None]
    y, backward = ops.interpolate(x, scale_factor=1.15, mode=mode)
    assert (
        y[0, 0].tolist()
        == torch.nn.functional.interpolate(torch.from_numpy(x), scale_factor=1.15, mode=mode)[0, 0].tolist()
    )
    assert y[0, 0].tolist() == kept
    assert backward(np.ones_like(y))[0][0, 0].tolist() == np.bincount(kept, minlength=5).tolist()


@pytest.mark.parametrize(("mode", "size"), [("nearest", 3), ("nearest", 7), ("linear", 3), ("linear", 7)])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_gradient_that_is_not_finite_stays_where_its_pixel_is(mode: str, size: int, value: float) -> None:
    dy = np.ones((1, 1, size))
    dy[0, 0, 0] = value
    _, backward = ops.interpolate(np.zeros((1, 1, 5)), size=size, mode=mode)
    (dx,) = backward(dy)
    _, rest = ops.interpolate(np.zeros((1, 1, 5)), size=size, mode=mode)
    reached = rest(np.eye(1, size)[None])[0] != 0
    assert np.array_equal(np.isfinite(dx), ~reached)


def test_local_response_norm_of_any_size_costs_as_much_as_its_channels() -> None:
    """And means are over `size` channels, however many there are."""
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    for size in (2, 5, 6, 7, 100):
        y, backward = ops.local_response_norm(x, size, 2.0)
        theirs = torch.tensor(x, requires_grad=True)
        expected = torch.nn.functional.local_response_norm(theirs, size, 2.0)
        expected.backward(torch.from_numpy(x))
        np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12)
        np.testing.assert_allclose(backward(x)[0], theirs.grad.numpy(), rtol=1e-12, atol=1e-14)
    tracemalloc.start()
    ops.local_response_norm(x, 2**31 - 1)[1](x)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_long_signal_is_interpolated_without_a_matrix() -> None:
    x = np.arange(200_000.0).reshape(1, 1, -1)
    y, backward = ops.interpolate(x, size=400_000, mode="linear")
    np.testing.assert_allclose(y[0, 0, 1:-1], np.arange(1, 399_999) / 2 - 0.25)
    np.testing.assert_allclose(backward(np.ones_like(y))[0], 2.0)


def test_max_pool_gives_the_gradient_of_nan_to_nan() -> None:
    x = np.array([[[1.0, np.nan, 3.0, 4.0]]])
    y, backward = ops.max_pool1d(x, 2)
    assert np.array_equal(y, [[[np.nan, 4.0]]], equal_nan=True)
    assert np.array_equal(backward(np.array([[[10.0, 20.0]]]))[0], [[[0.0, 10.0, 0.0, 20.0]]])


def test_a_constant_padding_of_any_width_is_one_copy() -> None:
    """Not one copy per pixel of padding, which would take time in proportion to the width."""
    copies = _copies(5, 10**12, 10**12, MODES["constant"])
    assert copies == [(slice(0, 5), slice(10**12, 10**12 + 5))]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dropout", {"training": False, "rng": 0}),
        ("dropout", {"p": 0.0, "rng": 0}),
        ("flatten", {}),
        ("unflatten", {"dim": -1, "unflattened_size": (2, 2)}),
        ("pad", {"pad": (0, 0)}),
        ("permute", {"dims": (1, 2, 0, 3)}),
        ("reshape", {"shape": (3, -1)}),
        ("slice", {"dim": 2, "start": 1, "step": 2}),
        ("stochastic_depth", {"p": 0.5, "training": False, "rng": 0}),
        ("adaptive_avg_pool2d", {"output_size": (None, 4)}),
        ("adaptive_max_pool2d", {"output_size": (None, 4)}),
        ("dropout2d", {"p": 0.0, "rng": 0}),
        ("interpolate", {"size": (5, 4), "mode": "bilinear", "align_corners": True}),
    ],
)
def test_what_changes_nothing_returns_the_memory_of_x(name: str, options: dict[str, Any]) -> None:
    x = np.ones((2, 3, 5, 4))
    assert np.shares_memory(getattr(ops, name)(x, **options)[0], x)


FAMILIES = ["conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool"]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_rank_of_an_op_is_a_documented_function_of_its_own(family: str, rank: int) -> None:
    op = getattr(ops, f"{family}{rank}d")
    assert (op.__name__, op.__qualname__) == (f"{family}{rank}d",) * 2
    assert op.__module__.startswith("xcnn.ops.")
    assert op is pickle.loads(pickle.dumps(op))
    documented = {name for line in re.findall(r"^    ([a-z_, ]+) : ", op.__doc__, re.M) for name in line.split(", ")}
    assert documented - {"y", "backward"} == set(inspect.signature(op).parameters)
    assert typing.get_type_hints(op).keys() == {*inspect.signature(op).parameters, "return"}
    assert '"""' in inspect.getsource(op)
    with pytest.raises(ValueError, match=rf"^{op.__name__}: x must have {rank + 2} axes"):
        op(np.ones(2), *[np.ones((1,) * (rank + 2))] * family.startswith("conv"), *[1] * family.endswith("pool"))
    with pytest.raises(ValueError, match=rf"^{op.__name__}: no argument 'strid'"):
        op(np.ones(2), strid=1)

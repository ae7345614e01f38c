"""A linear layer with what follows it: the activations that its op applies, and the body that inference runs."""

from typing import Any

import numpy as np
import pytest

from xcnn import devices, ops
from xcnn.errors import UsageError
from xcnn.ops.linear import linear_inference


def test_an_activation_needs_a_slope_that_is_known_from_the_result() -> None:
    x, weight = np.ones((2, 3)), np.ones((4, 3))
    with pytest.raises(UsageError, match=r"^linear: activation must be one whose slope .* got 'gelu'; apply it to y$"):
        ops.linear(x, weight, activation="gelu")
    with pytest.raises(UsageError, match=r"^unknown activation of linear 'rlu'; did you mean 'relu'"):
        ops.linear(x, weight, activation="rlu")


@pytest.mark.parametrize("activation", [("relu",), ("relu6",), ("leaky_relu", 0.1), ("sigmoid",), ("tanh",)])
@pytest.mark.parametrize("lead", [(5,), (2, 3), ()])
def test_an_activation_is_that_of_the_separate_op(activation: tuple[Any, ...], lead: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, weight, bias, dy = (rng.standard_normal(shape) for shape in ((*lead, 7), (4, 7), (4,), (*lead, 4)))
    y, backward = ops.linear(x, weight, bias, activation)
    plain, plain_backward = ops.linear(x, weight, bias)
    wanted, slope = getattr(ops, activation[0])(plain, *activation[1:])
    np.testing.assert_allclose(y, wanted, rtol=1e-13)
    for gradient, separate in zip(backward(dy), plain_backward(slope(dy)[0]), strict=True):
        np.testing.assert_allclose(gradient, separate, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("spec", ["cpu", "strict", "torch", "jax"])
@pytest.mark.parametrize("lead", [(2, 3), (0,)])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("activation", [None, ("hardtanh", -0.5, 0.5), ("gelu", "none")], ids=str)
def test_inference_is_one_op_after_the_other(
    spec: str, lead: tuple[int, ...], affine: bool, activation: tuple[Any, ...] | None
) -> None:
    if spec != "cpu":
        pytest.importorskip({"strict": "array_api_strict"}.get(spec, spec))
    rng = np.random.default_rng(0)
    numbers = (rng.standard_normal(shape).astype(np.float32) for shape in ((*lead, 7), (4, 7), (4,), (*lead, 4)))
    x, weight, bias, residual = numbers
    mean, var, scale, shift = rng.uniform(0.5, 2, (4, 4)).astype(np.float32)
    norm = (mean, var, scale if affine else None, shift if affine else None, 1e-3)
    arrays = x, weight, bias if affine else None, norm, residual if affine else None
    y, _ = ops.linear(x, weight, arrays[2])
    y = ops.batch_norm(y.reshape(-1, 4), *norm[:4], eps=1e-3)[0][0].reshape(y.shape)
    y = y if arrays[4] is None else y + residual
    wanted = y if activation is None else getattr(ops, activation[0])(y, *activation[1:])[0]
    device = devices.device(spec)

    def moved(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(moved, value))
        return device.asarray(value) if isinstance(value, np.ndarray) else value

    result = linear_inference(device.xp, *moved(arrays), activation)
    assert tuple(result.shape) == wanted.shape
    np.testing.assert_allclose(device.to_numpy(result), wanted, rtol=1e-5, atol=1e-5)

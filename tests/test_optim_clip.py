"""Clipping against PyTorch's, and on a device whose arrays cannot be read implicitly on the host."""

import math

import array_api_strict
import numpy as np
import pytest

from xcnn import optim
from xcnn.devices import to_numpy
from xcnn.errors import UsageError
from xcnn.parameter import Parameter


def make(put=np.asarray, scale=1.0):
    rng = np.random.default_rng(0)
    parameters = [Parameter(put(np.zeros(shape))) for shape in ((3, 2), (4,), (), (2,))]
    for parameter in parameters[:3]:
        parameter.grad = put(np.asarray(scale * rng.standard_normal(parameter.data.shape)))
    return parameters


def on_device(array):
    return array_api_strict.asarray(array, device=array_api_strict.Device("device1"))


@pytest.mark.parametrize("put", [np.asarray, on_device], ids=["numpy", "device1"])
@pytest.mark.parametrize("norm_type", [1, 2.0, 3.5, math.inf])
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 2.0, 100.0])
def test_norms_are_clipped_as_by_torch(put, norm_type, max_norm):
    torch = pytest.importorskip("torch")
    parameters = make(put)
    before = [parameter.grad for parameter in parameters[:3]]
    tensors = [torch.zeros(p.data.shape, dtype=torch.float64) for p in parameters]
    for tensor, parameter in zip(tensors[:3], parameters[:3], strict=True):
        tensor.grad = torch.tensor(to_numpy(parameter.grad))
    kept = [np.array(to_numpy(grad)) for grad in before]
    expected = torch.nn.utils.clip_grad_norm_(tensors, max_norm, norm_type)
    norm = optim.clip_grad_norm_(iter(parameters), max_norm, norm_type)
    assert norm.shape == ()
    np.testing.assert_allclose(to_numpy(norm), expected.numpy(), rtol=1e-12)
    for tensor, parameter in zip(tensors[:3], parameters[:3], strict=True):
        np.testing.assert_allclose(to_numpy(parameter.grad), tensor.grad.numpy(), rtol=1e-12)
    assert parameters[3].grad is None
    for old, copy in zip(before, kept, strict=True):
        np.testing.assert_array_equal(to_numpy(old), copy)


def test_the_norm_is_at_most_what_was_asked():
    parameters = make(scale=50)
    norm = optim.clip_grad_norm_(parameters, 3.0)
    flat = np.concatenate([np.ravel(p.grad) for p in parameters[:3]])
    assert float(norm) > 3
    assert np.linalg.norm(flat) == pytest.approx(3, rel=1e-6)


def test_dtypes_stay_also_when_they_differ():
    single, double = Parameter(np.ones(2, np.float32)), Parameter(np.ones(2))
    single.grad, double.grad = np.full(2, 9, np.float32), np.full(2, 9.0)
    optim.clip_grad_norm_([single, double], 1.0)
    assert (single.grad.dtype, double.grad.dtype) == (np.float32, np.float64)
    optim.clip_grad_value_([single, double], 0.1)
    assert (single.grad.dtype, double.grad.dtype) == (np.float32, np.float64)


def test_without_gradients_the_norm_is_0():
    parameter = Parameter(np.ones(2, np.float32))
    assert optim.clip_grad_norm_(parameter, 1.0) == 0
    optim.clip_grad_value_(parameter, 1.0)
    assert parameter.grad is None


@pytest.mark.parametrize("put", [np.asarray, on_device], ids=["numpy", "device1"])
def test_values_are_clipped(put):
    parameters = make(put, scale=3)
    before = [to_numpy(p.grad) for p in parameters[:3]]
    optim.clip_grad_value_(parameters, 0.75)
    for parameter, old in zip(parameters, before, strict=False):
        np.testing.assert_array_equal(to_numpy(parameter.grad), np.clip(old, -0.75, 0.75))


@pytest.mark.filterwarnings("ignore:invalid value")
def test_nan_is_not_hidden():
    parameter = Parameter(np.ones(2))
    parameter.grad = np.asarray([np.nan, 1.0])
    optim.clip_grad_value_(parameter, 0.5)
    np.testing.assert_array_equal(parameter.grad, [np.nan, 0.5])
    assert np.isnan(optim.clip_grad_norm_(parameter, 1.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: optim.clip_grad_norm_([], 1), "clip_grad_norm_: there are no parameters; does the model have any, "),
        (lambda p: optim.clip_grad_norm_([3], 1), "clip_grad_norm_: expected parameters, got int; pass "),
        (lambda p: optim.clip_grad_norm_(p, -1), "clip_grad_norm_: max_norm must be a number in [0, inf), got -1"),
        (lambda p: optim.clip_grad_norm_(p, 1, 0), "clip_grad_norm_: norm_type must be a number in (0, inf), got 0"),
        (lambda p: optim.clip_grad_value_(None, 1), "clip_grad_value_: expected parameters, got NoneType; pass "),
        (lambda p: optim.clip_grad_value_(p, -1), "clip_grad_value_: clip_value must be a number in [0, inf), got -1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(UsageError) as caught:
        call(Parameter(np.ones(2)))
    assert str(caught.value).startswith(message)

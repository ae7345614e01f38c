"""`nn.Normalize` and the statistics of a data set that it is made of."""

import re

import numpy as np
import pytest

import xcnn
from xcnn import data, nn, testing
from xcnn.data import statistics
from xcnn.errors import DataError, DtypeError, ShapeError, UsageError

MEAN, STD = (0.1, -2.0, 3.0), (0.5, 2.0, 0.01)


@pytest.mark.parametrize(
    ("where", "dtype", "close"),
    [(where, "float64", 1e-13) for where in ("cpu", "strict", "torch")]
    + [(where, "float32", 1e-5) for where in ("cpu", "strict", "torch", "jax")],
)
@pytest.mark.parametrize("sizes", [(), (4,), (4, 2), (2, 2, 3)])
def test_each_channel_is_shifted_and_scaled_and_its_gradient_divided(where, dtype, close, sizes):
    pytest.importorskip({"strict": "array_api_strict", "cpu": "numpy"}.get(where, where))
    device = xcnn.device(where)
    rng, layer = np.random.default_rng(0), nn.Normalize(MEAN, STD)
    x, dy = (rng.standard_normal((2, 3, *sizes)).astype(dtype) for _ in range(2))
    y, backward = layer.forward(device.asarray(x))
    dx = backward(device.asarray(dy))
    assert y.dtype == dx.dtype == device.asarray(x).dtype
    y, dx = map(xcnn.devices.to_numpy, (y, dx))
    for index in np.ndindex(x.shape):
        mean, std = np.float64(MEAN[index[1]]), np.float64(STD[index[1]])
        assert y[index] == pytest.approx((x[index] - mean) / std, rel=close, abs=close)
        assert dx[index] == pytest.approx(dy[index] / std, rel=close)


def test_it_is_a_layer_without_state_whose_gradient_is_right():
    layer = nn.Normalize(MEAN, STD)
    assert layer.state_dict() == {}
    assert not list(layer.named_buffers())
    assert repr(layer) == "Normalize((0.1, -2.0, 3.0), (0.5, 2.0, 0.01))"
    x = np.random.default_rng(0).standard_normal((2, 3, 2))
    testing.check_gradients(nn.Sequential(layer, nn.Tanh()), [x])
    y, backward = layer.forward(x)
    assert backward(y, need_dx=False) is None


def test_constants_may_come_as_any_list_of_numbers():
    for mean, std in (([0, 1], (2, np.float32(0.5))), (np.asarray([0.0, 1.0]), np.asarray([2.0, 0.5]))):
        layer = nn.Normalize(mean, std)
        assert (layer.mean, layer.std) == ((0.0, 1.0), (2.0, 0.5))
        assert {*map(type, (*layer.mean, *layer.std))} == {float}
    assert nn.Normalize(0.1307, np.float64(0.3081)).mean == (0.1307,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.Normalize((0, 0), (1, 0)), UsageError, "Normalize: std[1] must be a number in (0, inf), got 0"),
        (lambda: nn.Normalize("0", 1), UsageError, "Normalize: mean must be a number in (-inf, inf), got '0'"),
        (
            lambda: nn.Normalize([], []),
            UsageError,
            "Normalize: mean must be at least one number in (-inf, inf), got []",
        ),
        (
            lambda: nn.Normalize([0, np.nan], 1),
            UsageError,
            "Normalize: mean[1] must be a number in (-inf, inf), got nan",
        ),
        (
            lambda: nn.Normalize((0, 0), 1),
            UsageError,
            "Normalize: mean and std must have one number per channel each, got 2 and 1",
        ),
        (
            lambda: nn.Normalize(0, 1)(np.ones((2, 3, 4))),
            ShapeError,
            "Normalize: x must be (n, 1, *sizes), got (2, 3, 4)",
        ),
        (
            lambda: nn.Normalize(0, 1)(np.ones((2, 1), np.uint8)),
            DtypeError,
            "Normalize: x must be a floating-point array, got uint8; convert it first, as by xcnn.data.to_float, "
            "which divides by 255",
        ),
        (
            lambda: data.channel_statistics(np.ones((2, 1, 2, 2))),
            UsageError,
            "channel_statistics: dataset must be a Dataset, arrays (x, y), or an object with __len__ and "
            "__getitem__(int) -> (x, y), got ndarray",
        ),
    ],
)
def test_mistakes_are_one_sentence(call, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_statistics_are_those_of_all_values_whatever_is_read_at_a_time(chunk, dtype, monkeypatch):
    monkeypatch.setattr(statistics, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    x = (rng.random((50, 3, 4, 5)) * [[[[50]], [[200]], [[9]]]]).astype(dtype)
    if dtype == np.float32:
        x[:, 1] += 1e4  # a sum of squares minus the square of the sum would lose all digits
    mean, std = data.channel_statistics(data.Dataset(x, np.zeros(50, np.int64), ("a",), "x"))
    seen = data.to_float(x).astype(np.float64)
    for c in range(3):
        values = seen[:, c].ravel().tolist()
        centre = sum(values) / len(values)
        assert mean[c] == pytest.approx(centre, rel=1e-12)
        assert std[c] == pytest.approx((sum((v - centre) ** 2 for v in values) / len(values)) ** 0.5, rel=1e-10)
    y = nn.Normalize(mean, std)(seen)
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), 0, atol=1e-9)
    np.testing.assert_allclose(y.std(axis=(0, 2, 3)), 1, rtol=1e-9)


def test_statistics_of_a_device_have_the_same_bits_and_constant_channels_can_be_divided_by():
    x = np.random.default_rng(0).random((9, 2, 3, 3), np.float32)
    x[:, 1] = 0.1  # its mean is not exactly 0.1
    made = data.Dataset(x, np.zeros(9, np.int64), ("a",), "x")
    mean, std = data.channel_statistics(made)
    assert std[1] == 1
    pytest.importorskip("array_api_strict")
    assert data.channel_statistics(made.to("strict")) == (mean, std)


def test_data_that_are_read_when_needed_have_the_same_statistics(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (20, 2, 5), np.uint8)
    np.save(tmp_path / "x.npy", x)
    wanted = data.channel_statistics(data.Dataset(x, np.zeros(20)))
    assert data.channel_statistics(data.Dataset(np.load(tmp_path / "x.npy", mmap_mode="r"), np.zeros(20))) == wanted
    assert data.channel_statistics(data.MapDataset([(row, 0) for row in x])) == wanted


def test_numbers_that_are_not_finite_are_refused():
    made = data.Dataset(np.ones((2, 2, 3, 3), np.float32), np.zeros(2, np.int64), ("a",), "mine")
    made.x[1, 1] = np.nan  # after the check, as in data that are read when needed
    with pytest.raises(DataError, match=r"^mine: channel 1 holds NaN or infinity, so it has no mean$"):
        data.channel_statistics(made)

"""Initialisers: their distributions, by moments and bounds, and PyTorch's defaults."""

import functools
import math

import numpy as np
import pytest

from xcnn import nn
from xcnn.errors import ShapeError, UsageError
from xcnn.nn import init

SHAPE = (64, 32, 3, 3)
FAN_IN, FAN_OUT = 32 * 9, 64 * 9

# name, options, standard deviation, whether uniform; the deviations are the papers', written out.
DRAWS = [
    ("fan_in_uniform", {}, math.sqrt(1 / (3 * FAN_IN)), True),
    ("kaiming_uniform", {}, math.sqrt(2 / FAN_IN), True),
    ("kaiming_uniform", {"a": 0.5, "mode": "fan_out"}, math.sqrt(2 / 1.25 / FAN_OUT), True),
    ("kaiming_normal", {}, math.sqrt(2 / FAN_IN), False),
    ("kaiming_normal", {"mode": "fan_out"}, math.sqrt(2 / FAN_OUT), False),
    ("xavier_uniform", {}, math.sqrt(2 / (FAN_IN + FAN_OUT)), True),
    ("xavier_uniform", {"gain": 2.0}, 2 * math.sqrt(2 / (FAN_IN + FAN_OUT)), True),
    ("xavier_normal", {}, math.sqrt(2 / (FAN_IN + FAN_OUT)), False),
    ("normal", {"std": 0.3}, 0.3, False),
    ("uniform", {"low": -0.2, "high": 0.2}, 0.4 / math.sqrt(12), True),
]


@pytest.mark.parametrize(("name", "options", "std", "uniform"), DRAWS)
def test_mean_deviation_and_shape_of_the_distribution(name, options, std, uniform):
    w = init.INITS[name](np.random.default_rng(0), SHAPE, **options)
    assert w.shape == SHAPE
    assert w.dtype == np.float32
    w, n = w.astype(np.float64), w.size
    kurtosis = 9 / 5 if uniform else 3.0
    assert abs(w.mean()) < 5 * std / math.sqrt(n)
    # The sample variance has variance (kurtosis - 1) / n in units of std**4: five of its deviations.
    assert abs(w.var() / std**2 - 1) < 5 * math.sqrt((kurtosis - 1) / n)
    assert abs((w**4).mean() / std**4 - kurtosis) < 0.25
    if uniform:
        assert abs(w).max() <= math.sqrt(3) * std * (1 + 1e-6)


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (6, 4, 3, 3), (7, 7)])
def test_orthogonal_has_orthonormal_rows_or_columns(shape):
    w = init.orthogonal(np.random.default_rng(1), shape, gain=2.0)
    assert w.dtype == np.float32
    matrix = w.reshape(shape[0], -1).astype(np.float64)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(gram, 4 * np.eye(len(gram)), atol=1e-5)


def test_orthogonal_prefers_no_sign():
    draws = [init.orthogonal(np.random.default_rng(seed), (3, 3))[0, 0] for seed in range(400)]
    assert abs(np.mean(draws)) < 5 / math.sqrt(3 * 400)


def test_zeros_and_ones():
    rng = np.random.default_rng(0)
    assert not init.zeros(rng, (2, 3)).any()
    assert (init.ones(rng, (2, 3)) == 1).all()


@pytest.mark.parametrize("make", ["Linear", "Conv2d", "ConvTranspose2d"])
def test_default_bounds_are_those_of_pytorch(make):
    torch = pytest.importorskip("torch")
    arguments = (12, 20) if make == "Linear" else (12, 20, 3)
    ours, theirs = getattr(nn, make)(*arguments), getattr(torch.nn, make)(*arguments)
    ours.reset_parameters(0)  # of 20 unseeded biases, all may be small
    fan_in, _ = torch.nn.init._calculate_fan_in_and_fan_out(theirs.weight)
    assert init.fans(ours.weight.data.shape)[0] == fan_in
    for name in ("weight", "bias"):
        array, bound = getattr(ours, name).data, 1 / math.sqrt(fan_in)
        assert array.shape == tuple(getattr(theirs, name).shape)
        assert 0.8 * bound < abs(array).max() <= bound
        assert getattr(theirs, name).abs().max() <= bound


def test_a_layer_takes_a_name_or_a_function():
    layer = nn.Conv2d(3, 8, 3, init="kaiming_normal")
    assert not layer.bias.data.any()
    assert layer.weight.data.any()
    layer = nn.Linear(400, 300, init=functools.partial(init.normal, std=0.01))
    assert abs(layer.weight.data.std() / 0.01 - 1) < 0.02


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="unknown initialiser 'kaiming'; did you mean 'kaiming_"):
        nn.Linear(2, 2, init="kaiming")
    with pytest.raises(UsageError, match="unknown mode 'fan_inn'; did you mean 'fan_in'"):
        init.kaiming_normal(np.random.default_rng(0), (2, 2), mode="fan_inn")
    with pytest.raises(UsageError, match="name or a function"):
        nn.Linear(2, 2, init=3)


def test_fans_need_two_axes():
    with pytest.raises(ShapeError, match="two axes or more"):
        init.fans((3,))

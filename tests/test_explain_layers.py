"""What `explain` says of layers: maps, filters, statistics of activations, and the images that they react to most."""

import functools
from typing import Any

import numpy as np
import pytest
from conftest import LIBRARIES

from xcnn import Trainer, data, explain, models, nn, optim
from xcnn.errors import DataError, UsageError
from xcnn.testing import Backend

each_library = pytest.mark.parametrize("backend", LIBRARIES, indirect=True)


def test_feature_maps_are_the_outputs_of_the_layers() -> None:
    model, x = models.build("resnet20", shape=(3, 16, 16), seed=0), np.random.default_rng(0).random((2, 3, 16, 16))
    model.to("cpu", "float64")
    maps = explain.feature_maps(model, x)
    assert list(maps)[:4] == ["0", "1", "2", "3.body.0"]
    assert "3" not in maps  # a container
    np.testing.assert_allclose(list(maps.values())[-1], model(x), rtol=0, atol=1e-12)
    for name, y in maps.items():
        assert y.shape[0] == 2, name
    np.testing.assert_array_equal(maps["2"], np.maximum(maps["1"], 0))


def test_filters_are_the_weights_of_a_convolution() -> None:
    model = models.build("lenet5", seed=0)
    name, weight = explain.filters(model)
    assert name == "0"
    assert weight is model[0].weight.data  # type: ignore[index]
    assert explain.filters(model, "3").weight.shape == (16, 6, 5, 5)
    for layer, message in [
        ("7", r"^unknown filters: convolution '7' \(known: 0, 3\)$"),
        ("30", r"^unknown filters: convolution '30'; did you mean '3'\? \(known: 0, 3\)$"),
    ]:
        with pytest.raises(UsageError, match=message):
            explain.filters(model, layer)
    with pytest.raises(UsageError, match=r"^filters: the network has no convolution$"):
        explain.filters(nn.Linear(2, 2))


def mixed() -> nn.Sequential:
    """Return a network with two dead units and layers that saturate, in float64."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6)),
        *(nn.Tanh(), nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3), nn.ReLU6()),
    )
    model.reset_parameters(0)
    model.to("cpu", "float64")
    rng = np.random.default_rng(0)
    model[0].bias.data = np.asarray([0.0, -50.0, 0.1, -50.0])  # type: ignore[attr-defined]
    model[5].weight.data = rng.normal(0, 30, (5, 6))  # type: ignore[attr-defined]
    model[7].bias.data = np.asarray([3.0, -40.0, 0.5])  # type: ignore[attr-defined]
    return model


def test_statistics_are_those_of_all_activations_at_once() -> None:
    model, x = mixed(), np.random.default_rng(1).random((23, 1, 6, 6))
    rows, maps = explain.activation_statistics(model, x, batch_size=4), explain.feature_maps(model, x)
    assert [row.name for row in rows] == list(maps)
    for row in rows:
        y = maps[row.name]
        assert row.shape == y.shape[1:]
        assert row.units == y.shape[1]
        found = row.mean, row.std, row.minimum, row.maximum, row.zeros
        np.testing.assert_allclose(found, (y.mean(), y.std(), y.min(), y.max(), (y == 0).mean()), rtol=1e-12)
    by_layer = {row.name: row for row in rows}
    assert [by_layer[name].dead for name in ("0", "1", "2", "8")] == [None, 2, None, 1]
    tanh, sigmoid = maps["4"], maps["6"]
    assert by_layer["4"].saturated == (np.abs(tanh) >= 0.98).mean()
    assert by_layer["6"].saturated == ((sigmoid <= 0.01) | (sigmoid >= 0.99)).mean() > 0.2
    assert by_layer["1"].saturated is None


def test_a_shared_layer_has_a_row_for_each_call() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(1, 3, 3), relu, nn.Conv2d(3, 8, 3), relu).to("cpu", "float64")
    model.reset_parameters(0)
    rows = explain.activation_statistics(model, np.random.default_rng(0).random((7, 1, 6, 6)), batch_size=3)
    assert [(row.layer, row.units) for row in rows] == [("Conv2d", 3), ("ReLU", 3), ("Conv2d", 8), ("ReLU", 8)]


def test_statistics_show_that_numbers_are_not_finite() -> None:
    x = np.asarray([[1.0, 2.0], [np.nan, 3.0], [4.0, 5.0]])
    for given in (x, x[::-1]):
        (row,) = explain.activation_statistics(nn.Sequential(nn.Identity()), given, batch_size=1)
        assert np.isnan([row.mean, row.std, row.minimum, row.maximum]).all()


def test_statistics_do_not_lose_small_spreads_around_large_means() -> None:
    x = (1000 + np.random.default_rng(0).normal(0, 0.01, (1000, 50))).astype(np.float64)
    model = nn.Sequential(nn.Identity())
    (row,) = explain.activation_statistics(model, x, batch_size=7)
    np.testing.assert_allclose((row.mean, row.std), (x.mean(), x.std()), rtol=1e-12)


def test_statistics_and_features_read_data_sets_and_loaders_in_order() -> None:
    _, test = data.load("digits")
    model = models.build("report", shape=test.shape, classes=10, seed=0)
    x = data.to_float(test.x)
    expected = explain.features(model, x)
    assert expected.shape == (len(test), model[-1].in_features)  # type: ignore[attr-defined,index]
    np.testing.assert_array_equal(expected, explain.feature_maps(model, x)["3"])
    rows = explain.activation_statistics(model, x)
    for given in (test, data.Loader(test, 50, seed=3), test.x):
        np.testing.assert_allclose(explain.features(model, given, batch_size=100), expected, rtol=1e-5, atol=1e-6)
        for row, one in zip(explain.activation_statistics(model, given), rows, strict=True):
            np.testing.assert_allclose((row.mean, row.std), (one.mean, one.std), rtol=1e-5)


def test_features_are_rows_of_any_layer() -> None:
    model, x = models.build("lenet5", seed=0), np.random.default_rng(0).random((5, 1, 28, 28), np.float32)
    maps = explain.feature_maps(model, x)
    np.testing.assert_array_equal(explain.features(model, x), maps["10"])
    np.testing.assert_allclose(
        explain.features(model, x, "3", batch_size=2), maps["3"].mean((2, 3)), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(explain.features(model, x, "11"), maps["11"])
    without = nn.Sequential(nn.Conv2d(1, 3, 3), nn.GlobalAvgPool())
    np.testing.assert_array_equal(explain.features(without, x), without(x))
    with pytest.raises(UsageError, match=r"^unknown layer '12'; did you mean '[12]'\? \(known: 0, 1, 10, "):
        explain.features(model, x, "12")


@each_library
def test_statistics_and_features_are_the_same_on_every_library(backend: Backend, dtype: str) -> None:
    model, x = mixed(), np.random.default_rng(1).random((5, 1, 6, 6)).astype(dtype)
    expected, rows = explain.features(model, x.astype(np.float64), "4"), explain.activation_statistics(model, x)
    model.to(backend.device, dtype)
    near = {"rtol": 1e-10, "atol": 1e-12} if dtype == "float64" else {"rtol": 1e-4, "atol": 1e-5}
    for given in (x, backend.array(x)):
        np.testing.assert_allclose(explain.features(model, given, "4"), expected, **near)
        for row, one in zip(explain.activation_statistics(model, given, 2), rows, strict=True):
            assert (row.dead, row.units, row.shape) == (one.dead, one.units, one.shape)
            np.testing.assert_allclose((row.mean, row.std, row.zeros), (one.mean, one.std, one.zeros), **near)


@functools.cache
def trained() -> tuple[nn.Module, np.ndarray]:
    """Return a network that knows the digits, and images of the training set."""
    train, test = data.load("digits")
    model = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Residual(nn.Conv2d(12, 12, 3, padding=1)), nn.ReLU(), nn.Flatten(), nn.Linear(192, 10)),
    )
    model.reset_parameters(0)
    Trainer(model, optim.Adam(model.parameters(), lr=0.005), "cross_entropy").fit(train, 3)
    return model, data.to_float(np.concatenate([train.x, test.x]))


def test_the_image_of_a_class_or_channel_excites_it_more_than_any_image_of_the_data() -> None:
    model, x = trained()
    found = explain.trace(model, x)
    for layer, channel in [(None, 3), (None, 8), ("0", 2), ("3", 5), ("3.body", 5), ("4", 1)]:
        y = found.y if layer is None else found[layer].y
        real = y[:, channel].reshape(len(x), -1).mean(1)
        image = explain.maximize_activation(model, layer, channel, (1, 8, 8), steps=100)
        assert image.shape == (1, 8, 8)
        assert image.min() >= 0
        assert image.max() <= 1
        drawn = explain.trace(model, image[None])
        mine = float((drawn.y if layer is None else drawn[layer].y)[0, channel].mean())
        assert mine > real.max(), (layer, channel)


def test_drawn_images_repeat_themselves_and_depend_on_the_seed() -> None:
    model, _ = trained()
    before = [slot.grad for slot in model.parameters()]
    draw = functools.partial(explain.maximize_activation, model, None, 3, (1, 8, 8), 5, jitter=1)
    np.testing.assert_array_equal(draw(), draw())
    assert not np.array_equal(draw(), draw(rng=1))
    unbounded = draw(bounds=None)
    assert unbounded.min() < 0
    smooth, rough = draw(blur=0.3), draw(blur=0.0)
    assert np.abs(np.diff(smooth)).mean() < np.abs(np.diff(rough)).mean()
    after = [slot.grad for slot in model.parameters()]
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_a_step_moves_along_the_gradient_decays_and_blurs() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 2)).to("cpu", "float64")
    model.reset_parameters(0)
    rng = np.random.default_rng(5)
    image = np.clip(1 + 0.4 * rng.standard_normal((1, 5, 6)), -1, 3)
    shifts = rng.integers(-2, 3, 2)
    slope = np.roll(model[1].weight.data[1].reshape(1, 5, 6), -shifts, (1, 2))  # type: ignore[index,union-attr]
    image = image + 0.2 * 4 * slope / np.sqrt((slope**2).mean())
    image = 1 + 0.7 * (image - 1)
    for axis in (1, 2):
        ends = np.pad(image, [(0, 0), *((1, 1) if axis == one else (0, 0) for one in (1, 2))], mode="edge")
        image = 0.6 * image + 0.2 * (
            ends.take(range(ends.shape[axis] - 2), axis) + ends.take(range(2, ends.shape[axis]), axis)
        )
    assert shifts.all()
    found = explain.maximize_activation(model, None, 1, (1, 5, 6), 1, 0.2, 5, 0.3, 0.2, 2, (-1, 3))
    np.testing.assert_allclose(found, np.clip(image, -1, 3), rtol=1e-12)


@each_library
def test_drawn_images_are_the_same_on_every_library(backend: Backend, dtype: str) -> None:
    model = mixed()
    expected = explain.maximize_activation(model, "0", 2, (1, 6, 6), 5)
    model.to(backend.device, dtype)
    found = backend.to_numpy(explain.maximize_activation(model, "0", 2, (1, 6, 6), 5))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 if dtype == "float64" else 1e-4)


class Own(nn.Module):
    def __init__(self) -> None:
        self.inner = nn.Linear(2, 2)

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Any]:
        y, back = self.inner.forward(x, train)
        return 2 * y, lambda dy, need_dx: back(2 * dy)


class Unused(nn.Module):
    def __init__(self) -> None:
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Any]:
        self.b.forward(x, train)
        return self.a.forward(x, train)


def test_wrong_arguments_are_refused() -> None:
    model = models.build("lenet5", seed=0)
    shape, draw, count = (1, 28, 28), explain.maximize_activation, explain.activation_statistics
    for call, message in [
        (lambda: draw(model, "0", 6, shape), "maximize_activation: channel must be an integer from 0 to 5, got 6$"),
        (lambda: draw(model, "12", 0, shape), "unknown layer '12'; did you mean"),
        (
            lambda: draw(model, None, 0, 28),
            r"maximize_activation: shape must be that of one image, ",
        ),
        (lambda: draw(model, None, 0, shape, blur=0.5), "maximize_activation: blur must be a number in"),
        (lambda: draw(model, None, 0, shape, bounds=1), r"maximize_activation: bounds must be two numbers"),
        (
            lambda: draw(nn.Sequential(Own()), "0", 0, (2,)),
            "maximize_activation: '0' computes its output by code",
        ),
        (
            lambda: draw(nn.Sequential(Unused()), "0.b", 0, (2,)),
            "maximize_activation: no gradient reaches the layer '0.b'",
        ),
        (
            lambda: draw(nn.Sequential(nn.Apply("sum", dim=1)), None, 0, (2,)),
            "maximize_activation: the output must be an",
        ),
        (lambda: count(model, np.zeros((2, *shape)), 0), "activation_statistics: batch_size must be"),
        (lambda: count("lenet5", np.zeros((2, *shape))), "activation_statistics: model must be a module"),
    ]:
        with pytest.raises(UsageError, match=f"^{message}"):
            call()  # type: ignore[no-untyped-call]
    with pytest.raises(DataError, match=r"^features: data has no batch \(an iterator gives its batches only once\)$"):
        explain.features(model, iter([]))

"""Attributions by what must hold of them: differences, loops, linear networks, completeness, and on every library.

`test_explain_torch.py` compares them with captum.
"""

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import LIBRARIES

from xcnn import Trainer, data, explain, models, nn, optim
from xcnn.errors import DtypeError, ShapeError, UsageError
from xcnn.testing import Backend

each_library = pytest.mark.parametrize("backend", LIBRARIES, indirect=True)


def network(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return a small network with a batch norm, a branch and a pool, in float64."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        activation(),
        nn.Residual(nn.Conv2d(4, 4, 3, padding=1)),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 3 * 4, 5),
    )
    model.reset_parameters(0)
    return model.to("cpu", "float64")


@functools.cache
def images() -> np.ndarray:
    return np.random.default_rng(1).random((3, 2, 6, 8))


def classes_of(y: np.ndarray) -> Any:
    return y.argmax(1)


def test_the_input_gradient_is_that_of_central_differences() -> None:
    model, x = network(nn.Softplus), images()
    weights = np.random.default_rng(2).normal(size=(3, 5))
    found, step = explain.input_gradient(model, x, weights), 1e-5
    for place in [(0, 0, 0, 0), (1, 1, 5, 7), (2, 0, 3, 4)]:
        moved = np.zeros_like(x)
        moved[place] = step
        slope = ((model(x + moved) - model(x - moved)) * weights).sum() / (2 * step)
        np.testing.assert_allclose(found[place], slope, rtol=1e-7)


def test_on_a_linear_network_gradient_times_input_integrated_gradients_and_occlusion_agree() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 4)).to("cpu", "float64")
    x = np.random.default_rng(0).random((2, 1, 6, 6))
    product = explain.gradient_times_input(model, x, 2)
    np.testing.assert_allclose(explain.integrated_gradients(model, x, 2, steps=3), product, rtol=0, atol=1e-12)
    np.testing.assert_allclose(explain.occlusion(model, x, 2, window=1), product[:, 0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(explain.smooth_grad(model, x, 2, samples=3), explain.input_gradient(model, x, 2))
    np.testing.assert_allclose(
        product.sum((1, 2, 3)), model(x)[:, 2] - model(np.zeros_like(x))[:, 2], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("baseline", [None, 0.5, "noise"])
def test_integrated_gradients_sum_to_the_difference_of_the_scores(baseline: Any) -> None:
    model, x = network(nn.Softplus), images()
    baseline = np.random.default_rng(3).random((1, 2, 6, 8)) if baseline == "noise" else baseline
    start = np.broadcast_to(0.0 if baseline is None else baseline, x.shape)
    for target in (None, 3, [0, 1, 4]):
        found = explain.integrated_gradients(model, x, target, baseline, steps=20)
        picked = classes_of(model(x)) if target is None else np.broadcast_to(target, 3)
        difference = (model(x) - model(start))[np.arange(3), picked]
        assert np.abs(difference).min() > 1e-3
        np.testing.assert_allclose(found.sum((1, 2, 3)), difference, rtol=0, atol=1e-9)
        gap = explain.completeness(model, x, found, target, baseline)
        np.testing.assert_allclose(gap, 0, rtol=0, atol=1e-9)
        gap = explain.completeness(model, x, 2 * found, target, baseline)
        np.testing.assert_allclose(gap, difference, rtol=1e-6)


def test_more_steps_bring_integrated_gradients_nearer_to_completeness() -> None:
    # ReLUs have corners, at which the rule of Gauss is not exact.
    model, x = models.build("lenet5", seed=0).to("cpu", "float64"), np.random.default_rng(0).random((2, 1, 28, 28))
    gaps = [
        np.abs(explain.completeness(model, x, explain.integrated_gradients(model, x, 1, steps=steps), 1)).max()
        for steps in (2, 200)
    ]
    assert gaps[1] < gaps[0] / 5


@pytest.mark.parametrize(("window", "stride"), [(2, 1), (3, 2), ((4, 3), (3, 3)), (99, 5), (None, None)])
def test_occlusion_is_that_of_a_plain_loop(window: Any, stride: Any) -> None:
    model, x, fill = network(), images(), 0.3
    h, w = (1, 1) if window is None else np.minimum(np.broadcast_to(window, 2), (6, 8)).tolist()
    a, b = (1, 1) if stride is None else np.broadcast_to(stride, 2).tolist()
    falls, counts = np.zeros((3, 6, 8)), np.zeros((6, 8))
    for i, j in itertools.product(range(0, 6, a), range(0, 8, b)):
        if (i and i - a + h >= 6) or (j and j - b + w >= 8):  # the window before has reached the border
            continue
        covered = x.copy()
        covered[:, :, i : i + h, j : j + w] = fill
        falls[:, i : i + h, j : j + w] += (model(x) - model(covered))[:, 4][:, None, None]
        counts[i : i + h, j : j + w] += 1
    found = explain.occlusion(model, x, 4, window, stride, fill)
    np.testing.assert_allclose(found, falls / counts, rtol=0, atol=1e-12)


def test_grad_cam_is_the_sum_of_maps_times_mean_gradients() -> None:
    model, x = network(), images()
    found = explain.trace(model, x)
    dy = np.zeros((3, 5))
    dy[:, 2] = 1
    found.backward(dy)
    maps, slope = found["4"].y, found["4"].dy
    by_hand = np.einsum("nchw,nc->nhw", maps, slope.mean((2, 3)))
    assert by_hand.min() < 0 < by_hand.max()
    np.testing.assert_allclose(explain.grad_cam(model, x, 2), np.maximum(by_hand, 0), rtol=0, atol=1e-14)
    assert explain.grad_cam(model, x, 1, "0").shape == (3, 6, 8)
    assert explain.grad_cam(model, x, 1, "3").shape == (3, 6, 8)  # a container


def test_the_scores_of_pixels_are_not_the_maps_of_grad_cam() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).to("cpu", "float64")
    model.reset_parameters(0)
    found = explain.grad_cam(model, images(), 1)
    assert found.max() > 0
    np.testing.assert_array_equal(found, explain.grad_cam(model, images(), 1, "1"))
    assert not np.allclose(found, explain.grad_cam(model, images(), 1, "2"))


def test_maps_are_upsampled_between_the_centres_of_pixels() -> None:
    found = explain.upsample(np.asarray([[[0.0, 4.0], [8.0, 12.0]]]), (4, 2))
    np.testing.assert_allclose(found, [[[0, 4], [2, 6], [6, 10], [8, 12]]])


def test_the_window_of_occlusion_is_a_seventh_of_the_image_and_moves_by_half() -> None:
    model, x = models.build("lenet5", seed=0), np.random.default_rng(0).random((1, 1, 28, 28), np.float32)
    np.testing.assert_array_equal(explain.occlusion(model, x), explain.occlusion(model, x, window=4, stride=2))


def test_grad_cam_plus_plus_keeps_small_gradients() -> None:
    model, x = network().to("cpu", "float32"), images().astype(np.float32)
    target = np.zeros((3, 5), np.float32)
    target[:, 1] = 1e-24  # the squares of the gradients are 0 in float32
    found, maps = explain.grad_cam_plus_plus(model, x, target), explain.trace(model, x)
    maps.backward(target * np.float32(1e24))
    weights = np.maximum(maps["4"].dy, 0).sum((2, 3)) / 2
    expected = np.maximum(np.einsum("nchw,nc->nhw", maps["4"].y, weights), 0)
    assert expected.max() > 1e-3
    np.testing.assert_allclose(found * np.float32(1e24), expected, rtol=1e-4, atol=1e-6)


def test_guided_backpropagation_passes_only_what_is_positive_through_every_relu() -> None:
    model, x = models.build("lenet5", seed=0).to("cpu", "float64"), np.random.default_rng(0).random((2, 1, 28, 28))
    found = explain.trace(model, x, rule=explain.guided)
    dy = np.zeros((2, 10))
    dy[:, 3] = 1
    np.testing.assert_array_equal(found.backward(dy), explain.guided_backprop(model, x, 3))
    for name in ("1", "4", "8", "10"):
        call = found[name]
        np.testing.assert_array_equal(call.dx, np.where(call.x > 0, np.maximum(call.dy, 0), 0))
        assert (call.dy < 0).any()


def test_guided_backpropagation_knows_relu6() -> None:
    model, x = network(nn.ReLU6), images()
    relus = [call for call in explain.trace(model, x).layers if isinstance(call.module, nn.ReLU6)]
    assert [call.name for call in relus] == ["2"]
    assert not np.allclose(explain.guided_backprop(model, x, 1), explain.input_gradient(model, x, 1))


def test_smooth_grad_is_the_mean_of_the_gradients_at_noisy_images() -> None:
    model, x, rng = (
        network(nn.Softplus),
        images() * np.asarray([1, 2, 5]).reshape(-1, 1, 1, 1),
        np.random.default_rng(4),
    )
    spread = 0.3 * np.ptp(x.reshape(3, -1), axis=1).reshape(-1, 1, 1, 1)
    found = explain.smooth_grad(model, x, 2, samples=70, noise=0.3, rng=4)
    noisy = [explain.input_gradient(model, x + spread * rng.standard_normal(x.shape), 2) for _ in range(70)]
    np.testing.assert_allclose(found, np.mean(noisy, axis=0), rtol=0, atol=1e-12)


def test_smooth_grad_repeats_itself_and_depends_on_the_seed() -> None:
    model, x = network(), images()
    first = explain.smooth_grad(model, x, samples=5, rng=3)
    np.testing.assert_array_equal(first, explain.smooth_grad(model, x, samples=5, rng=3))
    np.testing.assert_array_equal(first, explain.smooth_grad(model, x, samples=5, rng=np.random.default_rng(3)))
    assert not np.allclose(first, explain.smooth_grad(model, x, samples=5, rng=4))
    np.testing.assert_allclose(explain.smooth_grad(model, x, noise=0, samples=2), explain.input_gradient(model, x))


@pytest.mark.parametrize("name", explain.ATTRIBUTIONS)
def test_examples_do_not_see_each_other_and_the_default_target_is_the_highest_score(name: str) -> None:
    model, x, method = network(), images(), explain.ATTRIBUTIONS[name]
    all_at_once = method(model, x)
    np.testing.assert_allclose(all_at_once, method(model, x, classes_of(model(x)).tolist()), rtol=0, atol=1e-12)
    if name != "smooth_grad":  # whose noise is that of its place in the batch
        for i in range(3):
            np.testing.assert_allclose(method(model, x[i : i + 1])[0], all_at_once[i], rtol=0, atol=1e-12)


@each_library
def test_attributions_are_the_same_on_every_library(backend: Backend, dtype: str) -> None:
    model, x, near = network(), images(), 1e-12 if dtype == "float64" else 2e-4
    expected = {name: method(model, x, [1, 0, 4]) for name, method in explain.ATTRIBUTIONS.items()}
    expected["completeness"] = explain.completeness(model, x, x, 1, images()[:1])
    expected["upsample"] = explain.upsample(expected["grad_cam"], (7, 9))
    model.to(backend.device, dtype)
    placed = backend.array(x.astype(dtype))
    found = {name: method(model, placed, [1, 0, 4]) for name, method in explain.ATTRIBUTIONS.items()}
    found["completeness"] = explain.completeness(model, placed, placed, 1, images()[:1])
    found["upsample"] = explain.upsample(found["grad_cam"], (7, 9))
    for name, array in found.items():
        assert type(array) is type(placed), name
        assert array.dtype == placed.dtype, name
        host, largest = backend.to_numpy(array), np.abs(expected[name]).max()
        np.testing.assert_allclose(host, expected[name], rtol=0, atol=near * max(1.0, largest), err_msg=name)
    labels = backend.array(np.asarray([1, 0, 4], np.int32))
    np.testing.assert_array_equal(
        backend.to_numpy(explain.input_gradient(model, placed, labels)), backend.to_numpy(found["input_gradient"])
    )


def test_signals_and_networks_that_score_every_pixel_are_explained_too() -> None:
    signals = nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))
    x = np.random.default_rng(0).random((2, 1, 10), np.float32)
    for name, method in explain.ATTRIBUTIONS.items():
        shape = (2, 1, 10) if name in SHAPED else (2, 10)
        assert method(signals, x).shape == shape, name
    assert explain.upsample(explain.grad_cam(signals, x), (20,)).shape == (2, 20)
    pixels = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).to("cpu", "float64")
    x = np.random.default_rng(0).random((2, 1, 5, 6))
    for name, method in explain.ATTRIBUTIONS.items():
        assert method(pixels, x, 1).shape == ((2, 1, 5, 6) if name in SHAPED else (2, 5, 6)), name
    every = np.zeros((2, 3, 5, 6))
    every[:, 1] = 1
    np.testing.assert_array_equal(explain.input_gradient(pixels, x, 1), explain.input_gradient(pixels, x, every))


SHAPED = {"input_gradient", "gradient_times_input", "smooth_grad", "integrated_gradients", "guided_backprop"}
"""The attributions of the shape of the input."""


@functools.cache
def trained() -> tuple[nn.Module, np.ndarray]:
    """Return a network that knows the digits, and images that it has not seen."""
    train, test = data.load("digits")
    he = "kaiming_normal"
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, init=he), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, init=he), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1, init=he), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(512, 64, init=he), nn.ReLU(), nn.Linear(64, 10)),
    )
    model.reset_parameters(0)
    trainer = Trainer(model, optim.Adam(model.parameters(), lr=0.002), "cross_entropy")
    trainer.fit(train, 6)
    accuracy = trainer.evaluate(test).accuracy
    assert accuracy is not None
    assert accuracy > 0.9
    return model, data.to_float(test.x[:32])


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean over the examples of Spearman's correlation; equal numbers share their mean rank."""

    def ranks(row: np.ndarray) -> np.ndarray:
        _, place, counts = np.unique(row, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        return (ends - (counts - 1) / 2)[place.reshape(-1)]

    pairs = [(ranks(one.reshape(-1)), ranks(other.reshape(-1))) for one, other in zip(a, b, strict=True)]
    found = [np.corrcoef(one, other)[0, 1] for one, other in pairs if one.std() and other.std()]
    assert len(found) > len(pairs) / 2
    return float(np.mean(found))


def test_maps_change_with_the_weights_except_where_they_do_not_explain_the_network() -> None:
    """The sanity check of Adebayo et al. (2018, arXiv:1810.03292), with weights drawn anew from the top down.

    Measured here with the last layer drawn anew, for maps with their signs: -0.1 to 0.1 for the gradient, integrated
    gradients, Grad-CAM and occlusion, but 0.9 for guided backpropagation. With all layers drawn anew: -0.1 to 0.1, and
    0.7 for guided backpropagation. Of absolute values, integrated gradients keep 0.9, as in the paper: where a pixel is
    black, they are 0 whatever the weights are. Grad-CAM++, which is not in the paper, keeps 0.9 with the last layer
    drawn anew: it weighs maps by what is positive alone.
    """
    model, x = trained()
    said = model(x).argmax(1)
    methods = ("input_gradient", "integrated_gradients", "grad_cam", "occlusion", "guided_backprop")
    before = {name: explain.ATTRIBUTIONS[name](model, x, said) for name in methods}
    drawn, other = copy.deepcopy(model), copy.deepcopy(model)
    other.reset_parameters(7)
    layers = dict(drawn.modules())
    found: dict[str, dict[str, float]] = {}
    for name in ("10", "8", "5", "2", "0"):
        layers[name].load_state_dict(dict(other.modules())[name].state_dict())
        found[name] = {one: rank_correlation(before[one], explain.ATTRIBUTIONS[one](drawn, x, said)) for one in methods}
    for name, correlations in found.items():
        for one in methods[:-1]:
            assert abs(correlations[one]) < 0.5, (name, one)
    for name in ("10", "8", "5"):
        assert found[name]["guided_backprop"] > 0.6, name
        assert found[name]["guided_backprop"] > max(found[name][one] for one in methods[:-1]) + 0.3, name


class Scores(nn.Module):
    """A network of code of its own without a batch axis in its output."""

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        return x.sum(), lambda dy, need_dx: np.ones_like(x) * dy


def test_networks_without_what_a_method_needs_are_refused() -> None:
    lenet, x = models.build("lenet5"), np.zeros((1, 1, 28, 28), np.float32)
    flat = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    row = np.zeros((1, 4), np.float32)
    for call, message in [
        (lambda: explain.grad_cam(flat, row), r"^grad_cam: the network has no layer with maps \(n, c, h, w\); use "),
        (
            lambda: explain.grad_cam(lenet, x, layer="7"),
            r"^grad_cam: '7' has no maps .*; the layers that have are 0,",
        ),
        (lambda: explain.grad_cam_plus_plus(lenet, x, layer="conv"), r"^unknown layer 'conv'"),
        (lambda: explain.guided_backprop(flat, row), r"^guided_backprop: the network has no ReLU, so that it is the"),
        (
            lambda: explain.occlusion(lenet, x, window=3, stride=4),
            r"^occlusion: stride must be at most the window, \(",
        ),
        (lambda: explain.occlusion(lenet, x, window=0), r"^occlusion: window takes integers of at least 1, got 0$"),
        (lambda: explain.smooth_grad(lenet, x, samples=0), r"^smooth_grad: samples must be an integer of at least 1"),
        (
            lambda: explain.smooth_grad(lenet, x, noise=-1),
            r"^smooth_grad: noise must be a number in \[0, inf\), ",
        ),
        (lambda: explain.integrated_gradients(lenet, x, steps=1.5), r"^integrated_gradients: steps must be an integer"),
        (lambda: explain.integrated_gradients(lenet, x, baseline="black"), r"^integrated_gradients: baseline must be"),
        (lambda: explain.input_gradient("lenet5", x), r"^input_gradient: model must be a module, got 'lenet5'$"),
        (lambda: explain.upsample(x[:, 0], (0, 5)), r"^upsample: size takes integers of at least 1, got \(0, 5\)$"),
    ]:
        with pytest.raises(UsageError, match=message):
            call()  # type: ignore[no-untyped-call]
    assert explain.occlusion(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), row[:, None, None]).shape == (1, 1, 4)


def test_wrong_inputs_and_targets_are_refused() -> None:
    model, x = models.build("lenet5"), np.zeros((2, 1, 28, 28), np.float32)
    every = {**explain.ATTRIBUTIONS, "completeness": lambda model, x: explain.completeness(model, x, x)}
    for name, method in every.items():
        for wrong, error, message in [
            (x[0], ShapeError, r"x must be a batch \(n, ...\), got shape \(1, 28, 28\); pass x\[None\]$"),
            (x[:0], ShapeError, r"x must have at least one example, got shape \(0, 1, 28, 28\)$"),
            (x.astype(np.uint8), DtypeError, r"x must be a floating-point array, got uint8; convert it first, as by"),
            ((x, x), DtypeError, r"x must be one array with a batch axis \(n, ...\), got tuple$"),
        ]:
            with pytest.raises(error, match=f"^{name}: {message}"):
                method(model, wrong)
    for target, error, message in [
        (10, UsageError, "target must be a class, 0 to 9, got 10$"),
        (-1, UsageError, "target must be a class, 0 to 9, got -1$"),
        (True, UsageError, "target must be a class, 0 to 9, got True$"),
        ("7", UsageError, "target must be a class, 0 to 9, got '7'$"),
        ([1, 2, 3], UsageError, r"target must be one class, or one for each of 2 examples, got \[1, 2, 3\]$"),
        (np.zeros((2, 9)), ShapeError, r"target must be a class, one per example, or an array .* \(2, 10\), got an"),
    ]:
        with pytest.raises(error, match=f"^input_gradient: {message}"):
            explain.input_gradient(model, x, target)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"^input_gradient: the output must have one row per example, got \(\) for 2$"):
        explain.input_gradient(Scores(), x)
    with pytest.raises(ShapeError, match=r"^completeness: attribution must have the shape of x, \(2, 1, 28, 28\), got"):
        explain.completeness(model, x, x[:1])
    with pytest.raises(ShapeError, match=r"^occlusion: fill must broadcast to the shape of x, \(2, 1, 28, 28\), got"):
        explain.occlusion(model, x, fill=np.zeros((3, 1, 1)))

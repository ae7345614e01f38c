"""Attributions against captum and against PyTorch's autograd, in float64 with the same weights.

The networks are LeNet-5 and ResNet-20, and their twins are written with PyTorch's own layers.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xcnn import explain, models, nn

torch = pytest.importorskip("torch", reason="PyTorch, against which attributions are checked, is not installed")

TOLERANCE = 1e-6
CLASSES = [3, 0, 7]


@pytest.fixture
def attr() -> Any:
    return pytest.importorskip("captum.attr", reason="captum is not installed")


def torch_lenet5() -> Any:
    t = torch.nn
    return t.Sequential(
        *(t.Conv2d(1, 6, 5, padding=2), t.ReLU(), t.MaxPool2d(2)),
        *(t.Conv2d(6, 16, 5), t.ReLU(), t.MaxPool2d(2), t.Flatten()),
        *(t.Linear(400, 120), t.ReLU(), t.Linear(120, 84), t.ReLU(), t.Linear(84, 10)),
    )


def torch_resnet20() -> Any:
    t = torch.nn

    class Residual(t.Module):  # type: ignore[misc]
        def __init__(self, body: Any, shortcut: Any) -> None:
            super().__init__()
            self.body, self.shortcut = body, shortcut

        def forward(self, x: Any) -> Any:
            return self.body(x) + self.shortcut(x)

    class Mean(t.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x.mean((2, 3))

    def conv(c: int, o: int, kernel: int, stride: int = 1) -> Any:
        return t.Conv2d(c, o, kernel, stride, padding=kernel // 2, bias=False)

    layers = [conv(3, 16, 3), t.BatchNorm2d(16), t.ReLU()]
    for c, o in ((16, 16), (16, 32), (32, 64)):
        for block in range(3):
            i, stride = (o, 1) if block else (c, o // c)
            body = t.Sequential(conv(i, o, 3, stride), t.BatchNorm2d(o), t.ReLU(), conv(o, o, 3), t.BatchNorm2d(o))
            down = t.Sequential(conv(i, o, 1, stride), t.BatchNorm2d(o)) if stride > 1 else t.Identity()
            layers += [Residual(body, down), t.ReLU()]
    return t.Sequential(*layers, Mean(), t.Linear(64, 10))


class Pair:
    """A network, its twin, and images for both."""

    def __init__(self, name: str) -> None:
        build, shape = {"lenet5": (torch_lenet5, (1, 28, 28)), "resnet20": (torch_resnet20, (3, 32, 32))}[name]
        rng = np.random.default_rng(1)
        self.ours = models.build(name, shape=shape, classes=10, seed=0).to("cpu", "float64")
        for key, buffer in self.ours.named_buffers():
            drawn = rng.normal(size=buffer.data.shape)
            buffer.data = np.abs(drawn) + 0.5 if "var" in key else 0.1 * drawn
        self.theirs = build().double().eval()
        state = {key: torch.from_numpy(value) for key, value in self.ours.state_dict().items()}
        missing = self.theirs.load_state_dict(state, strict=False)
        assert not missing.unexpected_keys
        assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)
        self.x = rng.random((3, *shape))
        self.last = {"lenet5": "5", "resnet20": "20"}[name]  # the last layer with maps

    def images(self) -> Any:
        return torch.from_numpy(self.x).requires_grad_()

    def module(self, layer: str) -> Any:
        return self.theirs.get_submodule(layer)


@functools.cache
def pair_of(name: str) -> Pair:
    return Pair(name)


@pytest.fixture(params=["lenet5", "resnet20"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return pair_of(request.param)


def close(ours: Any, theirs: Any) -> None:
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert ours.shape == theirs.shape
    largest = np.abs(theirs).max()
    assert largest > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * min(1.0, float(largest)))


def test_the_twin_computes_the_same(pair: Pair) -> None:
    close(pair.ours(pair.x), pair.theirs(pair.images()))


def autograd(pair: Pair, x: Any, weigh: Callable[[Any], Any]) -> Any:
    return torch.autograd.grad(weigh(pair.theirs(x)).sum(), x)[0]


def chosen(y: Any) -> Any:
    return y[torch.arange(3), torch.tensor(CLASSES)]


def test_the_input_gradient_is_that_of_autograd_for_every_kind_of_target(pair: Pair) -> None:
    x, w = pair.images(), np.random.default_rng(2).normal(size=(3, 10))
    for target, weigh in [
        (None, lambda y: y.max(1).values),
        (4, lambda y: y[:, 4]),
        (CLASSES, chosen),
        (np.asarray(CLASSES), chosen),
        (w, lambda y: y * torch.from_numpy(w)),
    ]:
        expected = autograd(pair, x, weigh)
        close(explain.input_gradient(pair.ours, pair.x, target), expected)
        close(explain.gradient_times_input(pair.ours, pair.x, target), expected * x)


def test_gradients_are_those_of_captum(pair: Pair, attr: Any) -> None:
    x = pair.images()
    close(
        explain.input_gradient(pair.ours, pair.x, CLASSES), attr.Saliency(pair.theirs).attribute(x, CLASSES, abs=False)
    )
    close(
        explain.gradient_times_input(pair.ours, pair.x, CLASSES), attr.InputXGradient(pair.theirs).attribute(x, CLASSES)
    )


def test_smooth_grad_is_the_mean_of_autograds_gradients_at_the_same_noise(pair: Pair) -> None:
    rng, total = np.random.default_rng(5), np.zeros_like(pair.x)
    spread = 0.2 * (pair.x.max((1, 2, 3), keepdims=True) - pair.x.min((1, 2, 3), keepdims=True))
    for _ in range(7):
        x = torch.from_numpy(pair.x + spread * rng.standard_normal(pair.x.shape)).requires_grad_()
        total += autograd(pair, x, chosen).numpy()
    close(explain.smooth_grad(pair.ours, pair.x, CLASSES, samples=7, noise=0.2, rng=5), total / 7)


def test_integrated_gradients_are_those_of_captum(pair: Pair, attr: Any) -> None:
    x, method = pair.images(), attr.IntegratedGradients(pair.theirs)
    close(explain.integrated_gradients(pair.ours, pair.x[:1], 3), method.attribute(x[:1], target=3, n_steps=50))
    base = np.random.default_rng(3).random(pair.x.shape)
    theirs = method.attribute(x, torch.from_numpy(base), CLASSES, n_steps=9)
    close(explain.integrated_gradients(pair.ours, pair.x, CLASSES, base, 9), theirs)


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_guided_backpropagation_is_that_of_captum(pair: Pair, attr: Any) -> None:
    theirs = attr.GuidedBackprop(pair.theirs).attribute(pair.images(), CLASSES)
    close(explain.guided_backprop(pair.ours, pair.x, CLASSES), theirs)


def test_grad_cam_is_that_of_captum(pair: Pair, attr: Any) -> None:
    for layer in ("3", pair.last):
        method = attr.LayerGradCam(pair.theirs, pair.module(layer))
        theirs = method.attribute(pair.images(), CLASSES, relu_attributions=True)
        close(explain.grad_cam(pair.ours, pair.x, CLASSES, layer), theirs[:, 0])
    np.testing.assert_array_equal(
        explain.grad_cam(pair.ours, pair.x, CLASSES), explain.grad_cam(pair.ours, pair.x, CLASSES, pair.last)
    )


def hooked(pair: Pair, layer: str) -> tuple[Any, Any]:
    """Return the maps of a layer and the gradients there, by PyTorch's own means."""
    kept = []
    handle = pair.module(layer).register_forward_hook(lambda module, x, y: kept.append(y))
    score = chosen(pair.theirs(pair.images())).sum()
    handle.remove()
    return kept[0].detach(), torch.autograd.grad(score, kept[0])[0]


def test_grad_cam_plus_plus_is_the_papers_with_the_derivatives_of_autograd(pair: Pair) -> None:
    for layer in ("3", pair.last):
        maps, gradient = hooked(pair, layer)
        expected = torch.zeros(maps.shape[0], *maps.shape[2:], dtype=torch.float64)
        for n in range(maps.shape[0]):
            for k in range(maps.shape[1]):
                weight = 0.0
                for g in gradient[n, k].flatten().tolist():
                    below = 2 * g**2 + float(maps[n, k].sum()) * g**3
                    weight += (g**2 / below if below else 0.0) * max(g, 0.0)
                expected[n] += weight * maps[n, k]
        close(explain.grad_cam_plus_plus(pair.ours, pair.x, CLASSES, layer), torch.relu(expected))


@pytest.mark.parametrize(("window", "stride", "fill"), [(8, 8, 0.0), ((9, 7), (4, 5), 0.5)])
def test_occlusion_is_that_of_captum(pair: Pair, attr: Any, window: Any, stride: Any, fill: float) -> None:
    x = pair.images().detach()
    (h, w), (a, b) = np.broadcast_to(window, 2).tolist(), np.broadcast_to(stride, 2).tolist()
    c = x.shape[1]
    theirs = attr.Occlusion(pair.theirs).attribute(
        x, (c, h, w), (c, a, b), baselines=fill, target=CLASSES, perturbations_per_eval=8
    )
    close(explain.occlusion(pair.ours, pair.x, CLASSES, window, stride, fill), theirs[:, 0])


def test_the_network_is_unchanged(pair: Pair) -> None:
    before = pair.ours.state_dict()
    for method in explain.ATTRIBUTIONS.values():
        if method is not explain.occlusion:
            method(pair.ours, pair.x[:1], 1)
    assert isinstance(pair.ours, nn.Sequential)
    assert all(parameter.grad is None and parameter.trainable for parameter in pair.ours.parameters())
    after = pair.ours.state_dict()
    assert all(np.array_equal(before[key], after[key]) for key in before)

"""Networks of the grammar: valid, reproducible, counted correctly, and the same in training and inference elsewhere."""

import functools
import importlib.util
import os
import re

import numpy as np
import pytest

from xcnn import models, nn, ops
from xcnn._dispatch import portable
from xcnn.compare.contestants.twin import twin
from xcnn.errors import ShapeError, UsageError
from xcnn.models.drawing import ACTIVATIONS
from xcnn.models.families import FAMILIES
from xcnn.models.grammar import MULTIPLY_ADDS

SEED, COUNT = 0, 40

MANY = int(os.environ.get("XCNN_RANDOM", "0"))
CHOSEN = [models.drawn_name(1, index) for index in range(MANY)] or [*FAMILIES]
"""The networks that are compared with PyTorch: a small one of each family, or many in `nox -s random`."""


@functools.cache
def named(family, most=2_500_000):
    """Return the name of a small network of a family; any other name as it is."""
    if family not in FAMILIES:
        return family
    small = (index for index in range(1000) if models.draw(SEED, index).multiply_adds < most)
    return next(models.drawn_name(SEED, i) for i in small if models.draw(SEED, i).summary.startswith(family))


def drawn(name):
    """Return a network without randomness in float64, and a batch of two images and their labels."""
    shape, classes = models.entry(name).shape, models.entry(name).classes
    model = models.build(name).to("cpu", "float64")
    for _, layer in model.modules():
        if type(layer).__name__.startswith("Dropout"):
            layer.p = 0.0
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, *shape))
    return model, x, rng.integers(0, classes, (2, *model(x).shape[2:]))


def gradients(model, x, labels):
    """Return the loss, and its gradients by x and by the parameters."""
    model.zero_grad()
    y, backward = model.forward(x)
    loss, loss_backward = ops.cross_entropy(y, labels)
    dx = backward(loss_backward()[0])
    return [loss, dx, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("index", range(COUNT))
def test_a_network_is_what_its_entry_says(index):
    name = models.drawn_name(SEED, index)
    entry = models.entry(name)
    model = models.build(name, seed=None)
    found = nn.summary(model, entry.shape)
    assert found.total.multiply_adds == round(entry.multiply_adds * 1e9) <= MULTIPLY_ADDS
    assert found.total.shape[:2] == (1, entry.classes)
    assert found.total.shape[2:] in ((), entry.shape[1:])
    channels = [layer.out_channels for _, layer in model.modules() if hasattr(layer, "out_channels")]
    assert 1 <= max(channels) <= 1536


def test_a_draw_is_the_same_again():
    name = models.drawn_name(SEED, 2)
    one, other = models.build(name), models.build(name)
    assert models.sketch(one) == models.sketch(other)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    models.draw.cache_clear()
    assert models.sketch(models.build(name)) == models.sketch(one)


def test_many_draws_hold_every_choice():
    every = [models.draw(SEED, index) for index in range(COUNT)]
    words = {word for one in every for word in one.summary.split(", ")}
    assert set(FAMILIES) <= words
    assert {"batch norm", "group norm", "instance norm", "layer norm", "no norm"} <= words
    assert len(words & set(ACTIVATIONS)) > 8
    assert {len(one.shape) for one in every} == {2, 3, 4}
    assert len({models.sketch(models.build(models.drawn_name(SEED, i), seed=None)) for i in range(COUNT)}) == COUNT


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_is_built_for_other_images(family):
    for shape in ((2, 9, 11), (3, 32), (1, 8, 9, 8)):
        y = models.build(named(family), shape, 3)(np.zeros((1, *shape), np.float32))
        assert y.shape[:2] == (1, 3)
        assert np.isfinite(y).all()


def test_names_and_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="random-0-1: images must have at least 8 x 8 pixels, got 7 x 9"):
        models.build("random-0-1", (1, 7, 9))
    with pytest.raises(ShapeError, match="random-0-1: shape must be"):
        models.build("random-0-1", (1, 9, 9, 9, 9))
    with pytest.raises(
        UsageError, match="unknown model 'random-0'; a random network is random-S-I, number I of the seed S"
    ):
        models.build("random-0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "random-forest", models.MODELS["report"])
        assert models.entry("random-forest") is models.MODELS["report"]
    with pytest.raises(UsageError, match="draw: index must be an integer of at least 0, got -1"):
        models.drawn_name(0, -1)


@pytest.mark.parametrize("family", CHOSEN)
def test_gradients_are_those_of_pytorch_and_of_portable_code(family):
    model, x, labels = drawn(named(family))
    with portable(np):
        wanted = gradients(model, x, labels)
    model, *_ = drawn(named(family))  # running statistics have moved
    got = gradients(model, x, labels)
    size = max(np.abs(one).max() for one in wanted)  # that of a bias before a norm is zero but for rounding
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10 * size)
    torch = pytest.importorskip("torch")
    theirs, images = twin(drawn(named(family))[0]), torch.from_numpy(x).requires_grad_()
    loss = torch.nn.functional.cross_entropy(theirs(images), torch.from_numpy(labels))
    loss.backward()
    np.testing.assert_allclose(got[0], loss.item(), rtol=1e-10)
    np.testing.assert_allclose(got[1], images.grad, rtol=1e-7, atol=1e-10 * size)
    ours = sorted(np.abs(gradient).sum() for gradient in got[2:])
    np.testing.assert_allclose(
        sorted(p.grad.abs().sum().item() for p in theirs.parameters()), ours, rtol=1e-7, atol=1e-9 * size
    )


@pytest.mark.parametrize("family", CHOSEN)
def test_inference_is_that_of_pytorch_and_of_the_layers_one_by_one(family):
    """In float32 and for several images at once, with statistics that have moved, within rounding of float64."""
    model, x, labels = drawn(named(family))
    gradients(model, x, labels)
    images = np.concatenate([x] * 3)
    with portable(np):
        wanted, _ = model.forward(images, train=False)
    size = np.abs(wanted).max()
    np.testing.assert_allclose(model(images), wanted, rtol=1e-9, atol=1e-11 * size)
    if importlib.util.find_spec("torch"):
        torch = importlib.import_module("torch")
        theirs = twin(model).eval()(torch.from_numpy(images)).detach().numpy()
        np.testing.assert_allclose(theirs, wanted, rtol=1e-8, atol=1e-10 * size)
    got = model.to("cpu", "float32")(images.astype(np.float32))
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4 * size)


def test_a_sketch_names_layers_with_their_numbers():
    text = models.sketch(models.build(named("ResNet"), seed=None))
    assert re.search(r"add\(.*conv\dd 3\S* \d+", text)
    graph = nn.Graph([("a", nn.ReLU(), "x"), ("b", nn.Tanh(), "a"), ("y", nn.Multiply(), ("a", "b"))])
    assert models.sketch(graph) == "(a = relu of x; b = tanh of a; y = multiply of a, b)"
    assert models.sketch(nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Apply("flatten"))) == "2 x (relu), flatten"

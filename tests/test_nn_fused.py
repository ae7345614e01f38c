"""A layer and the ReLU after it run as one call, with the same results as separately."""

import copy

import numpy as np
import pytest

from xcnn import nn, ops
from xcnn._dispatch import portable
from xcnn.errors import ShapeError
from xcnn.nn._observe import observing
from xcnn.nn._plan import Fused

NETWORKS = {
    "conv": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, 2, bias=False), nn.ReLU()
    ),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.ReLU(), nn.Linear(5, 3)),
    "nested": lambda: nn.Sequential(
        nn.Residual(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)), nn.ReLU()),
        nn.ReLU(),
    ),
    "graph": lambda: nn.Graph(
        [
            ("a", nn.Conv2d(2, 2, 1), "x"),
            ("b", nn.Conv2d(2, 2, 1), "x"),
            ("shared", nn.Conv2d(2, 2, 1), "x"),
            ("relu a", nn.ReLU(), "a"),
            ("relu b", nn.ReLU(), "b"),
            ("relu shared", nn.ReLU(), "shared"),
            ("sum", nn.Add(), ("relu a", "shared", "relu shared", "relu b", "x")),
        ]
    ),
    "norms": lambda: nn.Sequential(
        nn.BatchNorm2d(2),
        nn.Sigmoid(),
        nn.Conv2d(2, 4, 3),
        nn.LeakyReLU(0.2),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.InstanceNorm2d(4, affine=True),
        nn.ReLU6(),
        nn.LayerNorm((4, 4, 4)),
        nn.Hardtanh(-0.5, 2.0),
        nn.GELU(),  # whose slope is no function of its result
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
    ),
    "residuals": lambda: nn.Sequential(
        nn.Residual(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2))),
        nn.ReLU(),
        nn.Residual(
            nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.GroupNorm(1, 3)),
            nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)),
        ),
        nn.LeakyReLU(0.1),
        nn.Residual(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
    ),
}


FUSED = {"conv": 2, "linear": 1, "nested": 2, "graph": 2, "norms": 6, "residuals": 4}
"""How many steps of training join layers."""


def results(model, x):
    """Run a network forward and backward, and once for inference; return all results by name."""
    model.zero_grad()
    before = model.state_dict()
    y, backward = model.forward(x)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    dx = backward(dy.astype(x.dtype))
    made = {"y": y, "dx": dx, "inference": model(x), **{name: p.grad for name, p in model.named_parameters()}}
    made |= {name: buffer.data for name, buffer in model.named_buffers()}
    model.load_state_dict(before)
    return made


@pytest.mark.parametrize("name", NETWORKS)
def test_fused_is_unfused(name):
    model, x = NETWORKS[name](), np.random.default_rng(0).standard_normal((4, 2, 6, 6)).astype(np.float32)
    model.reset_parameters(0)
    joined = [step for step in model._plan.joined().training if isinstance(step[1], Fused)]
    assert len(joined) == FUSED[name]

    def single():
        with observing(model, lambda name, layer: layer.forward):
            assert not any(isinstance(step[1], Fused) for step in model._plan.joined().training)
            return results(model, x)

    def repeated():
        made = results(model, x)
        for key, array in results(model, x).items():  # which calls bodies directly
            np.testing.assert_array_equal(array, made[key], key)
        return made

    with portable(np):
        fused, unfused = repeated(), single()
        for key, array in fused.items():
            np.testing.assert_allclose(array, unfused[key], rtol=1e-5, atol=1e-5, err_msg=key)
    compiled, unfused = repeated(), single()
    for key, array in compiled.items():
        np.testing.assert_allclose(array, unfused[key], rtol=1e-4, atol=1e-5, err_msg=key)
        np.testing.assert_allclose(array, fused[key], rtol=1e-4, atol=1e-4, err_msg=key)


def test_a_residual_that_broadcasts_is_added_apart():
    model = nn.Graph(
        [
            ("a", nn.BatchNorm2d(3), "x"),
            ("b", nn.GlobalAvgPool(), "x"),
            ("c", nn.Unflatten(1, (3, 1, 1)), "b"),
            ("sum", nn.Add(), ("c", "a")),
            ("relu", nn.ReLU(), "sum"),
        ]
    )
    x = np.random.default_rng(0).standard_normal((4, 3, 5, 5))
    model.to("cpu", "float64")
    assert [type(step[1]).__name__ for step in model._plan.joined().training][-1] == "Fused"
    fused = results(model, x)
    with observing(model, lambda name, layer: layer.forward):
        unfused = results(model, x)
    for key, array in fused.items():
        np.testing.assert_allclose(array, unfused[key], rtol=1e-10, atol=1e-10, err_msg=key)


@pytest.mark.parametrize("place", [0, 1], ids=["layer", "relu"])
def test_observers_of_one_of_the_two_layers_see_it_run(place):
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), np.random.default_rng(0).standard_normal((1, 2, 6, 6))
    model.reset_parameters(0)
    model.to("cpu", "float64")
    wanted, watched = model(x), model[place]
    seen = []
    plain = watched.forward
    watched.forward = lambda x, train=True: (seen.append(x.shape), plain(x, train))[1]
    np.testing.assert_allclose(model(x), wanted, rtol=1e-12, atol=1e-12)
    model.forward(x)[1](np.ones_like(wanted))
    assert seen == [[(1, 2, 6, 6), (1, 3, 4, 4)][place]] * 2


def test_layers_that_override_forward_are_not_fused(monkeypatch):
    class Doubled(nn.Conv2d):
        def forward(self, x, train):
            y, backward = super().forward(x, train)
            return 2 * y, lambda dy, need_dx: backward(2 * dy, need_dx)

    class Leaky(nn.ReLU, op=ops.leaky_relu):
        negative_slope = 0.5

    x = np.random.default_rng(0).standard_normal((1, 1, 5, 5)).astype(np.float32)
    layer = Doubled(1, 2, 3)
    y = layer(x)
    np.testing.assert_array_equal(nn.Sequential(layer, nn.ReLU())(x), np.maximum(y, 0))
    np.testing.assert_array_equal(nn.Sequential(layer, Leaky())(x), np.maximum(y, y / 2))
    np.testing.assert_array_equal(nn.Graph([("a", layer, "x"), ("b", nn.ReLU(), "a")], output="a")(x), y)


def test_names_stay_and_copies_learn_by_themselves():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    assert [name for name, _ in model.modules()] == ["", "0", "1"]
    assert [row.layer for row in nn.summary(model, (1, 5, 5)).rows] == ["Conv2d", "ReLU"]
    with pytest.raises(ShapeError, match=r"^0 \(Conv2d\): conv2d: weight takes 1 input channel, x has 3"):
        model(np.ones((1, 3, 5, 5), np.float32))
    x = np.ones((1, 1, 5, 5), np.float32)
    twin = copy.deepcopy(model)
    twin[0].weight.data = -np.ones_like(twin[0].weight.data)
    twin[0].bias.data = -np.ones_like(twin[0].bias.data)
    assert not twin(x).any()
    model[0].bias.data = np.full_like(model[0].bias.data, 10)
    assert model(x).all()

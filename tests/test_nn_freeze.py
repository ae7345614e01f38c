"""Freezing: no gradient, no work and no update for what is frozen, and the same numbers for the rest."""

import copy
import re

import numpy as np
import pytest

from xcnn import nn, optim
from xcnn._dispatch import portable
from xcnn.errors import UsageError
from xcnn.nn._observe import observing
from xcnn.nn._repeat import _Training
from xcnn.ops._op import Backward
from xcnn.training import Trainer


class Scale(nn.Module):
    """A module whose backward pass is its own."""

    def __init__(self, features):
        self.weight = nn.Parameter(np.ones((features, 1, 1), np.float32))

    def forward(self, x, train):
        weight = self.weight.data

        def backward(dy, need_dx):
            self.weight.accumulate((dy * x).sum(axis=(0, 2, 3))[:, None, None])
            return dy * weight if need_dx else None

        return x * weight, backward


def network():
    """Make a network of every container, whose last node is the head."""
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()),
        nn.BatchNorm2d(4),
        nn.Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 1)),
        nn.Branches(nn.Conv2d(4, 3, 1), nn.Sequential(nn.Dropout(0.2), Scale(4))),
        nn.Graph([("a", nn.Conv2d(7, 4, 1), "x"), ("b", nn.Tanh(), "a"), ("sum", nn.Add(), ("a", "b"))]),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
    )
    model.reset_parameters(0)
    return model


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((8, 2, 6, 6)).astype(np.float32), rng.integers(0, 5, 8)


@pytest.fixture
def ran(monkeypatch):
    """The names of the ops whose backward passes run, in order."""
    names, plain = [], Backward.__call__

    def called(self, dy=None, needs=None):
        names.append(self._name)
        return plain(self, dy, needs)

    monkeypatch.setattr(Backward, "__call__", called)
    repeated = _Training.repeated

    def watched(self, step, call, made, layer, wanted):
        step = repeated(self, step, call, made, layer, wanted)

        def run(*arguments):
            y, backward = step.call(*arguments)
            return y, lambda dy, needs: names.append(wanted.module._op.__name__) or backward(dy, needs)

        return step._replace(call=run)

    monkeypatch.setattr(_Training, "repeated", watched)
    return names


def test_below_the_first_trainable_layer_nothing_is_computed_backward(ran):
    model, (x, y) = network(), batch()
    trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.1))
    trainer.step(x, y)
    assert ran.count("conv2d") == 5
    del ran[:]
    model[:-1].freeze()
    trainer.step(x, y)
    assert ran == ["cross_entropy", "linear"]
    del ran[:]
    model[4].unfreeze()  # the Tanh and the sum above the convolution are needed again
    trainer.step(x, y)
    assert ran == ["cross_entropy", "linear", "flatten", "add", "tanh", "conv2d"]
    del ran[:]
    for parameter in model.parameters():
        parameter.trainable = False  # one by one is the same
    model[2].unfreeze()
    trainer.step(x, y)
    assert ran.count("conv2d") == 4  # not the first, but the branch and the graph above it


def test_a_layer_computes_only_the_gradients_of_what_is_trainable(monkeypatch):
    asked, plain = [], Backward.__call__
    monkeypatch.setattr(Backward, "__call__", lambda self, dy, needs: (asked.append(needs), plain(self, dy, needs))[1])
    layer = nn.Conv2d(2, 3, 3)
    layer.weight.trainable = False
    model = nn.Sequential(layer, nn.ReLU())
    for parts in (lambda: model.forward(batch()[0]), lambda: observed(model, batch()[0])):
        y, backward = parts()
        assert backward(np.ones_like(y), need_dx=False) is None
        assert layer.weight.grad is None
        assert layer.bias.grad.shape == (3,)
        assert asked[-1] == (False, False, True)


def observed(model, x):
    """Run a network forward with its layers and ReLUs apart."""
    with observing(model, lambda name, layer: layer.forward):
        return model.forward(x)


@pytest.mark.parametrize("rule", [optim.SGD, optim.Adam])
def test_training_leaves_every_bit_of_what_is_frozen(rule):
    model = network()
    options = {"momentum": 0.9} if rule is optim.SGD else {}
    trainer = Trainer(model, rule(model.parameters(), lr=0.01, weight_decay=0.1, **options))
    trainer.step(*batch())  # the optimizer now has momentum for everything
    model[:-1].freeze()
    before = model.state_dict()
    for seed in range(3):
        trainer.step(*batch(seed))
    after = model.state_dict()
    assert {"1.running_mean", "2.body.1.running_var", "1.num_batches_tracked"} <= after.keys()
    assert {key for key in after if after[key].tobytes() != before[key].tobytes()} == {"6.weight", "6.bias"}
    model.unfreeze()
    trainer.step(*batch(4))
    last = model.state_dict()
    assert all(last[key].tobytes() != after[key].tobytes() for key in last)


def test_the_gradients_of_the_head_are_those_of_the_whole_network():
    whole = network()
    whole[1].freeze(), whole[2].freeze()  # the statistics of a batch are not those of frozen batch norm
    head = copy.deepcopy(whole)
    head[:4].freeze()
    x = batch()[0]
    with portable(np):
        gradients = []
        for model in (whole, head):
            y, backward = model.forward(x)
            dx = backward(np.cos(y))
            gradients.append({"dx": dx, **{name: p.grad for name, p in model.named_parameters()}})
    for name, grad in gradients[0].items():
        if name.startswith(("4.", "6.", "dx")):
            assert grad.any()
            np.testing.assert_array_equal(gradients[1][name], grad, name)
        else:
            assert gradients[1][name] is None


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(2), nn.BatchNorm2d(2, momentum=None), nn.InstanceNorm2d(2, 0.1, 0.2, True, True)]
)
def test_frozen_statistics_normalise_in_training_as_in_inference(norm):
    x = batch()[0]
    norm.forward(3 * x + 1)
    moved = norm.state_dict()
    assert np.any(moved["running_mean"] != 0)
    norm.running_mean.trainable = False  # one of the two suffices: they belong together
    y, backward = norm.forward(x, train=True)
    np.testing.assert_array_equal(y, norm(x))
    for key, value in norm.state_dict().items():
        assert value.tobytes() == moved[key].tobytes()
    weight = norm.weight.data / np.sqrt(moved["running_var"] + norm.eps)  # the statistics are constants: dx = dy * this
    np.testing.assert_allclose(backward(np.cos(y)), np.cos(y) * weight[:, None, None], rtol=1e-5)
    norm.unfreeze().forward(x)
    assert np.any(norm.state_dict()["running_mean"] != moved["running_mean"])


def test_frozen_batch_norm_is_that_of_pytorch_in_inference_mode():
    torch = pytest.importorskip("torch")
    theirs, ours = torch.nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    x = batch()[0]
    theirs(torch.from_numpy(2 * x + 1))
    ours.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    theirs.eval()
    ours.running_mean.trainable = ours.running_var.trainable = False
    y, backward = ours.forward(x, train=True)
    t = torch.from_numpy(x).requires_grad_()
    u = theirs(t)
    u.backward(torch.cos(u.detach()))
    dx = backward(np.cos(y))
    for mine, other in ((y, u.detach()), (dx, t.grad), (ours.weight.grad, theirs.weight.grad)):
        np.testing.assert_allclose(mine, other.numpy(), rtol=1e-4, atol=1e-4)


def test_a_module_of_ones_own_and_a_stale_gradient_change_nothing_that_is_frozen():
    model = nn.Sequential(Scale(2), nn.Flatten(), nn.Linear(72, 2))
    own, (x, _) = model[0].weight, batch()
    rule = optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    y, backward = model.forward(x)
    backward(np.ones_like(y))
    assert own.grad is not None
    own.trainable = False
    rule.step()
    np.testing.assert_array_equal(own.data, np.ones((2, 1, 1)))
    assert own.updates == 0
    assert model.freeze().parameters()[0].grad is None
    own.accumulate(np.ones_like(own.data))
    assert own.grad is None
    y, backward = model.forward(x)
    assert backward(np.ones_like(y)).shape == x.shape  # the gradient of x passes through frozen layers
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_shared_parameter_is_frozen_everywhere():
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    a.freeze()
    assert [name for name, p in nn.Sequential(a, b).named_parameters() if p.trainable] == ["1.bias"]


def test_the_flag_travels_with_copies_and_moves_and_not_with_the_state():
    model = network()
    model[0].freeze()
    twin = copy.deepcopy(model).to("cpu", "float64")
    twin.load_state_dict(network().state_dict())
    frozen = [name for name, p in twin.named_parameters() if not p.trainable]
    assert frozen == ["0.0.weight", "0.0.bias"]
    assert twin.unfreeze() is twin
    assert not model[0][0].weight.trainable


def test_nothing_to_train_and_wrong_flags_are_one_sentence():
    model = network().freeze()
    trainer, before = Trainer(model, optim.Adam(model.parameters())), model.state_dict()
    with pytest.raises(UsageError, match=re.escape("Trainer: no parameter of the optimizer got a gradient; if all")):
        trainer.step(*batch())
    assert all(np.array_equal(value, before[key]) for key, value in model.state_dict().items())
    for wrong in (0, None, "no"):
        with pytest.raises(UsageError, match=f"^Parameter: trainable must be True or False, got {wrong!r}"):
            model.parameters()[0].trainable = wrong


@pytest.mark.parametrize("where", ["strict", "torch"])
def test_other_libraries_freeze_too(where):
    pytest.importorskip({"strict": "array_api_strict"}.get(where, where))
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.GlobalAvgPool(), nn.Linear(3, 5))
    model.reset_parameters(0)
    model[:-1].freeze()
    before = model.state_dict()
    trainer = Trainer(model, optim.Adam(model.parameters(), weight_decay=0.1), device=where)
    trainer.step(*batch())
    after = model.state_dict()
    assert {key for key in after if after[key].tobytes() != before[key].tobytes()} == {"4.weight", "4.bias"}

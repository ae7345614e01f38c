"""Training whose compiled calls are recorded: the same bits as those of the steps, and no others after any change."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from xcnn import nn, optim
from xcnn._dispatch import kernels
from xcnn.errors import UsageError
from xcnn.nn import _repeat

pytest.importorskip("llvmlite")
from xcnn.kernels.cpu import record

NETWORKS = {
    "plain": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(27, 5)
    ),
    "smooth": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(100, 7), nn.Tanh()
    ),
    "wide": lambda: nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)),
}


class Fixed(nn.Conv2d):
    """A convolution whose weight is not trained."""

    def __init__(self):
        super().__init__(2, 3, 3)
        self.weight = nn.Buffer(self.weight.data)


OTHERS = {
    "norm": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
    "buffer": lambda: nn.Sequential(Fixed(), nn.ReLU(), nn.Conv2d(3, 3, 3)),
    "dropout": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Dropout(0.5), nn.ReLU()),
}


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    kernels(np)
    monkeypatch.setattr(_repeat, "OFTEN", 3)
    monkeypatch.setattr(_repeat, "_SHARE", 1e9)


def made(name, dtype="float32"):
    model = {**NETWORKS, **OTHERS}[name]()
    model.reset_parameters(0)
    return model.to("cpu", dtype)


def images(seed, dtype="float32", n=1):
    return np.random.default_rng(seed).standard_normal((n, 2, 12, 12)).astype(dtype)


def program(model):
    return next(iter(model._plan._joined.programs.values()))


def gradients(model, x, need_dx=False):
    """Return y, the gradient of the input, and those of all parameters."""
    model.zero_grad()
    y, backward = model.forward(x)
    dx = backward(np.cos(np.arange(y.size, dtype=y.dtype)).reshape(y.shape), need_dx)
    return y, dx, *[None if one.grad is None else one.grad for one in model.parameters()]


def by_steps(model, x, need_dx=False):
    kept, program(model).record = program(model).record, None
    try:
        return gradients(model, x, need_dx)
    finally:
        program(model).record = kept


def warm(name, dtype="float32", n=1):
    model = made(name, dtype)
    for seed in range(5):
        gradients(model, images(seed, dtype, n))
    return model


def equal(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 3])
def test_a_record_gives_the_bits_of_the_steps(name, dtype, n):
    model = warm(name, dtype, n)
    assert program(model).record is not None
    kept = []
    for seed in range(10, 14):
        x = images(seed, dtype, n)
        found = gradients(model, x)
        kept.append((found, [None if one is None else one.copy() for one in found]))
        equal(found, by_steps(model, x))
        for one in model.parameters():
            one.data = one.data * 1.25
    for found, copies in kept:  # what was returned stays as it was
        equal(found, copies)


@pytest.mark.parametrize("name", OTHERS)
def test_what_has_other_state_is_not_recorded(name):
    assert program(warm(name)).record is None


@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout2d, nn.StochasticDepth])
def test_as_many_random_numbers_are_drawn_as_without_records(layer, monkeypatch):
    draws = []
    for often in (3, 1000):
        monkeypatch.setattr(_repeat, "OFTEN", often)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), layer(0.5), nn.ReLU())
        model.reset_parameters(0)
        draws.append([gradients(model, images(seed))[0] for seed in range(6)])
    equal(*draws)


def test_backward_passes_in_any_order_and_number_are_right():
    model, xs = warm("plain"), [images(seed) for seed in range(4)]
    wanted = [by_steps(model, x)[2:] for x in xs]
    model.zero_grad()
    passes = [model.forward(x) for x in xs]
    for i in (2, 0, 3, 1):
        model.zero_grad()
        y, backward = passes[i]
        backward(np.cos(np.arange(y.size, dtype=y.dtype)).reshape(y.shape), False)
        equal([one.grad for one in model.parameters()], wanted[i])


def test_gradients_add_up():
    model, x = warm("plain"), images(7)
    single = [one.copy() for one in gradients(model, x)[2:]]
    y, backward = model.forward(x)
    backward(np.cos(np.arange(y.size, dtype=y.dtype)).reshape(y.shape), False)
    for one, grad in zip(model.parameters(), single, strict=True):
        np.testing.assert_array_equal(one.grad, grad + grad)


CHANGES = {
    "the gradient of the input": (lambda model: None, True),
    "a frozen layer": (lambda model: model[0].freeze(), False),
    "a frozen bias": (lambda model: setattr(model[3].bias, "trainable", False), False),
    "a strided weight": (lambda model: setattr(model[0].weight, "data", model[0].weight.data[::-1]), False),
    "no bias": (lambda model: setattr(model[0], "bias", None), False),
    "dilation": (lambda model: setattr(model[0], "padding", 1) or setattr(model[0], "dilation", 2), False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_is_missed(change):
    model, x, (act, need_dx) = warm("plain"), images(7), CHANGES[change]
    other = made("plain")
    for one in (model, other):
        act(one)
    equal(gradients(model, x, need_dx), gradients(other, x, need_dx))


def test_a_record_of_another_backward_pass_is_given_up():
    model, x = warm("plain"), images(7)
    wanted = gradients(model, x)
    assert gradients(model, x, need_dx=True)[1].shape == x.shape
    assert program(model).record is None
    equal(gradients(model, x), wanted)


def test_freezing_between_forward_and_backward_is_seen():
    model, x = warm("plain"), images(7)
    model.zero_grad()
    y, backward = model.forward(x)
    model[0].freeze()
    backward(y, False)
    assert [one.grad is None for one in model.parameters()] == [True, True, False, False, False, False]


@pytest.mark.parametrize("early", [False, True])
def test_a_bias_that_is_trained_again_gets_its_gradient(early):
    model, x = made("plain"), images(7)
    wanted = gradients(model, x)
    model[3].bias.trainable = early
    gradients(model, x)
    model[3].bias.trainable = False
    gradients(model, x)  # it is recorded here
    model[3].bias.trainable = True
    equal(gradients(model, x), wanted)


def test_a_step_between_forward_and_backward_is_refused():
    model, x = warm("plain"), images(7)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    y, backward = model.forward(x)
    y2, backward2 = model.forward(x)
    backward2(y2, False)
    optimizer.step()
    with pytest.raises(UsageError, match="call backward first"):
        backward(y, False)


@pytest.mark.parametrize("layers", [1, 6])
def test_a_record_keeps_no_input(layers):
    model = nn.Sequential(*list(made("plain"))[:layers])
    for seed in range(5):
        gradients(model, images(seed))
    assert program(model).record is not None
    x = images(7)
    gone = weakref.ref(x)
    gradients(model, x)
    del x
    gc.collect()
    assert gone() is None


def test_a_wrong_gradient_is_refused():
    model, x = warm("plain"), images(7)
    y, backward = model.forward(x)
    with pytest.raises(Exception, match="dy must have the shape of y"):
        backward(y[:, :2], False)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_that_are_not_finite_end_where_they_do_without_records(name, bad):
    model, x = warm(name), images(7)
    x[0, 1, 3, 4] = bad
    with np.errstate(all="ignore"):
        equal(gradients(model, x), by_steps(model, x))


def test_it_is_recorded_only_if_that_is_faster(monkeypatch):
    monkeypatch.setattr(_repeat, "_SHARE", 0.75)
    monkeypatch.setattr(record, "_seconds", lambda run, *_: 1.0)
    assert program(warm("plain")).record is None


def test_threads_take_turns():
    model, xs = warm("plain"), [images(seed) for seed in range(8)]
    wanted = [by_steps(model, x)[0] for x in xs]
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda i: model.forward(xs[i % 8])[0], range(200))]
    for i, y in enumerate(found):
        np.testing.assert_array_equal(y, wanted[i % 8])


def test_arrays_of_other_libraries_are_not_recorded():
    strict = pytest.importorskip("array_api_strict")
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    for one in model.parameters():
        one.data = strict.asarray(one.data)
    x = strict.ones((2, 3), dtype=strict.float32)
    for _ in range(5):
        y, backward = model.forward(x)
        backward(y, False)
    assert program(model).record is None

"""Update rules against PyTorch's and against float64 loops; groups, resuming, every array library."""

import inspect
import itertools
import json
import math

import array_api_compat
import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import FULL, SHAPES, draw, make, run, same

from xcnn import optim
from xcnn._dispatch import kernels, portable
from xcnn.devices import to_numpy
from xcnn.parameter import Parameter

STEPS = 35
DECAYS, RATES = (0.0, 0.03), (1e-3, 0.1)
RULES = {
    "sgd": {
        "lr": RATES,
        "momentum": (0.0, 0.9),
        "dampening": (0.0, 0.3),
        "weight_decay": DECAYS,
        "nesterov": (False, True),
    },
    "adam": {"lr": RATES, "betas": ((0.9, 0.999), (0.5, 0.8)), "eps": (1e-8, 1e-2), "weight_decay": DECAYS},
    "adamw": {"lr": RATES, "betas": ((0.9, 0.999), (0.0, 0.8)), "eps": (1e-8, 1e-2), "weight_decay": DECAYS},
    "rmsprop": {
        "lr": RATES,
        "alpha": (0.99, 0.5),
        "eps": (1e-8, 1e-2),
        "weight_decay": DECAYS,
        "momentum": (0.0, 0.9),
        "centered": (False, True),
    },
}
TORCH = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}


def combinations():
    for name, choices in RULES.items():
        for values in itertools.product(*choices.values()):
            options = dict(zip(choices, values, strict=True))
            if options.get("nesterov") and (not options["momentum"] or options["dampening"]):
                continue
            yield name, options


@pytest.mark.parametrize(("name", "options"), list(combinations()), ids=str)
def test_every_rule_takes_torchs_steps(name, options):
    torch = pytest.importorskip("torch")
    parameters, optimizer = make(name, options)
    theirs = [torch.tensor(array) for array in draw(SHAPES, 0)]
    reference = getattr(torch.optim, TORCH[name])(theirs, **options)

    def every(step, index):  # the second parameter sits out every third step
        return index != 1 or step % 3

    for step in range(STEPS):
        run(optimizer, range(step, step + 1), every=every)
        for index, (tensor, grad) in enumerate(zip(theirs, draw(SHAPES, 1000 + step), strict=True)):
            tensor.grad = torch.tensor(grad) if every(step, index) else None
        reference.step()
    for parameter, tensor in zip(parameters, theirs, strict=True):
        np.testing.assert_allclose(parameter.data, tensor.numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", RULES)
def test_defaults_and_argument_order_are_torchs(name):
    torch = pytest.importorskip("torch")
    ours = inspect.signature(optim.OPTIMIZERS[name]).parameters
    theirs = inspect.signature(getattr(torch.optim, TORCH[name])).parameters
    assert list(ours) == [key for key in theirs if key in ours]
    for key in list(ours)[1:]:
        assert ours[key].default == theirs[key].default, key


@settings(max_examples=40, deadline=None)
@given(
    grads=st.lists(st.floats(-3, 3), min_size=1, max_size=40),
    lr=st.floats(0, 0.5),
    momentum=st.floats(0, 0.99),
    decay=st.floats(0, 0.5),
    nesterov=st.booleans(),
)
def test_sgd_is_its_formula(grads, lr, momentum, decay, nesterov):
    nesterov = nesterov and momentum > 0
    parameter = Parameter(np.asarray(0.7))
    optimizer = optim.SGD([parameter], lr, momentum, 0.0, decay, nesterov)
    x, b = 0.7, 0.0
    for grad in grads:
        parameter.grad = np.asarray(grad)
        optimizer.step()
        g = grad + decay * x
        b = momentum * b + g
        x -= lr * (g + momentum * b if nesterov else b)
    assert float(parameter.data) == pytest.approx(x, rel=1e-12, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    grads=st.lists(st.floats(-3, 3), min_size=1, max_size=40),
    lr=st.floats(0, 0.5),
    betas=st.tuples(st.floats(0, 0.99), st.floats(0.1, 0.999)),
    decay=st.floats(0, 0.5),
    decoupled=st.booleans(),
)
def test_adam_is_its_formula(grads, lr, betas, decay, decoupled):
    parameter = Parameter(np.asarray(0.7))
    optimizer = (optim.AdamW if decoupled else optim.Adam)([parameter], lr, betas, 1e-3, decay)
    x, m, v = 0.7, 0.0, 0.0
    for t, grad in enumerate(grads, start=1):
        parameter.grad = np.asarray(grad)
        optimizer.step()
        if decoupled:
            x -= lr * decay * x
            g = grad
        else:
            g = grad + decay * x
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        x -= lr * (m / (1 - betas[0] ** t)) / (math.sqrt(v / (1 - betas[1] ** t)) + 1e-3)
    assert float(parameter.data) == pytest.approx(x, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("centered", [False, True])
def test_rmsprop_is_its_formula(centered):
    parameter = Parameter(np.asarray(0.7))
    optimizer = optim.RMSprop([parameter], 0.1, 0.9, 1e-3, 0.02, 0.5, centered)
    x, v, mean, b = 0.7, 0.0, 0.0, 0.0
    for grad in np.random.default_rng(0).standard_normal(40):
        parameter.grad = np.asarray(grad)
        optimizer.step()
        g = float(grad) + 0.02 * x
        v = 0.9 * v + 0.1 * g**2
        mean = 0.9 * mean + 0.1 * g
        b = 0.5 * b + g / (math.sqrt(v - mean**2 * centered) + 1e-3)
        x -= 0.1 * b
    assert float(parameter.data) == pytest.approx(x, rel=1e-12)


def test_centered_rmsprop_stays_finite_where_the_variance_vanishes():
    parameter = Parameter(np.ones(64, np.float32))
    optimizer = optim.RMSprop([parameter], lr=1e-6, alpha=0.5, centered=True)
    grad = np.linspace(0.1, 3, 64, dtype=np.float32)
    for _ in range(200):
        parameter.grad = grad
        optimizer.step()
    assert np.isfinite(parameter.data).all()


@pytest.mark.parametrize(("name", "options"), FULL)
def test_groups_have_their_own_options(name, options):
    weights, biases, frozen = (Parameter(array) for array in draw(SHAPES, 0))
    optimizer = optim.OPTIMIZERS[name](
        [{"params": [weights]}, {"params": biases, "weight_decay": 0, "lr": 0.5}, {"params": (frozen,), "lr": 0}],
        **options,
    )
    assert [group["lr"] for group in optimizer.param_groups] == [options["lr"], 0.5, 0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1, 1]
    run(optimizer, range(5))
    for index, parameter in enumerate((weights, biases)):
        alone = Parameter(draw(SHAPES, 0)[index])
        own = {**options, "weight_decay": 0, "lr": 0.5} if index else options
        single = optim.OPTIMIZERS[name]([alone], **own)
        for step in range(5):
            alone.grad = draw(SHAPES, 1000 + step)[index]
            single.step()
        same(alone.data, parameter.data)
    same(frozen.data, draw(SHAPES, 0)[2])


@pytest.mark.parametrize(("name", "options"), FULL)
def test_a_group_added_later_is_trained_from_then_on(name, options):
    first, second = Parameter(np.ones(2)), Parameter(np.ones(2))
    optimizer = optim.OPTIMIZERS[name]([first], **options)
    optimizer.add_param_group({"params": [second], "lr": 0.25})
    first.grad = second.grad = np.ones(2)
    optimizer.step()
    assert optimizer.param_groups[1]["lr"] == 0.25
    assert (second.data != 1).all()


@pytest.mark.parametrize("place", ["numpy", "strict", "device1", "torch"])
@pytest.mark.parametrize(("name", "options"), FULL)
def test_resuming_is_bit_for_bit_and_every_library_works(name, options, place):
    if place == "torch":
        torch = pytest.importorskip("torch")
        put = torch.tensor
    elif place == "numpy":
        put = np.asarray
    else:
        where = array_api_strict.Device("CPU_DEVICE" if place == "strict" else place)

        def put(array):
            return array_api_strict.asarray(array, device=where)

    def fresh(arrays):
        parameters = [Parameter(put(array)) for array in arrays]
        return parameters, optim.OPTIMIZERS[name](parameters, **options)

    parameters, optimizer = fresh(draw(SHAPES, 0))
    run(optimizer, range(10), put)
    halfway, state = [to_numpy(p.data) for p in parameters], optimizer.state_dict()
    held = [np.array(value) for entry in state["state"].values() for value in entry.values()]
    run(optimizer, range(10, 20), put)
    for value, before in zip([v for entry in state["state"].values() for v in entry.values()], held, strict=True):
        np.testing.assert_array_equal(value, before)  # the state is a snapshot

    resumed, second = fresh(halfway)
    second.load_state_dict(state)
    run(second, range(10, 20), put)
    for mine, theirs in zip(parameters, resumed, strict=True):
        assert array_api_compat.device(theirs.data) == array_api_compat.device(put(np.ones(1)))
        same(mine.data, theirs.data)

    host, reference = make(name, options)
    run(reference, range(20))
    for mine, theirs in zip(parameters, host, strict=True):
        np.testing.assert_allclose(to_numpy(mine.data), theirs.data, rtol=1e-12)


@pytest.mark.parametrize(("name", "options"), FULL)
def test_the_state_is_plain_and_survives_json(name, options):
    parameters, optimizer = make(name, options)
    run(optimizer, range(3), every=lambda step, index: index != 1)
    state = optimizer.state_dict()
    assert set(state["state"]) == {0, 2}
    assert state["param_groups"][0]["params"] == [0, 1, 2]
    copied = json.loads(json.dumps(state, default=lambda array: array.tolist()))
    other = optim.OPTIMIZERS[name]([Parameter(p.data) for p in parameters])
    other.load_state_dict(copied)
    assert other.param_groups[0] == {**optimizer.param_groups[0], "params": other.param_groups[0]["params"]}
    for index, entry in other.state_dict()["state"].items():
        for key, value in entry.items():
            np.testing.assert_array_equal(value, state["state"][index][key])


@pytest.mark.parametrize(("name", "options"), FULL)
def test_float32_stays_and_what_is_read_only_is_replaced(name, options):
    parameters, optimizer = make(name, options, np.float32)
    optimizer.param_groups[0]["lr"] = np.float64(0.1)  # as an array library's arithmetic may leave it
    for step in range(3):
        for parameter in parameters:
            parameter.data = np.asarray(parameter.data)
            parameter.grad = np.full(parameter.data.shape, 0.5 + step, np.float32)
            parameter.data.flags.writeable = parameter.grad.flags.writeable = False
        optimizer.step()
    assert {str(parameter.data.dtype) for parameter in parameters} == {"float32"}
    arrays = [v for entry in optimizer.state.values() for v in entry.values() if not isinstance(v, int)]
    assert arrays
    assert {str(array.dtype) for array in arrays} == {"float32"}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "options"), [*FULL, ("sgd", {}), ("sgd", {"momentum": 0.5, "dampening": 0.5})], ids=str
)
def test_kernels_take_the_portable_steps_in_place(name, options, dtype):
    if not kernels(np).keys() & {"sgd", "adam", "rmsprop"}:
        pytest.skip("no kernels without llvmlite")
    shapes = [(3, 2), (), (90_001,)]  # the last is worth several parts

    def trained():
        parameters = [Parameter(array.astype(dtype)) for array in draw(shapes, 0)]
        optimizer, arrays = optim.OPTIMIZERS[name](parameters, **options), [p.data for p in parameters]
        for step in range(3):
            for parameter, grad in zip(parameters, draw(shapes, step), strict=True):
                parameter.grad = grad.astype(dtype)
            optimizer.step()
        state = [v for entry in optimizer.state.values() for v in entry.values() if not isinstance(v, int)]
        return [p.data for p in parameters], state, arrays

    data, state, before = trained()
    with portable(np):
        expected, expected_state, unchanged = trained()
    for mine, theirs in zip([*data, *state], [*expected, *expected_state], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert all(mine is old for mine, old in zip(data, before, strict=True))
    for array, start in zip(unchanged, draw(shapes, 0), strict=True):
        np.testing.assert_array_equal(array, start.astype(dtype))


@pytest.mark.parametrize("dtype", ["float16", "longdouble"])
def test_dtypes_and_layouts_without_kernel_are_updated_all_the_same(dtype):
    for name, array in itertools.product(RULES, (np.ones((4, 3), dtype), np.ones((3, 4), dtype).T)):
        parameter = Parameter(array)
        parameter.grad = np.ones_like(array)
        optim.OPTIMIZERS[name]([parameter], lr=0.5).step()
        assert parameter.data.dtype == dtype
        assert (parameter.data < 1).all()


def test_momentum_keeps_no_hold_on_the_gradient():
    parameter = Parameter(np.ones(2))
    optimizer = optim.SGD([parameter], lr=1.0, momentum=0.5)
    parameter.grad = np.ones(2)
    optimizer.step()
    parameter.grad[...] = 0
    optimizer.step()
    np.testing.assert_array_equal(parameter.data, [-0.5, -0.5])


def test_zero_grad_and_parameters_without_gradient():
    parameters, optimizer = make("adam", {})
    before = [p.data for p in parameters]
    optimizer.step()
    assert all(p.data is old for p, old in zip(parameters, before, strict=True))
    parameters[0].grad = np.ones((3, 2))
    optimizer.zero_grad()
    assert all(p.grad is None for p in parameters)

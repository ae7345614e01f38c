"""`explain.trace`: the arrays and gradients that it shows are those of the network, which stays as it is."""

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import xcnn
from xcnn import explain, models, nn
from xcnn.errors import UsageError


def _network(name: str, dtype: str = "float64") -> tuple[nn.Module, np.ndarray]:
    shape = {"lenet5": (1, 28, 28), "resnet20": (3, 32, 32)}[name]
    model = models.build(name, shape, 10)
    model.reset_parameters(0)
    x = np.random.default_rng(1).standard_normal((2, *shape)).astype(dtype)
    return model.to("cpu", dtype), x


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_arrays_and_gradients_are_those_of_the_network(name: str) -> None:
    model, x = _network(name)
    dy = np.random.default_rng(2).standard_normal((2, 10))
    y, backward = model.forward(x, train=False)
    dx = backward(dy)
    own = {key: slot.grad for key, slot in model.named_parameters()}

    found = explain.trace(model, x)
    np.testing.assert_allclose(found.y, y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.backward(dy, parameters=True), dx, rtol=1e-9, atol=1e-12)
    assert found.gradients.keys() == own.keys()
    for key, gradient in own.items():
        np.testing.assert_allclose(found.gradients[key], gradient, rtol=1e-9, atol=1e-12)

    for call in found.layers:  # each is the layer alone, run on what it was given
        again, back = call.module.forward(call.x, train=False)
        np.testing.assert_array_equal(call.y, again)
        alone = back(call.dy)
        for ours, true in zip(
            call.dx if isinstance(call.dx, tuple) else [call.dx],
            alone if isinstance(alone, tuple) else [alone],
            strict=True,
        ):
            np.testing.assert_array_equal(ours, true)


def test_each_layer_takes_what_the_one_before_gave() -> None:
    model, x = _network("lenet5")
    found = explain.trace(model, x)
    dx = found.backward(np.ones((2, 10)))
    assert [call.name for call in found.calls] == [str(k) for k in range(len(list(model.children())))]
    assert found.calls[0].x is x
    assert found.calls[-1].y is found.y
    assert found.calls[0].dx is dx
    for call, following in zip(found.calls, found.calls[1:], strict=False):
        assert following.x is call.y
        np.testing.assert_array_equal(following.dx, call.dy)


def test_containers_are_calls_after_those_of_their_layers() -> None:
    model, x = _network("resnet20")
    found = explain.trace(model, x)
    found.backward(np.ones((2, 10)))
    names = [call.name for call in found.calls]
    assert names.index("3") > names.index("3.body") > names.index("3.body.0")
    block = found["3"]
    assert not block.leaf
    assert block not in found.layers
    np.testing.assert_array_equal(block.y, found["3.body"].y + block.x)
    np.testing.assert_allclose(block.dx, found["3.body"].dx + block.dy, rtol=1e-12)


def test_the_network_stays_as_it_was() -> None:
    model, x = _network("resnet20")
    called = []
    slot, frozen = model.parameters()[0], model.parameters()[-1]
    slot.grad, slot.hook = np.ones_like(slot.data), called.append
    frozen.trainable = False
    before = model.state_dict()
    found = explain.trace(model, x, rule=lambda call, dy, backward: backward(dy))
    found.backward(np.ones((2, 10)), parameters=True)
    assert "forward" not in {key for _, module in model.modules() for key in vars(module)}
    assert called == []
    assert slot.hook is not None
    np.testing.assert_array_equal(slot.grad, 1.0)
    assert not frozen.trainable
    assert all(one.trainable for one in model.parameters() if one is not frozen)
    assert all(one.grad is None for one in model.parameters() if one is not slot)
    for key, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[key])


def test_an_error_on_the_way_leaves_the_network_as_it_was() -> None:
    model, x = _network("lenet5")

    def rule(call: explain.Call, dy: Any, backward: Callable[[Any], Any]) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        explain.trace(model, x, rule=rule).backward(np.ones((2, 10)))
    with pytest.raises(xcnn.XcnnError):
        explain.trace(model, x[:, :, 1:])
    assert all(one.trainable for one in model.parameters())
    assert "forward" not in {key for _, module in model.modules() for key in vars(module)}


def test_a_channel_that_is_off_is_one_whose_filter_is_zero() -> None:
    model, x = _network("lenet5")
    found = explain.trace(model, x, off={"0": [1, 4]})
    dx = found.backward(np.ones((2, 10)))
    same = models.build("lenet5", (1, 28, 28), 10).to("cpu", "float64")
    same.load_state_dict(model.state_dict())
    for name in ("0.weight", "0.bias"):
        state = same.state_dict()
        state[name][[1, 4]] = 0.0
        same.load_state_dict(state)
    y, backward = same.forward(x, train=False)
    np.testing.assert_allclose(found.y, y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dx, backward(np.ones((2, 10))), rtol=1e-9, atol=1e-12)
    assert np.all(found["0"].y[:, [1, 4]] == 0)
    assert np.abs(explain.trace(model, x).y - y).max() > 1e-3


def test_no_gradient_passes_a_channel_that_is_off() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AvgPool2d(2)).to("cpu", "float64")
    model.reset_parameters(0)
    x, dy = np.ones((1, 1, 6, 6)), np.ones((1, 3, 2, 2))
    alone = dy * np.asarray([0, 1, 0]).reshape(1, 3, 1, 1)
    found = explain.trace(model, x, off={"0": [0, 2]}).backward(dy)
    np.testing.assert_allclose(found, explain.trace(model, x).backward(alone), rtol=1e-12)


def test_a_rule_is_not_for_containers() -> None:
    model, x = _network("resnet20")
    seen = []

    def rule(call: explain.Call, dy: Any, backward: Callable[[Any], Any]) -> Any:
        seen.append(call)
        return backward(dy)

    found = explain.trace(model, x, rule=rule)
    found.backward(np.ones((2, 10)))
    assert {id(call) for call in seen} == {id(call) for call in found.layers}


def test_a_rule_replaces_the_backward_pass_of_every_layer() -> None:
    model, x = _network("lenet5")
    seen = []

    def rule(call: explain.Call, dy: Any, backward: Callable[[Any], Any]) -> Any:
        seen.append(call.name)
        return 2.0 * backward(dy)

    dx = explain.trace(model, x, rule=rule).backward(np.ones((2, 10)))
    true = explain.trace(model, x).backward(np.ones((2, 10)))
    assert seen == [call.name for call in reversed(explain.trace(model, x).layers)]
    np.testing.assert_allclose(dx, 2.0 ** len(seen) * true, rtol=1e-12)


def test_a_layer_that_runs_twice_has_two_calls() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential({"a": shared, "relu": nn.ReLU(), "b": shared}).to("cpu", "float64")
    model.reset_parameters(0)
    found = explain.trace(model, np.ones((1, 3)))
    calls = [call for call in found.calls if call.module is shared]
    assert len(calls) == 2
    assert found[calls[0].name] is calls[-1]
    model.forward(np.ones((1, 3)), train=False)[1](np.ones((1, 3)))
    found.backward(np.ones((1, 3)), parameters=True)
    np.testing.assert_allclose(found.gradients["a.weight"], shared.weight.grad)


def test_a_layer_of_two_names_is_found_and_switched_off_by_both() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(1, 4, 3), shared, nn.Conv2d(4, 4, 3), shared).to("cpu", "float64")
    model.reset_parameters(0)
    x = np.random.default_rng(0).random((1, 1, 8, 8))
    for name in ("1", "3"):
        found = explain.trace(model, x, off={name: [0, 2]})
        calls = [call for call in found.calls if call.module is shared]
        assert found["1"] is found["3"] is calls[-1]
        assert len(calls) == 2
        for call in calls:
            assert [bool(call.y[:, channel].any()) for channel in range(4)] == [False, True, False, True], name


@pytest.mark.parametrize("backward", [False, True])
def test_arrays_are_freed_with_the_trace_and_not_by_the_collector(backward: bool) -> None:
    model, x = _network("resnet20")
    found = explain.trace(model, x)
    if backward:
        found.backward(np.ones((2, 10)))
    arrays = [weakref.ref(array) for call in found.calls for array in (call.y, call.dy) if array is not None]
    assert len(arrays) > (100 if backward else 50)
    gc.disable()
    try:
        del found
        assert [one() is None for one in arrays] == [True] * len(arrays)
    finally:
        gc.enable()


def test_threads_take_turns() -> None:
    model, x = _network("lenet5")
    dy = np.eye(10)[:2]

    def gradient(i: int) -> Any:
        return explain.trace(model, x + i).backward(dy)

    expected = [gradient(i) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(pool.map(gradient, range(40)), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    assert all(one.trainable for one in model.parameters())


def test_networks_of_several_inputs_and_of_one_layer() -> None:
    pair = nn.Graph([("sum", nn.Add(), ("u", "v"))], inputs=("u", "v"))
    u, v = np.ones((1, 2)), np.zeros((1, 2))
    found = explain.trace(pair, (u, v))
    du, dv = found.backward(np.full((1, 2), 3.0))
    assert np.all(du == 3.0)
    assert np.all(dv == 3.0)
    assert [call.name for call in explain.trace(nn.ReLU(), u).calls] == [""]


@pytest.mark.parametrize("spec", ["strict", "torch", "jax"])
def test_arrays_of_other_libraries(spec: str) -> None:
    try:
        where = xcnn.device(spec)
    except xcnn.XcnnError as error:
        pytest.skip(str(error))
    model, x = _network("lenet5", "float32")
    wanted = explain.trace(model, x)
    dx = wanted.backward(np.ones((2, 10), np.float32))
    model.to(where)
    found = explain.trace(model, where.asarray(x), off={"1": []})
    moved = found.backward(where.asarray(np.ones((2, 10), np.float32)))
    assert type(found["0"].y) is type(where.asarray(x))
    np.testing.assert_allclose(xcnn.devices.to_numpy(found["3"].y), wanted["3"].y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(xcnn.devices.to_numpy(moved), dx, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model, x: explain.trace("lenet5", x), "trace: model must be a module, got 'lenet5'"),
        (lambda model, x: explain.trace(model, x, off={"10x": [0]}), "trace: off: unknown layer '10x'; did you mean"),
        (lambda model, x: explain.trace(model, x, off={"0": [6]}), "0 (Conv2d): off must list channels of this layer"),
        (lambda model, x: explain.trace(model, x, off={"0": ["a"]}), "0 (Conv2d): off must list channels of this"),
        (lambda model, x: explain.trace(model, x, off={"0": 1}), "0 (Conv2d): off must list channels of this layer"),
        (lambda model, x: explain.trace(model, x, off=["0"]), "trace: off must map names of modules to channels, got"),
        (lambda model, x: explain.trace(model, x)["99"], "unknown layer '99'; did you mean '9'?"),
    ],
)
def test_wrong_arguments(call: Callable[..., Any], words: str) -> None:
    model, x = _network("lenet5")
    with pytest.raises(UsageError) as error:
        call(model, x)
    assert str(error.value).startswith(words)

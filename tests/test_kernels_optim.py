"""Optimizer steps in place: the bits of the portable code for all kinds of arrays, and no other array changes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xcnn import nn, optim
from xcnn._dispatch import portable
from xcnn.parameter import Parameter

pytest.importorskip("llvmlite")

RULES: dict[str, Callable[[Any], optim.Optimizer]] = {
    "sgd": lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: optim.Adam(parameters, lr=0.1),
    "rmsprop": lambda parameters: optim.RMSprop(parameters, lr=0.1, momentum=0.9, centered=True),
}
every_rule = pytest.mark.parametrize("rule", RULES)


def strided(array: np.ndarray) -> np.ndarray:
    buffer = np.zeros([2 * n for n in array.shape], array.dtype)
    view = buffer[(slice(None, None, 2),) * array.ndim]
    view[...] = array
    return view


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS = {"fortran": np.asfortranarray, "strided": strided, "read-only": read_only, "scalar": lambda array: array[()]}


def both(run: Callable[[], list[Any]]) -> None:
    """Check that what a function returns is the same with and without kernels."""
    actual = run()
    with portable(np):
        wanted = run()
    for one, other in zip(actual, wanted, strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        np.testing.assert_array_equal(one, other)


@every_rule
@pytest.mark.parametrize("place", ["data", "grad", "state"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_another_layout_are_updated_too(layout: str, place: str, rule: str) -> None:
    change = LAYOUTS[layout]

    def run() -> list[Any]:
        rng = np.random.default_rng(0)
        shape = () if layout == "scalar" else (4, 3)
        parameter = Parameter(np.asarray(rng.standard_normal(shape), np.float32))
        optimizer = RULES[rule]([parameter])
        for step in range(3):
            parameter.grad = np.asarray(rng.standard_normal(shape), np.float32)
            if step == 1:
                state = optimizer.state[parameter]
                if place == "state":
                    state.update({name: change(a) for name, a in state.items() if isinstance(a, np.ndarray)})
                else:
                    setattr(parameter, place, change(getattr(parameter, place)))
            optimizer.step()
        return [parameter.data, *optimizer.state[parameter].values()]

    both(run)


@every_rule
@pytest.mark.parametrize("odd", [0, 2])
def test_an_array_of_another_layout_costs_the_others_nothing(odd: int, rule: str) -> None:
    """The others are updated in place; the array of another layout is replaced by a contiguous one."""
    shapes = [(4, 3), (2, 0), (3, 2), (5, 5)]
    rng = np.random.default_rng(0)
    parameters = [Parameter(rng.standard_normal(shape)) for shape in shapes]
    parameters[odd].data = read_only(parameters[odd].data)
    optimizer, before = RULES[rule](parameters), [p.data for p in parameters]
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = strided(rng.standard_normal(parameter.data.shape))
        optimizer.step()
        assert [p.data is not old for p, old in zip(parameters, before, strict=True)] == [i == odd for i in range(4)]
        assert all(p.data.flags.carray for p in parameters)


@every_rule
def test_an_interrupted_step_updates_each_parameter_entirely_or_not_at_all(rule: str) -> None:
    rng = np.random.default_rng(0)
    parameters = [Parameter(rng.standard_normal(3).astype(np.float32)) for _ in range(3)]
    optimizer = RULES[rule](parameters)
    for parameter in parameters:
        parameter.grad = np.ones(3, np.float32)
    optimizer.step()
    before = [parameter.data.copy() for parameter in parameters]
    update = optimizer.update

    def broken(*arguments: Any) -> Any:
        yield next(iter(update(*arguments)))
        raise KeyboardInterrupt

    optimizer.update = broken
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert [parameter.updates for parameter in parameters] == [2, 1, 1]
    assert [np.array_equal(p.data, old) for p, old in zip(parameters, before, strict=True)] == [False, True, True]
    steps = [optimizer.state[parameter].get("step") for parameter in parameters]
    assert steps in ([2, 1, 1], [None, None, None])


@every_rule
def test_a_model_may_change_its_dtype_in_mid_training(rule: str) -> None:
    def run() -> list[Any]:
        rng = np.random.default_rng(0)
        model = nn.Sequential(nn.Linear(3, 2))
        model.reset_parameters(0)
        optimizer = RULES[rule](model.parameters())
        for dtype in ("float32", "float64", "float64"):
            model.to("cpu", dtype)
            for parameter in model.parameters():
                parameter.grad = rng.standard_normal(parameter.data.shape).astype(dtype)
            optimizer.step()
        return [a for p in model.parameters() for a in (p.data, *optimizer.state[p].values())]

    both(run)


@every_rule
def test_parameters_made_from_one_array_do_not_share_it(rule: str) -> None:
    def run() -> list[Any]:
        rng = np.random.default_rng(0)
        array = rng.standard_normal((4, 3)).astype(np.float32)
        before = array.copy()
        parameters = [Parameter(array), Parameter(array)]
        for parameter in parameters:
            parameter.grad = rng.standard_normal((4, 3)).astype(np.float32)
        RULES[rule](parameters).step()
        np.testing.assert_array_equal(array, before)
        return [parameter.data for parameter in parameters]

    both(run)


def test_whole_numbers_and_those_of_numpy_need_no_code_of_their_own() -> None:
    from xcnn.kernels.cpu._loops import traced

    parameter = Parameter(np.ones(3, np.float32))
    optimizer, compiled = optim.SGD([parameter]), []
    for decay in (0.5, 1, 2, np.float32(3)):
        optimizer.param_groups[0]["weight_decay"] = decay
        parameter.grad = np.ones(3, np.float32)
        optimizer.step()
        compiled.append(traced.cache_info().currsize)
    assert compiled == compiled[:1] * 4

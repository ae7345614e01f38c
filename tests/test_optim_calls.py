"""Many parameters in one call of an optimizer's rule: how they are grouped, and the state after a call that fails."""

import contextlib
import math
import tracemalloc

import array_api_strict
import numpy as np
import pytest
from rules import FULL, draw

from xcnn import optim
from xcnn._dispatch import portable
from xcnn.devices import to_numpy
from xcnn.parameter import Parameter


def spied(optimizer):
    """Record how many parameters each call of an optimizer's rule gets."""
    calls, update = [], optimizer.update

    def noting(data, *others):
        calls.append(len(data))
        return update(data, *others)

    optimizer.update = noting
    return calls


@pytest.mark.parametrize("code", [contextlib.nullcontext, lambda: portable(np)], ids=["kernels", "portable"])
@pytest.mark.parametrize(("name", "options"), FULL)
def test_parameters_in_one_call_are_updated_as_each_by_itself(name, options, code):
    """Also those that sat out some steps, which Adam counts."""
    shapes = [(3, 2), (4,), (1,), (2, 0), (5, 4, 3)]

    def trained(together):
        parameters = [Parameter(array.astype(np.float32)) for array in draw(shapes, 0)]
        make = optim.OPTIMIZERS[name]
        optimizers = [make(parameters, **options)] if together else [make([p], **options) for p in parameters]
        calls = [spied(optimizer) for optimizer in optimizers]
        for step in range(4):
            for index, (parameter, grad) in enumerate(zip(parameters, draw(shapes, 1000 + step), strict=True)):
                parameter.grad = None if step < 2 and index % 2 else grad.astype(np.float32)
            for optimizer in optimizers:
                optimizer.step()
        states = [optimizer.state[p] for p in parameters for optimizer in optimizers if p in optimizer.state]
        return [[*(p.data for p in parameters), *(a for state in states for a in state.values())], calls]

    with code():
        (one, [calls]), (other, _) = trained(True), trained(False)
    for mine, theirs in zip(one, other, strict=True):
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()
    assert calls[:4] == [3, 3, 3, 2]  # those of which nothing is kept yet by themselves
    assert calls[4:] == ([3, 2] if name in ("adam", "adamw") else [5])


@pytest.mark.parametrize(("name", "options"), FULL)
def test_parameters_of_several_dtypes_and_devices_meet_in_one_optimizer(name, options, monkeypatch):
    monkeypatch.setattr(array_api_strict.Device, "__hash__", None)  # as CuPy's is
    places = [array_api_strict.Device(where) for where in ("CPU_DEVICE", "device1")]
    arrays = [
        *(np.ones(3, dtype) for dtype in ("float32", "float64", "float32", "float16", "float64")),
        *(array_api_strict.ones(2, dtype=array_api_strict.float64, device=where) for where in places),
    ]
    parameters = [Parameter(array) for array in arrays]
    optimizer = optim.OPTIMIZERS[name](parameters, **options)
    calls = spied(optimizer)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = parameter.data / 2
        optimizer.step()
    assert calls == [2, 2, 1, 1, 1] * 2
    for parameter, array in zip(parameters, arrays, strict=True):
        assert (parameter.data.dtype, parameter.data.device, parameter.updates) == (array.dtype, array.device, 2)
        assert (to_numpy(parameter.data) < 1).all()
        for entry in optimizer.state[parameter].values():
            assert isinstance(entry, int) or (entry.dtype, entry.device) == (array.dtype, array.device)


class Lion(optim.Optimizer):
    """A user's own rule."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)

    def update(self, data, grads, states, group):
        for w, grad, state in zip(data, grads, states, strict=True):
            if not np.isfinite(grad).all():
                raise MemoryError
            state["momentum_buffer"] = 0.5 * state.get("momentum_buffer", 0) + 0.5 * grad
            yield w - group["lr"] * np.sign(state["momentum_buffer"])


def test_a_rule_of_ones_own():
    parameters = [Parameter(np.zeros(2)), Parameter(np.zeros(3, np.float32))]
    optimizer = Lion([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.25}], lr=1)
    for value in (2, -1, 3):
        for parameter in parameters:
            parameter.grad = np.full_like(parameter.data, value)
        optimizer.step()
    np.testing.assert_array_equal(parameters[0].data, [-2, -2])
    np.testing.assert_array_equal(parameters[1].data, np.full(3, -0.5, np.float32))
    resumed = Lion([{"params": [Parameter(p.data)]} for p in parameters], lr=1)
    resumed.load_state_dict(optimizer.state_dict())
    assert str(resumed.state_dict()) == str(optimizer.state_dict())
    parameters[0].grad = np.ones(2)
    with pytest.raises(NotImplementedError, match=r"^Optimizer must define update\(data, grads, states, group\)$"):
        optim.Optimizer(parameters).step()


def test_a_rule_that_fails_has_updated_those_before_and_no_other():
    parameters = [Parameter(np.zeros(n)) for n in (1, 2, 3)]
    optimizer = Lion(parameters, lr=1)
    for parameter, value in zip(parameters, (1, math.nan, 1), strict=True):
        parameter.grad = np.full_like(parameter.data, value)
    with pytest.raises(MemoryError):
        optimizer.step()
    assert [parameter.updates for parameter in parameters] == [1, 0, 0]
    assert [parameter.data[0] for parameter in parameters] == [-1, 0, 0]
    assert set(optimizer.state_dict()["state"]) == {0}


@pytest.mark.parametrize(("name", "options"), FULL)
def test_portable_steps_need_memory_for_one_parameter_at_a_time(name, options):
    tracemalloc.start()
    try:
        parameters = [Parameter(np.zeros(10_000)) for _ in range(20)]
        optimizer = optim.OPTIMIZERS[name](parameters, **options)
        for parameter in parameters:
            parameter.grad = np.ones(10_000)
        with portable(np):
            optimizer.step()
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            optimizer.step()
            peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < 10 * 80_000  # and not the 20 times 80,000 bytes of all

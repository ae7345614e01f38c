"""`cuda:1` is respected: arrays are created on that GPU, stay there, and are processed there."""

import threading

import numpy as np
import pytest
from conftest import Backend
from fake_cupy import Fake

import xcnn as package
from xcnn import compare, nn, ops
from xcnn._array import full, namespace_of, on_device, zeros
from xcnn.compare.contestants.xcnn import ready, stepper
from xcnn.devices import Device, free_memory, gpus, like, to_numpy
from xcnn.errors import DeviceError
from xcnn.training.evaluation import evaluate, predict
from xcnn.training.losses import LOSSES


def test_opening_a_device_does_not_make_it_current(machine: Fake) -> None:
    second, first = package.device("cuda:1"), package.device("cuda:0")
    assert machine.current == 0
    package.device("cuda:1")
    gpus()
    assert machine.current == 0
    host = np.float32([1, 2])
    assert (first.asarray(host).device.id, second.asarray(host).device.id) == (0, 1)


def test_active_nests_and_returns_after_exceptions(machine: Fake) -> None:
    first, second = package.device("cuda:0"), package.device("cuda:1")
    with second.active():
        assert machine.current == 1
        with first.active(), second.active(), second.active():
            assert machine.current == 1
        assert machine.current == 1
        with pytest.raises(ValueError, match="current device"), first.active():
            second.asarray(np.ones(2)) + 1
        assert machine.current == 1
        assert second.xp.zeros(3).device.id == 1
    assert machine.current == 0


def test_threads_share_a_device(machine: Fake) -> None:
    """Each enters it from another device, and they leave in an order that would mix up state kept in one object."""
    second, seen = package.device("cuda:1"), {}
    entered, left = threading.Barrier(2, timeout=10), threading.Event()

    def work(start: int) -> None:
        machine.current = start
        with second.active():
            entered.wait()
            if start == 1:
                assert left.wait(10)
            seen[start, "inside"] = machine.current
        seen[start, "after"] = machine.current
        left.set()

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {(0, "inside"): 1, (0, "after"): 0, (1, "inside"): 1, (1, "after"): 1}


@pytest.mark.parametrize("spec", ["cpu", "strict", "strict:device1", "torch", "jax"])
def test_other_libraries_need_no_current_device(spec: str) -> None:
    try:
        opened = package.device(spec)
    except DeviceError as error:
        pytest.skip(str(error))
    context = opened.active()
    with context, context:  # one for all threads, which does nothing
        assert context is on_device(None)


def test_arrays_reach_their_gpu_and_leave_it(machine: Fake) -> None:
    second, host = package.device("cuda:1"), np.arange(6, dtype=np.float32).reshape(2, 3)
    there = second.asarray(host)
    found = [there, like(host.astype(np.float64), there), like(np.ones(2), second.asarray(np.arange(3)))]
    found += [zeros(second.xp, (2,), there), full(second.xp, (2,), 3.0, there)]
    assert [array.device.id for array in found] == [1] * 5
    assert machine.current == 0
    assert np.array_equal(second.to_numpy(there), host)
    assert np.array_equal(to_numpy(found[4]), [3.0, 3.0])
    assert found[2].dtype == second.xp.int64
    assert machine.current == 0


def test_a_dtype_that_the_host_lacks_is_made_on_its_gpu(machine: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    there = package.device("cuda:1").asarray(np.ones(2, np.int16))
    monkeypatch.delattr(np, "int16")
    made = like(np.array([1.0, 2.0]), there)
    assert (made.device.id, made.dtype) == (1, there.dtype)


def test_memory_is_freed_on_its_gpu(machine: Fake) -> None:
    free_memory(package.device("cuda:1"))
    free_memory(package.device("cuda:0"))
    assert machine.freed == [1, 0]


def network() -> nn.Sequential:
    layers = [nn.Conv2d(1, 2, 3, padding=1, init="kaiming_normal"), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 3))
    model.reset_parameters(0)
    return model


def lying_on(model: nn.Module) -> set[int]:
    return {slot.data.device.id for slot in (*model.parameters(), *(buffer for _, buffer in model.named_buffers()))}


def test_a_network_lives_on_its_gpu(machine: Fake) -> None:
    second, model = package.device("cuda:1"), network()
    state = model.state_dict()
    model.to(second)
    assert lying_on(model) == {1}
    model.load_state_dict(state)
    assert lying_on(model) == {1}
    model.reset_parameters(0)
    assert lying_on(model) == {1}
    assert namespace_of(model[0].weight.data) is second.xp
    for name, array in model.state_dict().items():
        assert np.array_equal(array, state[name]), name
    assert machine.current == 0


def test_evaluation_and_prediction_run_on_their_gpu(machine: Fake) -> None:
    package.device("cuda:0")
    rng, loss = np.random.default_rng(1), LOSSES["cross_entropy"]
    x, y = rng.standard_normal((5, 1, 4, 4)).astype(np.float32), np.array([0, 1, 2, 0, 1])
    results = {}
    for spec in ("cpu", "cuda:1"):
        where, model = package.device(spec), network()
        model.to(where)
        results[spec] = (evaluate(model, (x, y), loss, where, 2), predict(model, x, loss, where, 2))
        assert machine.current == 0
    (here, said_here), (there, said_there) = results.values()
    assert there.loss == pytest.approx(here.loss, rel=1e-5)
    assert there.correct == here.correct
    np.testing.assert_allclose(said_there, said_here, rtol=1e-4)


def test_devices_are_compared_on_their_gpu(machine: Fake) -> None:
    second = package.device("cuda:1")
    findings = [*compare.op_errors("linear", second), *compare.op_errors("max_pool2d", second)]
    x, y = np.random.default_rng(0).standard_normal((2, 1, 4, 4)), np.array([2, 0])
    findings += compare.layer_errors(network(), x, y, [second])
    assert {finding.device for finding in findings} == {"cuda:1"}
    assert len(findings) > 20
    assert [str(finding) for finding in findings if not finding.error.within] == []
    assert machine.current == 0


@pytest.mark.parametrize("mode", compare.MODES)
def test_a_benchmark_runs_on_its_gpu(machine: Fake, mode: str) -> None:
    case = compare.Case("report", 2, mode, 1)
    with ready(case, "cuda:1") as training:
        assert machine.current == 1
        assert np.all(np.isfinite(stepper(case, training)()))
    assert machine.current == 0


@pytest.mark.parametrize("backend", ["cupy"], indirect=True)
def test_two_real_gpus_keep_their_arrays(backend: Backend) -> None:
    if len(gpus()) < 2:
        pytest.skip("there is one GPU here, this takes two")
    host, opened = np.arange(8, dtype=np.float32).reshape(2, 4), [package.device(f"cuda:{i}") for i in (1, 0)]
    for where in opened:
        assert isinstance(where, Device)
        there = where.asarray(host)
        with where.active():
            y, backward = ops.softmax(there, dim=1)
            (dx,) = backward(where.xp.ones_like(y))
        for array in (there, y, dx, zeros(where.xp, (3,), there), like(host, there)):
            assert array.device == where.handle
        np.testing.assert_allclose(where.to_numpy(y), ops.softmax(host, dim=1)[0], rtol=1e-5)

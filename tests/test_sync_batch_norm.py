"""Synchronised batch norm: the parts of a batch, in lockstep, compute what one process does with the whole batch."""

import signal
import sys
import threading
import time
from functools import partial

import cuda_emulator
import numpy as np
import pytest
import test_parallel as parallel
from fake_processes import alike, run

from xcnn import _dispatch, data, models, nn, ops, optim
from xcnn.errors import DivergedError, ShapeError, UsageError
from xcnn.ops._parts import gathering
from xcnn.training import Trainer
from xcnn.training.lockstep import gathered, lockstep
from xcnn.training.processes import Processes

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def cut(n, count):
    return [slice(k * n // count, (k + 1) * n // count) for k in range(count)]


def of_parts(tasks, remember=lambda: lambda: None):
    """Run tasks in lockstep in this process alone."""
    return lockstep(tasks, partial(gathered, Processes(), [len(tasks)]), remember)


def by_parts(function, slices, size=1):
    """Return the results of `function(slice)` of all parts, which are dealt out to some processes."""

    def act(processes):
        counts = [len(processes.share(len(slices), k)) for k in range(size)]
        tasks = [partial(function, slices[k]) for k in processes.mine(len(slices))]
        return lockstep(tasks, partial(gathered, processes, counts), lambda: lambda: None) if tasks else []

    return [result for results in run(size, act) for result in results]


SHAPES = [(7, 3), (7, 3, 5), (7, 3, 4, 5), (7, 3, 2, 3, 2)]


def arrays(shape, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x, dy, residual = (rng.standard_normal(shape).astype(dtype) for _ in range(3))
    weight, bias, mean = (rng.standard_normal(shape[1]).astype(dtype) for _ in range(3))
    var = rng.uniform(0.5, 2.0, shape[1]).astype(dtype)
    return 3.0 * x + 5.0, dy, {"running_mean": mean, "running_var": var, "weight": weight, "bias": bias}, residual


def norms(x, dy, given, residual, slices, size=1, needs=None, **options):
    """Return y, the running statistics and the gradients, from parts."""

    def one(rows):
        added = None if residual is None else residual[rows]
        (y, *running), backward = ops.batch_norm(x[rows], **given, residual=added, training=True, **options)
        return y, running, backward(dy[rows], needs)

    found = by_parts(one, slices, size)
    gradients = list(zip(*(gradients for *_, gradients in found), strict=True))
    for _, running, _ in found[1:]:
        for one_of, other in zip(running, found[0][1], strict=True):
            np.testing.assert_array_equal(one_of, other)  # all parts know the same
    joined = [None if g[0] is None else np.concatenate(g) if k in (0, 5) else sum(g) for k, g in enumerate(gradients)]
    return np.concatenate([y for y, *_ in found]), found[0][1], joined


@pytest.mark.parametrize("count", [2, 3, 5, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_compute_what_the_whole_batch_does(shape, count):
    x, dy, given, residual = arrays(shape)
    for options, bare, added in [
        ({}, False, None),
        ({"momentum": 0.3, "eps": 0.1, "activation": "relu"}, False, residual),
        ({"momentum": 1.0, "activation": "tanh"}, False, None),
        ({}, True, residual),
    ]:
        slots = {} if bare else given
        (y, *running), backward = ops.batch_norm(x, **slots, residual=added, training=True, **options)
        expected = y, running, list(backward(dy))
        found = norms(x, dy, slots, added, cut(7, count), **options)
        for one, other in zip((found[0], *found[1], *found[2]), (y, *running, *expected[2]), strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                np.testing.assert_allclose(one, other, **TOLERANCE)


def test_statistics_far_from_zero_keep_their_digits():
    x, dy, given, _ = arrays((6, 3, 8, 8), dtype=np.float32)
    x += np.float32(1000.0)
    (y, *running), backward = ops.batch_norm(x, **given, training=True)
    exact = ops.batch_norm(*(a.astype(np.float64) for a in (x, *given.values())), training=True)[0]
    found = norms(x, dy, given, None, cut(6, 3))
    for one, single, true in zip((found[0], *found[1]), (y, *running), exact, strict=True):
        assert np.abs(one - true).max() <= 2 * np.abs(single - true).max() + 1e-6 * np.abs(true).max()
    np.testing.assert_allclose(found[2][0], backward(dy)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_bits_do_not_depend_on_the_number_of_processes(dtype):
    x, dy, given, residual = arrays((11, 3, 4, 4), dtype=dtype)
    alone, *others = (norms(x, dy, given, residual, cut(11, 5), size, activation="relu") for size in (1, 2, 3, 4, 5, 6))
    for found in others:
        for one, other in zip((found[0], *found[1], *found[2]), (alone[0], *alone[1], *alone[2]), strict=True):
            assert one is other is None or one.tobytes() == other.tobytes()


def test_only_what_is_needed_is_computed():
    x, dy, given, _ = arrays((6, 3, 4))
    _, _, gradients = norms(x, dy, given, None, cut(6, 2), needs=(True, False, False, False, False, False))
    assert [g is not None for g in gradients] == [True, False, False, False, False, False]
    _, _, gradients = norms(x, dy, given, None, cut(6, 2), needs=(False, False, False, True, True, False))
    expected = ops.batch_norm(x, **given, training=True)[1](dy)
    assert gradients[0] is None
    np.testing.assert_allclose(gradients[3], expected[3], **TOLERANCE)


def test_finite_differences():
    x, dy, given, _ = arrays((5, 2, 3), seed=3)
    _, _, (dx, *_) = norms(x, dy, given, None, cut(5, 3), activation="tanh")
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = 1e-6
        up, down = (norms(x + s, dy, given, None, cut(5, 3), activation="tanh")[0] for s in (step, -step))
        assert abs(((up - down) * dy).sum() / 2e-6 - dx[place]) < 1e-7


def test_pytorch_agrees():
    torch = pytest.importorskip("torch")
    x, dy, given, _ = arrays((6, 3, 4, 4), seed=2)
    layer = torch.nn.BatchNorm2d(3, eps=1e-4, momentum=0.2, dtype=torch.float64)  # SyncBatchNorm is this on the whole
    state = {name: torch.tensor(a) for name, a in given.items()}
    layer.load_state_dict(state | {"num_batches_tracked": torch.tensor(0)})
    input = torch.tensor(x, requires_grad=True)
    y = layer(input)
    y.backward(torch.tensor(dy))
    found = norms(x, dy, given, None, cut(6, 4), eps=1e-4, momentum=0.2)
    expected = [y.detach(), layer.running_mean, layer.running_var, input.grad, layer.weight.grad, layer.bias.grad]
    for one, other in zip((found[0], *found[1], found[2][0], *found[2][3:5]), expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), **TOLERANCE)


def test_other_libraries_compute_the_same():
    strict = pytest.importorskip("array_api_strict")
    x, dy, given, residual = arrays((6, 3, 4))

    def one(rows):
        (y, mean, var), backward = ops.batch_norm(
            strict.asarray(x[rows]), **{k: strict.asarray(a) for k, a in given.items()}, training=True,
            residual=strict.asarray(residual[rows]), activation="relu",
        )  # fmt: skip
        return [np.asarray(a) for a in (y, mean, var, backward(strict.asarray(dy[rows]))[0])]

    found = of_parts([partial(one, rows) for rows in cut(6, 3)])
    expected = norms(x, dy, given, residual, cut(6, 3), activation="relu")
    np.testing.assert_allclose(np.concatenate([f[0] for f in found]), expected[0], **TOLERANCE)
    np.testing.assert_allclose(found[0][1], expected[1][0], **TOLERANCE)
    np.testing.assert_allclose(np.concatenate([f[3] for f in found]), expected[2][0], **TOLERANCE)


class Own(nn.Module):
    """A module of unknown code around layers."""

    def __init__(self, inner):
        self.inner = inner

    def forward(self, x, train):
        y, backward = self.inner.forward(x, train)
        return 2.0 * y, lambda dy, need_dx: backward(2.0 * dy, need_dx)


def network(**norm):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4, **norm), nn.ReLU(),
        nn.Residual(Own(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, **norm)))),
        nn.ReLU(),
        nn.Residual(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, **norm))), nn.ReLU(),
        nn.GlobalAvgPool(), nn.BatchNorm1d(4, **norm), nn.Linear(4, 3), nn.BatchNorm1d(3, **norm),
    )  # fmt: skip
    model.reset_parameters(0)
    return model.to("cpu", "float64")


def remembering(model):
    """Return the function `remember` for a network."""
    parameters, buffers = model.parameters(), [buffer for _, buffer in model.named_buffers()]

    def remember():
        grads, datas = [p.grad for p in parameters], [b.data for b in buffers]

        def restore():
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad
            for buffer, array in zip(buffers, datas, strict=True):
                buffer.data = array

        return restore

    return remember


def passed(model, x, dy, slices):
    """Train on parts in lockstep and return outputs, the sum of gradients, and the buffers of each part."""

    def one(rows):
        y, backward = model.forward(x[rows], train=True)
        backward(dy[rows], need_dx=False)
        return y, [p.grad for p in model.parameters()], [b.data for _, b in model.named_buffers()]

    model.zero_grad()
    found = of_parts([partial(one, rows) for rows in slices], remembering(model))
    grads = [None if g[0] is None else sum(g) for g in zip(*(grads for _, grads, _ in found), strict=True)]
    return np.concatenate([y for y, *_ in found]), grads, [buffers for *_, buffers in found]


@pytest.mark.parametrize("norm", [{}, {"momentum": None}, {"track_running_stats": False}, {"affine": False}])
@pytest.mark.parametrize("count", [2, 4, 6])
def test_networks_with_modules_of_unknown_code_and_joined_layers(norm, count):
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((3, 6, 2, 5, 5)), rng.standard_normal((3, 6, 3))
    model, whole = network(**norm), network(**norm)
    for step in range(3):  # the first run of a shape prepares the others
        y, grads, buffers = passed(model, x[step], dy[step], cut(6, count))
        whole.zero_grad()
        expected, backward = whole.forward(x[step], train=True)
        backward(dy[step], need_dx=False)
        np.testing.assert_allclose(y, expected, **TOLERANCE)
        for one, parameter in zip(grads, whole.parameters(), strict=True):
            np.testing.assert_allclose(one, parameter.grad, rtol=1e-10, atol=1e-10)
        for of_part in buffers:
            for one, (_, buffer) in zip(of_part, whole.named_buffers(), strict=True):
                np.testing.assert_allclose(one, buffer.data, **TOLERANCE)
        for array, (_, buffer) in zip(buffers[0], model.named_buffers(), strict=True):
            buffer.data = array


def test_after_training_without_parts_they_meet_too():
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((6, 2, 5, 5)), rng.standard_normal((6, 3))
    model, whole = network(), network()
    for one in (model, whole):
        for rows in (*cut(6, 2), *cut(6, 2)):  # the shape of parts, by itself: programs are kept
            one.forward(x[rows], train=True)
    y, grads, _ = passed(model, x, dy, cut(6, 2))
    expected, backward = whole.forward(x, train=True)
    backward(dy, need_dx=False)
    np.testing.assert_allclose(y, expected, **TOLERANCE)
    np.testing.assert_allclose(grads[0], whole.parameters()[0].grad, rtol=1e-10, atol=1e-10)
    apart, _ = model.forward(x[:3], train=True)
    assert np.abs(apart - y[:3]).max() > 1e-3


def test_frozen_layers_stay_as_they_are():
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((6, 2, 5, 5)), rng.standard_normal((6, 3))
    model, whole = network(), network()
    for one in (model, whole):
        one[:3].freeze()
    y, grads, buffers = passed(model, x, dy, cut(6, 3))
    expected, backward = whole.forward(x, train=True)
    backward(dy, need_dx=False)
    np.testing.assert_allclose(y, expected, **TOLERANCE)
    assert grads[0] is None
    np.testing.assert_allclose(grads[-1], whole.parameters()[-1].grad, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(buffers[0][0], np.zeros(4))


def test_instance_norm_and_inference_do_not_meet():
    x = np.random.default_rng(0).standard_normal((4, 3, 5))
    layer, batch = nn.InstanceNorm1d(3, track_running_stats=True), nn.BatchNorm1d(3)
    for one in (layer, batch):
        one.to("cpu", "float64")

    def one(rows):
        return layer.forward(x[rows], train=True)[0], batch.forward(x[rows], train=False)[0], gathering() is None

    calls = []
    found = lockstep([partial(one, rows) for rows in cut(4, 2)], calls.append, lambda: lambda: None)
    assert not calls
    assert not found[0][2]
    np.testing.assert_array_equal(found[1][1], batch(x)[2:])


# Tasks in lockstep


def others():
    return [thread for thread in threading.enumerate() if thread.name.startswith("xcnn part")]


def meeting(value):
    return gathering()(np.asarray([value]))


def test_one_task_at_a_time_and_each_with_its_own_state():
    state, log = {"at": "start"}, []

    def remember():
        seen = state["at"]
        return lambda: state.update(at=seen)

    def task(k):
        for turn in range(3):
            log.append((turn, k))
            assert state["at"] == ("start" if turn == 0 else (k, turn - 1))
            state["at"] = (k, turn)
            time.sleep(0.001)
            assert state["at"] == (k, turn)
            assert meeting(10 * k + turn).tolist() == [[10 * j + turn] for j in range(4)]
        return k

    assert of_parts([partial(task, k) for k in range(4)], remember) == [0, 1, 2, 3]
    assert log == [(turn, k) for turn in range(3) for k in range(4)]
    assert not others()
    assert gathering() is None


@pytest.mark.parametrize("where", ["before", "between", "after"])
@pytest.mark.parametrize("which", [0, 1, 3])
def test_an_exception_of_one_ends_all(which, where):
    ended = []

    def task(k):
        try:
            for place in ("before", "between", "after"):
                if k == which and place == where:
                    raise ShapeError(f"part {k}")
                if place != "after":
                    try:
                        meeting(k)
                    except Exception:  # no code that expects errors goes on
                        pytest.fail("caught what ends the task")
        finally:
            ended.append(k)

    with pytest.raises(ShapeError, match=f"part {which}"):
        of_parts([partial(task, k) for k in range(4)])
    assert not others()
    assert gathering() is None
    assert len(ended) <= 4


@pytest.mark.parametrize("which", [0, 2])
def test_parts_that_go_apart_are_refused(which):
    def task(k):
        meeting(k)
        if k == which:
            meeting(k)

    with pytest.raises(UsageError, match="sync_batch_norm: the parts of a batch must go through the same"):
        of_parts([partial(task, k) for k in range(3)])
    assert not others()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows delivers no signal to a thread that waits for a lock")
def test_ctrl_c_ends_all():
    def task(k):
        meeting(k)
        if k == 2:
            signal.raise_signal(signal.SIGINT)  # its handler runs in the main thread, which waits
            time.sleep(0.2)
        meeting(k)
        pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        of_parts([partial(task, k) for k in range(4)])
    assert not others()
    assert gathering() is None


def test_floating_point_errors_are_handled_as_in_the_caller():
    def task():
        meeting(0)
        return np.geterr()["over"]

    with np.errstate(over="raise"):
        assert of_parts([task, task]) == ["raise", "raise"]


def test_processes_without_a_part_are_left_out():
    def act(processes):
        counts = [len(processes.share(2, k)) for k in range(processes.size)]
        tasks = [partial(meeting, k) for k in processes.mine(2)]
        found = lockstep(tasks, partial(gathered, processes, counts), lambda: lambda: None) if tasks else [None]
        return found[0], processes.exchanges

    found = run(5, act)
    assert [None if array is None else array.tolist() for array, _ in found].count([[0], [1]]) == 2
    assert sorted(exchanges for _, exchanges in found) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernels_of_cuda_and_portable_code_compute_the_same(dtype):
    x, dy, given, residual = arrays((6, 3, 4, 4), dtype=dtype)
    compiled = norms(x, dy, given, residual, cut(6, 3), activation="relu")
    with _dispatch.portable(np):
        portable = norms(x, dy, given, residual, cut(6, 3), activation="relu")
    with cuda_emulator.emulated():
        emulated = norms(x, dy, given, residual, cut(6, 3), activation="relu")
    for one in (compiled, emulated):
        for array, expected in zip((one[0], *one[1], *one[2]), (portable[0], *portable[1], *portable[2]), strict=True):
            assert array is expected is None or np.abs(array - expected).max() <= 1e-4 * np.abs(expected).max()


# Training


def trained(parts, processes=None, dtype="float64", sync=True, model=None, batches=None, **options):
    model = network() if model is None else model
    model.to("cpu", dtype)
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9)
    training = Trainer(model, optimizer, accumulate=parts, parallel=processes, sync_batch_norm=sync, **options)
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((22, 2, 5, 5)).astype(dtype), rng.integers(0, 3, 22)
    training.fit(data.Loader((x, y), batch_size=8, seed=1), 2, progress=False)
    return training


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_training_in_parts_is_that_in_one(parts):
    """The last batch has 6 examples."""
    whole, found = trained(1), trained(parts)
    for name, array in whole.model.state_dict().items():
        np.testing.assert_allclose(found.model.state_dict()[name], array, rtol=1e-10, atol=1e-10)
    assert [one["train_loss"] for one in found.history] == pytest.approx([one["train_loss"] for one in whole.history])
    if parts < 8:  # one example each
        apart = trained(parts, sync=False).model.state_dict()
        assert np.abs(apart["1.running_var"] - whole.model.state_dict()["1.running_var"]).max() > 1e-4


@pytest.mark.parametrize("parts", [4, 7])
def test_weights_depend_on_the_parts_and_not_on_the_processes(parts):
    """With dropout, augmentation, a batch norm of momentum None, and several buckets of gradients."""
    alone = parallel.trained(None, parts, sync_batch_norm=True)
    for size in (2, 3, 4):
        found = run(size, lambda one: parallel.trained(one, parts, bucket=2000, sync_batch_norm=True))
        assert alike([one.model.state_dict() for one in (alone, *found)])
        assert all(parallel.figures(one) == parallel.figures(alone) for one in found)
        assert all(one.state_dict()["streams"] == alone.state_dict()["streams"] for one in found)


def test_resnet20_on_one_three_and_four_processes():
    x, y = np.random.default_rng(0).standard_normal((10, 3, 8, 8)).astype(np.float32), np.arange(10) % 3

    def act(processes):
        model = models.build("resnet20", (3, 8, 8), 3)
        model.reset_parameters(0)
        optimizer = optim.SGD(model.parameters(), 0.01, momentum=0.9)
        training = Trainer(model, optimizer, accumulate=4, parallel=processes, sync_batch_norm=True)
        training.step(x, y)
        training.step(x[:3], y[:3])  # in three parts, so that a fourth process has none
        return model.state_dict()

    assert alike([state for size in (1, 3, 4) for state in run(size, act)])


@pytest.mark.parametrize("where", ["strict", "strict:device1", "torch"])
def test_other_libraries_train_alike(where):
    pytest.importorskip("array_api_strict" if "strict" in where else "torch")
    x, y = np.random.default_rng(0).standard_normal((6, 2, 5, 5)), np.arange(6) % 3

    def stepped(device):
        model = network()
        training = Trainer(model, optim.SGD(model.parameters(), 0.1), device=device, accumulate=3, sync_batch_norm=True)
        training.step(x, y)
        return model.state_dict()

    for (name, array), expected in zip(stepped(where).items(), stepped("cpu").values(), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-9, atol=1e-10, err_msg=name)


def test_processes_that_differ_in_it_are_refused():
    with pytest.raises(UsageError, match="differ in their sync_batch_norm: False and True"):
        run(2, lambda one: trained(2, one, sync=one.rank == 0))
    with pytest.raises(UsageError, match=r"^Trainer: sync_batch_norm must be True or False, got 'yes'"):
        trained(2, sync="yes")


@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_loss_that_is_not_finite_is_one_error_and_no_thread_is_left(size):
    def act(processes):
        model = network()
        model[0].weight.data = model[0].weight.data * 1e200
        with np.errstate(all="ignore"):
            trained(8, processes, model=model)

    with pytest.raises(DivergedError, match=r"^epoch 1, batch 1: the loss is nan: layer "):
        run(size, act)
    assert not others()


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_leaves_no_thread_in_another(rank):
    def act(processes):
        model = network()
        if processes.rank == rank:
            model[2].forward = Broken()
        trained(4, processes, model=model)

    with pytest.raises(ZeroDivisionError):
        run(2, act)
    assert not others()


class Broken:
    """The `forward` of a layer that fails at its third call, in the second part or step."""

    calls = 0

    def __call__(self, x, train):
        self.calls += 1
        if self.calls == 3:
            raise ZeroDivisionError
        return x, lambda dy, need_dx: dy


def test_an_error_of_a_layer_is_the_error_of_the_step():
    model = network()
    model[-2] = nn.Linear(5, 3)
    with pytest.raises(ShapeError, match=r"^9 \(Linear\)"):
        trained(4, model=model)
    assert not others()
    assert gathering() is None

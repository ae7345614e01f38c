"""Faults in training: numbers that are not finite, memory that runs out, files that claim large arrays.

Each fault raises an error that names its cause, and changes nothing.
"""

import copy
import dataclasses
import subprocess
import sys
import tracemalloc
import types
import weakref

import numpy as np
import pytest
from conftest import LIBRARIES

from xcnn import models, nn, ops, optim
from xcnn.devices import LIBRARIES as TABLE
from xcnn.devices import Device, free_memory, out_of_memory
from xcnn.errors import CheckpointError, DivergedError, OutOfMemoryError, UsageError, XcnnError
from xcnn.nn._observe import observing
from xcnn.nn._weighted import undrawn
from xcnn.runs import Checkpoint, load_checkpoint, save_checkpoint
from xcnn.training import Trainer, divergence
from xcnn.training.divergence import look

ADVICE = "; lower the learning rate, clip the gradients, or check the data"

each_library = pytest.mark.parametrize("backend", LIBRARIES, indirect=True)
overflows = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


def network():
    """Make a network with ReLUs that run with their layer, running statistics, a random stream and a residual."""
    body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
    model = nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(3), nn.Residual(body)),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.25), nn.Linear(48, 10)),
    )
    model.reset_parameters(0)
    return model


def trainer_of(model, where="cpu", loss="cross_entropy", lr=0.01, **options):
    return Trainer(model, optim.Adam(model.parameters(), lr=lr), loss, where, **options)


def batch(seed=0, n=4):
    rng = np.random.default_rng(seed)
    return rng.random((n, 1, 8, 8), np.float32), rng.integers(0, 10, n)


def everything(trainer):
    """Return everything that a step changes, bit for bit."""
    weights = {name: array.tobytes() for name, array in trainer.model.state_dict().items()}
    streams = {name: copy.deepcopy(stream.bit_generator.state) for name, stream in trainer.model.named_generators()}
    optimizer = trainer.optimizer.state_dict()
    state = {i: {name: np.asarray(a).tobytes() for name, a in s.items()} for i, s in optimizer["state"].items()}
    return weights, streams, state, optimizer["param_groups"]


def fails(trainer, x, y, kind=DivergedError):
    """Take a step that must fail, check that nothing has changed, and return the message."""
    before = everything(trainer)
    with pytest.raises(kind) as error:
        trainer.step(x, y)
    assert everything(trainer) == before
    assert look([0.0], [parameter.grad for parameter in trainer.model.parameters()])[1]
    return str(error.value)


def put(name, value, all_of_it=False):
    """Return a function that sets the first element of a parameter, or all of them."""

    def ruin(model):
        slot = dict(model.named_parameters())[name]
        slot.data = np.full_like(slot.data, value) if all_of_it else slot.data.copy()
        slot.data.flat[0] = value

    return ruin


class Times(nn.Module):
    """A layer that multiplies its input in forward and its gradient in backward."""

    def __init__(self, forward=1.0, backward=1.0):
        self.forward_factor, self.backward_factor = forward, backward

    def forward(self, x, train):
        return x * self.forward_factor, lambda dy, need_dx: dy * self.backward_factor if need_dx else None


class Noise(nn.Module):
    """A layer whose random streams are in a list."""

    def __init__(self):
        self.streams = [np.random.default_rng(0), np.random.default_rng(1)]

    def forward(self, x, train):
        return x + sum(stream.standard_normal(x.shape, np.float32) for stream in self.streams), lambda dy, _: dy


@overflows
def test_random_streams_in_a_list_are_restored():
    model = nn.Sequential(Noise(), Times(np.inf), nn.Flatten(), nn.Linear(64, 10))
    fails(trainer_of(model), *batch())


FIRST = "returned the first numbers that are not finite"


@overflows
@each_library
@pytest.mark.parametrize("where", ["0", "2", "7"])
def test_a_loss_that_is_not_finite_names_the_layer_where_that_begins(backend, where):
    """For every kind of layer, and although a container runs it together with its ReLU."""
    kind = {"0": "Conv2d", "2": "BatchNorm2d", "7": "Linear"}[where]
    model = network()
    trainer = trainer_of(model, backend.spec)
    trainer.step(*batch())
    slot = dict(model.named_parameters())[f"{where}.weight"]
    ruined = backend.to_numpy(slot.data).copy()
    ruined.flat[0] = np.nan
    slot.data = backend.device.asarray(ruined)
    assert fails(trainer, *batch(1)) == f"the loss is nan: layer {where} ({kind}) {FIRST}: its weight holds nan{ADVICE}"


@overflows
def test_finite_weights_are_not_blamed():
    model = network()
    put("7.weight", 3e38, all_of_it=True)(model)
    message = fails(trainer_of(model), *batch())
    assert message.endswith(f": layer 7 (Linear) {FIRST}, from finite inputs and weights{ADVICE}")


@overflows
def test_a_layer_inside_another_has_its_dotted_name():
    model = network()
    put("3.body.0.bias", np.inf)(model)
    message = fails(trainer_of(model), *batch())
    assert f": layer 3.body.0 (Conv2d) {FIRST}: its bias holds inf" in message


@overflows
def test_a_layer_without_weights_can_be_the_first():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Times(forward=np.float32(np.inf)))
    assert fails(trainer_of(model), *batch()).startswith(
        f"the loss is nan: layer 2 (Times) {FIRST}, from finite inputs;"
    )


def test_a_network_of_one_layer_is_named_by_its_class():
    model = nn.Linear(3, 1)
    put("bias", np.nan)(model)
    x = np.ones((2, 3), np.float32)
    message = fails(trainer_of(model, loss="mse_loss"), x, np.ones((2, 1), np.float32))
    assert message == f"the loss is nan: the Linear {FIRST}: its bias holds nan{ADVICE}"


@overflows
@each_library
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_data_that_is_not_finite_is_what_to_check(backend, value):
    x, y = batch()
    x[1, 0, 3, 3] = value
    message = fails(trainer_of(network(), backend.spec), x, y)
    assert message == f"the loss is nan: the images hold {value}; check the data"


def test_targets_that_are_not_finite_are_what_to_check():
    x = np.ones((2, 3), np.float32)
    message = fails(trainer_of(nn.Linear(3, 1), loss="mse_loss"), x, np.array([[1], [np.inf]], np.float32))
    assert message == "the loss is inf: the targets hold inf; check the data"


@overflows
def test_a_loss_may_overflow_by_itself():
    model = nn.Linear(3, 1)
    model.reset_parameters(0)
    x = np.ones((2, 3), np.float32)
    message = fails(trainer_of(model, loss="mse_loss"), x, np.full((2, 1), 1e38, np.float32))
    assert (
        "the loss is inf: every layer's output is finite, so the loss itself is the first number that is not" in message
    )


class Own(nn.Module):
    """A container that also computes something itself."""

    def __init__(self, forward=1.0, backward=1.0):
        self.linear, self.factors = nn.Linear(64, 10), (forward, backward)

    def forward(self, x, train):
        y, back = self.linear.forward(x, train)
        forward, backward = self.factors
        return y * forward, lambda dy, need_dx: back(dy * backward, need_dx)


def test_what_a_container_computes_is_not_blamed_on_its_layers():
    for model, message in (
        (Own(forward=np.float32(np.nan)), "the loss is nan: the model's output is not finite, though every layer's is"),
        (Own(backward=np.float32(np.nan)), ": the first one is that of the output of layer linear (Linear)"),
    ):
        assert message in fails(trainer_of(nn.Sequential(nn.Flatten(), model)), *batch()).replace("1.linear", "linear")


@overflows
@each_library
def test_an_update_that_overflows_is_named_at_the_next_loss(backend):
    model = network()
    trainer = Trainer(model, optim.SGD(model.parameters(), lr=1e39), device=backend.spec)
    trainer.step(*batch())
    message = fails(trainer, *batch(1))
    assert message == f"the loss is nan: layer 0 (Conv2d) {FIRST}: its weight holds inf{ADVICE}"


# Gradients.


@overflows
@each_library
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"clip_value": 1.0}])
def test_a_gradient_that_is_not_finite_names_the_layer_where_that_begins(backend, options):
    model = network()
    model = nn.Sequential(*list(model)[:4], Times(backward=float("inf")), *list(model)[4:])
    trainer = trainer_of(model, backend.spec, **options)
    model[4].backward_factor = 1.0
    trainer.step(*batch())
    model[4].backward_factor = float("inf")
    message = fails(trainer, *batch(1))
    assert message.startswith("a gradient is not finite, the loss is ")
    assert message.endswith(f": the first one is that of the input of layer 4 (Times){ADVICE}")


@overflows
def test_a_weight_whose_gradient_overflows_is_named():
    """Images, weights and loss are finite, but the product of the images with the gradient is not."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False), nn.Linear(1, 1))
    put("1.weight", 1e-38, all_of_it=True)(model)
    put("2.weight", 100.0)(model)
    x, y = np.full((4, 1, 2, 2), 3e38, np.float32), np.zeros((4, 1), np.float32)
    message = fails(trainer_of(model, loss="mse_loss"), x, y)
    assert message.endswith(f": the first one is that of the weight of layer 1 (Linear){ADVICE}")


def test_a_loss_may_give_the_first_gradient_that_is_not_finite():
    def loss(output, target):
        value, backward = ops.cross_entropy(output, target)
        return value, lambda: (backward()[0] * np.float32(np.nan),)

    assert ": the first one is that of the model's output, from the loss;" in fails(
        trainer_of(network(), loss=loss), *batch()
    )


def test_a_hidden_layer_is_named_by_its_parameter():
    class Hidden(Own):
        def forward(self, x, train):
            y, back = self.linear.call_op(x)
            return y, lambda dy, need_dx: back(dy * np.float32(np.nan), need_dx)

    message = fails(trainer_of(nn.Sequential(nn.Flatten(), Hidden())), *batch())
    assert message.endswith(f": the first one is that of 1.linear.bias{ADVICE}")


def test_frozen_parameters_do_not_count():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Times(backward=np.float32(np.nan)), nn.Linear(8, 10))
    model.reset_parameters(0)
    trainer = Trainer(model, optim.SGD(model[3].parameters(), lr=0.1))
    assert np.isfinite(trainer.step(*batch()))


def test_a_bad_batch_does_not_affect_later_training():
    """With the same dropout masks and running statistics as without the bad batch."""
    trainer, twin = trainer_of(network()), trainer_of(network())
    nan = np.full((4, 1, 8, 8), np.nan, np.float32)
    for i in range(4):
        with pytest.raises(DivergedError):
            trainer.step(nan, batch()[1])
        assert trainer.step(*batch(i)) == twin.step(*batch(i))
    assert everything(trainer) == everything(twin)


@each_library
def test_large_gradients_are_no_false_alarm(backend):
    """Their sum and their squares overflow, but each of them is finite."""

    def finite(gradients):
        return look([backend.device.asarray(np.float32(1))], gradients)[1]

    arrays = [backend.device.asarray(np.full(n, 3e38, np.float32)) for n in (3, 5)]
    assert finite([*arrays, None])
    assert finite([])
    for value in (np.nan, np.inf, -np.inf):
        host = np.array([[1, value, 2]], np.float32)
        assert not finite([*arrays, backend.device.asarray(host)])
        assert not finite([backend.device.asarray(host[:, 1:]), *arrays])
    both = np.array([np.inf, -np.inf], np.float32)
    assert not finite([backend.device.asarray(both)])


@each_library
def test_values_that_are_read_together_keep_their_bits(backend, dtype):
    """The loss in its own dtype and the count as an integer, even if it is too large for half precision."""
    loss, right = np.asarray(1 / 3, dtype), np.asarray(2**24 - 1)
    gradients = [backend.device.asarray(np.ones(n, np.float32)) for n in (1, 2)]
    several = np.array([2**24 - 1, 2**24 - 1, 1])  # the sum is too large for single precision
    numbers = [backend.device.asarray(loss), None, backend.device.asarray(right), backend.device.asarray(several), 7]
    seen, finite = look(numbers, gradients)
    assert seen == [float(loss), None, 2**24 - 1, 2**25 - 1, 7]
    assert finite is True
    assert [type(value) for value in seen] == [float, type(None), int, int, int]
    assert look(numbers[:1]) == ([float(loss)], True)
    if backend.name == "torch":
        half = backend.device.xp.astype(backend.device.asarray(loss), backend.device.xp.bfloat16)
        assert look([half, numbers[2]], gradients) == ([float(half), 2**24 - 1], True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_numpy_arrays_of_any_kind_are_checked(dtype):
    most = np.finfo(dtype).max
    arrays = [np.full((4, 4), most, dtype)[::2, ::-1], np.array(1, dtype), dtype(most), np.ones((0, 3), dtype)]
    assert look([0.0], arrays)[1]
    for bad in (np.array(np.nan, dtype), dtype(np.inf), np.full((4, 4), np.inf, dtype)[::2, ::-1]):
        assert not look([0.0], [np.ones(3, dtype), bad])[1]


def test_labels_out_of_range_are_still_named_first():
    x, _ = batch()
    assert "the labels hold 12" in fails(trainer_of(network(), "strict"), x, np.array([1, 2, 3, 12]), UsageError)


def test_labels_that_the_op_itself_refuses_change_nothing():
    x, _ = batch()
    assert "12" in fails(trainer_of(network(), "cpu"), x, np.array([1, 2, 3, 12]), UsageError)


def test_a_loss_that_is_a_python_number_costs_no_more_reads(monkeypatch):
    strict, read = pytest.importorskip("array_api_strict"), []
    for name in ("__float__", "__bool__", "__int__"):
        old = getattr(type(strict.ones(1)), name)
        monkeypatch.setattr(type(strict.ones(1)), name, lambda self, old=old: (read.append(1), old(self))[1])
    moved, to_host = [], divergence.to_numpy
    monkeypatch.setattr(divergence, "to_numpy", lambda array: (moved.append(1), to_host(array))[1])
    gradients = [strict.ones(n, dtype=strict.float32, device=strict.Device("device1")) for n in (1, 2, 3)]
    assert look([0.1, 2], gradients) == ([0.1, 2], True)
    assert look([0.1, 2], [*gradients, gradients[0] * np.inf])[1] is False
    assert moved == [1, 1]
    assert len(read) <= 2  # to find which


def test_observers_can_be_nested():
    model, seen = nn.Sequential(nn.ReLU()), []

    def watcher(mark):
        def observer(name, layer):
            forward = layer.forward
            return lambda x, train=True: (seen.append(mark), forward(x, train))[1]

        return observer

    with observing(model, watcher("outer")):
        with observing(model, watcher("inner")):
            model(np.ones(1))
        model(np.ones(1))
    model(np.ones(1))
    assert seen == ["inner", "outer", "outer"]


# Memory.


LIMITED = """
import resource, sys
import numpy as np
from xcnn import models, optim
from xcnn.errors import OutOfMemoryError
from xcnn.training import Trainer

model = models.build("lenet5")
trainer = Trainer(model, optim.Adam(model.parameters()))
rng = np.random.default_rng(0)
x, y = rng.random((8192, 1, 28, 28), np.float32), rng.integers(0, 10, 8192)
first = trainer.step(x[:512], y[:512])  # loads, compiles and starts all that is needed
trainer.evaluate((x[:512], y[:512])), trainer.predict(x[:512])
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20), resource.RLIM_INFINITY))
for act in (
    lambda: trainer.step(x, y),
    lambda: trainer.fit([(x, y)]),
    lambda: trainer.evaluate((x, y), batch_size=8192),
    lambda: trainer.predict(x, batch_size=8192),
):
    before = model.state_dict()
    try:
        act()
    except OutOfMemoryError as error:
        assert isinstance(error, MemoryError) and error.__context__ is None
        print(error)
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
for _ in range(20):
    last = trainer.step(x[:512], y[:512])
assert last < first
print(len(trainer.predict(x[:512])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")
def test_a_batch_too_large_for_memory_is_said_and_the_process_goes_on():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = "out of memory on cpu with 8192 images of (1, 28, 28) at a time: "
    said += "try a batch size of 4096, "
    trained = said + "accumulate=2 (the same batch in 2 parts), or a smaller network"
    assert done.stdout.splitlines() == [trained] * 2 + [said + "or a smaller network"] * 2 + ["512"]
    assert done.stderr == ""


class Greedy(nn.Module):
    """A layer that allocates an array, and for large batches runs out of memory."""

    def __init__(self, error, backward=False):
        self.error, self.at_backward, self.taken = error, backward, []

    def _take(self, x):
        mine = np.ones(1000)
        self.taken.append(weakref.ref(mine))
        if len(x) > 4:
            raise self.error
        return mine

    def forward(self, x, train):
        mine = np.ones(1000) if self.at_backward else self._take(x)
        self.taken.append(weakref.ref(mine))

        def backward(dy, need_dx):
            if self.at_backward:
                self._take(dy)
            return dy * mine[0].astype(dy.dtype) if need_dx else None

        return x, backward


@pytest.fixture
def freed(monkeypatch):
    """Let the cpu raise another library's errors, and record the arrays still alive when its memory is freed."""
    held = []
    layers = []
    row = TABLE["cpu"]
    free = lambda: held.append(sum(ref() is not None for layer in layers for ref in layer.taken))  # noqa: E731
    row = dataclasses.replace(row, no_memory=("can't allocate memory",), free=free)
    monkeypatch.setitem(TABLE, "cpu", row)
    return layers, held


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", [MemoryError, RuntimeError])
def test_arrays_of_a_failed_step_are_released_before_the_pool_is_freed(freed, kind, backward):
    layers, held = freed
    layer = Greedy(kind("DefaultCPUAllocator: can't allocate memory"), backward)
    layers.append(layer)
    model = nn.Sequential(*network(), layer)
    trainer = trainer_of(model)
    trainer.step(*batch())
    message = fails(trainer, *batch(1, 8), kind=OutOfMemoryError)
    assert message.startswith("out of memory on cpu with 8 images of (1, 8, 8) at a time: try a batch size of 4, ")
    assert held == [0]
    assert np.isfinite(trainer.step(*batch(1)))


def test_arrays_of_failed_inference_are_released(freed):
    layers, held = freed
    layer = Greedy(RuntimeError("can't allocate memory"))
    layers.append(layer)
    trainer = trainer_of(nn.Sequential(*network(), layer))
    x, y = batch(0, 8)
    for act in (lambda: trainer.evaluate((x, y), 8), lambda: trainer.predict(x, 8)):
        with pytest.raises(OutOfMemoryError, match=r"try a batch size of 4, or a smaller network$"):
            act()
    assert held == [0, 0]
    assert trainer.predict(x, 4).shape == (8, 10)


def test_an_error_of_another_kind_passes(freed):
    for error in (RuntimeError("no such thing"), ValueError("can't allocate memory"), UsageError("out of memory")):
        trainer = trainer_of(nn.Sequential(*network(), Greedy(error)))
        for act in (trainer.step, lambda x, y, predict=trainer.predict: predict(x)):
            with pytest.raises(type(error)) as caught:
                act(*batch(0, 8))
            assert caught.value is error


def test_one_image_cannot_be_fewer(monkeypatch):
    trainer = trainer_of(network())

    def forward(x, train):
        raise MemoryError

    monkeypatch.setattr(trainer.model, "forward", forward)
    message = fails(trainer, *batch(0, 1), kind=OutOfMemoryError)
    assert (
        message == "out of memory on cpu with 1 image of (1, 8, 8) at a time: try smaller images, or a smaller network"
    )


def test_an_optimizer_that_ran_out_says_that_weights_have_changed(monkeypatch):
    trainer = trainer_of(network())
    update = trainer.optimizer.update

    def greedy(*arguments):
        updated = iter(update(*arguments))
        yield next(updated)
        raise MemoryError

    monkeypatch.setattr(trainer.optimizer, "update", greedy)
    with pytest.raises(OutOfMemoryError, match=r"or a smaller network; some weights have already changed$"):
        trainer.step(*batch())


SPOKEN = [
    ("cpu", MemoryError("Unable to allocate 8.00 EiB for an array"), True),
    ("cpu", RuntimeError("out of memory"), False),
    ("cuda:0", MemoryError("Out of memory allocating 8,589,934,592 bytes"), True),
    ("cuda:1", RuntimeError("cudaErrorMemoryAllocation: out of memory"), True),
    ("cuda:0", RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), True),
    ("cuda:0", RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered"), False),
    ("torch:cpu", RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
    ("torch:cuda:0", RuntimeError("CUDA out of memory. Tried to allocate 8.00 GiB."), True),
    ("torch:cuda:0", RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ("jax:cpu", RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes."), True),
    ("jax:cpu", RuntimeError("INVALID_ARGUMENT: no"), False),
    ("strict", MemoryError(), True),
    ("someone's own", MemoryError(), True),
    ("someone's own", RuntimeError("out of memory"), False),
    ("cpu", OutOfMemoryError("said already"), False),
]


@pytest.mark.parametrize(("name", "error", "meant"), SPOKEN)
def test_out_of_memory_errors_of_every_library_are_recognised(name, error, meant):
    assert out_of_memory(error, Device(name, np, "cpu", "")) is meant


@each_library
def test_out_of_memory_errors_of_installed_libraries_are_recognised(backend):
    xp = backend.device.xp
    with pytest.raises(Exception) as error:  # noqa: PT011 (each library has its own)
        float(xp.sum(xp.ones((1 << 28, 1 << 28), dtype=xp.float32, device=backend.device.handle)))  # 2**58 bytes
    assert out_of_memory(error.value, backend.device)
    free_memory(backend.device)


def test_the_pools_of_a_gpu_are_freed(monkeypatch):
    calls = []

    def pool(name):
        return types.SimpleNamespace(free_all_blocks=lambda: calls.append(name))

    cupy = types.SimpleNamespace(
        get_default_memory_pool=lambda: pool("cupy"), get_default_pinned_memory_pool=lambda: pool("pinned")
    )
    torch = types.SimpleNamespace(cuda=types.SimpleNamespace(empty_cache=lambda: calls.append("torch")))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "torch", torch)
    for name in ("cuda:0", "torch:cuda:0", "cpu", "jax:cpu", "someone's own"):
        free_memory(Device(name, np, "cpu", ""))
    assert calls == ["cupy", "pinned", "torch"]


# Files.


@pytest.mark.parametrize("names", ["none", "one", "all"])
@pytest.mark.parametrize("name", models.MODELS)
def test_nothing_is_allocated_for_what_a_checkpoint_only_claims(tmp_path, name, names):
    """Its images would make arrays of up to a terabyte."""
    keys = list(models.build(name).state_dict())
    state = {key: np.zeros(1, np.float32) for key in keys[: {"none": 0, "one": 1, "all": None}[names]]}
    path = tmp_path / "claims.safetensors"
    claims = Checkpoint(name, (1, 2800, 2800), tuple("0123456789"), "digits")
    save_checkpoint(path, types.SimpleNamespace(state_dict=lambda: state), claims)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="has shape" if names == "all" else "not match this model: missing"):
            load_checkpoint(path).build()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size < 30_000
    assert peak < 2 << 20


@pytest.mark.parametrize("name", models.MODELS)
def test_a_model_without_a_seed_takes_its_weights_from_elsewhere(name):
    trained = models.build(name, (1, 14, 17), 7, seed=3)
    model = models.build(name, (1, 14, 17), 7, seed=None)
    assert not any(model.state_dict()[key].any() for key, slot in model.named_parameters() if slot.data.ndim > 1)
    model.load_state_dict(trained.state_dict())
    for key, slot in model.named_parameters():
        assert slot.data.flags.writeable, key
        assert slot.data.flags.c_contiguous, key
        assert slot.data.tobytes() == trained.state_dict()[key].tobytes(), key
    for built in (models.build(name), nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(3, 4))):
        assert all(slot.data.flags.writeable and slot.data.flags.c_contiguous for slot in built.parameters())


def test_dropout_draws_the_same_masks_after_each_loading(monkeypatch):
    entry = models.Entry("one with dropout", lambda shape, classes: network(), 8)
    monkeypatch.setitem(models.MODELS, "own", entry)
    a, b = (models.build("own", (1, 8, 8), seed=None) for _ in range(2))
    for (name, one), (_, other) in zip(a.named_generators(), b.named_generators(), strict=True):
        assert one.bit_generator.state == other.bit_generator.state, name


def test_layers_draw_again_after_an_error():
    with pytest.raises(XcnnError), undrawn():
        nn.Linear(0, 1)
    assert nn.Linear(3, 4).weight.data.any()

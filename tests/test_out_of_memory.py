"""Memory that runs out while training, and files that claim large arrays.

Each fault raises an error that names its cause, and changes nothing.
"""

import dataclasses
import subprocess
import sys
import tracemalloc
import types
import weakref

import numpy as np
import pytest
from faults import batch, each_library, fails, network, trainer_of
from zoo import SMALL

from xcnn import models, nn
from xcnn.devices import LIBRARIES as TABLE
from xcnn.devices import Device, free_memory, out_of_memory
from xcnn.errors import CheckpointError, OutOfMemoryError, UsageError, XcnnError
from xcnn.nn._weighted import undrawn
from xcnn.runs import Checkpoint, load_checkpoint, save_checkpoint

LIMITED = """
import resource, sys
import numpy as np
from xcnn import models, nn, optim
from xcnn.errors import OutOfMemoryError
from xcnn.training import Trainer

class Own(nn.Module):  # of which nobody knows whether it needs the whole batch, so that inference does not cut it
    def forward(self, x, train):
        return x, lambda dy, need_dx: dy

model = nn.Sequential(*models.build("lenet5"), Own())
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
@pytest.mark.parametrize("name", SMALL)
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


@pytest.mark.parametrize("name", SMALL)
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

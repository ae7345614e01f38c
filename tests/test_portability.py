"""The same training on every array library: the same random numbers, the same weights, portable checkpoints.

And no hidden transfers: reading an array of array-api-strict's fake device on the host raises an error.
"""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LIBRARIES, Backend, apart

from xcnn import data, models, nn, ops, optim
from xcnn.devices import Device, devices, to_numpy
from xcnn.parameter import Parameter
from xcnn.runs import Checkpoint, load_checkpoint, save_checkpoint
from xcnn.training import Trainer

each_library = pytest.mark.parametrize("backend", LIBRARIES, indirect=True)

STEPS, BATCH = 50, 16


def digits(count: int, size: int = 16) -> data.Dataset:
    """Return the first digits, padded to `size` pixels: LeNet-5 needs 12."""
    train, _ = data.load("digits")
    margin = (size - train.shape[1]) // 2
    images = np.pad(train.x[:count], ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    return data.from_arrays(images, train.y[:count], train.classes, "digits")


def train(spec: str, dtype: str, steps: int = STEPS) -> dict[str, np.ndarray]:
    """Train LeNet-5 with momentum on shuffled, augmented digits with fixed seeds; return its weights."""
    model = models.build("lenet5", (1, 16, 16), 10, seed=3).to("cpu", dtype)
    trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.02, momentum=0.9), device=spec)
    loader = data.Loader(digits(STEPS * BATCH), BATCH, seed=5, augment=(data.AUGMENTATIONS["shift"],))
    for x, y in itertools.islice(loader, steps):
        trainer.step(x.astype(dtype), y)
    return model.state_dict()


def distance(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Return the largest |w - w'| / |w| of any tensor."""
    return max(float(np.linalg.norm(theirs[name] - ours[name]) / np.linalg.norm(ours[name])) for name in ours)


_ON_HOST: dict[str, dict[str, np.ndarray]] = {}


def on_host(dtype: str) -> dict[str, np.ndarray]:
    if dtype not in _ON_HOST:
        _ON_HOST[dtype] = train("cpu", dtype)
    return _ON_HOST[dtype]


@each_library
def test_fifty_steps_end_at_the_same_weights(backend: Backend, dtype: str) -> None:
    ours, theirs = on_host(dtype), train(backend.spec, dtype)
    assert distance(train("cpu", dtype, 0), ours) > 0.05, "nothing was learned"
    assert all(value.dtype == dtype for value in theirs.values())
    assert distance(ours, theirs) < apart(STEPS, dtype, backend.name)


@each_library
def test_one_seed_draws_the_same_bits_everywhere(backend: Backend) -> None:
    """Initial weights, from `models.build` and from `reset_parameters` on the device; dropout's masks; the loader."""
    host, there = (models.build("resnet20", (1, 16, 16), 10, seed=7) for _ in range(2))
    there.to(backend.spec)
    same_bits(host, there)
    host.reset_parameters(8)
    there.reset_parameters(8)
    same_bits(host, there)

    x = np.ones((5, 40), np.float32)
    for p, seed in itertools.product((0.1, 0.5), range(3)):
        wanted, got = (ops.dropout(array, p, rng=seed)[0] for array in (x, backend.array(x)))
        assert np.array_equal(to_numpy(got), wanted)
    layers = nn.Dropout(0.3), nn.Dropout(0.3)
    for layer in layers:
        layer.reset_parameters(2)
    for _ in range(3):  # each call draws the next mask of the layer's stream
        assert np.array_equal(to_numpy(layers[1].forward(backend.array(x))[0]), layers[0].forward(x)[0])

    mixing = {name: functools.partial(data.AUGMENTATIONS[name], classes=10) for name in ("mixup", "cutmix")}
    augment = tuple((data.AUGMENTATIONS | mixing).values())
    loaders = [data.Loader(digits(40), 8, seed=1, augment=augment) for _ in range(2)]
    for (images, labels), (other_images, other_labels) in zip(*loaders, strict=True):
        assert to_numpy(backend.array(other_images)).tobytes() == images.tobytes()
        assert np.array_equal(to_numpy(backend.array(other_labels)), labels)


def same_bits(host: nn.Module, there: nn.Module) -> None:
    state = there.state_dict()
    for name, value in host.state_dict().items():
        assert state[name].astype(value.dtype).tobytes() == value.tobytes(), name


# One device of each library, and the strict devices that forbid something.
SPECS = ["cpu", "strict", "strict:device1", "strict:no_float64", "torch", "jax", "cuda"]


def tiny(seed: int) -> nn.Module:
    return models.build("report", (1, 8, 8), 10, seed=seed)


def usable(specs: list[str]) -> list[str]:
    missing = {name for name, found in devices().items() if not isinstance(found, Device)}
    return [spec for spec in specs if spec.partition(":")[0] not in missing]


def trainer_on(spec: str, model: nn.Module) -> Trainer:
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    return Trainer(model, optimizer, device=spec)


@pytest.mark.parametrize("first", SPECS)
def test_a_checkpoint_goes_on_on_every_other_device(first: str, tmp_path: Path) -> None:
    """Train on one device, save weights and optimizer, evaluate and train on another: all pairs of devices."""
    if first not in usable(SPECS):
        pytest.skip(str(devices()[first.partition(":")[0]]))
    images = digits(96, 8)
    batches = list(data.Loader(images, 32, seed=1))
    whole = trainer_on("cpu", tiny(0))
    for x, y in batches:
        whole.step(x, y)

    start = trainer_on(first, tiny(0))
    for x, y in batches[:2]:
        start.step(x, y)
    about = Checkpoint("report", (1, 8, 8), images.classes, "digits")
    path = save_checkpoint(tmp_path / "half.safetensors", start.model, about)
    state, metrics = start.optimizer.state_dict(), start.evaluate(images)

    for second in usable(SPECS):
        resumed = trainer_on(second, load_checkpoint(path).build())
        resumed.optimizer.load_state_dict(state)
        same_bits(start.model, resumed.model)
        there = resumed.evaluate(images)
        assert there.loss == pytest.approx(metrics.loss, rel=1e-5)
        assert there.correct == metrics.correct
        resumed.step(*batches[2])
        assert distance(whole.model.state_dict(), resumed.model.state_dict()) < 1e-4, second


def with_dropout(name: str) -> nn.Module:
    model = nn.Sequential(nn.BatchNorm2d(1), *models.build(name, (1, 16, 16), 10), nn.Dropout(0.1))
    model.reset_parameters(2)
    return model


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
@pytest.mark.parametrize("spec", ["strict:device1", "strict:no_float64"])
def test_a_whole_training_step_makes_no_hidden_transfer(name: str, spec: str) -> None:
    """Forward, loss, backward, clipping, Adam and a schedule, with batch norm and dropout, on a device."""
    model = with_dropout(name)
    optimizer = optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-4)
    schedule = optim.CosineAnnealingLR(optimizer, T_max=10, unit="step")
    trainer = Trainer(model, optimizer, device=spec, schedule=schedule, clip_norm=1.0, clip_value=0.5)
    weight = next(iter(model.parameters())).data
    if spec == "strict:device1":
        with pytest.raises(RuntimeError, match=r"convert array on the .*device1"):
            np.asarray(weight)
    host = with_dropout(name)
    on_cpu = optim.Adam(host.parameters(), lr=0.01, weight_decay=1e-4)
    schedule = optim.CosineAnnealingLR(on_cpu, T_max=10, unit="step")
    beside = Trainer(host, on_cpu, schedule=schedule, clip_norm=1.0, clip_value=0.5)
    images = digits(16 if name == "lenet5" else 4)  # array-api-strict is slow
    x, y = data.to_float(images.x), images.y
    for _ in range(2):
        assert trainer.step(x, y) == pytest.approx(beside.step(x, y), rel=1e-3)
    for parameter in model.parameters():
        assert parameter.data.device == weight.device
        assert all(
            isinstance(value, int) or value.device == weight.device for value in optimizer.state[parameter].values()
        )
    assert trainer.evaluate(images).samples == len(x)
    assert trainer.predict(images).shape == (len(x), 10)


def step_of(model: nn.Module, lr: float) -> Callable[..., Any]:
    """Return a training step as a pure function of arrays that takes all state and returns the new state."""
    slots = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def step(state: dict[str, Any], x: Any, y: Any) -> tuple[dict[str, Any], Any]:
        for name, slot in slots.items():
            slot.data = state[name]
        model.zero_grad()
        output, backward = model.forward(x)
        loss, loss_backward = ops.cross_entropy(output, y)
        backward(loss_backward()[0], need_dx=False)
        optim.SGD(model.parameters(), lr=lr).step()
        return {name: slot.data for name, slot in slots.items()}, loss

    return step


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet5": lambda: models.build("lenet5", (1, 16, 16), 10, seed=1),
    "norms": lambda: nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.AvgPool2d(2), nn.GroupNorm(2, 4), nn.LeakyReLU()),
        *(nn.Residual(nn.Conv2d(4, 4, 3, padding=1)), nn.GlobalAvgPool(), nn.LayerNorm(4), nn.Linear(4, 10)),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backend", ["jax"], indirect=True)
def test_jax_compiles_a_whole_training_step(name: str, backend: Backend, dtype: str) -> None:
    import jax

    model = NETWORKS[name]()
    model.reset_parameters(4)
    model.to(backend.spec, dtype)
    state = {name: slot.data for name, slot in [*model.named_parameters(), *model.named_buffers()]}
    images = digits(48)
    step, eager, compiled = step_of(model, 0.1), state, state
    jitted = jax.jit(step)
    bound = 1e-12 if dtype == "float64" else 1e-4
    for x, y in data.Loader(images, 16):
        x, y = backend.array(x.astype(dtype)), backend.array(y)
        eager, loss = step(eager, x, y)
        compiled, other = jitted(compiled, x, y)
        assert float(other) == pytest.approx(float(loss), rel=bound)
    ours, theirs = ({key: np.asarray(value) for key, value in one.items()} for one in (eager, compiled))
    for key, value in ours.items():
        np.testing.assert_allclose(theirs[key], value, rtol=bound, atol=bound, err_msg=key)
    assert distance({key: np.asarray(value) for key, value in state.items() if key.endswith("weight")}, ours) > 1e-3


@pytest.mark.parametrize("backend", ["jax"], indirect=True)
def test_a_label_out_of_range_stays_nan_in_compiled_code(backend: Backend) -> None:
    """A compiler may replace 0 * NaN by 0, so the NaN must not depend on a product."""
    import jax

    def losses(x: Any, y: Any) -> tuple[Any, Any]:
        loss, backward = ops.cross_entropy(x, y, reduction="none")
        return loss, backward(backend.array(np.ones(3, np.float32)))[0]

    loss, dx = jax.jit(losses)(backend.array(np.ones((3, 4), np.float32)), backend.array(np.array([0, 4, -1])))
    assert np.isnan(loss).tolist() == [False, True, True]
    assert np.isnan(dx).tolist() == [[False] * 4, [True] * 4, [True] * 4]


@pytest.mark.parametrize("backend", ["jax"], indirect=True)
def test_what_a_compiled_step_does_not_see(backend: Backend) -> None:
    """As the README warns: a traced function runs once, so random numbers and state on the host do not change."""
    import jax

    layer = nn.Dropout(0.5)
    layer.reset_parameters(0)
    x = backend.array(np.ones((4, 8), np.float32))
    jitted = jax.jit(lambda x: layer.forward(x)[0])
    assert np.array_equal(jitted(x), jitted(x))
    assert not np.array_equal(layer.forward(x)[0], layer.forward(x)[0])

    parameter = Parameter(x)
    momentum = optim.SGD([parameter], lr=1.0, momentum=0.5)

    def update(data: Any, grad: Any) -> Any:
        parameter.data, parameter.grad = data, grad
        momentum.step()
        return parameter.data

    jitted = jax.jit(update)
    assert np.array_equal(jitted(jitted(x, x), x), -x)  # twice the first step; momentum would give 1 - 1 - 1.5

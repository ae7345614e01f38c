"""Training with the same weights and batches on several devices, and the distance of the weights after each step."""

import copy
import itertools
import os
from collections.abc import Iterator, Sequence

import numpy as np

from xcnn import data, nn
from xcnn.devices import Device
from xcnn.devices import device as open_device
from xcnn.models import entry
from xcnn.optim import SGD
from xcnn.training import Trainer

__all__ = ["PARTING", "RANDOM", "Batches", "batches", "distances", "per_pixel"]

Batches = Sequence[tuple[np.ndarray, np.ndarray]]
"""Images (n, c, h, w), float32, and labels (n,), on the host."""

RANDOM = "random"
"""The data set of random images in the shape of the network."""

PARTING: dict[str, float] = {"float32": 0.2, "float64": 1e-10}
"""How far the weights may be from the CPU run's after at most 50 steps, relative to their size.

In float64 the largest distance seen is 1e-15. In float32 the distance stays below 1e-7 until a number near zero changes
its sign before a ReLU, or another pixel of a pool becomes the largest; then it jumps. The largest distance seen in 50
steps is 0.05, for resnet20 in batches of 8. This bound only separates wrong steps from correct ones; `layers.py`
compares more closely.
"""


def batches(
    dataset: str, model: str, batch_size: int, count: int, data_dir: str | os.PathLike[str] | None = None
) -> tuple[Batches, int]:
    """Return `count` batches of training images, shuffled with seed 0, and the number of classes.

    Images that are too small for the network are enlarged by repeating pixels. The data set `"random"` has images of
    random numbers from 0 to 1 in the network's own shape, and random labels for its own number of classes.

    Raises
    ------
    UsageError
        If the data set or model is unknown. The message names the nearest one.
    """
    found = entry(model)
    smallest = found.smallest
    if dataset == RANDOM:
        rng = np.random.default_rng(0)

        def draw() -> tuple[np.ndarray, np.ndarray]:
            return rng.random((batch_size, *found.shape), np.float32), rng.integers(0, found.classes, batch_size)

        return [draw() for _ in range(count)], found.classes
    train, _ = data.load(dataset, data_dir)
    times = -(-smallest // min(train.shape[1:]))
    loader = data.Loader(train, batch_size)
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    first = itertools.islice(epochs, count)
    return [(x.repeat(times, axis=2).repeat(times, axis=3), y) for x, y in first], len(train.classes)


def per_pixel(model: nn.Module, batches: Batches) -> Batches:
    """Return batches whose labels have the sizes of the network's maps of scores: each pixel has its image's label."""
    (x, _), *_ = batches
    sizes = model(x[:1]).shape[2:]
    return [(x, np.tile(y.reshape(-1, *(1,) * len(sizes)), (1, *sizes)) if sizes else y) for x, y in batches]


def distances(model: nn.Module, batches: Batches, device: Device, dtype: str = "float32") -> list[float]:
    """Train on the CPU and on a device, and return `|w - w_cpu| / |w_cpu|` after each step, with w all weights.

    The optimizer is SGD with learning rate 0.01 and momentum 0.9.

    Parameters
    ----------
    model : the network, on the host; it is not changed.
    batches : one per step.
    device : the device to compare with the CPU.
    dtype : dtype of weights, images and arithmetic.
    """
    here = _weights(model, batches, open_device("cpu"), dtype)
    there = _weights(model, batches, device, dtype)
    return [float(np.linalg.norm(b - a) / np.linalg.norm(a)) for a, b in zip(here, there, strict=True)]


def _weights(model: nn.Module, batches: Batches, device: Device, dtype: str) -> Iterator[np.ndarray]:
    """Yield all weights as one vector after each step."""
    model = copy.deepcopy(model).to("cpu", dtype)
    training = Trainer(model, SGD(model.parameters(), lr=0.01, momentum=0.9), device=device)
    for x, y in batches:
        training.step(x.astype(dtype), y)
        arrays = (device.to_numpy(parameter.data) for parameter in model.parameters())
        yield np.concatenate([array.ravel().astype(np.float64) for array in arrays])

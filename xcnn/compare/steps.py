"""Training side by side: the same weights and batches on every device, and how far the weights part, step by step."""

import copy
from collections.abc import Iterator, Sequence

import numpy as np

from xcnn import nn
from xcnn.devices import Device
from xcnn.devices import device as open_device
from xcnn.optim import SGD
from xcnn.threads import one_blas_thread
from xcnn.training import Trainer

__all__ = ["PARTING", "Batches", "distances", "trainer"]

Batches = Sequence[tuple[np.ndarray, np.ndarray]]
"""Images (n, c, h, w), float32, and labels (n,), on the host."""

PARTING: dict[str, float] = {"float32": 0.2, "float64": 1e-10}
"""How far, relative to their size, the weights may be from the cpu run's after at most 50 steps.

In float64 the worst seen is 1e-15. In float32 a network stays within 1e-7 until the first number near zero falls on
the other side of a ReLU's bend, or two pixels of a pool change places; then it jumps. The worst seen in 50 steps is
0.05, by resnet20 in batches of 8. So this bound tells a wrong step from a right one, no more; `layers.py` has the rest.
"""


def trainer(model: nn.Module, device: Device, dtype: str) -> Trainer:
    """Make what trains a copy of a model on a device: SGD with learning rate 0.01 and momentum 0.9."""
    model = copy.deepcopy(model).to("cpu", dtype)
    return Trainer(model, SGD(model.parameters(), lr=0.01, momentum=0.9), device=device)


def distances(model: nn.Module, batches: Batches, device: Device, dtype: str = "float32") -> list[float]:
    """Train on the cpu and on a device; return after each step `|w - w_cpu| / |w_cpu|`, the norms over all weights.

    Parameters
    ----------
    model : on the host; it stays as it is.
    batches : one per step.
    device : to compare with the cpu.
    dtype : of weights, images and arithmetic, on both.
    """
    pairs = zip(
        _weights(model, batches, open_device("cpu"), dtype), _weights(model, batches, device, dtype), strict=True
    )
    return [float(np.linalg.norm(there - here) / np.linalg.norm(here)) for here, there in pairs]


def _weights(model: nn.Module, batches: Batches, device: Device, dtype: str) -> Iterator[np.ndarray]:
    """Yield all weights as one vector after each step."""
    training = trainer(model, device, dtype)
    for x, y in batches:
        with one_blas_thread():
            training.step(x.astype(dtype), y)
        arrays = (device.to_numpy(parameter.data) for parameter in training.model.parameters())
        yield np.concatenate([array.ravel().astype(np.float64) for array in arrays])

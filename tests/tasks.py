"""A small network and data for every kind of task, for tests of training."""

import numpy as np
import pytest

from xcnn import nn, optim
from xcnn.training import Trainer

__all__ = [
    "BATCHES", "IMAGES", "TASKS", "X", "batch_norm_network", "network", "pixels", "torch_loss", "trainer_of", "vectors",
]  # fmt: skip

RNG = np.random.default_rng(0)


def network(*layers, dtype="float64"):
    made = nn.Sequential(*layers)
    made.reset_parameters(0)
    return made.to("cpu", dtype)


def trainer_of(model, loss, lr=0.1, **options):
    return Trainer(model, optim.SGD(model.parameters(), lr=lr, momentum=0.9), loss, **options)


def vectors(outputs):
    return network(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs))


def pixels(kind=nn.Conv2d, classes=3):
    return network(kind(1, 4, 3, padding=1), nn.Tanh(), kind(4, classes, 1))


def signals():
    return network(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.GlobalAvgPool(), nn.Linear(4, 3))


def masks(*shape, ignored=0.3):
    y = RNG.integers(0, 3, shape)
    return np.where(RNG.random(shape) < ignored, -100, y)


def soft(*shape):
    raw = RNG.random(shape)
    return raw / raw.sum(axis=1, keepdims=True)


X = RNG.standard_normal((12, 4))
IMAGES = RNG.standard_normal((12, 1, 5, 6))

TASKS = {
    "classes": (vectors(3), "cross_entropy", X, masks(12)),
    "soft targets": (vectors(3), "cross_entropy", X, soft(12, 3)),
    "single precision soft targets": (vectors(3), "cross_entropy", X, soft(12, 3).astype(np.float32)),
    "multi-label": (vectors(5), "binary_cross_entropy_with_logits", X, RNG.integers(0, 2, (12, 5))),
    "regression": (vectors(1), "mse_loss", X, RNG.standard_normal((12, 1))),
    "counts": (vectors(2), "l1_loss", X, RNG.integers(0, 9, (12, 2))),
    "huber": (vectors(2), "huber_loss", X, 3 * RNG.standard_normal((12, 2)).astype(np.float32)),
    "segmentation": (pixels(), "cross_entropy", IMAGES, masks(12, 5, 6)),
    "segmentation in bytes": (pixels(), "cross_entropy", IMAGES, RNG.integers(0, 3, (12, 5, 6)).astype(np.uint8)),
    "soft segmentation": (pixels(), "cross_entropy", IMAGES, soft(12, 3, 5, 6)),
    "log-probabilities": (network(nn.Linear(4, 3), nn.LogSoftmax()), "nll_loss", X, masks(12)),
    "signals": (signals(), "cross_entropy", RNG.standard_normal((12, 2, 9)), masks(12, ignored=0)),
    "volumes": (pixels(nn.Conv3d), "cross_entropy", RNG.standard_normal((12, 1, 3, 4, 2)), masks(12, 3, 4, 2)),
}


def torch_loss(name, output, target, **options):
    torch = pytest.importorskip("torch")
    function = getattr(torch.nn.functional, name)
    target = torch.tensor(target)
    indices = name in ("cross_entropy", "nll_loss") and not target.is_floating_point()
    return function(torch.tensor(output), target.long() if indices else target.double(), **options).item()


def batch_norm_network():
    return network(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3), dtype="float32")


BATCHES = [(X[i : i + 6].astype(np.float32), RNG.integers(0, 3, 6)) for i in (0, 6)] * 2

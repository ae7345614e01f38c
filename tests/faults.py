"""A small network that goes wrong, for tests of faults in training."""

import copy

import numpy as np
import pytest
from conftest import LIBRARIES

from xcnn import nn, optim
from xcnn.errors import DivergedError
from xcnn.training import Trainer
from xcnn.training.divergence import look

__all__ = ["batch", "each_library", "everything", "fails", "network", "trainer_of"]

each_library = pytest.mark.parametrize("backend", LIBRARIES, indirect=True)


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

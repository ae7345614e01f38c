"""Every update rule with all its options, and steps with drawn gradients, for tests of optimizers."""

import numpy as np

from xcnn import optim
from xcnn.devices import to_numpy
from xcnn.parameter import Parameter

__all__ = ["FULL", "SHAPES", "draw", "make", "run", "same"]

SHAPES = [(3, 2), (4,), ()]
FULL = [
    ("sgd", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    ("adam", {"lr": 0.05, "weight_decay": 0.01}),
    ("adamw", {"lr": 0.05}),
    ("rmsprop", {"lr": 0.05, "momentum": 0.5, "centered": True, "weight_decay": 0.01}),
]
"""One set of options for each rule with everything switched on, for tests that are not about arithmetic."""


def draw(shapes, seed):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape)) for shape in shapes]


def run(optimizer, steps, place=np.asarray, every=lambda step, index: True):
    """Take `steps` (a range) with gradients drawn from the number of the step, skipping those not in `every`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in steps:
        optimizer.zero_grad()
        for index, (parameter, grad) in enumerate(zip(parameters, draw(SHAPES, 1000 + step), strict=True)):
            if every(step, index):
                parameter.grad = place(grad)
        optimizer.step()


def make(name, options, dtype=np.float64):
    parameters = [Parameter(array.astype(dtype)) for array in draw(SHAPES, 0)]
    return parameters, optim.OPTIMIZERS[name](parameters, **options)


def same(a, b):
    np.testing.assert_array_equal(to_numpy(a), to_numpy(b))

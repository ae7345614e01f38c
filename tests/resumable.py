"""A small training run with every kind of state, for tests that resume it."""

import functools

from xcnn import data, nn, optim
from xcnn.training import Trainer

__all__ = ["OPTIMIZERS", "SCHEDULES", "batches", "loader", "make_trainer", "small_digits"]

OPTIMIZERS = {
    "sgd": functools.partial(optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": functools.partial(optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
    "adam": functools.partial(optim.Adam, lr=0.01),
    "adamw": functools.partial(optim.AdamW, lr=0.01),
    "rmsprop": functools.partial(optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
}
SCHEDULES = {
    "none": lambda optimizer: None,
    "step": lambda optimizer: optim.StepLR(optimizer, 3, unit="step"),
    "cosine": lambda optimizer: optim.CosineAnnealingLR(optimizer, 12, unit="step"),
    "one-cycle": lambda optimizer: optim.OneCycleLR(optimizer, 0.1, 12),
    "plateau": lambda optimizer: optim.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5),
    "warmup": lambda optimizer: optim.SequentialLR(
        optimizer,
        [optim.LinearLR(optimizer, total_iters=4, unit="step"), optim.CosineAnnealingLR(optimizer, 8, unit="step")],
        milestones=[4],
    ),
    "epochs": lambda optimizer: optim.MultiStepLR(optimizer, [1, 2], 0.5),
}


def network():
    """Make a network with every kind of state: weights, running statistics, and a random stream."""
    made = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(0.25), nn.Linear(48, 10),
    )  # fmt: skip
    made.reset_parameters(1)
    return made


def make_trainer(optimizer="adam", schedule="none", **options):
    made = network()
    rule = OPTIMIZERS[optimizer](made.parameters())
    return Trainer(made, rule, schedule=SCHEDULES[schedule](rule), **options)


def small_digits():
    train, test = data.load("digits")
    return train[:170], test[:60]  # 4 batches of 50, the last one smaller


def loader(train):
    return data.Loader(train, 50, seed=3, augment=[data.shift, data.cutout])


def batches(train):
    return [(data.to_float(train.x[i : i + 50]), train.y[i : i + 50]) for i in range(0, 170, 50)]

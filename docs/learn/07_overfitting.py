"""Chapter 7: overfitting, and more images out of few.

python docs/learn/07_overfitting.py
"""

import functools
from pathlib import Path

import numpy as np

from xcnn import Trainer, data, nn, optim, plots
from xcnn.data import Augmentation

np.set_printoptions(precision=3, suppress=True)

pictures = Path("pictures")
pictures.mkdir(exist_ok=True)

everything, test = data.load("digits")
order = np.random.default_rng(0).permutation(len(everything))
train, validation = everything[order[:200]], everything[order[200:600]]


def network() -> nn.Sequential:
    """Return a network with far more weights than there are images."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    model.reset_parameters(0)
    model.to("cpu", "float64")
    return model


def learn(augment: list[Augmentation], epochs: int) -> tuple[Trainer, list[dict]]:
    """Train on the 200 images, and return the trainer and a record for each epoch."""
    model = network()
    trainer = Trainer(model, optim.Adam(model.parameters(), lr=0.002), "cross_entropy")
    batches = data.Loader(train, 20, augment=augment, seed=0)
    return trainer, trainer.fit(batches, epochs=epochs, validation=validation, progress=False)


def show(history: list[dict], epochs: list[int]) -> None:
    """Print the losses and accuracies of some epochs."""
    for record in [history[epoch - 1] for epoch in epochs]:
        print(f"epoch {record['epoch']:>3}: training loss {record['train_loss']:.3f}", end="")
        print(f", validation loss {record['val_loss']:.3f}, validation accuracy {record['val_accuracy']:.2f}")


print("1. 200 images, and a network that can remember them")

weights = sum(parameter.data.size for parameter in network().parameters())
print(f"{weights:,} weights, {len(train)} training images, {len(validation)} for validation, {len(test)} for the test")
plain, plain_history = learn([], epochs=60)
show(plain_history, [1, 5, 10, 20, 40, 60])

best = min(plain_history, key=lambda record: record["val_loss"])
print("lowest validation loss in epoch", best["epoch"])

print("\n2. It remembers: wrong labels, too")

rng = np.random.default_rng(0)
nonsense = data.Dataset(train.x, rng.integers(0, 10, len(train)), train.classes)
print((nonsense.y == train.y).sum(), "of the", len(train), "random labels are right by chance")
model = network()
trainer = Trainer(model, optim.Adam(model.parameters(), lr=0.002), "cross_entropy")
trainer.fit(data.Loader(nonsense, 20, seed=0), epochs=40, progress=False)
print(f"random labels: accuracy {trainer.evaluate(nonsense).accuracy:.2f} on its own images", end="")
print(f", {trainer.evaluate(test).accuracy:.2f} on the test images")

print("\n3. Augmentation: one digit, and twice moved and turned")

augment = [functools.partial(data.shift, pixels=1), functools.partial(data.rotate, degrees=10)]
once = data.Loader(train[:1], 1, augment=augment, seed=0)
print((9 * (train.x[0, 0] / 255.0)).round().astype(int))
for _ in range(2):
    ((x, _),) = once
    print((9 * x[0, 0]).round().astype(int))

print("\n4. The same training, with every image moved and turned at random each time")

moved, moved_history = learn(augment, epochs=60)
show(moved_history, [1, 5, 10, 20, 40, 60])

print("\n5. The test, once, at the end")

for name, trainer in [("plain", plain), ("with augmentation", moved)]:
    result = trainer.evaluate(test)
    print(f"{name:>17}: test loss {result.loss:.3f}, test accuracy {result.accuracy:.3f}")

plots.curves(plain_history, pictures / "07_plain.svg", "without augmentation", chosen=best["epoch"])
plots.curves(moved_history, pictures / "07_augmented.svg", "with augmentation")

"""Chapter 5: how large the weights must be at the start.

python docs/learn/05_initialisation.py
"""

import functools
from pathlib import Path

import numpy as np

from xcnn import Trainer, data, nn, ops, optim, plots
from xcnn.explain import activation_statistics, trace
from xcnn.nn import init

pictures = Path("pictures")
pictures.mkdir(exist_ok=True)

train, test = data.load("digits")
images, labels = train.x[:64] / 255.0, train.y[:64]

STARTS = {
    "too small": functools.partial(init.normal, std=0.01),
    "too large": functools.partial(init.normal, std=0.25),
    "Kaiming": init.kaiming_normal,
}


def deep(start: init.Init) -> nn.Sequential:
    """Return a network with eight convolutions of 16 filters, whose weights are drawn by `start`."""
    layers: list[nn.Module] = []
    for channels in (1, *[16] * 7):
        stride = 2 if channels == 1 else 1  # small maps, so that this program is quick
        layers += [nn.Conv2d(channels, 16, 3, stride, padding=1, init=start), nn.ReLU()]
    model = nn.Sequential(*layers, nn.GlobalAvgPool(), nn.Linear(16, 10))
    model.reset_parameters(0)
    model.to("cpu", "float64")
    return model


print("1. One sum of many numbers")

rng = np.random.default_rng(0)
for terms in (9, 144):
    inputs, weights = rng.normal(size=(10_000, terms)), rng.normal(size=(10_000, terms))
    print(
        f"{terms:>3} terms: spread of the sum {(inputs * weights).sum(axis=1).std():.1f}, sqrt({terms}) =", terms**0.5
    )

print("\n2. Forward: the spread of the maps after each convolution")

for name, start in STARTS.items():
    found = trace(deep(start), images)
    spreads = [call.y.std() for call in found.layers if isinstance(call.module, nn.ReLU)]
    print(f"{name:>9}: " + " ".join(f"{spread:8.2g}" for spread in spreads))
    if name != "too small":  # nothing could be seen there
        path = pictures / f"05_{name.replace(' ', '_').lower()}.svg"
        plots.activation_statistics(activation_statistics(deep(start), images), path, name)

print("\n3. Backward: the spread of the gradients at the same places")

for name, start in STARTS.items():
    found = trace(deep(start), images)
    loss, loss_backward = ops.cross_entropy(found.y, labels)
    (dscores, *_) = loss_backward()
    found.backward(dscores)
    spreads = [call.dy.std() for call in found.layers if isinstance(call.module, nn.ReLU)]
    print(f"{name:>9}: " + " ".join(f"{spread:8.2g}" for spread in spreads))

print("\n4. Kaiming's rule")

fan_in = 16 * 3 * 3
print(f"a filter adds {fan_in} products: sqrt(2 / {fan_in}) = {(2 / fan_in) ** 0.5:.3f}")
drawn = init.kaiming_normal(np.random.default_rng(0), (16, 16, 3, 3))
print(f"spread of the weights that the library draws: {drawn.std():.3f}")

print("\n5. Which of them learns?")

for name, start in STARTS.items():
    model = deep(start)
    optimizer = optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    trainer = Trainer(model, optimizer, "cross_entropy")
    history = trainer.fit(data.Loader(train, 32, seed=0), epochs=12, validation=test, progress=False)
    accuracies = " ".join(f"{record['val_accuracy']:.2f}" for record in history[2::3])
    print(f"{name:>9}: test accuracy after 3, 6, 9 and 12 epochs: {accuracies}")

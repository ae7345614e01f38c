"""Chapter 10: deep networks, without and with shortcuts.

python docs/learn/10_residual_network.py
"""

from pathlib import Path

import numpy as np

from xcnn import Trainer, data, models, nn, ops, optim, plots
from xcnn.explain import trace
from xcnn.nn import init

pictures = Path("pictures")
pictures.mkdir(exist_ok=True)

train, test = data.load("digits")


def convolution(channels: int) -> list[nn.Module]:
    """Return a convolution with eight filters and its batch norm."""
    stride = 2 if channels == 1 else 1  # the first one makes small maps, so that this program is quick
    return [nn.Conv2d(channels, 8, 3, stride, padding=1, bias=False, init=init.kaiming_normal), nn.BatchNorm2d(8)]


def network(blocks: int, shortcuts: bool) -> nn.Sequential:
    """Return a network of blocks of two convolutions, with or without a shortcut around each block."""
    layers = [*convolution(1), nn.ReLU()]
    for _ in range(blocks):
        body = nn.Sequential(*convolution(8), nn.ReLU(), *convolution(8))
        layers += [nn.Residual(body) if shortcuts else body, nn.ReLU()]
    model = nn.Sequential(*layers, nn.GlobalAvgPool(), nn.Linear(8, 10))
    model.reset_parameters(0)
    model.to("cpu", "float64")
    return model


print("1. A shortcut by hand")

x = np.array([[1.0, -2.0, 3.0]])
weight = np.array([[0.0, 0.1, 0.0], [0.0, 0.0, 0.1], [0.1, 0.0, 0.0]])
body, body_backward = ops.linear(x, weight)
y = body + x
dy = np.ones((1, 3))
dbody, *_ = body_backward(dy)
dx = dbody + dy
print("body(x)", body[0].round(2), " body(x) + x", y[0].round(2))
print("gradient through the body", dbody[0].round(2), " and with the shortcut", dx[0].round(2))

print("\n2. Weights do not grow in number, only paths")

for shortcuts in (False, True):
    size = sum(parameter.data.size for parameter in network(9, shortcuts).parameters())
    print("with shortcuts   " if shortcuts else "without shortcuts", f"9 blocks: {size:,} weights")

plots.network(network(2, True), (1, 8, 8), pictures / "10_network.svg")

print("\n3. Train them")

for blocks in (1, 4, 9):
    for shortcuts in (False, True):
        model = network(blocks, shortcuts)
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = optim.CosineAnnealingLR(optimizer, 8)  # the rate falls to 0 in 8 epochs
        trainer = Trainer(model, optimizer, "cross_entropy", schedule=schedule)
        (*_, last) = trainer.fit(data.Loader(train, 64, seed=0), epochs=8, validation=test, progress=False)
        name = "with shortcuts   " if shortcuts else "without shortcuts"
        print(f"{1 + 2 * blocks:>2} convolutions {name}: training loss {last['train_loss']:.2f}", end="")
        print(f", test accuracy {last['val_accuracy']:.3f}")

print("\n4. What of the image arrives at the end, before any training")


def arriving(model: nn.Sequential, x: np.ndarray) -> np.ndarray:
    """Return the numbers after the last block, one row per image."""
    last = [call for call in trace(model, x).layers if isinstance(call.module, nn.ReLU)][-1]
    return last.y.reshape(len(x), -1)


def neighbours_agree(model: nn.Sequential) -> float:
    """Return how often the training image with the nearest numbers has the class of the test image."""
    for _ in range(30):
        model.forward(train.x[:64] / 255.0, train=True)  # let the averages of batch norm settle
    known, asked = arriving(model, train.x / 255.0), arriving(model, test.x / 255.0)
    distances = (known**2).sum(axis=1) - 2 * asked @ known.T  # squared, but for a number that is the same in each row
    return float((train.y[distances.argmin(axis=1)] == test.y).mean())


for shortcuts in (False, True):
    shares = [f"{neighbours_agree(network(blocks, shortcuts)):.2f}" for blocks in (1, 4, 9)]
    print("with shortcuts   " if shortcuts else "without shortcuts", "1, 4, 9 blocks:", *shares)

print("\n5. A residual network with a name")

model = models.build("resnet20", (1, 8, 8), 10, seed=0)
model.to("cpu", "float64")
optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
trainer = Trainer(model, optimizer, schedule=optim.CosineAnnealingLR(optimizer, 3))
(*_, last) = trainer.fit(data.Loader(train, 64, seed=0), epochs=3, validation=test, progress=False)
print(f"{sum(parameter.data.size for parameter in model.parameters()):,} weights", end="")
print(f", test accuracy after 3 epochs {last['val_accuracy']:.3f}")

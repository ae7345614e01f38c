"""Chapter 6: batch norm keeps the numbers in range.

python docs/learn/06_batch_norm.py
"""

import functools
from pathlib import Path

import numpy as np

from xcnn import Trainer, data, nn, optim, plots
from xcnn.explain import activation_statistics, trace
from xcnn.nn import init

np.set_printoptions(precision=3, suppress=True)

pictures = Path("pictures")
pictures.mkdir(exist_ok=True)

train, test = data.load("digits")


def normalise(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """Give each channel of maps (images, channels, rows, columns) mean 0 and spread 1, then scale and shift it."""
    mean = x.mean(axis=(0, 2, 3), keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=(0, 2, 3), keepdims=True)
    normal = (x - mean) / np.sqrt(variance + eps)
    return normal * weight[:, None, None] + bias[:, None, None]


print("1. By hand")

rng = np.random.default_rng(0)
maps = rng.normal(loc=[5, -20], scale=[1, 100], size=(32, 8, 8, 2)).transpose(0, 3, 1, 2)  # 32 images, 2 channels
before, after = maps, normalise(maps, weight=np.ones(2), bias=np.zeros(2))
for name, x in [("before", before), ("after", after)]:
    for channel in (0, 1):
        mean, spread = x[:, channel].mean().round(9) + 0.0, x[:, channel].std()
        print(f"{name:>6}, channel {channel}: mean {mean:6.1f}, spread {spread:5.1f}")

layer = nn.BatchNorm2d(2)
layer.to("cpu", "float64")
y, backward = layer.forward(maps, train=True)
print("the library differs by", abs(y - after).max().round(9))

print("\n2. In training, an image depends on its neighbours")

alone = layer.forward(maps[:2], train=True)[0]
together = layer.forward(maps, train=True)[0]
print("the same image, in a batch of 2 and of 32:", alone[0, 0, 0, 0].round(2), together[0, 0, 0, 0].round(2))

print("\n3. So the layer remembers averages, and uses them after training")

layer = nn.BatchNorm2d(2)
layer.to("cpu", "float64")
for step in range(1, 61):
    batch = rng.normal(loc=[5, -20], scale=[1, 100], size=(32, 8, 8, 2)).transpose(0, 3, 1, 2)
    layer.forward(batch, train=True)
    if step in (1, 10, 60):
        print(f"after {step:>2} batches: mean", layer.running_mean.data, "variance", layer.running_var.data.round(0))
alone, together = layer(maps[:2]), layer(maps)
print("the same image, in a batch of 2 and of 32:", alone[0, 0, 0, 0].round(2), together[0, 0, 0, 0].round(2))

print("\n4. The networks of chapter 5, with batch norm")

STARTS = {
    "too small": functools.partial(init.normal, std=0.01),
    "too large": functools.partial(init.normal, std=0.25),
    "Kaiming": init.kaiming_normal,
}


def deep(start: init.Init) -> nn.Sequential:
    """Return the network of chapter 5 with a batch norm after each convolution."""
    layers: list[nn.Module] = []
    for channels in (1, *[16] * 7):
        stride = 2 if channels == 1 else 1
        convolution = nn.Conv2d(channels, 16, 3, stride, padding=1, bias=False, init=start)
        layers += [convolution, nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*layers, nn.GlobalAvgPool(), nn.Linear(16, 10))
    model.reset_parameters(0)
    model.to("cpu", "float64")
    return model


for name, start in STARTS.items():
    model = deep(start)
    for _ in range(60):  # let the averages settle
        model.forward(train.x[:64] / 255.0, train=True)
    found = trace(model, train.x[:64] / 255.0)
    spreads = [call.y.std() for call in found.layers if isinstance(call.module, nn.ReLU)]
    print(f"{name:>9}: spread of the maps " + " ".join(f"{spread:.1f}" for spread in spreads))
    if name == "too large":
        path = pictures / "06_too_large.svg"
        plots.activation_statistics(
            activation_statistics(model, train.x[:64] / 255.0), path, "too large, with batch norm"
        )

for name, start in STARTS.items():
    model = deep(start)
    trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9), "cross_entropy")
    history = trainer.fit(data.Loader(train, 32, seed=0), epochs=12, validation=test, progress=False)
    accuracies = " ".join(f"{record['val_accuracy']:.2f}" for record in history[2::3])
    print(f"{name:>9}: test accuracy after 3, 6, 9 and 12 epochs: {accuracies}")

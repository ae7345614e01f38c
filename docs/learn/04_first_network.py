"""Chapter 4: the first network is trained, as in the report.

python docs/learn/04_first_network.py
python docs/learn/04_first_network.py --mnist               the report's run on MNIST, which is downloaded once
python docs/learn/04_first_network.py --data-dir FOLDER     the same, with its four files in FOLDER
"""

import argparse
from pathlib import Path

import numpy as np

from xcnn import Trainer, data, nn, ops, optim, plots
from xcnn.explain import trace

np.set_printoptions(precision=3, suppress=True)

pictures = Path("pictures")
pictures.mkdir(exist_ok=True)

parser = argparse.ArgumentParser(description="Train the network of the report.")
parser.add_argument("--mnist", action="store_true", help="repeat the report's run; MNIST is downloaded once")
parser.add_argument("--data-dir", help="repeat the report's run with the four files of MNIST in this folder")
options = parser.parse_args()


class Network:
    """The network of the report: one 3x3 filter, ReLU, 2x2 max pooling, and one fully connected layer."""

    def __init__(self, size: int) -> None:
        rng = np.random.RandomState(42)  # the report's generator of random numbers
        self.f = rng.randn(1, 1, 3, 3) * 0.01
        self.W = rng.randn(10, (size // 2) ** 2) * 0.01
        self.b = np.zeros(10)

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Return the scores of images: (images, 10)."""
        y, _ = ops.conv2d(x, self.f, padding=1)
        y, _ = ops.relu(y)
        y, _ = ops.max_pool2d(y, 2)
        y, _ = ops.flatten(y)
        return ops.linear(y, self.W, self.b)[0]

    def step(self, x: np.ndarray, label: np.ndarray, rate: float, linear_rate: float) -> tuple[float, bool]:
        """Learn from one image; return its loss before, and whether the prediction was right."""
        maps, maps_backward = ops.conv2d(x, self.f, padding=1)
        positive, relu_backward = ops.relu(maps)
        pooled, pool_backward = ops.max_pool2d(positive, 2)
        flat, flatten_backward = ops.flatten(pooled)
        z, linear_backward = ops.linear(flat, self.W, self.b)
        loss, loss_backward = ops.cross_entropy(z, label)

        dz, *_ = loss_backward()
        dflat, dW, db = linear_backward(dz)
        (dpooled,) = flatten_backward(dflat)
        (dpositive,) = pool_backward(dpooled)
        (dmaps,) = relu_backward(dpositive)
        _, df, _ = maps_backward(dmaps)

        self.f = self.f - rate * df
        self.W = self.W - linear_rate * dW
        self.b = self.b - linear_rate * db
        return float(loss), bool(z.argmax() == label[0])


def train_epoch(network: Network, images: data.Dataset, rate: float, linear_rate: float) -> tuple[float, float]:
    """Learn from every image once, one after the other; return the average loss and the accuracy."""
    losses, right = 0.0, 0
    for i in range(len(images)):
        loss, hit = network.step(images.x[i : i + 1] / 255.0, images.y[i : i + 1], rate, linear_rate)
        losses, right = losses + loss, right + hit
    return losses / len(images), right / len(images)


def accuracy(network: Network, images: data.Dataset) -> float:
    """Return the share of images whose highest score is that of their class."""
    return float((network.scores(images.x / 255.0).argmax(axis=1) == images.y).mean())


if options.mnist or options.data_dir:
    print("The report's run on MNIST, beside the report's figures")
    train, test = data.load("mnist", options.data_dir)
    network = Network(28)
    for epoch, report in [(1, "loss 0.4149, accuracy 0.8735"), (2, "loss 0.3125, accuracy 0.9085")]:
        loss, right = train_epoch(network, train, 0.01, 0.001)  # what its rates were in truth; see chapter 3
        print(f"epoch {epoch}: loss {loss:.4f}, accuracy {right:.4f}    report: {report}")
    print(f"test set: accuracy {accuracy(network, test):.4f}                report: accuracy 0.9051")
    p = ops.softmax(network.scores(test.x[400:401] / 255.0))[0][0]
    print(f"test image 400: class {p.argmax()}, probability {p.max():.3f}   report: class 2, probability 0.937")
    raise SystemExit

print("1. Before training")

train, test = data.load("digits")
network = Network(8)
print(len(train), "images to learn from,", len(test), "to test with")
print(f"accuracy on the test images: {accuracy(network, test):.3f}")
print(f"loss of a pure guess, -log(1/10): {np.log(10):.3f}")

print("\n2. Six epochs")

for epoch in range(1, 7):
    loss, right = train_epoch(network, train, rate=0.01, linear_rate=0.01)
    print(f"epoch {epoch}: loss {loss:.3f}, accuracy {right:.3f}")
print(f"accuracy on the test images: {accuracy(network, test):.3f}")

print("\n3. What it learned")

print("the filter before\n", Network(8).f[0, 0], sep="")
print("the filter after\n", network.f[0, 0], sep="")
p = ops.softmax(network.scores(test.x[:1] / 255.0))[0][0]
print("test image 0 is a", test.y[0], "- probabilities", p.round(2))

print("\n4. A rate that is too large")

hasty = Network(8)
for epoch in range(1, 4):
    loss, right = train_epoch(hasty, train, rate=0.2, linear_rate=0.2)
    print(f"epoch {epoch}: loss {loss:.3f}, accuracy {right:.3f}")
reached = ops.relu(ops.conv2d(train.x / 255.0, hasty.f, padding=1)[0])[0]
print("places where the filter still answers:", (reached > 0).sum())

print("\n5. More filters, batches of 32, and the library's loop")

model = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(8 * 4 * 4, 10),
)
model.reset_parameters(0)  # the seed of the random start
model.to("cpu", "float64")
trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.5), "cross_entropy")
history = trainer.fit(data.Loader(train, 32, seed=0), epochs=10, validation=test, progress=False)
for record in history[::3]:
    print(f"epoch {record['epoch']:>2}: loss {record['train_loss']:.3f}, test accuracy {record['val_accuracy']:.3f}")

plots.curves(history, pictures / "04_curves.svg")
plots.filters(model.state_dict()["0.weight"], pictures / "04_filters.svg")
plots.network_maps(trace(model, test.x[:1] / 255.0), pictures / "04_maps.svg")

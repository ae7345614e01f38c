"""Repeat the training run of the report on MNIST with xcnn, and print the figures of both side by side.

    python examples/report_training.py [--data-dir D] [--limit N] [--epochs 2] [--json]

The network has one 3x3 filter without bias, ReLU, 2x2 max pooling and one linear layer. It is trained for two epochs by
gradient descent on the cross-entropy, in batches of one image, in the order of the file. Training loss and accuracy are
those of each image before its update. All is computed in float32; float64 changes no figure by more than 0.0001.

The training step is written with `xcnn.ops`, op by op, as the report derives it. `xcnn.Trainer` trains any network, and
is slower only where a batch is as small as one image.

With --json, prints JSON lines: one per epoch (epoch, train_loss, train_accuracy, seconds, images_per_second,
speedup), then one with test_accuracy, test_loss, test_image, class, probability and probabilities.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from xcnn import data, models, nn, ops, optim
from xcnn.errors import UsageError, XcnnError
from xcnn.training import Trainer, clock

__all__ = ["Network", "main", "run"]

IMAGES = 60_000
EPOCHS = {
    1: {"train_loss": 0.4149, "train_accuracy": 0.8735, "seconds": 2 * 3600 + 17 * 60 + 26},
    2: {"train_loss": 0.3125, "train_accuracy": 0.9085, "seconds": 2 * 3600 + 14 * 60 + 5},
}
"""Figures of the report by epoch."""

TEST_ACCURACY = 0.9051
TEST_IMAGE, TEST_IMAGE_CLASS, TEST_IMAGE_PROBABILITY = 400, 2, 0.937


RATES = {"filters": 0.01, "weight": 0.001, "bias": 0.001}
"""Learning rates. The report divides the gradient of the linear layer by 10, the length of the one-hot vector, which it
takes for the batch size; it does not divide that of the filter."""


class Network:
    """The network of the report: its three parameters, and one step of training.

    As in the report, NumPy's legacy generator draws the filter first, then the weights of the linear layer.

    Parameters
    ----------
    shape : channels, height and width of the images.
    classes : number of classes.
    dtype : dtype of parameters and images.
    """

    def __init__(self, shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10, dtype: Any = np.float32) -> None:
        c, h, w = shape
        rng = np.random.RandomState(42)  # the report's generator, not ours to choose
        self.filters = (rng.randn(1, c, 3, 3) * 0.01).astype(dtype)
        self.weight = (rng.randn(classes, (h // 2) * (w // 2)) * 0.01).astype(dtype)
        self.bias = np.zeros(classes, dtype)

    def step(self, x: np.ndarray, label: np.ndarray) -> tuple[float, bool]:
        """Train on one image (1, c, h, w) and its label (1,); return the loss and whether the prediction was right."""
        maps, maps_backward = ops.conv2d(x, self.filters, padding=1, activation="relu")
        pooled, pooled_backward = ops.max_pool2d(maps, 2)
        vector, vector_backward = ops.flatten(pooled)
        scores, scores_backward = ops.linear(vector, self.weight, self.bias)
        loss, loss_backward = ops.cross_entropy(scores, label)

        dscores, *_ = loss_backward()
        dvector, dweight, dbias = scores_backward(dscores)
        (dpooled,) = vector_backward(dvector)
        (dmaps,) = pooled_backward(dpooled)
        _, dfilters, _ = maps_backward(dmaps, needs=(False, True, False))

        self.filters = self.filters - RATES["filters"] * dfilters
        self.weight = self.weight - RATES["weight"] * dweight
        self.bias = self.bias - RATES["bias"] * dbias
        return float(loss), bool(scores.argmax() == label[0])

    def module(self, shape: tuple[int, int, int]) -> nn.Module:
        """Return the same network as a module, to test and predict in large batches."""
        model = models.build("report", shape, len(self.bias))
        model.load_state_dict({"0.weight": self.filters, "4.weight": self.weight, "4.bias": self.bias})
        return model


class Output:
    """Prints progress on stderr during an epoch, and a row of the table or a JSON object on stdout after it."""

    def __init__(self, as_json: bool, images: int, epochs: int) -> None:
        self.as_json, self.images, self.epochs = as_json, images, epochs
        if not self.as_json:
            figures = f"{'loss':>8}{'accuracy':>10}{'time':>10}{'images/s':>10}"
            print(f"{'':<9}{'the report':^38}  {'xcnn':^38}".rstrip())
            print(f"{'':<9}{figures}  {figures}{'faster':>10}")

    def progress(self, epoch: int, image: int, loss: float, accuracy: float) -> None:
        """Overwrite the line with the progress."""
        if sys.stderr.isatty():
            place = f"epoch {epoch}/{self.epochs}, image {image:,}/{self.images:,}"
            print(f"\r{place}: loss {loss:.4f}, accuracy {accuracy:.4f}", end="", file=sys.stderr)

    def epoch(self, record: dict[str, Any]) -> None:
        """Print the figures of an epoch."""
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)
        if self.as_json:
            print(json.dumps(record), flush=True)
            return
        epoch, theirs = f"epoch {record['epoch']}", EPOCHS.get(record["epoch"])
        print(f"{epoch:<9}{_figures(theirs):38}  {_figures(record)}{record['speedup']:>8,.0f} x", flush=True)

    def test(self, result: dict[str, Any]) -> None:
        """Print the figures of the test set."""
        if self.as_json:
            print(json.dumps(result), flush=True)
            return
        ours = f"{result['test_loss']:>8.4f}{result['test_accuracy']:>10.4f}"
        print(f"{'test':<9}{'':8}{TEST_ACCURACY:>10.4f}{'':22}{ours}")
        print(f"\nTest image {TEST_IMAGE}: class {result['class']}, probability {result['probability']:.3f}", end=" ")
        print(f"(the report: class {TEST_IMAGE_CLASS}, probability {TEST_IMAGE_PROBABILITY})")
        for number, probability in enumerate(result["probabilities"]):
            print(f"  {number}  {probability:.4f}  {'#' * round(40 * probability)}".rstrip())


def _figures(epoch: dict[str, Any] | None) -> str:
    if epoch is None:
        return ""
    duration = str(timedelta(seconds=round(epoch["seconds"])))
    rate = epoch.get("images_per_second", IMAGES / epoch["seconds"])
    digits = 0 if rate > 100 else 1
    return f"{epoch['train_loss']:>8.4f}{epoch['train_accuracy']:>10.4f}{duration:>10}{rate:>10,.{digits}f}"


def run(train: data.Dataset, test: data.Dataset, epochs: int, as_json: bool) -> None:
    """Train on one image at a time in the order of `train`, then test, and print all figures."""
    if len(test) <= TEST_IMAGE:
        raise UsageError(f"the run shows test image {TEST_IMAGE}, the test set has {len(test)} images")
    network, output = Network(train.shape, len(train.classes)), Output(as_json, len(train), epochs)
    for epoch in range(1, epochs + 1):
        output.epoch(_epoch(epoch, network, data.Loader(train, batch_size=1, shuffle=False), output))
    trainer = Trainer(model := network.module(test.shape), optim.SGD(model.parameters()), "cross_entropy")
    metrics = trainer.evaluate(test)
    probabilities = trainer.predict(test[TEST_IMAGE:][:1])[0].tolist()
    output.test(
        {
            "test_accuracy": metrics.accuracy,
            "test_loss": metrics.loss,
            "test_image": TEST_IMAGE,
            "class": max(range(len(probabilities)), key=probabilities.__getitem__),
            "probability": max(probabilities),
            "probabilities": probabilities,
        }
    )


def _epoch(epoch: int, network: Network, loader: data.Loader, output: Output) -> dict[str, Any]:
    start, losses, right = clock(), 0.0, 0
    for image, (x, label) in enumerate(loader, 1):
        loss, hit = network.step(x, label)
        losses, right = losses + loss, right + hit
        if image % 1000 == 0:
            output.progress(epoch, image, losses / image, right / image)
    seconds = clock() - start
    return {
        "epoch": epoch,
        "train_loss": losses / image,
        "train_accuracy": right / image,
        "seconds": seconds,
        "images_per_second": image / seconds,
        "speedup": image / seconds / (IMAGES / EPOCHS[1]["seconds"]),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", help="folder with the four files of MNIST; by default they are downloaded once")
    parser.add_argument("--limit", type=int, help="train on the first LIMIT images only")
    parser.add_argument("--epochs", type=int, default=len(EPOCHS), help="number of epochs (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    arguments = parser.parse_args(argv)
    for flag, value in (("--limit", arguments.limit), ("--epochs", arguments.epochs)):
        if value is not None and value < 1:
            parser.error(f"{flag} must be at least 1, got {value}")
    try:
        train, test = data.load("mnist", arguments.data_dir)
        run(train[: arguments.limit], test, arguments.epochs, arguments.json)
    except XcnnError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nerror: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

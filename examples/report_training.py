"""The report's training run on MNIST, repeated through the library, beside the report's figures.

    python examples/report_training.py [--data-dir D] [--limit N] [--epochs 2] [--json]

One 3x3 filter without bias, ReLU, 2x2 max pooling and one linear layer; batches of one image, in file order, two epochs
of plain gradient descent on the cross entropy. Training loss and accuracy are counted as the images go by, each before
its own update. Computed in float32, as xcnn does by default; float64 changes no figure by more than 0.0001.

With --json, JSON lines on stdout: one per epoch (epoch, train_loss, train_accuracy, seconds, images_per_second,
speedup), then one with test_accuracy, test_loss, test_image, class, probability and probabilities.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from xcnn import data, models, nn, optim
from xcnn.errors import UsageError, XcnnError
from xcnn.training import Callback, Metrics, Trainer

__all__ = ["main", "network", "run"]

IMAGES = 60_000
EPOCHS = {
    1: {"train_loss": 0.4149, "train_accuracy": 0.8735, "seconds": 2 * 3600 + 17 * 60 + 26},
    2: {"train_loss": 0.3125, "train_accuracy": 0.9085, "seconds": 2 * 3600 + 14 * 60 + 5},
}
"""The report's epochs, each over all images."""

TEST_ACCURACY = 0.9051
TEST_IMAGE, TEST_IMAGE_CLASS, TEST_IMAGE_PROBABILITY = 400, 2, 0.937


def network(shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10) -> tuple[nn.Module, optim.SGD]:
    """Build the report's network with the weights that the report starts from, and its optimizer.

    NumPy's legacy generator draws the filter first, then the weights of the linear layer. The report divides the
    linear layer's gradient by 10, taking the length of the one-hot vector for the batch size, and leaves the filter's
    as it is: hence two learning rates.
    """
    model = models.build("report", shape, classes)
    state = model.state_dict()
    rng = np.random.RandomState(42)  # the report's generator, not ours to choose
    for name in ("0.weight", "4.weight"):
        state[name] = rng.randn(*state[name].shape) * 0.01
    state["4.bias"] = np.zeros(classes)
    model.load_state_dict(state)
    filters, *linear = model.parameters()
    return model, optim.SGD([{"params": [filters], "lr": 0.01}, {"params": linear, "lr": 0.001}])


class Output(Callback):
    """Progress on stderr while an epoch runs; its row of the table, or its JSON object, on stdout when it ends."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def on_fit_start(self, trainer: Trainer, batches: int, epochs: int) -> None:
        """Print the head of the table."""
        self.batches, self.epochs = batches, epochs
        if not self.as_json:
            figures = f"{'loss':>8}{'accuracy':>10}{'time':>10}{'images/s':>10}"
            print(f"{'':<9}{'the report':^38}  {'xcnn':^38}".rstrip())
            print(f"{'':<9}{figures}  {figures}{'faster':>10}")

    def on_batch_end(self, trainer: Trainer, epoch: int, batch: int, metrics: Metrics) -> None:
        """Say how far it is every 1,000 images, over the line before."""
        if batch % 1000 == 0 and sys.stderr.isatty():
            place = f"epoch {epoch}/{self.epochs}, image {batch:,}/{self.batches:,}"
            print(f"\r{place}: loss {metrics.loss:.4f}, accuracy {metrics.accuracy:.4f}", end="", file=sys.stderr)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Print the epoch."""
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)
        keys = ("epoch", "train_loss", "train_accuracy", "seconds", "images_per_second")
        ours = {key: record[key] for key in keys}
        ours["speedup"] = ours["images_per_second"] / (IMAGES / EPOCHS[1]["seconds"])
        if self.as_json:
            print(json.dumps(ours), flush=True)
            return
        epoch = f"epoch {record['epoch']}"
        theirs = EPOCHS.get(record["epoch"])
        print(f"{epoch:<9}{_figures(theirs):38}  {_figures(ours)}{ours['speedup']:>8,.0f} x", flush=True)

    def test(self, result: dict[str, Any]) -> None:
        """Print what the test set says."""
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
    time = str(timedelta(seconds=round(epoch["seconds"])))
    rate = epoch.get("images_per_second", IMAGES / epoch["seconds"])
    return f"{epoch['train_loss']:>8.4f}{epoch['train_accuracy']:>10.4f}{time:>10}{rate:>10,.{0 if rate > 100 else 1}f}"


def run(train: data.Dataset, test: data.Dataset, epochs: int, as_json: bool) -> None:
    """Train on `train` in its order, one image at a time, then test, printing everything."""
    if len(test) <= TEST_IMAGE:
        raise UsageError(f"the run shows test image {TEST_IMAGE}, the test set has {len(test)} images")
    model, optimizer = network(test.shape, len(test.classes))
    trainer = Trainer(model, optimizer, "cross_entropy")
    output = Output(as_json)
    trainer.fit(data.Loader(train, batch_size=1, shuffle=False), epochs, callbacks=[output])
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


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--data-dir", help="folder with MNIST's four files; left out, they are downloaded once and kept"
    )
    parser.add_argument("--limit", type=int, help="train on the first LIMIT images only")
    parser.add_argument("--epochs", type=int, default=len(EPOCHS), help="passes over the images (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON lines in place of the table")
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

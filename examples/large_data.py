"""Data that do not fit into memory: a memory-mapped file, and a data set of your own that makes examples when asked.

    python examples/large_data.py

A `.npy` file that is opened with `mmap_mode="r"` is read batch by batch. Any object with `__len__` and `__getitem__`
serves as a data set; worker threads prepare its batches ahead of the network, and change no bit of the results. The
figure of merit is the accuracy on new examples after training on either.
"""

import tempfile
from pathlib import Path

import numpy as np

from xcnn import Trainer, data, nn, optim

__all__ = ["Lines", "main"]


class Lines:
    """Noisy images with a line that is flat (class 0) or upright (class 1), drawn when they are asked for."""

    def __init__(self, count: int, seed: int, size: int = 16) -> None:
        self.count, self.seed, self.size = count, seed, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Return an image (1, size, size) in float32 and its class."""
        rng = np.random.default_rng([self.seed, index])  # an example is always the same
        upright, place = int(rng.integers(2)), rng.integers(self.size)
        image = 0.5 * rng.standard_normal((self.size, self.size))
        image[place] += 1
        return (image.T if upright else image)[None].astype(np.float32), upright


def _accuracy(train: data.Loader, test: Lines, epochs: int) -> float:
    """Return the accuracy on `test` after training."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 5, padding=2), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(16, 2)),
    )
    model.reset_parameters(0)
    trainer = Trainer(model, optim.Adam(model.parameters(), lr=3e-3))
    trainer.fit(train, epochs)
    return trainer.evaluate(test).accuracy or 0.0


def main(folder: Path, count: int = 2000, epochs: int = 5) -> tuple[float, float]:
    """Return the accuracy after training on a memory-mapped file, and on a data set of one's own with workers."""
    lines, test = Lines(count, seed=0), Lines(300, seed=1)
    # Written piece by piece, and never read as a whole.
    file = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (count, 1, 16, 16))
    y = np.empty(count, np.int64)
    for i in range(count):
        file[i], y[i] = lines[i]
    file.flush()
    mapped = data.Dataset(np.load(folder / "x.npy", mmap_mode="r"), y, ("flat", "upright"))
    found = _accuracy(data.Loader(mapped), test, epochs), _accuracy(data.Loader(lines, workers=2), test, epochs)
    print(f"accuracy on new images: {found[0]:.2%} from the file, {found[1]:.2%} from the data set of one's own")
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))

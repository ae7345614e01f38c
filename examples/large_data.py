"""Data that do not fit into memory: a memory-mapped file, and a data set of your own that makes examples when asked.

    python examples/large_data.py

A `.npy` file that is opened with `mmap_mode="r"` is read batch by batch. Any object with `__len__` and `__getitem__`
serves as a data set; worker threads prepare its batches ahead of the network, and change no bit of the results. The
figure of merit is the accuracy with either.
"""

import tempfile
from pathlib import Path

import numpy as np

from xcnn import Trainer, data, nn, optim

__all__ = ["Drawn", "main"]


class Drawn:
    """Images of lines that are drawn when they are asked for: is a line flat or steep?"""

    def __init__(self, count: int, size: int = 16) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Return an image (1, size, size) in float32 and its class."""
        rng = np.random.default_rng(index)  # of the index alone, so that an example is always the same
        steep, place = int(rng.integers(2)), rng.integers(2, self.size - 2)
        image = 0.3 * rng.standard_normal((self.size, self.size))
        image[place - 1 : place + 1] += 1
        return (image.T if steep else image)[None].astype(np.float32), steep


def _accuracy(train: data.Loader, test: Drawn, epochs: int) -> float:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(4), nn.Flatten(), nn.Linear(128, 2)
    )
    model.reset_parameters(0)
    trainer = Trainer(model, optim.Adam(model.parameters(), lr=3e-3))
    trainer.fit(train, epochs)
    return trainer.evaluate(test).accuracy or 0.0


def main(folder: Path, count: int = 1000, epochs: int = 4) -> tuple[float, float]:
    """Return the accuracy after training on a memory-mapped file and on a data set with workers."""
    source, test = Drawn(count), Drawn(count + 300)
    test_only = [test[count + i] for i in range(300)]
    held_out = np.stack([x for x, _ in test_only]), np.asarray([y for _, y in test_only])
    # A file that is written piece by piece, and never read as a whole.
    file = np.lib.format.open_memmap(folder / "images.npy", "w+", np.float32, (count, 1, 16, 16))
    labels = np.empty(count, np.int64)
    for i in range(count):
        file[i], labels[i] = source[i]
    file.flush()
    mapped = data.Dataset(np.load(folder / "images.npy", mmap_mode="r"), labels, ("flat", "steep"))
    first = _accuracy(data.Loader(mapped, 32), held_out, epochs)
    second = _accuracy(data.Loader(source, 32, workers=2), held_out, epochs)
    print(f"accuracy: {first:.2%} from the file, {second:.2%} from the data set of one's own")
    return first, second


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))

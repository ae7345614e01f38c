"""Batches of a data set, which depend only on the seed and the indices of epoch and batch."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xcnn._array import Array
from xcnn._check import flag, integer
from xcnn.data.augment import Augmentation
from xcnn.data.dataset import Dataset, to_float
from xcnn.data.draws import Draws
from xcnn.errors import UsageError

__all__ = ["Loader"]


class Loader:
    """Iterate over a data set in batches of new arrays: images, float32 (n, C, H, W), and labels, int64 (n,).

    Images of uint8 are divided by 255, images of floating point keep their values (`to_float`). The batches are on the
    device of the data set, and have the same bits on every device.

    Calls of `batches(epoch, start)` are independent of each other. Each `iter(loader)` yields the next epoch.

    Parameters
    ----------
    dataset : the data set, on the host or on a device (`Dataset.to`).
    batch_size : images per batch; the last batch may be smaller.
    shuffle : whether to draw a new order for each epoch; otherwise, the order is that of the data set.
    seed : seed of the order and the augmentation, 0 or more.
    drop_last : whether to leave out a last batch that is smaller than the others.
    augment : functions (x, y, rng) -> (x, y), applied to each batch in turn. They take NumPy arrays, so the data set
        must be on the host.

    Attributes
    ----------
    epoch : index of the epoch, from 0, that `iter(loader)` yields next; it increases when an epoch ends.

    Raises
    ------
    UsageError
        If an argument is invalid, or `drop_last` leaves no batch.

    Examples
    --------
    >>> from xcnn.data import load
    >>> train, test = load("digits")
    >>> [len(labels) for images, labels in Loader(test, batch_size=100)]
    [100, 100, 100, 60]
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 64,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        augment: Sequence[Augmentation] = (),
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise UsageError(f"Loader: dataset must be a Dataset, got {type(dataset).__name__}; see data.from_arrays")
        self.dataset = dataset
        self.batch_size = integer("Loader", "batch_size", batch_size)
        self.shuffle = flag("Loader", "shuffle", shuffle)
        self.seed = integer("Loader", "seed", seed, minimum=0)
        self.drop_last = flag("Loader", "drop_last", drop_last)
        if drop_last and batch_size > len(dataset):
            raise UsageError(
                f"Loader: drop_last leaves no batch: {dataset.name} has {len(dataset)} images, batch_size {batch_size}"
            )
        if not isinstance(augment, Sequence) or not all(map(callable, augment)):
            raise UsageError(f"Loader: augment takes a list of functions (see data.AUGMENTATIONS), got {augment!r}")
        if augment and dataset.device.xp is not np:
            raise UsageError(
                f"Loader: augment takes NumPy arrays, {dataset.name} is on {dataset.device.name}; leave it on the host"
            )
        self.augment = tuple(augment)
        self.epoch = 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        epoch = self.epoch
        yield from self.batches(epoch)
        self.epoch = epoch + 1

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Array, Array]]:
        """Yield the batches of an epoch from batch `start` on; both are counted from 0."""
        epoch, start = (integer("batches", *pair, minimum=0) for pair in (("epoch", epoch), ("start", start)))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset)) if self.shuffle else None
        device = self.dataset.device
        for batch in range(start, len(self)):
            place = slice(batch * self.batch_size, min((batch + 1) * self.batch_size, len(self.dataset)))
            images, labels = self.dataset.gather(place if order is None else order[place])
            with device.active():
                images = to_float(images)  # not before gathering: uint8 takes a quarter of the memory
            if self.augment:
                draws = Draws(self.seed, epoch, np.arange(place.start, place.stop) if order is None else order[place])
                for function in self.augment:
                    images, labels = function(images, labels, draws)
            yield images, labels

    def settings(self) -> dict[str, Any]:
        """Return the numbers that determine the batches."""
        names = ("batch_size", "shuffle", "seed", "drop_last")
        return {"images": len(self.dataset), **{name: getattr(self, name) for name in names}}

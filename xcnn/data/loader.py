"""Batches of a data set, decided by the seed, the number of the epoch and that of the batch alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xcnn._array import Array
from xcnn._check import flag, integer
from xcnn.data.augment import Augmentation
from xcnn.data.dataset import Dataset, to_float
from xcnn.errors import UsageError

__all__ = ["Loader"]


class Loader:
    """Iterate over a data set in batches: (images float32 (n, C, H, W), labels int64 (n,)), new arrays both.

    Images of uint8 become 0..1, images of floating point keep their values (`to_float`). The batches are where the data
    set is, and hold the same bits on every device.

    A loader has no position: `batches(epoch, start)` gives the same batches whenever it is called. `iter(loader)` runs
    through the epochs one after another, for loops of your own.

    Parameters
    ----------
    dataset : what to load, on the host or on a device (`Dataset.to`).
    batch_size : images per batch; the last batch is smaller where they do not divide.
    shuffle : draw a new order for each epoch; otherwise the data set's own.
    seed : with the numbers of the epoch and the batch, all that decides the order and the augmentation; 0 or more.
    drop_last : leave out a last batch that is smaller than the others.
    augment : functions (images, rng) -> images, applied to each batch in turn. They take NumPy arrays, so the data set
        must be on the host.

    Attributes
    ----------
    epoch : the epoch, counted from 0, that `iter(loader)` runs next. It moves on at the end of a pass.

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
        for function in augment:
            if not callable(function):
                raise UsageError(f"Loader: augment takes functions (see data.AUGMENTATIONS), got {function!r}")
        if augment and dataset.device.xp is not np:
            raise UsageError(
                f"Loader: augment takes NumPy arrays, {dataset.name} is on {dataset.device.name}; leave it on the host"
            )
        self.augment = tuple(augment)
        self.epoch = 0

    def __len__(self) -> int:
        """Batches in one epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        epoch = self.epoch
        yield from self.batches(epoch)
        self.epoch = epoch + 1

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Array, Array]]:
        """Yield the batches of an epoch, both counted from 0, from batch `start` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset)) if self.shuffle else None
        for batch in range(start, len(self)):
            place = slice(batch * self.batch_size, min((batch + 1) * self.batch_size, len(self.dataset)))
            images, labels = self.dataset.gather(place if order is None else order[place])
            with self.dataset.device.active():
                images = to_float(images)  # after gathering, as uint8 is a quarter of the bytes
            if self.augment:
                # 1 + batch, as NumPy takes [seed, epoch, 0] for the [seed, epoch] that decides the order.
                rng = np.random.default_rng([self.seed, epoch, 1 + batch])
                for function in self.augment:
                    images = function(images, rng)
            yield images, labels

    def settings(self) -> dict[str, Any]:
        """Return what decides the batches, as far as numbers can tell it."""
        names = ("batch_size", "shuffle", "seed", "drop_last")
        return {"images": len(self.dataset), **{name: getattr(self, name) for name in names}}

"""Batches of a data set, in an order that the seed and the epoch alone decide."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xcnn.data.augment import Augmentation
from xcnn.data.dataset import Dataset, to_float
from xcnn.errors import UsageError

__all__ = ["Loader"]


class Loader:
    """Iterate over a data set in batches: (images float32 (n, C, H, W), labels int64 (n,)), fresh arrays both.

    Images of uint8 become 0..1, images of floating point keep their values (`to_float`).

    Parameters
    ----------
    dataset : what to load.
    batch_size : images per batch; the last batch is smaller where they do not divide.
    shuffle : draw a new order for each pass; otherwise the data set's own.
    seed : with `epoch`, all that decides the order and the augmentation; 0 or more.
    drop_last : leave out a last batch that is smaller than the others.
    augment : functions (images, rng) -> images, applied to each batch in turn.

    Attributes
    ----------
    epoch : how many passes are finished. A pass that is broken off does not count. Set it to repeat or resume:
        a loader with the same arguments and the same `epoch` gives the same batches.

    Raises
    ------
    UsageError
        If an argument makes no sense, or `drop_last` leaves no batch.

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
        if batch_size < 1:
            raise UsageError(f"Loader: batch_size must be at least 1, got {batch_size}")
        if seed < 0:
            raise UsageError(f"Loader: seed must be 0 or more, got {seed}")
        if drop_last and batch_size > len(dataset):
            raise UsageError(
                f"Loader: drop_last leaves no batch: {dataset.name} has {len(dataset)} images, batch_size {batch_size}"
            )
        for function in augment:
            if not callable(function):
                raise UsageError(f"Loader: augment takes functions (see data.AUGMENTATIONS), got {function!r}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.augment = tuple(augment)
        self.epoch = 0

    def __len__(self) -> int:
        """Batches in one pass."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[Any]]]:
        epoch = self.epoch
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.dataset)) if self.shuffle else None
        for batch in range(len(self)):
            span = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            # Gather first: uint8 is a quarter of the bytes.
            images, labels = (
                array[span].copy() if order is None else array[order[span]]
                for array in (self.dataset.images, self.dataset.labels)
            )
            images = to_float(images)
            for function in self.augment:
                images = function(images, rng)
            yield images, labels
        self.epoch = epoch + 1

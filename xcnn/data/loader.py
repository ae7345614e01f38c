"""Batches of a data set, in an order that the seed and the epoch alone decide."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xcnn._random import load_stream, stream_state
from xcnn.data.augment import Augmentation
from xcnn.data.dataset import Dataset, to_float
from xcnn.errors import CheckpointError, UsageError

__all__ = ["Loader"]


@dataclass
class _Pass:
    """One pass in the making: what is drawn for it so far, and how many batches are out."""

    epoch: int
    rng: np.random.Generator
    order: npt.NDArray[Any] | None
    batch: int = 0


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
    epoch : how many passes are finished. A pass that is broken off does not count. Set it to repeat a pass: a loader
        with the same arguments and the same `epoch` gives the same batches. To go on inside a pass, see `state_dict`.

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
        self._pass: _Pass | None = None
        self._loaded: _Pass | None = None

    def __len__(self) -> int:
        """Batches in one pass."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[Any]]]:
        now, self._loaded = self._loaded or self._begin(), None
        self._pass = now
        for batch in range(now.batch, len(self)):
            span = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            # Gather first: uint8 is a quarter of the bytes.
            images, labels = (
                array[span].copy() if now.order is None else array[now.order[span]]
                for array in (self.dataset.images, self.dataset.labels)
            )
            images = to_float(images)
            for function in self.augment:
                images = function(images, now.rng)
            now.batch = batch + 1
            yield images, labels
        self.epoch, self._pass = now.epoch + 1, None

    def _begin(self) -> _Pass:
        rng = np.random.default_rng([self.seed, self.epoch])
        return _Pass(self.epoch, rng, rng.permutation(len(self.dataset)) if self.shuffle else None)

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is: finished passes, and of a pass that is not, its batches so far, order and stream.

        The order is kept, as another version of NumPy may draw another one from the same seed.
        """
        now = self._pass
        unfinished = None
        if now is not None:
            small = np.min_scalar_type(len(self.dataset))
            order = None if now.order is None else now.order.astype(small)
            unfinished = {"batch": now.batch, "order": order, "rng": stream_state(now.rng)}
        return {"epoch": self.epoch, "settings": self._settings(), "pass": unfinished}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` of a loader like this one was: the next pass is the rest of the unfinished one.

        Raises
        ------
        CheckpointError
            For a state of a loader with other settings or another number of images, or of none.
        """
        try:
            if state["settings"] != self._settings():
                raise CheckpointError(f"Loader: the state is of {state['settings']}, here is {self._settings()}")
            epoch, unfinished, loaded = state["epoch"], state["pass"], None
            if not isinstance(epoch, int) or epoch < 0:
                raise ValueError(f"epoch is {epoch!r}")
            if unfinished is not None:
                loaded = _Pass(epoch, np.random.default_rng(0), unfinished["order"], unfinished["batch"])
                load_stream(loaded.rng, unfinished["rng"], "Loader")
                if not isinstance(loaded.batch, int) or not 0 <= loaded.batch <= len(self):
                    raise ValueError(f"batch is {loaded.batch!r}")
                if (loaded.order is not None) != self.shuffle or not _permutes(loaded.order, len(self.dataset)):
                    raise ValueError("order does not hold every image once")
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"Loader: the state is of no loader: {error}") from None
        self.epoch, self._pass, self._loaded = epoch, loaded, loaded

    def _settings(self) -> dict[str, Any]:
        """Return what decides the batches, as far as numbers can tell it."""
        names = ("batch_size", "shuffle", "seed", "drop_last")
        return {"images": len(self.dataset), **{name: getattr(self, name) for name in names}}


def _permutes(order: Any, count: int) -> bool:
    """Say whether an order, None for the natural one, holds each of 0 .. count - 1 once."""
    if order is None:
        return True
    if not isinstance(order, np.ndarray) or order.dtype.kind not in "iu" or order.shape != (count,):
        return False
    return np.array_equal(np.sort(order), np.arange(count))

"""Batches of a data set, in an order that the seed and the epoch alone decide."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xcnn._array import Array
from xcnn._random import load_stream, stream_state
from xcnn.data.augment import Augmentation
from xcnn.data.dataset import Dataset, to_float
from xcnn.data.resident import Resident
from xcnn.devices import Device
from xcnn.devices import device as open_device
from xcnn.errors import CheckpointError, UsageError

__all__ = ["Loader", "Pass"]


class Pass(Iterator[tuple[Array, Array]]):
    """One pass over a data set in the making; what `iter(loader)` gives.

    Attributes
    ----------
    batch : how many batches are out.
    """

    def __init__(
        self, loader: "Loader", epoch: int, rng: np.random.Generator, order: npt.NDArray[Any] | None, batch: int = 0
    ) -> None:
        self.loader, self.epoch, self.rng, self.order, self.batch = loader, epoch, rng, order, batch

    def __next__(self) -> tuple[Array, Array]:
        loader, start = self.loader, self.batch * self.loader.batch_size
        if self.batch >= len(loader):
            loader.epoch = self.epoch + 1
            raise StopIteration
        end = min(start + loader.batch_size, len(loader.dataset))
        made = loader._make(slice(start, end) if self.order is None else self.order[start:end], self.rng)
        self.batch += 1
        return made


class Loader:
    """Iterate over a data set in batches: (images float32 (n, C, H, W), labels int64 (n,)), fresh arrays both.

    Images of uint8 become 0..1, images of floating point keep their values (`to_float`). The batches, their order and
    what `state_dict` gives are the same bits on every device.

    Parameters
    ----------
    dataset : what to load.
    batch_size : images per batch; the last batch is smaller where they do not divide.
    shuffle : draw a new order for each pass; otherwise the data set's own.
    seed : with `epoch`, all that decides the order and the augmentation; 0 or more.
    drop_last : leave out a last batch that is smaller than the others.
    augment : functions (images, rng) -> images, applied to each batch in turn.
    device : where the batches are to be; None for NumPy arrays. The data set is copied to a device once, when its first
        batch is asked for, stays there as long as the loader, and is gathered there. With `augment`, whose functions
        take NumPy arrays, or where the device has no room for it, batches are made on the host and moved. Later changes
        of the data set's arrays do not reach the copy.
    tell : called with one sentence if there is no room.

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
        device: str | Device | None = None,
        tell: Callable[[str], object] = warnings.warn,
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
        self.device = None if device is None else open_device(device)
        self.epoch = 0
        self._loaded: Pass | None = None
        self._resident: Resident | None = None
        if self.device is not None and self.device.xp is not np:
            self._resident = Resident(dataset, self.device, tell)

    def __len__(self) -> int:
        """Batches in one pass."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Pass:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            return loaded
        rng = np.random.default_rng([self.seed, self.epoch])
        return Pass(self, self.epoch, rng, rng.permutation(len(self.dataset)) if self.shuffle else None)

    def _make(self, chosen: slice | npt.NDArray[Any], rng: np.random.Generator) -> tuple[Array, Array]:
        """Make a batch of the images at some places."""
        if self._resident is not None and not self.augment and (made := self._resident.gather(chosen)) is not None:
            return made
        # Gather first: uint8 is a quarter of the bytes.
        images, labels = (
            array[chosen].copy() if isinstance(chosen, slice) else array[chosen]
            for array in (self.dataset.images, self.dataset.labels)
        )
        images = to_float(images)
        for function in self.augment:
            images = function(images, rng)
        return (images, labels) if self._resident is None else self._resident.move(images, labels)

    def make_room(self) -> bool:
        """Give up the data set's copy on the device for good, as what else is there does not fit beside it.

        Return whether there was a copy. Batches are made on the host then.
        """
        return self._resident is not None and self._resident.make_room()

    def release(self) -> None:
        """Drop the data set's copy on the device, until the next batch is asked for."""
        if self._resident is not None:
            self._resident.release()

    def in_order(self, batch_size: int) -> "Loader":
        """Give a loader of the same images, each once, in the data set's order and not augmented.

        The two share what is on the device.
        """
        made = Loader(self.dataset, batch_size, shuffle=False, device=self.device)
        made._resident = self._resident
        return made

    def state_dict(self, unfinished: Pass | None = None) -> dict[str, Any]:
        """Return where the loader is.

        Parameters
        ----------
        unfinished : what `iter` of this loader gave, to go on inside that pass; None for the start of the next. Its
            order is kept, as another version of NumPy may draw another one from the same seed.
        """
        now = unfinished
        if now is None:
            return {"epoch": self.epoch, "settings": self._settings(), "pass": None}
        order = None if now.order is None else now.order.astype(np.min_scalar_type(len(self.dataset)))
        place = {"batch": now.batch, "order": order, "rng": stream_state(now.rng)}
        return {"epoch": now.epoch, "settings": self._settings(), "pass": place}

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
            epoch = _count(state["epoch"], 2**53)
            loaded = None if state["pass"] is None else self._pass_at(epoch, state["pass"])
        except (LookupError, TypeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"Loader: the state is of no loader: {error}") from None
        self.epoch, self._loaded = epoch, loaded

    def _pass_at(self, epoch: int, place: Mapping[str, Any]) -> Pass:
        order, rng = place["order"], np.random.default_rng(0)
        load_stream(rng, place["rng"], "Loader")
        if (order is not None) != self.shuffle or not _permutes(order, len(self.dataset)):
            raise ValueError("order does not hold every image once")
        return Pass(self, epoch, rng, order, _count(place["batch"], len(self)))

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


def _count(value: Any, most: int) -> int:
    if not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{value!r} is no number from 0 to {most}")
    return value

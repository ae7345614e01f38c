"""Turn data into batches of arrays on the device, for training, evaluation and prediction."""

import collections.abc
import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from xcnn._array import Array, namespace_of
from xcnn.data import Dataset, Loader, from_arrays
from xcnn.devices import Device, free_memory
from xcnn.errors import CheckpointError, OutOfMemoryError, UsageError
from xcnn.training.memory import memory_error, ran_out

__all__ = ["Batch", "Batches", "Data", "Feed", "as_array", "batches", "in_order", "place"]

Batch = tuple[Any, Any]
Batches = Loader | Iterable[Batch]
Data = Batches | Dataset | tuple[np.ndarray, np.ndarray]
"""A `Loader`, a `Dataset`, (images, labels), or an iterable of batches (x, y)."""

_MOST_BYTES = 1 << 30
"""The largest data set that is copied to the device."""


def batches(who: str, data: Any, where: Device) -> Batches:
    """Return batches to train on; a data set is shuffled with seed 0, in batches of 64. `who` begins errors."""
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, np.ndarray) for part in data):
        data = from_arrays(*data)
    if isinstance(data, Dataset):
        data = Loader(data)
    if isinstance(data, Loader) and data.dataset.device.xp is not np and data.dataset.device != where:
        there = data.dataset.device.name
        raise UsageError(f"{who} is on {there}, the network is on {where.name}; put both on the same device")
    if not isinstance(data, Loader | Iterable):
        kinds = "a Loader, a Dataset, (images, labels) or batches (x, y)"
        raise UsageError(f"{who} must be {kinds}, got {type(data).__name__}")
    return data


def in_order(who: str, data: Data, batch_size: int, where: Device) -> Iterator[Batch]:
    """Yield batches to evaluate: every image of a data set once, in order, without augmentation."""
    made = batches(who, data, where)
    return _pairs(who, Loader(made.dataset, batch_size, shuffle=False) if isinstance(made, Loader) else made)


def _pairs(who: str, made: Batches) -> Iterator[Batch]:
    """Yield batches, checking that each is a pair."""
    for batch in made:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise UsageError(f"{who} must yield batches (x, y), got {type(batch).__name__}")
        yield batch[0], batch[1]


def place(array: Any, where: Device) -> Array:
    """Return a list or an array of the host on the device; an array of the device's library is returned as it is."""
    array = as_array(array)
    return array if namespace_of(array) is where.xp else where.asarray(array)


def as_array(value: Any) -> Array:
    """Return a list as a NumPy array, and an array of any library as it is."""
    try:
        value = np.asarray(value) if isinstance(value, list | tuple) else value
        namespace_of(value)
    except (TypeError, ValueError):  # the latter for lists of unequal lengths
        raise UsageError(f"images and targets must be arrays, got {type(value).__name__}") from None
    return value


class Feed:
    """The batches of one `fit`.

    A data set on the host that is not augmented and not too large is copied to the device for the lifetime of the feed.
    If memory runs out, the copy is freed and batches are made on the host. The bits are the same either way.

    `who` is the function and its argument, for errors; `tell` is called if the data set does not fit on the device.
    """

    def __init__(self, who: str, data: Data, where: Device, tell: Callable[[str], object]) -> None:
        self.who, self.where, self.tell = who, where, tell
        self.source = batches(who, data, where)
        self._host: Dataset | None = None  # of which the device has a copy
        self.settings = self.source.settings() if isinstance(self.source, Loader) else None
        self.length = len(self.source) if isinstance(self.source, collections.abc.Sized) else None
        if not isinstance(self.source, Loader) or self.source.augment or where.xp is np:
            return
        dataset, moved = self.source.dataset, copy.copy(self.source)
        if dataset.device.xp is np and dataset.x.nbytes <= _MOST_BYTES:
            try:
                moved.dataset = dataset.to(where)
            except OutOfMemoryError as error:
                tell(f"{error}; batches are made on the host")
            else:
                self.source, self._host = moved, dataset

    def check_place(self, settings: dict[str, Any] | None, batch: int) -> None:
        """Check that this feed continues an epoch that stopped after `batch` batches of a loader with `settings`."""
        if settings != self.settings:
            was, here = (f"a Loader with {s}" if s else "no Loader" for s in (settings, self.settings))
            raise CheckpointError(f"{self.who} is {here}, but the state is inside an epoch of {was}")
        if self.length is not None and batch > self.length:
            raise CheckpointError(f"{self.who} has {self.length} batches, but the state is after {batch} of the epoch")

    def batches(self, epoch: int, done: int) -> Iterator[Batch]:
        """Yield the batches of an epoch (counted from 1) after the first `done`."""
        if not isinstance(self.source, Loader):
            yield from itertools.islice(_pairs(self.who, self.source), done, None)
            return
        while done < len(self.source):
            try:
                for batch in self.source.batches(epoch - 1, done):
                    yield batch
                    done += 1
            except Exception as error:
                if not ran_out(error, self.where):
                    raise
            else:
                return
            if not self.give_up():
                raise memory_error((self.source.batch_size, *self.source.dataset.shape), self.where)

    def give_up(self) -> bool:
        """Make batches on the host from now on, report it, and return whether there was a copy on the device."""
        host, self._host = self._host, None
        if host is None or not isinstance(self.source, Loader):
            return False
        self.source.dataset = host
        free_memory(self.where)
        size = f"{host.name}: {len(host)} images"
        self.tell(f"{size} do not fit into the memory of {self.where.name}; batches are made on the host")
        return True

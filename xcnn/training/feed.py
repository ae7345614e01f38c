"""From data to batches to arrays on the device: what training, evaluation and prediction are fed with."""

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

__all__ = ["Batch", "Batches", "Data", "Feed", "batches", "in_order", "place"]

Batch = tuple[Any, Any]
Batches = Loader | Iterable[Batch]
Data = Batches | Dataset | tuple[np.ndarray, np.ndarray]
"""Batches, or what they are made of: a `Loader`, a `Dataset`, (images, labels), or an iterable of (x, y) batches."""

_MOST_BYTES = 1 << 30
"""Data sets that take more stay on the host."""


def batches(who: str, data: Any, where: Device) -> Batches:
    """Return batches to train on: data sets are shuffled from seed 0 in batches of 64. `who` opens the error.

    Raises
    ------
    UsageError
        If `data` is nothing to take batches from, or on another device than the network.
    """
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, np.ndarray) for part in data):
        data = from_arrays(*data)
    if isinstance(data, Dataset):
        data = Loader(data)
    if isinstance(data, Loader) and data.dataset.device.xp is not np and data.dataset.device != where:
        there = data.dataset.device.name
        raise UsageError(f"{who} is on {there}, the network is on {where.name}: give both the same device")
    if not isinstance(data, Loader | Iterable):
        kinds = "a Loader, a Dataset, (images, labels) or batches (x, y)"
        raise UsageError(f"{who} must be {kinds}, got {type(data).__name__}")
    return data


def in_order(who: str, data: Data, batch_size: int, where: Device) -> Iterator[Batch]:
    """Yield batches to evaluate: every image of a data set once, in its order and not augmented."""
    made = batches(who, data, where)
    return _pairs(who, Loader(made.dataset, batch_size, shuffle=False) if isinstance(made, Loader) else made)


def _pairs(who: str, made: Batches) -> Iterator[Batch]:
    """Yield batches after checking that they are pairs."""
    for batch in made:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise UsageError(f"{who} must give batches (x, y), got {type(batch).__name__}")
        yield batch[0], batch[1]


def place(array: Any, where: Device) -> Array:
    """Move a host array, or a list, to the device; an array of the device's library stays as it is."""
    if isinstance(array, list | tuple):
        array = np.asarray(array)
    return array if namespace_of(array) is where.xp else where.asarray(array)


class Feed:
    """The batches of one `fit`.

    A data set on the host that nothing augments is copied to the device, for as long as the feed, if it is not too
    large. The copy is given up where memory runs out beside it; the batches are the same bits either way.

    Parameters
    ----------
    who : the function and its argument, for errors.
    data : what to train on.
    where : the device of the network.
    tell : called with a sentence if the device has no room for the data set.
    """

    def __init__(self, who: str, data: Data, where: Device, tell: Callable[[str], object]) -> None:
        self.who, self.where, self.tell = who, where, tell
        self.source = batches(who, data, where)
        self._host: Dataset | None = None  # of which the device has a copy
        self.settings = self.source.settings() if isinstance(self.source, Loader) else None
        self.length = len(self.source) if isinstance(self.source, collections.abc.Sized) else None
        if isinstance(self.source, Loader) and not self.source.augment and where.xp is not np:
            self._move(self.source)

    def _move(self, loader: Loader) -> None:
        """Take the batches from a copy of the data set on the device, if it fits."""
        dataset = loader.dataset
        if dataset.device.xp is np and dataset.images.nbytes <= _MOST_BYTES:
            moved = copy.copy(loader)
            try:
                moved.dataset = dataset.to(self.where)
            except OutOfMemoryError as error:
                self.tell(f"{error}; batches are made on the host")
                return
            self.source, self._host = moved, dataset

    def check_place(self, settings: dict[str, Any] | None, batch: int) -> None:
        """Check that an epoch which was left after `batch` batches of a loader of these settings can go on.

        Raises
        ------
        CheckpointError
            If these are other batches.
        """
        if settings != self.settings:
            was, here = (f"a Loader with {s}" if s else "no Loader" for s in (settings, self.settings))
            raise CheckpointError(f"{self.who} is {here}, but the state is inside an epoch of {was}")
        if self.length is not None and batch > self.length:
            raise CheckpointError(f"{self.who} has {self.length} batches, but the state is after {batch} of the epoch")

    def batches(self, epoch: int, done: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, which counts from 1, after the first `done`."""
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
        """Make the batches on the host from now on, say so, and return whether there was a copy on the device."""
        host, self._host = self._host, None
        if host is None or not isinstance(self.source, Loader):
            return False
        self.source.dataset = host
        free_memory(self.where)
        size = f"{host.name}: {len(host)} images"
        self.tell(f"{size} do not fit into the memory of {self.where.name}; batches are made on the host")
        return True

"""Batches of a data set, which depend only on the seed and the indices of epoch and examples."""

import collections
import contextvars
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from xcnn._array import Array
from xcnn._check import flag, integer
from xcnn.data.augment import Augmentation
from xcnn.data.dataset import Dataset, to_float
from xcnn.data.draws import Draws
from xcnn.data.mapped import MapDataset, as_dataset
from xcnn.errors import UsageError

__all__ = ["Loader"]

Batch = tuple[Array, Array]


class Loader:
    """Iterate over a data set in batches (x, y) of new arrays, (n, ...) each.

    `x` of uint8 becomes float32 and is divided by 255, `x` of floating point keeps its values and dtype (`to_float`);
    `y` is int64 or floating point. The batches are on the device of the data set, and have the same bits on every
    device and for every number of workers.

    Calls of `batches(epoch, start)` are independent of each other. Each `iter(loader)` yields the next epoch.

    Parameters
    ----------
    dataset : a `Dataset`, on the host or on a device (`Dataset.to`); arrays (x, y), see `from_arrays`; or an object
        with `__len__` and `__getitem__(int) -> (x, y)`, see `MapDataset`.
    batch_size : examples per batch; the last batch may be smaller.
    shuffle : whether to draw a new order for each epoch; otherwise, the order is that of the data set.
    seed : seed of the order and the augmentation, 0 or more.
    drop_last : whether to leave out a last batch that is smaller than the others.
    augment : functions (x, y, draws) -> (x, y), applied to each batch in turn, which share the `Draws` of the batch.
        They take NumPy arrays, so the data set must be on the host. If a function has an argument `classes` without a
        default, it gets the number of classes of the data set.
    workers : the number of threads that make batches ahead; 0 makes each batch when it is asked for. They help where
        reading or decoding takes time. Data on a device need none.
    prefetch : the number of batches that may be ready ahead, beside one in the making for each worker.

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
        dataset: Any,
        batch_size: int = 64,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        augment: Sequence[Augmentation] = (),
        workers: int = 0,
        prefetch: int = 2,
    ) -> None:
        found = as_dataset(dataset)
        if found is None:
            kinds = "a Dataset, arrays (x, y), or an object with __len__ and __getitem__(int) -> (x, y)"
            raise UsageError(f"Loader: dataset must be {kinds}, got {type(dataset).__name__}")
        self.dataset: Dataset | MapDataset = found
        self.batch_size = integer("Loader", "batch_size", batch_size)
        self.shuffle = flag("Loader", "shuffle", shuffle)
        self.seed = integer("Loader", "seed", seed, minimum=0)
        self.drop_last = flag("Loader", "drop_last", drop_last)
        if drop_last and batch_size > len(found):
            raise UsageError(
                f"Loader: drop_last leaves no batch: {found.name} has {len(found)} examples, batch_size {batch_size}"
            )
        if not isinstance(augment, Sequence) or not all(map(callable, augment)):
            raise UsageError(f"Loader: augment takes a list of functions (see data.AUGMENTATIONS), got {augment!r}")
        if augment and found.device.xp is not np:
            raise UsageError(
                f"Loader: augment takes NumPy arrays, {found.name} is on {found.device.name}; leave it on the host"
            )
        self.augment = tuple(_knowing_classes(function, found) for function in augment)
        self.workers = integer("Loader", "workers", workers, minimum=0)
        self.prefetch = integer("Loader", "prefetch", prefetch, minimum=0)
        self.epoch = 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        yield from self.batches(epoch)
        self.epoch = epoch + 1

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on; both are counted from 0."""
        epoch, start = (integer("batches", *pair, minimum=0) for pair in (("epoch", epoch), ("start", start)))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset)) if self.shuffle else None
        make, numbers = functools.partial(self._batch, epoch, order), range(start, len(self))
        if self.workers and self.dataset.device.xp is np:
            yield from _ahead(make, numbers, self.workers, self.prefetch)
        else:
            yield from map(make, numbers)

    def _batch(self, epoch: int, order: npt.NDArray[np.int64] | None, number: int) -> Batch:
        """Return a batch of an epoch by its number."""
        start, stop = number * self.batch_size, min((number + 1) * self.batch_size, len(self.dataset))
        x, y = self.dataset.gather(slice(start, stop) if order is None else order[start:stop])
        with self.dataset.device.active():
            x = to_float(x)  # not before gathering: uint8 takes a quarter of the memory
        if self.augment:
            draws = Draws(self.seed, epoch, np.arange(start, stop) if order is None else order[start:stop])
            for function in self.augment:
                x, y = function(x, y, draws)
        return x, y

    @property
    def description(self) -> str:
        """What it yields, in words: "1,437 examples in shuffled batches of 64"."""
        order = "" if self.shuffle else ", in the order of the data set"
        return f"{len(self.dataset):,} examples in {'shuffled ' * self.shuffle}batches of {self.batch_size}{order}"

    def settings(self) -> dict[str, Any]:
        """Return the numbers that determine the batches, beside the functions of `augment`."""
        names = ("batch_size", "shuffle", "seed", "drop_last")
        return {"examples": len(self.dataset), **{name: getattr(self, name) for name in names}}


def _knowing_classes(function: Augmentation, dataset: Dataset | MapDataset) -> Augmentation:
    """Return an augmentation with the number of classes, if it asks for that."""
    try:
        wanted = inspect.signature(function).parameters.get("classes")
    except ValueError:  # some built-in functions have no signature
        return function
    if wanted is None or wanted.default is not wanted.empty:
        return function
    if not dataset.classes:
        name = getattr(function, "__name__", repr(function))
        raise UsageError(
            f"Loader: {name} needs the classes, {dataset.name} has no names of them; pass Dataset(classes=)"
        )
    return functools.partial(function, classes=len(dataset.classes))


def _ahead(make: Callable[[int], Batch], numbers: Sequence[int], workers: int, prefetch: int) -> Iterator[Batch]:
    """Yield `make(number)` in order, made ahead by threads; an exception is raised at its batch.

    When the iteration ends, in whatever way, no thread is left: each finishes the batch that it has begun.
    """
    rest = iter(numbers)
    pool = ThreadPoolExecutor(min(workers, max(1, len(numbers))), "xcnn-loader")
    coming: collections.deque[Future[Batch]] = collections.deque()
    try:
        while True:
            for number in itertools.islice(rest, workers + prefetch - len(coming)):
                # With the context of this thread, which includes the handling of floating-point errors.
                coming.append(pool.submit(contextvars.copy_context().run, make, number))
            if not coming:
                return
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

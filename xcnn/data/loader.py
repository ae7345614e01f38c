"""Batches of a data set, which depend only on the seed and the indices of epoch and examples."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from xcnn._array import Array
from xcnn._check import flag, integer
from xcnn.data._threads import ahead
from xcnn.data.augment import Augmentation
from xcnn.data.dataset import Dataset, to_float
from xcnn.data.draws import Draws
from xcnn.data.mapped import MapDataset, dataset_of
from xcnn.errors import UsageError, explained, wrong_call

__all__ = ["Loader"]

T = TypeVar("T")
Batch = tuple[Array, Array]
Order = npt.NDArray[np.int64] | None
Rows = Callable[[int], Sequence[tuple[int, int]]]


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
        They take NumPy arrays, so the data set must be on the host; `x` is float32 or float64, to which other floating
        point is converted. If a function has an argument `classes` without a default, or with the default None, it gets
        the number of classes of the data set; without a default, the data set must have names of them.
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

    @explained
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
        self.dataset = found = dataset_of("Loader", dataset)
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
        self.augment = tuple(_ready(function, found) for function in augment)
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

    def batches(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on, to before `stop`; all are counted from 0."""
        return self._yielded(functools.partial(self._batch, epoch), epoch, start, stop)

    def parts(self, epoch: int, start: int, rows: Rows) -> Iterator[tuple[int, list[Batch]]]:
        """Yield parts of the batches of an epoch from batch `start` on, for instance those of one of several processes.

        Only these are read and augmented, each by itself.

        Parameters
        ----------
        epoch, start : as in `batches`.
        rows : a function that returns for the number of examples of a batch where each part begins and ends.

        Yields
        ------
        The number of examples of a batch, and its parts (x, y).
        """
        return self._yielded(functools.partial(self._parts, rows, epoch), epoch, start, None)

    def _yielded(self, made: Callable[..., T], epoch: int, start: int, stop: int | None) -> Iterator[T]:
        """Yield what is made of the order of the examples and the number of a batch."""
        epoch, start = (integer("batches", *pair, minimum=0) for pair in (("epoch", epoch), ("start", start)))
        stop = len(self) if stop is None else integer("batches", "stop", stop, minimum=0)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset)) if self.shuffle else None
        make, numbers = functools.partial(made, order), range(start, min(stop, len(self)))
        if self.workers and self.dataset.device.xp is np:
            threads = min(self.workers, max(1, len(numbers)))
            yield from ahead(make, numbers, threads, self.workers + self.prefetch, "xcnn-loader")
        else:
            yield from map(make, numbers)

    def _batch(self, epoch: int, order: Order, number: int) -> Batch:
        """Return a batch of an epoch by its number."""
        return self._made(epoch, order, *self._range(number))

    def _parts(self, rows: Rows, epoch: int, order: Order, number: int) -> tuple[int, list[Batch]]:
        """Return the number of examples of a batch, and parts of it."""
        start, stop = self._range(number)
        return stop - start, [self._made(epoch, order, start + a, start + b) for a, b in rows(stop - start)]

    def _range(self, number: int) -> tuple[int, int]:
        return number * self.batch_size, min((number + 1) * self.batch_size, len(self.dataset))

    def _made(self, epoch: int, order: Order, start: int, stop: int) -> Batch:
        """Return the examples from place `start` to before `stop` in the order of an epoch."""
        x, y = self.dataset.gather(slice(start, stop) if order is None else order[start:stop])
        with self.dataset.device.active():
            x = to_float(x)  # not before gathering: uint8 takes a quarter of the memory
        if self.augment:
            draws = Draws(self.seed, epoch, np.arange(start, stop) if order is None else order[start:stop])
            if x.dtype not in (np.float32, np.float64):  # also if it is one of them in the byte order of others
                x = x.astype(np.float32 if x.dtype.itemsize <= 4 else np.float64)
            for function in self.augment:
                made: Any = function(x, y, draws)
                if not isinstance(made, tuple | list) or len(made) != 2:
                    got = f"{len(made)} values" if isinstance(made, tuple | list) else type(made).__name__
                    raise UsageError(f"Loader: {_named(function)} of augment must return (x, y), got {got}")
                x, y = made
        return x, y

    @property
    def description(self) -> str:
        """What it yields, in words: "1,437 examples in shuffled batches of 64"."""
        order = "" if self.shuffle else ", in the order of the data set"
        many = f"{len(self.dataset):,} example{'s' * (len(self.dataset) != 1)}"
        return f"{many} in {'shuffled ' * self.shuffle}batches of {self.batch_size}{order}"

    def settings(self) -> dict[str, Any]:
        """Return the numbers that determine the batches, beside the functions of `augment`."""
        names = ("batch_size", "shuffle", "seed", "drop_last")
        return {"examples": len(self.dataset), **{name: getattr(self, name) for name in names}}


def _ready(function: Augmentation, dataset: Dataset | MapDataset) -> Augmentation:
    """Return an augmentation with the number of classes, if it asks for that, after checking that it can be called."""
    try:
        wanted = inspect.signature(function).parameters.get("classes")
    except ValueError:  # some built-in functions have no signature, and partial ones of wrong arguments
        wanted = None
    if wanted is not None and (wanted.default is None or wanted.default is wanted.empty):
        if dataset.classes:
            function = functools.partial(function, classes=len(dataset.classes))
        elif wanted.default is wanted.empty:
            raise UsageError(
                f"Loader: {_named(function)} needs the classes, {dataset.name} has no names of them; "
                "pass Dataset(classes=)"
            )
    called, first, options = (
        (function.func, function.args, function.keywords)
        if isinstance(function, functools.partial)
        else (function, (), {})
    )
    if wrong := wrong_call(f"Loader: {_named(function)}", called, (*first, None, None, None), options):
        raise UsageError(f"{wrong}; an augmentation is a function (x, y, draws) -> (x, y)")
    return function


def _named(function: Any) -> str:
    """Return the name of a function, of which options may be set, or of the class of an object that is called."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)

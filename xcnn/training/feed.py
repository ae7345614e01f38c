"""Turn data into batches of arrays on the device, for training, evaluation and prediction."""

import collections.abc
import contextlib
import copy
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from numbers import Number
from types import ModuleType
from typing import Any

import numpy as np

from xcnn._array import Array, is_array, is_kind, namespace_of
from xcnn.data import Dataset, Loader, to_float
from xcnn.data.dataset import check_scaled, check_unmasked
from xcnn.data.lazy import is_lazy, is_like_array, is_table, read
from xcnn.data.mapped import as_dataset
from xcnn.devices import Device, free_memory, to_numpy
from xcnn.errors import CheckpointError, DataError, OutOfMemoryError, ShapeError, UsageError
from xcnn.nn import Module
from xcnn.training.memory import memory_error, ran_out
from xcnn.training.parts import Cut, Parts
from xcnn.training.processes import ALONE, Processes

__all__ = ["Batch", "Batches", "Data", "Feed", "as_array", "batches", "dtype_of", "in_order", "inputs", "place"]

Batch = tuple[Any, Any]
Batches = Loader | Iterable[Batch]
Data = Any
"""What `fit` and `evaluate` take.

- Read in any order: a `Loader`; a `Dataset`; arrays (x, y), also lazy ones, as `data.from_arrays` takes them; or an
  object with `__len__` and `__getitem__(int)` that returns (x, y), see `data.MapDataset`.
- Read as it comes: a list, a tuple, an iterator or another iterable of batches (x, y).
"""

_MOST_BYTES = 1 << 30
"""The largest data set that is copied to the device."""

_CPU = 1
"""The host's number as a device in DLPack, and so in the array API."""


def batches(who: str, data: Any, where: Device) -> Batches:
    """Return batches to train on; a data set is shuffled with seed 0, in batches of 64. `who` begins errors."""
    if not isinstance(data, Loader):
        # Batches are a list, an iterator, or a tuple that is not a pair of arrays; other sequences have items.
        found = None if isinstance(data, list | Iterator) else as_dataset(data)
        if found is None and isinstance(data, tuple) and data and (is_array(data[0]) or is_like_array(data[0])):
            kinds = ", ".join(type(one).__name__ for one in data)
            raise UsageError(f"{who} must be a pair of arrays (x, y) or batches (x, y), got a tuple of {kinds}")
        data = data if found is None else Loader(found)
    if isinstance(data, Loader):
        if data.dataset.device.xp is not np and data.dataset.device != where:
            there = data.dataset.device.name
            raise UsageError(f"{who} is on {there}, the network is on {where.name}; put both on the same device")
        return data
    wrong = is_array(data) or is_like_array(data) or is_table(data) or isinstance(data, str | bytes | Mapping)
    if wrong or not isinstance(data, Iterable):
        kinds = "a Loader, a Dataset, arrays (x, y), an object with __len__ and __getitem__, or batches (x, y)"
        raise UsageError(f"{who} must be {kinds}, got {type(data).__name__}")
    return data


def in_order(
    who: str, data: Data, batch_size: int, where: Device, targets: bool = True, parallel: Processes = ALONE
) -> tuple[Generator[Batch, None, None], bool]:
    """Return batches to evaluate: every example of a data set once, in order, without augmentation.

    The batches of a data set are dealt out to the processes, consecutive ones to each. Whether they are is returned,
    too: those of an iterable come to all.
    """
    made = batches(who, data, where)
    if not isinstance(made, Loader):
        return _pairs(who, made, targets), False
    made = Loader(made.dataset, batch_size, shuffle=False, workers=made.workers, prefetch=made.prefetch)
    mine = parallel.mine(len(made))
    return _pairs(who, made.batches(0, mine.start, mine.stop), targets), parallel.size > 1


def _pairs(who: str, made: Iterable[Any], targets: bool = True) -> Generator[Batch, None, None]:
    """Yield batches, checking that each is a pair; or, without `targets`, that it is x, perhaps with others."""
    for batch in made:
        several = isinstance(batch, tuple | list)
        if not targets and (is_array(batch) or (several and len(batch) == 1)):
            yield batch[0] if several else batch, None
            continue
        if not several or len(batch) != 2:
            unmade = is_array(batch) or (several and not any(map(is_array, batch)))
            hint = "; pass NumPy arrays as a tuple (x, y)" if targets and unmade else ""
            if isinstance(batch, Dataset):
                hint = "; pass one of the data sets"
            got = f"a {type(batch).__name__} of {len(batch)}" if several else type(batch).__name__
            raise UsageError(f"{who} must yield batches {'(x, y)' if targets else 'x or (x, y)'}, got {got}{hint}")
        if isinstance(batch[1], Number) or getattr(batch[1], "shape", None) == ():
            fix = "pass examples as data.MapDataset of a list of them, or collect them in batches"
            raise UsageError(f"{who} must yield batches (x, y), but y is the single number {batch[1]}; {fix}")
        yield batch[0], batch[1]


def inputs(
    who: str, x: Any, batch_size: int, where: Device, parallel: Processes = ALONE
) -> tuple[Generator[Array, None, None], bool]:
    """Return what `predict` takes in batches, uint8 divided by 255, and whether they are dealt out to the processes."""
    if is_table(x) or (isinstance(x, list) and not (x and isinstance(x[0], tuple))):  # which would be batches (x, y)
        x = as_array(x)
    if is_array(x) or is_like_array(x):
        return _blocks(who, x, batch_size, parallel), parallel.size > 1
    made, divided = in_order(who, x, batch_size, where, targets=False, parallel=parallel)
    return (x for x, _ in made), divided


def _blocks(who: str, x: Any, batch_size: int, parallel: Processes) -> Generator[Array, None, None]:
    """Yield the batches of an array, uint8 divided by 255."""
    if len(x.shape) == 0 or x.shape[0] == 0:
        raise ShapeError(f"{who} must be (n, ...) with n of at least 1, got {tuple(x.shape)}")
    if isinstance(x, np.ndarray):
        check_scaled(who.partition(":")[0], x, "uint8, or a Dataset if they are correct")
    for k in parallel.mine(-(-x.shape[0] // batch_size)):
        places = slice(k * batch_size, min((k + 1) * batch_size, x.shape[0]))
        part = read(x, places) if is_like_array(x) and is_lazy(x) else x[places, ...]
        yield to_float(part) if part.dtype == namespace_of(part).uint8 else part


def dtype_of(model: Module) -> Any:
    """Return the dtype of the weights of a model, None if it has none."""
    return next((parameter.data.dtype for parameter in model.parameters()), None)


def place(array: Any, where: Device, dtype: Any = None) -> Array:
    """Return a list or an array of the host on the device; an array of the device's library stays where it is.

    Floating point is converted to `dtype`, if given: the dtype of the model wins. A read-only array is copied, as
    compiled kernels would be compiled again for it.
    """
    array = as_array(array)
    xp = namespace_of(array)
    if xp is not np and xp is not where.xp:
        if array.__dlpack_device__()[0] != _CPU:
            there = f"{type(array).__name__} is on another device"
            raise UsageError(f"the {there} than the network, {where.name}; put both on the same device")
        array, xp = to_numpy(array), np  # such as a batch of PyTorch's DataLoader
    if xp is np:
        wanted = dtype if where.xp is np else _host_dtype(where.xp, dtype)
        if wanted is not None and array.dtype.kind == "f" and array.dtype != wanted:
            with np.errstate(over="ignore"):  # infinite numbers are reported by the loss
                array = array.astype(wanted)
        if where.xp is np:
            return array if array.flags.writeable else array.copy()
        array = where.asarray(array)
    if dtype is not None and array.dtype != dtype and is_kind(where.xp, array.dtype, "real floating"):
        array = where.xp.astype(array, dtype)
    return array


@functools.cache
def _host_dtype(xp: ModuleType, dtype: Any) -> Any:
    """Return the dtype of NumPy that is that of another library, or None if NumPy lacks it."""
    known = xp.__array_namespace_info__().dtypes()
    name = next((name for name, one in known.items() if one == dtype), None)
    return None if name is None else np.dtype(name)


def as_array(value: Any) -> Array:
    """Return a list or a table as a NumPy array, and an array of any library as it is."""
    if type(value) is np.ndarray:
        return value
    try:
        value = np.asarray(value) if isinstance(value, list | tuple) or is_table(value) else value
        namespace_of(value)
    except ValueError:
        raise UsageError(f"x and targets must be arrays, got a {type(value).__name__} of unequal shapes") from None
    except TypeError:
        raise UsageError(f"x and targets must be arrays, got {type(value).__name__}") from None
    check_unmasked("an array of a batch", value)
    return value


class Feed:
    """The batches of one `fit`.

    A data set in memory that is not augmented and not too large is copied to the device for the lifetime of the feed,
    in the `dtype` of the model if it is floating point. If memory runs out, the copy is freed and batches are made on
    the host. The bits are the same either way.

    `who` is the function and its argument, for errors; `tell` is called if the data set does not fit on the device;
    `epochs` is how often the data will be read.

    Attributes
    ----------
    source : the `Loader`, or the iterable of batches.
    length : the number of batches of an epoch; None if it is unknown.
    """

    def __init__(
        self,
        who: str,
        data: Data,
        where: Device,
        tell: Callable[[str], object],
        dtype: Any = None,
        epochs: int = 1,
    ) -> None:
        self.who, self.where, self.tell = who, where, tell
        self.source = batches(who, data, where)
        if epochs > 1 and isinstance(self.source, Generator | zip | map):
            fix = "pass a list of batches, or an object whose __iter__ begins anew"
            raise DataError(f"{who} is a {type(data).__name__}, whose batches come once, for {epochs} epochs; {fix}")
        self._host: Dataset | None = None  # of which the device has a copy
        self.settings = self.source.settings() if isinstance(self.source, Loader) else None
        self.length: int | None = None
        with contextlib.suppress(TypeError):  # a DataLoader of PyTorch has __len__ also where there is no length
            self.length = len(self.source) if isinstance(self.source, collections.abc.Sized) else None
        if not isinstance(self.source, Loader) or self.source.augment or where.xp is np:
            return
        dataset, moved = self.source.dataset, copy.copy(self.source)
        if not isinstance(dataset, Dataset) or dataset.lazy or dataset.device.xp is not np:
            return
        if dataset.x.nbytes + dataset.y.nbytes <= _MOST_BYTES:
            try:
                kind = None if dtype is None else _host_dtype(where.xp, dtype)
                moved.dataset = (dataset if kind is None else dataset.astype(kind)).to(where)
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

    def fingerprint(self) -> str:
        """Return a SHA-256 of a data set in memory; "" for other data, which would have to be read for it."""
        dataset = self.source.dataset if isinstance(self.source, Loader) else None
        return dataset.fingerprint() if isinstance(dataset, Dataset) and not dataset.lazy else ""

    @property
    def description(self) -> str:
        """What `fit` reads, in words: "1,437 examples in shuffled batches of 64", or how many batches, as they come."""
        if isinstance(self.source, Loader):
            return self.source.description
        return f"{'' if self.length is None else f'{self.length:,} '}batches, in the order in which they come"

    def batches(self, epoch: int, done: int, cut: Cut) -> Generator[Parts, None, None]:
        """Yield the batches of an epoch (counted from 1) after the first `done`, cut into parts."""
        if not isinstance(self.source, Loader):
            for x, y in itertools.islice(_pairs(self.who, self.source), done, None):
                x, y = as_array(x), as_array(y)
                self._check_alike(len(x) if x.ndim else 1, cut.processes)
                yield cut.parts(x, y)
            self._check_alike(-1, cut.processes)
            return
        while done < len(self.source):
            try:
                for batch in self._read(epoch - 1, done, cut):
                    yield batch
                    done += 1
            except Exception as error:
                if not ran_out(error, self.where):
                    raise
            else:
                return
            if not self.give_up():
                raise memory_error((self.source.batch_size, *self.source.dataset.shape), self.where)

    def _check_alike(self, samples: int, processes: Processes) -> None:
        """Refuse to go on if the next batches of the processes differ in length; -1 where there is none."""
        if processes.size > 1:
            found = [int(one[0]) for one in processes.gather(np.asarray([samples], np.int64))]
            other = next((one for one in found if one != found[0]), None)
            if other is not None:
                sizes = " and ".join("none" if one < 0 else f"one of {one} examples" for one in (found[0], other))
                raise UsageError(f"{self.who}: the next batches of the processes differ: {sizes}; give all the same")

    def _read(self, epoch: int, done: int, cut: Cut) -> Iterator[Parts]:
        assert isinstance(self.source, Loader)
        if cut.whole:
            return (cut.parts(x, y) for x, y in self.source.batches(epoch, done))
        return (cut.made(n, pairs) for n, pairs in self.source.parts(epoch, done, cut.rows))

    def give_up(self) -> bool:
        """Make batches on the host from now on, report it, and return whether there was a copy on the device."""
        host, self._host = self._host, None
        if host is None or not isinstance(self.source, Loader):
            return False
        self.source.dataset = host
        free_memory(self.where)
        size = f"{host.name}: {len(host)} examples"
        self.tell(f"{size} do not fit into the memory of {self.where.name}; batches are made on the host")
        return True

"""`MapDataset`: a data set of any object with a length and items (x, y), as the map-style data sets of PyTorch.

And what serves both kinds of data sets: `as_dataset`, `dataset_of` and `split`.
"""

import collections.abc
import copy
from collections.abc import Sequence
from numbers import Number
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from xcnn._array import is_array
from xcnn._check import integer, number
from xcnn.data._threads import check_wanted
from xcnn.data.dataset import Dataset, chosen_places, from_arrays, how_to_convert
from xcnn.data.lazy import is_like_array, is_table, places_of
from xcnn.devices import Device, to_numpy
from xcnn.devices import device as open_device
from xcnn.errors import DataError, DtypeError, ShapeError, UsageError, explained

__all__ = ["MapDataset", "as_dataset", "dataset_of", "split"]


class MapDataset:
    """The examples of any object with `__len__` and `__getitem__(int)` that returns (x, y), read when needed.

    `Loader`, `fit`, `evaluate` and `predict` wrap such objects themselves. With workers, `__getitem__` is called from
    several threads. Randomness inside it is its own: only that of `Loader(augment=)` belongs to seed, epoch and index.

    Parameters
    ----------
    source : the object. `x` and `y` are arrays of any library on the host, or numbers: `x` is uint8, which a `Loader`
        divides by 255, or floating point, and has an axis or more; `y` is integers or floating point. All examples are
        of one shape and kind. Its `classes`, if they are a list of names, are those of the data set.
    name : name of the data set in errors and tables; by default, that of the class of `source`.

    Raises
    ------
    DataError, DtypeError, ShapeError, UsageError
        If `source` is no such object, is empty, or its first example is not as above.

    Examples
    --------
    >>> class Squares:
    ...     def __len__(self):
    ...         return 10
    ...     def __getitem__(self, k):
    ...         return np.full((1, 8), k, np.float32), k * k
    >>> x, y = MapDataset(Squares()).gather(np.asarray([1, 3]))
    >>> x.shape, y
    ((2, 1, 8), array([1, 9]))
    """

    @explained
    def __init__(self, source: Any, name: str | None = None) -> None:
        if (
            _whole(source)
            or isinstance(source, str | bytes | collections.abc.Mapping)
            or not all(hasattr(source, method) for method in ("__len__", "__getitem__"))
        ):
            raise UsageError(
                f"MapDataset: source must have __len__ and __getitem__(int) -> (x, y), got {type(source).__name__}"
            )
        self.source = source
        self.name = type(source).__name__ if name is None else name
        self._index: npt.NDArray[np.int64] | None = None  # of the examples of a part
        if len(self) == 0:
            raise DataError(f"{self.name}: the data set is empty; it needs at least one example")
        x, y = self._example(0)
        self._kinds = (x.dtype, x.shape), (y.dtype, y.shape)
        classes = getattr(source, "classes", ())
        named = isinstance(classes, Sequence) and all(isinstance(one, str) for one in classes)
        self.classes = tuple(classes) if named and not isinstance(classes, str) else ()

    def __len__(self) -> int:
        return len(self.source) if self._index is None else len(self._index)

    def __getitem__(self, index: slice | npt.NDArray[Any] | Sequence[int]) -> "MapDataset":
        places = chosen_places(self.name, len(self), index)
        made = copy.copy(self)
        made._index = places if self._index is None else self._index[places]
        if not len(made):
            raise DataError(f"{self.name}: the data set is empty; it needs at least one example")
        return made

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"<MapDataset {self.name}: {len(self):,} examples {shape} {self._kinds[0][0]}>"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self._kinds[0][1]

    @property
    def device(self) -> Device:
        """The CPU: examples are read on the host."""
        return open_device("cpu")

    @property
    def lazy(self) -> bool:
        """Whether examples are read when they are needed, which is so."""
        return True

    def gather(self, places: slice | npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return some examples and targets as new arrays; see `Dataset.gather`.

        Raises
        ------
        DtypeError, ShapeError, UsageError
            If an example is not as the first one; the error has its index.
        """
        index = places_of(places, len(self))
        pairs = []
        for k in index if self._index is None else self._index[index]:
            check_wanted()
            pair = self._example(int(k))
            pairs.append(pair)
            for name, array, (dtype, shape) in zip("xy", pair, self._kinds, strict=True):
                if array.shape != shape:
                    raise ShapeError(
                        f"{self.name}: {name} of example {k} has shape {array.shape}, that of example 0 has {shape}; "
                        "make all of one shape (crop, resize or pad them)"
                    )
                if array.dtype != dtype:
                    raise DtypeError(
                        f"{self.name}: {name} of example {k} is {array.dtype}, that of example 0 is {dtype}; "
                        "return one dtype"
                    )
        x, y = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
        return x, y

    def _example(self, k: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return an example as arrays on the host, after checking what they are."""
        try:
            pair = self.source[k]
        except IndexError as error:  # which ends a loop over the object, so that it would not be seen as an error
            n = len(self.source)
            raise DataError(f"{self.name}: example {k} of {n} cannot be read: IndexError ({error})") from error
        except Exception as error:
            error.add_note(f"{self.name}: this is example {k} of {len(self.source)}")
            raise
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            got = f"{len(pair)} values" if isinstance(pair, tuple | list) else type(pair).__name__
            raise UsageError(f"{self.name}: example {k} must be a pair (x, y), got {got}")
        x, y = (self._array(name, value, k) for name, value in zip("xy", pair, strict=True))
        if x.dtype != np.uint8 and x.dtype.kind != "f":
            raise DtypeError(
                f"{self.name}: x of example {k} must be uint8 or floating point, got {x.dtype}; "
                f"return {how_to_convert(x.dtype)}"
            )
        if y.dtype.kind not in "iuf":
            raise DtypeError(f"{self.name}: y of example {k} must be integers or floating point, got {y.dtype}")
        if x.ndim < 1 or x.size == 0:
            raise ShapeError(f"{self.name}: x of example {k} must have an axis or more of at least 1, got {x.shape}")
        return x, y if y.dtype.kind == "f" else y.astype(np.int64, copy=False)

    def _array(self, name: str, value: Any, k: int) -> npt.NDArray[Any]:
        if isinstance(value, np.ndarray | np.generic | Number | list | tuple):
            try:
                return np.asarray(value)
            except ValueError:  # lists of unequal lengths
                pass
        elif is_array(value):
            return to_numpy(value)
        raise DtypeError(
            f"{self.name}: {name} of example {k} must be an array or a number, got {type(value).__name__}; "
            "convert it in __getitem__"
        )


def as_dataset(data: Any) -> Dataset | MapDataset | None:
    """Return a data set of what can be read in any order: itself, arrays (x, y), or a map-style object; else None."""
    if isinstance(data, Dataset | MapDataset):
        return data
    if (
        isinstance(data, tuple)
        and len(data) == 2
        and _whole(data[0])
        and (_whole(data[1]) or isinstance(data[1], list))
    ):
        return from_arrays(*data)
    if isinstance(data, tuple | str | bytes | collections.abc.Mapping) or _whole(data):
        return None
    return MapDataset(data) if hasattr(data, "__len__") and hasattr(data, "__getitem__") else None


def dataset_of(caller: str, value: Any) -> Dataset | MapDataset:
    """Return a data set of what can be read in any order, or raise a UsageError."""
    found = as_dataset(value)
    if found is None:
        got = type(value).__name__
        if isinstance(value, tuple):
            got = f"a tuple of {', '.join(type(one).__name__ for one in value)}"
        kinds = "a Dataset, arrays (x, y), or an object with __len__ and __getitem__(int) -> (x, y)"
        raise UsageError(f"{caller}: dataset must be {kinds}, got {got}")
    return found


Kind = TypeVar("Kind", Dataset, MapDataset)


def _whole(value: Any) -> bool:
    """Return whether a value has the x or the y of all examples."""
    return is_array(value) or is_like_array(value) or is_table(value)


@overload
def split(dataset: Kind, fraction: float, seed: int) -> tuple[Kind, Kind]: ...


@overload
def split(dataset: Any, fraction: float, seed: int) -> tuple[Any, Any]: ...


@explained
def split(dataset: Any, fraction: float, seed: int) -> tuple[Any, Any]:
    """Split a data set into (rest, held_out) at random, for validation. Both keep the order of the data set.

    They are a `Dataset` each, or a `MapDataset` each for an object with `__len__` and `__getitem__`.

    Parameters
    ----------
    dataset : what a `Loader` takes. If its data are read when needed, the parts hold only indices.
    fraction : the fraction of the examples to hold out, above 0 and below 1.
    seed : seed of the random choice, 0 or more.

    Raises
    ------
    UsageError
        If an argument is out of range, or one of the parts would be empty.

    Examples
    --------
    >>> d = from_arrays(np.zeros((10, 1, 8, 8)), np.arange(10))
    >>> [len(part) for part in split(d, 0.2, seed=0)]
    [8, 2]
    """
    found = dataset_of("split", dataset)
    held = round(number("split", "fraction", fraction, "(0, 1)") * len(found))
    if held in (0, len(found)):
        raise UsageError(f"split: {fraction} of {len(found)} examples leaves a part empty")
    order = np.random.default_rng(integer("split", "seed", seed, minimum=0)).permutation(len(found))
    return found[np.sort(order[held:])], found[np.sort(order[:held])]

"""Rows that are read when they are needed: of files mapped into memory, and of objects that make them, as by decoding.

A lazy array is any object with `shape`, `dtype` and `x[places]`, which returns the rows at a slice or at increasing
indices as a NumPy array. HDF5 data sets are such objects. It may have a method `fingerprint`, see `fingerprint`.
"""

import hashlib
import mmap
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from xcnn._array import is_array
from xcnn._check import is_integer
from xcnn.errors import DataError

__all__ = ["LazyArray", "Rows", "fingerprint", "is_lazy", "is_like_array", "is_table", "places_of", "read"]

_SAMPLES = 64
"""The rows of a lazy array that enter its fingerprint."""

_RESIDENT = 64 << 20
"""The bytes of a mapped file that may stay in memory until all rows that are wanted have been read."""

_AT_ONCE = 16
"""The fewest rows of a larger file that are read before its pages are given back; each may bring in 2 MiB."""

_PARTS = 64
"""The most parts in which rows are read, as it takes time to give back pages."""

Places = slice | npt.NDArray[Any]


class LazyArray(Protocol):
    """An array whose rows are read when they are needed; see the module."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, with the number of rows first."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the rows."""

    def __getitem__(self, places: Any, /) -> npt.NDArray[Any]:
        """Return the rows at `places`, a slice or increasing indices. Workers call it from several threads."""


class Rows:
    """Some rows of a lazy array, by their indices; itself a lazy array."""

    def __init__(self, source: Any, index: npt.NDArray[np.int64]) -> None:
        of_rows = isinstance(source, Rows)
        self.source: LazyArray = source.source if of_rows else source
        self.index: npt.NDArray[np.int64] = source.index[index] if of_rows else index
        self.shape, self.dtype = (len(index), *source.shape[1:]), np.dtype(source.dtype)

    def __getitem__(self, places: Places) -> npt.NDArray[Any]:
        return read(self.source, self.index[places])

    def fingerprint(self) -> str:
        """Return the fingerprint of the whole array and of the indices."""
        return fingerprint(self.source) + fingerprint(self.index)


def places_of(index: Any, length: int) -> npt.NDArray[np.int64]:
    """Return the places from 0 in a sequence that a slice, an index or an array of indices or bools chooses.

    That is `numpy.arange(length)[index]`, without making as many numbers as the sequence is long.

    Raises
    ------
    IndexError, TypeError, ValueError
        If `index` is something else, or is outside of the sequence.
    """
    if isinstance(index, slice):
        return np.arange(*index.indices(length))
    chosen = np.asarray(index)
    if chosen.dtype == bool and chosen.shape == (length,):
        return np.flatnonzero(chosen)
    if chosen.dtype.kind not in "iu" and (chosen.size or chosen.ndim != 1):
        raise IndexError(f"{chosen.dtype} {chosen.shape} for a length of {length}")
    wrong = chosen[(chosen < -length) | (chosen >= length)]
    if wrong.size:
        raise IndexError(f"index {wrong.flat[0]} is out of bounds for a length of {length}")
    places = chosen.astype(np.int64)
    places += length * (places < 0)
    return places


def is_like_array(value: Any) -> bool:
    """Return whether a value is a NumPy array or may be a lazy one, not an array of another library or a table."""
    if is_array(value):
        return isinstance(value, np.ndarray)
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    described = isinstance(shape, tuple) and all(map(is_integer, shape)) and isinstance(dtype, np.dtype)
    return described and hasattr(value, "__getitem__") and not is_table(value)


def is_table(value: Any) -> bool:
    """Return whether a value is a table or a column of one, as of pandas and Polars, which NumPy makes an array of."""
    return hasattr(value, "to_numpy")


def is_lazy(array: Any) -> bool:
    """Return whether the rows of an array are not in memory: it is no NumPy array, or it maps a file."""
    return not isinstance(array, np.ndarray) or _mapping(array) is not None


def _mapping(array: Any) -> Any:
    """Return the array that maps the file of which this array is a part; None if it is in memory."""
    while array is not None:
        base: Any = getattr(array, "base", None)
        if isinstance(base, mmap.mmap) and isinstance(array, np.memmap):
            return array
        array = base
    return None


def read(array: Any, places: Places) -> npt.NDArray[Any]:
    """Return rows of an array, lazy or not, as a new array.

    The pages of a mapped file are given back at once, as they would otherwise stay in the memory of the process.

    Raises
    ------
    DataError
        If a lazy array returns something else than such rows.
    """
    if isinstance(array, np.ndarray):
        mapping = _mapping(array)
        if mapping is None or mapping.mode == "c" or not hasattr(mmap.mmap, "madvise"):
            return _rows(array, places)
        if isinstance(places, slice) or array.nbytes <= _RESIDENT:
            rows = _rows(array, places)
            mapping.base.madvise(mmap.MADV_DONTNEED)  # what was written to a shared mapping ("r+") stays in the file
            return rows
        rows = np.empty((len(places), *array.shape[1:]), array.dtype)
        order = np.argsort(places, kind="stable")  # so that few pages are brought in twice
        for part in np.array_split(order, min(_PARTS, -(-len(places) // _AT_ONCE)) or 1):
            rows[part] = _rows(array, places[part])
            mapping.base.madvise(mmap.MADV_DONTNEED)
        return rows
    if isinstance(places, slice):
        return _checked(array, array[places], len(range(*places.indices(array.shape[0]))))
    order = np.argsort(places, kind="stable")
    rows = _checked(array, array[places[order]], len(places))
    found = np.empty_like(rows)
    found[order] = rows
    return found


def _rows(array: npt.NDArray[Any], places: Places) -> npt.NDArray[Any]:
    """Return rows of an array of NumPy as a new array."""
    if isinstance(places, slice):
        return np.array(array[places], subok=False)
    return np.take(np.asarray(array), places, axis=0)


def _checked(array: Any, rows: Any, count: int) -> npt.NDArray[Any]:
    """Return the rows that a lazy array returned, which the caller may change."""
    kind, shape = np.dtype(array.dtype), (count, *array.shape[1:])
    if not isinstance(rows, np.ndarray) or rows.dtype != kind or rows.shape != shape:
        got = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise DataError(f"{type(array).__name__}: {count} rows must be a NumPy array, {kind} {shape}, got {got}")
    return rows if rows.flags.writeable and rows.base is None else np.array(rows, subok=False)


def fingerprint(array: Any) -> str:
    """Return a SHA-256 that differs if the arrays differ, for resuming.

    It is that of shape, dtype and content; of a lazy array, that of shape, dtype and what its own method `fingerprint`
    returns, a string, or without one, of 64 rows that are spread evenly over it.
    """
    content = hashlib.sha256(f"{tuple(array.shape)} {np.dtype(array.dtype).str}".encode())
    if callable(own := getattr(array, "fingerprint", None)):
        content.update(str(own()).encode())
    else:
        n = array.shape[0]
        places = np.unique(np.linspace(0, n - 1, min(n, _SAMPLES)).astype(np.int64))
        rows = read(array, places) if is_lazy(array) else array
        content.update(np.ascontiguousarray(rows).data)
    return content.hexdigest()

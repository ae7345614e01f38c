"""`Dataset`: examples x with targets y, checked once, in memory, read when needed, or on a device."""

import contextlib
import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from xcnn._array import Array, full, is_array, is_kind, namespace_of
from xcnn.data.lazy import Rows, fingerprint, is_lazy, is_like_array, is_table, places_of, read
from xcnn.devices import Device, free_memory, on_host, out_of_memory, to_numpy
from xcnn.devices import device as open_device
from xcnn.errors import DataError, DtypeError, OutOfMemoryError, ShapeError, UsageError, explained

__all__ = [
    "IGNORED",
    "Dataset",
    "check_scaled",
    "check_unmasked",
    "chosen_places",
    "from_arrays",
    "how_to_convert",
    "to_float",
]

IGNORED = -100
"""The class index that losses ignore, unless they are told another one."""

_MOST_CLASSES = 100_000
"""A larger label means that the classes are not numbered 0, 1, 2, ..."""

_MOST_SCALED = 16
"""Whole float pixels above this are probably not scaled; scikit-learn's digits reach it."""

_LOOKED_AT = 256
"""The number of images that are looked at to tell whether they are scaled."""


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Examples with targets. `len(d)` is their number; `d[slice or index array]` is a smaller data set.

    What a target is, the loss says: class indices (N,) or, per pixel, (N, H, W); numbers (N,) or (N, k); ...

    An array may be *lazy*: a file that is mapped into memory (`numpy.load(path, mmap_mode="r")`), or an object with
    `shape`, `dtype` and `x[places]`, see `data.LazyArray`. Its rows are read when they are needed and never all at
    once, so its values are not checked, and the data set stays on the host. A part of it holds only indices.

    Parameters
    ----------
    x : (N, ...), two or more axes: uint8, which a `Loader` divides by 255, or floating point, which it does not scale.
        Images are (N, C, H, W), signals (N, C, L), volumes (N, C, D, H, W).
    y : (N, ...), integers, which become int64, or floating point.
    classes : the name of each class, a list or an array, if the targets are classes. Then `y` is integers in
        0..len(classes)-1, or -100, which the losses ignore; or floating point (N, len(classes), ...), a number for
        each class.
    name : name of the data set in errors and tables.

    Raises
    ------
    DataError, DtypeError, ShapeError, UsageError
        If an argument is not as above, there is no example, or floating-point arrays in memory are not finite.

    Examples
    --------
    >>> d = Dataset(np.zeros((3, 1, 8, 8), np.uint8), np.asarray([0, 1, 1]), ("cat", "dog"), "pets")
    >>> len(d), d.shape, len(d[1:])
    (3, (1, 8, 8), 2)
    >>> Dataset(np.zeros((5, 2, 100)), np.zeros(5), name="signals")
    <Dataset signals: 5 examples 2x100 float64, targets float64>
    """

    x: Array
    y: Array
    classes: tuple[str, ...] = ()
    name: str = "arrays"
    _device: ClassVar[Device | None] = None  # None for the host; `to` sets it on its result

    def __post_init__(self) -> None:
        classes: Any = self.classes
        if isinstance(classes, np.ndarray) or is_table(classes):
            classes = np.asarray(classes).tolist()
        if (
            not isinstance(classes, Sequence)
            or isinstance(classes, str)
            or not all(isinstance(c, str) for c in classes)
        ):
            raise UsageError(f"{self.name}: classes must be a list of names, got {self.classes!r}")
        object.__setattr__(self, "classes", tuple(classes))
        x, y = _checked(self.name, "x", self.x), _checked(self.name, "y", self.y)
        if x.dtype != np.uint8 and x.dtype.kind != "f":
            raise DtypeError(
                f"{self.name}: x must be uint8 or floating point, got {x.dtype}; pass {how_to_convert(x.dtype)}"
            )
        if y.dtype.kind not in "iuf":
            fix = "number classes 0, 1, 2, ..."
            if y.dtype.kind == "b":
                fix = "pass y.astype('int64') for two classes, y.astype('float32') for labels of yes or no"
            elif y.dtype.kind in "OSTU":
                fix = "number classes by names, y = numpy.unique(y, return_inverse=True)"
                fix += "; if they are integers, pass y.astype('int64')" * (y.dtype.kind == "O")
            raise DtypeError(f"{self.name}: y must be integers or floating point, got {y.dtype}; {fix}")
        if len(x.shape) < 2 or 0 in x.shape[1:]:
            raise ShapeError(f"{self.name}: x must be (N, ...), two or more axes of at least 1, got {x.shape}")
        if len(y.shape) < 1 or y.shape[0] != x.shape[0]:
            raise ShapeError(f"{self.name}: y must have one target per example, got {y.shape} for {len(self)} examples")
        self._check_filled()
        if isinstance(y, np.ndarray) and not is_lazy(y):
            self._check_targets(y)
            if y.dtype.kind != "f":
                object.__setattr__(self, "y", y.astype(np.int64, copy=False))
        for name, array in (("x", x), ("y", y)):
            if isinstance(array, np.ndarray) and not is_lazy(array) and array.dtype.kind == "f" and array.size:
                self._check_finite(name, array)

    def _check_finite(self, name: str, array: npt.NDArray[Any]) -> None:
        if math.isfinite(array.min()) and math.isfinite(array.max()):  # NaN if there is one
            return
        with np.errstate(over="ignore"):  # longdouble has numbers that are infinite for any network
            wrong = ~np.isfinite(array if array.dtype.itemsize <= 8 else array.astype(np.float64))
        first = tuple(map(int, np.unravel_index(wrong.argmax(), wrong.shape)))
        got = f"{name}{list(first)} is {array[first]}, one of {np.count_nonzero(wrong):,} that are not"
        raise DataError(f"{self.name}: float {name} must be finite, without NaN, but {got}")

    def _check_targets(self, y: npt.NDArray[Any]) -> None:
        """Check targets in memory against the classes, if there are any."""
        k = len(self.classes)
        if not k or not y.size:
            return
        if y.dtype.kind == "f":
            if y.ndim < 2 or y.shape[1] != k:
                raise ShapeError(
                    f"{self.name}: float y must be (N, {k}), a number for each of the {k} classes, got {y.shape}; "
                    "number the classes 0, 1, 2, ..., or leave out the classes for regression"
                )
            return
        first, last = int(y.min()), int(y.max())
        if first < 0:
            known = y[y != IGNORED]
            first = int(known.min()) if known.size else 0
        if first < 0 or last >= k:
            raise DataError(f"{self.name}: labels run from {first} to {last}; {k} classes allow 0 to {k - 1}")

    def _check_filled(self) -> None:
        if len(self) == 0:
            raise DataError(f"{self.name}: the data set is empty; it needs at least one example")

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        targets = f"{len(self.classes)} classes" if self.classes else f"targets {self.y.dtype}"
        return f"<Dataset {self.name}: {len(self):,} examples {shape} {self.x.dtype}, {targets}>"

    def __getitem__(self, index: slice | npt.NDArray[Any] | Sequence[int]) -> "Dataset":
        places = chosen_places(self.name, len(self), index)
        if self._device is None:
            x, y = (_part(array, index if isinstance(index, slice) else places) for array in (self.x, self.y))
            return Dataset(x, y, self.classes, self.name)
        x, y = self.gather(places)
        chosen = self._with(x, y, self._device)
        chosen._check_filled()
        return chosen

    @property
    def shape(self) -> Any:
        """Shape of one example, a tuple: channels, height and width of an image."""
        return tuple(self.x.shape[1:])

    @property
    def device(self) -> Device:
        """The device of the arrays: the CPU, or that of `to`."""
        return self._device or open_device("cpu")

    @property
    def lazy(self) -> bool:
        """Whether rows of `x` or `y` are read when they are needed."""
        return self._device is None and (is_lazy(self.x) or is_lazy(self.y))

    def gather(self, places: slice | npt.NDArray[Any]) -> tuple[Array, Array]:
        """Return some examples and targets as new arrays of the same dtypes, on the device of the data set.

        Parameters
        ----------
        places : indices from 0, or a slice `start:stop` inside the data set.
        """
        if self._device is None:
            x, y = read(self.x, places), read(self.y, places)
            return x, y if y.dtype.kind == "f" else y.astype(np.int64, copy=False)
        device = self._device
        xp = device.xp
        with device.active():
            if isinstance(places, slice):  # only a slice may share memory
                x, y = (xp.astype(a[places, ...], a.dtype, copy=True) for a in (self.x, self.y))
                return x, y
            index = device.asarray(places)
            return xp.take(self.x, index, axis=0), xp.take(self.y, index, axis=0)

    def to(self, device: str | Device) -> "Dataset":
        """Return the data set on a device, with the same dtypes.

        Raises
        ------
        OutOfMemoryError
            If the device has too little memory.
        DeviceError, UsageError
            If the device is unknown or cannot be used here, or the data set is lazy.
        """
        where = open_device(device)
        if where == self.device:
            return self
        if self.lazy:
            raise UsageError(f"{self.name}: lazy data stay on the host, got {where.name}; a Loader reads their batches")
        try:
            x, y = (a if on_host(a) else to_numpy(a) for a in (self.x, self.y))
            if where.xp is np:
                return self._with(x, y, None)
            return self._with(where.asarray(x), where.asarray(y), where)
        except Exception as error:
            if not out_of_memory(error, where):
                raise
        free_memory(where)  # outside the except block, where nothing refers to the arrays in the traceback
        raise OutOfMemoryError(f"{self.name}: {len(self)} examples do not fit into the memory of {where.name}")

    def astype(self, dtype: npt.DTypeLike) -> "Dataset":
        """Return the data set with the floating-point ones of its arrays, which must be on the host, as `dtype`."""
        if self.lazy or self._device is not None:
            raise UsageError(f"{self.name}: astype takes arrays in memory on the host")
        with np.errstate(over="ignore"):  # infinite numbers are reported by the loss
            x, y = (a.astype(dtype, copy=False) if a.dtype.kind == "f" else a for a in (self.x, self.y))
            return self._with(x, y, None)

    def fingerprint(self) -> str:
        """Return a SHA-256 of `x` and `y`, by which a resumed run recognises its data.

        It covers every byte of arrays in memory. Of a lazy array it covers shape, dtype and what its own method
        `fingerprint` returns, a string; without one, 64 rows that are spread evenly over the array.
        """
        arrays = (a if self._device is None else to_numpy(a) for a in (self.x, self.y))
        return hashlib.sha256("".join(map(fingerprint, arrays)).encode()).hexdigest()

    def _with(self, x: Array, y: Array, where: Device | None) -> "Dataset":
        """Return a copy of the data set with other arrays, which are not checked."""
        made = copy.copy(self)
        for name, value in (("x", x), ("y", y), ("_device", where)):
            object.__setattr__(made, name, value)
        return made


Dataset.__init__ = explained(Dataset.__init__)  # type: ignore[method-assign]


def _checked(owner: str, name: str, array: Any) -> Any:
    """Return an array after checking that it is a NumPy array or a lazy one."""
    if not is_like_array(array):
        raise DtypeError(
            f"{owner}: {name} must be a NumPy array, or lazy with shape, dtype and rows, got {type(array).__name__}; "
            "see data.from_arrays"
        )
    check_unmasked(f"{owner}: {name}", array)
    return array


def check_unmasked(what: str, array: Any) -> None:
    """Refuse a masked array of NumPy, as the numbers under its mask would be used like the others."""
    if hasattr(array, "filled"):
        raise DataError(f"{what} is a masked array, whose mask would be ignored; fill it, such as by filled(0.0)")


def how_to_convert(dtype: Any) -> str:
    """Return as what to give an array of a dtype that `x` cannot have, for errors."""
    if dtype == np.uint16:
        return "pixels from 0 to 65535 as x.astype('float32') / 65535"
    return "pixels from 0 to 255 as x.astype('uint8'), anything else as x.astype('float32')"


def _part(array: Any, index: slice | npt.NDArray[Any]) -> Any:
    """Return some rows of an array; those of a lazy one are not read."""
    return Rows(array, np.arange(array.shape[0])[index]) if is_lazy(array) else array[index]


def chosen_places(name: str, length: int, index: Any) -> npt.NDArray[np.int64]:
    """Return the places in a data set that a slice, an array of indices or one of bools chooses."""
    if isinstance(index, int | np.integer):
        raise UsageError(f"{name}: index with a slice or an array of indices, got {index}; write [{index}:][:1]")
    if not isinstance(index, slice | Sequence | np.ndarray):
        raise UsageError(f"{name}: indices must be a slice or integers below {length}, got {type(index).__name__}")
    try:
        places = places_of(index, length)
    except (IndexError, TypeError, ValueError) as error:
        raise UsageError(f"{name}: indices must be a slice or integers below {length}: {error}") from None
    if places.ndim != 1:
        raise UsageError(f"{name}: indices must be a slice or one axis of integers, got {places.ndim} axes")
    return places


@explained
def from_arrays(x: Any, y: Any, classes: Sequence[str] | None = None, name: str = "arrays") -> Dataset:
    """Return a data set of your own arrays, after looking for the usual mistakes.

    Parameters
    ----------
    x : (N, ...), two or more axes: uint8 from 0 to 255, or floating point, finite and already scaled. Images are
        (N, C, H, W); of grey ones (N, H, W), pass x[:, None]. Lists, tables of pandas, arrays of other libraries, which
        are copied to the host, and lazy arrays are taken too; see `Dataset`.
    y : (N, ...), integers or floating point. What a target is, the loss says.
    classes : the name of each class; by default, for integers (N,), the numbers up to the largest label.
    name : name of the data set in errors and tables.

    Raises
    ------
    DataError, DtypeError, ShapeError
        If values, dtypes or shapes are not as above; if images (N, C, H, W) have their channels last; or if they are
        whole floats above 16, which are probably pixels that were not divided by 255. If they are correct, construct a
        `Dataset`.

    Examples
    --------
    >>> d = from_arrays(np.zeros((2, 1, 8, 8)), [0, 1], classes=["cat", "dog"])
    >>> d.x.dtype, d.shape, d.classes
    (dtype('float64'), (1, 8, 8), ('cat', 'dog'))
    """
    x, y = _host_array("x", x), _host_array("y", y)
    if len(x.shape) == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] > 4:
        raise ShapeError(
            f"from_arrays: x must be (N, C, H, W), got {x.shape}, which looks like channels last; "
            "pass x.transpose(0, 3, 1, 2)"
        )
    if classes is None:
        classes = _numbered(y)
    made = Dataset(x, y, classes, name)  # type: ignore[arg-type]  # which makes a tuple of a list
    check_scaled("from_arrays", x, "uint8")
    return made


def check_scaled(caller: str, x: Any, otherwise: str) -> None:
    """Refuse images of whole floats above 16, which are probably pixels; `otherwise` is what to pass instead."""
    if len(x.shape) != 4 or x.shape[1] not in (1, 3, 4) or np.dtype(x.dtype).kind != "f" or is_lazy(x) or not len(x):
        return
    first = x[:_LOOKED_AT]
    low, high = first.min(), first.max()
    if low >= 0 and high > _MOST_SCALED and np.array_equal(first, np.rint(first)):
        fix = "divide them by 255" if high <= 255 else "divide them by the largest value that they can have"
        raise DataError(
            f"{caller}: float x from {low} to {high} are probably pixels that are not scaled; {fix}, "
            f"or pass {otherwise}"
        )


def _host_array(name: str, value: Any) -> Any:
    """Return a lazy array as it is, and anything else as a NumPy array."""
    check_unmasked(f"from_arrays: {name}", value)
    if is_like_array(value):
        return value
    if is_array(value):
        return to_numpy(value)
    # NumPy would read other objects with items one by one, and some without an end.
    if isinstance(value, Sequence) or hasattr(value, "__array__"):
        with contextlib.suppress(TypeError, ValueError):  # the latter for lists of unequal lengths
            return np.asarray(value)
    raise DtypeError(f"from_arrays: {name} must be an array, got {type(value).__name__}")


def _numbered(y: Any) -> Sequence[str]:
    """Return the names of classes that only have numbers; none if the targets are not class indices (N,)."""
    if len(y.shape) != 1 or np.dtype(y.dtype).kind not in "iu" or is_lazy(y):
        return ()
    count, first = int(y.max(initial=0)) + 1, int(y.min(initial=0, where=y != IGNORED))
    if first < 0:
        raise DataError(
            f"from_arrays: labels run from {first} to {y.max()}; number the classes 0, 1, 2, ..., with {IGNORED} where "
            "none counts, or pass y.astype('float32') for regression"
        )
    if count > _MOST_CLASSES:
        raise DataError(
            f"from_arrays: the largest label is {count - 1}; number the classes 0, 1, 2, ..., "
            "or pass y.astype('float32') for regression"
        )
    return [str(k) for k in range(count)]


def to_float(x: Array) -> Array:
    """Return uint8 divided by 255 as float32, and floating point as it is.

    Arrays of every library get the same bits.

    >>> to_float(np.asarray([0, 51, 255], np.uint8))
    array([0. , 0.2, 1. ], dtype=float32)
    """
    if not is_array(x):
        raise DtypeError(f"to_float: x must be an array, got {type(x).__name__}")
    xp = namespace_of(x)
    if x.dtype != xp.uint8:
        if not is_kind(xp, x.dtype, "real floating"):
            raise DtypeError(f"to_float: x must be uint8 or floating point, got {x.dtype}")
        return x
    scaled = xp.astype(x, xp.float32)
    # JAX, and PyTorch on CUDA, may replace division by a scalar with multiplication by its rounded inverse.
    scaled /= np.float32(255) if on_host(x) else full(xp, scaled.shape, 255.0, scaled)
    return scaled

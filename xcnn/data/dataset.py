"""`Dataset`: images with labels and class names, checked once, on the host or on a device."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from xcnn._array import Array, full, is_array, is_kind, namespace_of
from xcnn._check import integer, number
from xcnn.devices import Device, free_memory, on_host, out_of_memory, to_numpy
from xcnn.devices import device as open_device
from xcnn.errors import DataError, DtypeError, OutOfMemoryError, ShapeError, UsageError

__all__ = ["Dataset", "from_arrays", "split", "to_float"]

_MOST_CLASSES = 100_000
"""A larger label means that the classes are not numbered 0, 1, 2, ..."""

_MOST_SCALED = 16
"""Non-negative float images above this are probably pixels that are not scaled; scikit-learn's digits reach it."""


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Labelled images in memory. `len(d)` is their number; `d[slice or index array]` is a smaller data set.

    Parameters
    ----------
    x : (N, C, H, W), NumPy array: uint8, which a `Loader` divides by 255, or finite float32, which it does
        not scale.
    y : (N,), NumPy array of int64, each in 0..len(classes)-1.
    classes : the name of each class.
    name : name of the data set in errors and tables.

    Raises
    ------
    DataError, DtypeError, ShapeError, UsageError
        If an argument is not as above, or there is no image.

    Examples
    --------
    >>> d = Dataset(np.zeros((3, 1, 8, 8), np.uint8), np.asarray([0, 1, 1]), ("cat", "dog"), "pets")
    >>> len(d), d.shape, len(d[1:])
    (3, (1, 8, 8), 2)
    """

    x: npt.NDArray[Any]
    y: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    name: str
    _device: ClassVar[Device | None] = None  # None for the host; `to` sets it on its result

    def __post_init__(self) -> None:
        images, labels = self.x, self.y
        if not isinstance(self.classes, Sequence) or not all(isinstance(one, str) for one in self.classes):
            raise UsageError(f"{self.name}: classes must be a list of names, got {self.classes!r}")
        object.__setattr__(self, "classes", tuple(self.classes))
        for name, array in (("x", images), ("y", labels)):
            if not isinstance(array, np.ndarray):
                raise DtypeError(
                    f"{self.name}: {name} must be a NumPy array, got {type(array).__name__}; see data.from_arrays"
                )
        if images.dtype not in (np.uint8, np.float32):
            raise DtypeError(f"{self.name}: x must be uint8 or float32, got {images.dtype}; see data.from_arrays")
        if labels.dtype != np.int64:
            raise DtypeError(f"{self.name}: y must be int64, got {labels.dtype}; see data.from_arrays")
        if images.ndim != 4 or 0 in images.shape[1:]:
            raise ShapeError(f"{self.name}: x must be (N, C, H, W), got {images.shape}")
        if labels.shape != images.shape[:1]:
            raise ShapeError(
                f"{self.name}: y must be (N,), one per image, got {labels.shape} for {len(images)} images"
            )
        self._check_filled()
        first, last = int(labels.min()), int(labels.max())
        if first < 0 or last >= len(self.classes):
            allowed = f"{len(self.classes)} classes allow 0 to {len(self.classes) - 1}"
            raise DataError(f"{self.name}: labels run from {first} to {last}; {allowed}")
        if images.dtype == np.float32:
            low, high = float(images.min()), float(images.max())  # NaN if there is one
            if not (math.isfinite(low) and math.isfinite(high)):
                raise DataError(f"{self.name}: float x must be finite, without NaN, got {low} to {high}")

    def _check_filled(self) -> None:
        if len(self) == 0:
            raise DataError(f"{self.name}: the data set is empty; it needs at least one image")

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"<Dataset {self.name}: {len(self):,} images {shape} {self.x.dtype}, {len(self.classes)} classes>"

    def __getitem__(self, index: slice | npt.NDArray[Any] | Sequence[int]) -> "Dataset":
        if isinstance(index, int | np.integer):
            raise UsageError(
                f"{self.name}: index with a slice or an array of indices, got {index}; write [{index}:][:1]"
            )
        if self._device is None:
            return Dataset(self.x[index], self.y[index], self.classes, self.name)
        chosen = self._with(*self.gather(np.arange(len(self))[index]), self._device)
        chosen._check_filled()
        return chosen

    @property
    def device(self) -> Device:
        """The device of the arrays: the CPU, or that of `to`."""
        return self._device or open_device("cpu")

    def gather(self, places: slice | npt.NDArray[Any]) -> tuple[Array, Array]:
        """Return some images and labels as new arrays of the same dtypes, on the device of the data set.

        Parameters
        ----------
        places : indices from 0, or a slice `start:stop` inside the data set.
        """
        device = self.device
        xp = device.xp
        with device.active():
            if isinstance(places, slice):  # only a slice may share memory
                images, labels = (xp.astype(a[places, ...], a.dtype, copy=True) for a in (self.x, self.y))
                return images, labels
            index = places if xp is np else device.asarray(places)
            return xp.take(self.x, index, axis=0), xp.take(self.y, index, axis=0)

    def to(self, device: str | Device) -> "Dataset":
        """Return the data set on a device, with the same dtypes.

        Raises
        ------
        OutOfMemoryError
            If the device has too little memory.
        DeviceError, UsageError
            If the device is unknown or cannot be used here.
        """
        where = open_device(device)
        if where == self.device:
            return self
        try:
            images, labels = (a if on_host(a) else to_numpy(a) for a in (self.x, self.y))
            if where.xp is np:
                return self._with(images, labels, None)
            return self._with(where.asarray(images), where.asarray(labels), where)
        except Exception as error:
            if not out_of_memory(error, where):
                raise
        free_memory(where)  # outside the except block, where nothing refers to the arrays in the traceback
        raise OutOfMemoryError(f"{self.name}: {len(self)} images do not fit into the memory of {where.name}")

    def _with(self, images: Array, labels: Array, where: Device | None) -> "Dataset":
        """Return a copy of the data set with other arrays, which are not checked."""
        made = copy.copy(self)
        for name, value in (("x", images), ("y", labels), ("_device", where)):
            object.__setattr__(made, name, value)
        return made

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        c, h, w = self.x.shape[1:]
        return c, h, w


def from_arrays(
    x: npt.ArrayLike, y: npt.ArrayLike, classes: Sequence[str] | None = None, name: str = "arrays"
) -> Dataset:
    """Return a data set of your own arrays.

    Parameters
    ----------
    x : (N, C, H, W), or (N, H, W) for one channel; uint8 from 0 to 255, or floating point, which is converted to
        float32, finite and already scaled. Non-negative floats above 16 are refused, as they are probably pixels that
        were not divided by 255; if they are correct, construct a `Dataset`.
    y : (N,), integers 0, 1, 2, ...
    classes : the name of each class; by default the numbers up to the largest label.
    name : name of the data set in errors and tables.

    Raises
    ------
    DataError, DtypeError, ShapeError
        If values, dtypes or shapes are not as above; the message says how to convert them.

    Examples
    --------
    >>> d = from_arrays(np.zeros((2, 8, 8)), [0, 1], classes=["cat", "dog"])
    >>> d.x.dtype, d.shape, d.classes
    (dtype('float32'), (1, 8, 8), ('cat', 'dog'))
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise DtypeError(
            f"from_arrays: x must be uint8 or floating point, got {x.dtype}; "
            "if the values are from 0 to 255, pass x.astype('uint8')"
        )
    if x.ndim == 3:
        x = x[:, None]  # (N, H, W) -> (N, 1, H, W)
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] > 4:
        raise ShapeError(
            f"from_arrays: x must be (N, C, H, W), got {x.shape}, which looks like channels last; "
            "pass x.transpose(0, 3, 1, 2)"
        )
    if y.ndim == 2:
        raise ShapeError(f"from_arrays: y must be (N,), got {y.shape}; if one-hot, pass y.argmax(axis=1)")
    if not np.issubdtype(y.dtype, np.integer):
        raise DtypeError(f"from_arrays: y must be integers, got {y.dtype}; number the classes 0, 1, 2, ...")
    if classes is None:
        count = int(y.max(initial=0)) + 1
        if count > _MOST_CLASSES:
            raise DataError(f"from_arrays: the largest label is {count - 1}; number the classes 0, 1, 2, ...")
        classes = [str(k) for k in range(count)]
    if x.dtype != np.uint8 and x.dtype != np.float32:
        with np.errstate(over="ignore"):  # numbers that overflow become infinite, which is refused
            x = x.astype(np.float32)
    if x.dtype == np.float32 and x.size and x.min() >= 0 and _MOST_SCALED < x.max() < np.inf:
        raise DataError(
            f"from_arrays: float x from {x.min()} to {x.max()} are probably pixels that are not scaled; "
            "divide them by 255, or pass uint8"
        )
    return Dataset(x, y.astype(np.int64), classes, name)  # type: ignore[arg-type]


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split a data set into (rest, held_out) at random, for validation. Both keep the order of the data set.

    Parameters
    ----------
    dataset : the data set to split.
    fraction : the fraction of the images to hold out, above 0 and below 1.
    seed : seed of the random choice, 0 or more.

    Raises
    ------
    UsageError
        If an argument is out of range, or one of the parts would be empty.

    Examples
    --------
    >>> d = from_arrays(np.zeros((10, 8, 8)), np.arange(10))
    >>> [len(part) for part in split(d, 0.2, seed=0)]
    [8, 2]
    """
    if not isinstance(dataset, Dataset):
        raise UsageError(f"split: dataset must be a Dataset, got {type(dataset).__name__}; see data.from_arrays")
    held = round(number("split", "fraction", fraction, "(0, 1)") * len(dataset))
    if held in (0, len(dataset)):
        raise UsageError(f"split: {fraction} of {len(dataset)} images leaves a part empty")
    order = np.random.default_rng(integer("split", "seed", seed, minimum=0)).permutation(len(dataset))
    return dataset[np.sort(order[held:])], dataset[np.sort(order[:held])]


def to_float(images: Array) -> Array:
    """Convert images to float32: uint8 is divided by 255, floating point keeps its values.

    Arrays of every library get the same bits.

    >>> to_float(np.asarray([0, 51, 255], np.uint8))
    array([0. , 0.2, 1. ], dtype=float32)
    """
    if not is_array(images):
        raise DtypeError(f"to_float: images must be an array, got {type(images).__name__}")
    xp = namespace_of(images)
    if images.dtype != xp.uint8:
        if not is_kind(xp, images.dtype, "real floating"):
            raise DtypeError(f"to_float: images must be uint8 or floating point, got {images.dtype}")
        return xp.astype(images, xp.float32, copy=False)
    scaled = xp.astype(images, xp.float32)
    # JAX, and PyTorch on CUDA, may replace division by a scalar with multiplication by its rounded inverse.
    scaled /= np.float32(255) if on_host(images) else full(xp, scaled.shape, 255.0, scaled)
    return scaled

"""A data set that lives on a device with the dtype it has, mostly uint8, and from which batches are gathered there."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from xcnn._array import Array
from xcnn.data.dataset import Dataset, to_float
from xcnn.devices import Device, free_memory, out_of_memory
from xcnn.errors import OutOfMemoryError

__all__ = ["Resident"]


class Resident:
    """The images and labels of a data set on a device, copied there when they are first asked for.

    Parameters
    ----------
    dataset : what to copy; later changes of its arrays are not seen.
    device : not NumPy's, where the data set is already.
    tell : called with one sentence, once, if the device has no room for the data set.
    """

    def __init__(self, dataset: Dataset, device: Device, tell: Callable[[str], object]) -> None:
        self.dataset, self.device, self.tell = dataset, device, tell
        self._arrays: tuple[Array, Array] | None = None
        self._fits = True

    def gather(self, chosen: slice | npt.NDArray[Any]) -> tuple[Array, Array] | None:
        """Give some images, float32, and their labels, as fresh arrays; None where the device has no room for all.

        Parameters
        ----------
        chosen : where they are: a slice that ends inside the data set, or indices. These are all that is moved.
        """
        if not self._fits:
            return None
        try:
            with self.device.active():
                if self._arrays is None:
                    self._arrays = self.device.asarray(self.dataset.images), self.device.asarray(self.dataset.labels)
                # An order that was loaded has the smallest dtype, and PyTorch takes none below 32 bits.
                index = chosen if isinstance(chosen, slice) else self.device.asarray(chosen.astype(np.int64))
                images, labels = (self._chosen(array, index) for array in self._arrays)
                return to_float(images), labels
        except Exception as error:
            if not out_of_memory(error, self.device):
                raise
        self._give_up()  # out here nothing holds the exception any more
        return None

    def _give_up(self) -> None:
        self._arrays, self._fits = None, False
        free_memory(self.device)
        self.tell(
            f"{self.dataset.name}: {len(self.dataset)} images do not fit into the memory of {self.device.name}; "
            "batches are made on the host"
        )

    def make_room(self) -> bool:
        """Give the copy's memory back for good and say so; return whether there was one."""
        if self._arrays is None:
            return False
        self._give_up()
        return True

    def release(self) -> None:
        """Drop the copy, until it is asked for again."""
        self._arrays = None

    def _chosen(self, array: Array, index: Any) -> Array:
        xp = self.device.xp
        if not isinstance(index, slice):
            return xp.take(array, index, axis=0)
        return xp.astype(array[index, ...], array.dtype, copy=True)  # a slice alone may share memory

    def move(self, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> tuple[Array, Array]:
        """Copy a batch that was made on the host.

        Raises
        ------
        OutOfMemoryError
            Where there is no room even for that.
        """
        try:
            return self.device.asarray(images), self.device.asarray(labels)
        except Exception as error:
            if not out_of_memory(error, self.device):
                raise
        free_memory(self.device)
        raise OutOfMemoryError(
            f"Loader: out of memory on {self.device.name} with {len(images)} images of {images.shape[1:]} at a time: "
            "try a smaller batch_size"
        )

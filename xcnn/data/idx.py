"""The IDX file format of MNIST, read with checks and written reproducibly.

A file holds two zero bytes, a type code (8: unsigned byte, the only one here), the number of dimensions, each
dimension as a big-endian 32-bit integer, then the values in C order. Files are often gzipped.
Source: http://yann.lecun.com/exdb/mnist/, "The IDX file format".
"""

import gzip
import math
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from xcnn._files import replacing
from xcnn.data._stream import unzipped
from xcnn.errors import DataError, DtypeError

__all__ = ["read_idx", "write_idx"]

_MOST_BYTES = 256 * 2**20
"""Larger than any data set in this format (MNIST: 45 MiB, the digits of EMNIST: 180 MiB)."""


def read_idx(path: Path, ndim: int) -> npt.NDArray[np.uint8]:
    """Return the array in an IDX file of unsigned bytes, gzipped or not (whatever its name).

    Parameters
    ----------
    path : the file.
    ndim : expected number of dimensions: 3 for images, 1 for labels.

    Returns
    -------
    array : uint8, read-only, of the shape in the header.

    Raises
    ------
    DataError
        If the file cannot be read, is damaged or of another kind, holds fewer or more values than its header declares,
        or declares more than 256 MiB or, if gzipped, more than 32 times its size plus 1 MiB.
    """
    with unzipped("read_idx", path) as (stream, room):
        shape = _read_shape(path, stream, ndim)
        size = math.prod(shape)
        if size > room:
            raise DataError(f"read_idx: {path} declares {size} bytes {shape}, too many for a file of its length")
        # Even an array of no bytes may be too large for NumPy: (0, 2**32 - 1, 2**32 - 1).
        if math.prod(length or 1 for length in shape) > _MOST_BYTES:
            raise DataError(f"read_idx: {path} declares {size} bytes {shape}, at most {_MOST_BYTES} are read")
        payload = stream.read(size + 1)
    if len(payload) != size:
        came = f"only {len(payload)}" if len(payload) < size else "more"
        raise DataError(f"read_idx: {path} declares {size} bytes {shape} after its header, but it has {came}")
    return np.frombuffer(payload, np.uint8).reshape(shape)


def _read_shape(path: Path, stream: IO[bytes] | gzip.GzipFile, ndim: int) -> tuple[int, ...]:
    magic = stream.read(4)
    expected = bytes([0, 0, 8, ndim])
    if magic != expected:
        raise DataError(
            f"read_idx: {path} must be an IDX file of unsigned bytes in {ndim} dimension{'s'[: ndim > 1]} "
            f"(first bytes {expected.hex(' ')}), got {magic.hex(' ') or 'an empty file'}"
        )
    header = stream.read(4 * ndim)
    if len(header) < 4 * ndim:
        raise DataError(f"read_idx: {path} ends within its header")
    return struct.unpack(f">{ndim}I", header)


def write_idx(path: Path, array: npt.NDArray[Any], compress: bool = True) -> None:
    """Write an array of unsigned bytes to an IDX file. Equal arrays produce identical files.

    Parameters
    ----------
    path : the file, which is replaced if it exists.
    array : uint8, of 1 to 255 dimensions.
    compress : whether to gzip the file, without a name or time in it.

    Raises
    ------
    DtypeError
        If the array is not uint8.
    """
    if array.dtype != np.uint8:
        raise DtypeError(f"write_idx: array must be uint8, got {array.dtype}")
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(content, 9, mtime=0) if compress else content)

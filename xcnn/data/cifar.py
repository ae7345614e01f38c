"""CIFAR-10 in its binary version: records of one label byte and 3,072 pixel bytes (red, green, blue planes of 32x32).

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html. The Python version of the data is pickled, which is not safe to read.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from xcnn.data._stream import blaming, unzipped
from xcnn.data.dataset import Dataset
from xcnn.errors import DataError

__all__ = ["load_cifar10"]

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TRAIN = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
_TEST = "test_batch.bin"
_RECORD = 1 + 3 * 32 * 32
_MOST_BYTES = 10_000 * _RECORD  # of one batch
_MOST_TAR = 6 * _MOST_BYTES + (1 << 20)  # six batches, headers and other files

Bytes = npt.NDArray[np.uint8]


def load_cifar10(data_dir: Path) -> tuple[Dataset, Dataset]:
    """Return (train, test): up to 50,000 and 10,000 images of (3, 32, 32) in ten classes.

    Parameters
    ----------
    data_dir : a folder with `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, with a subfolder
        `cifar-10-batches-bin` that holds them, or with one `cifar-10-binary*.tar.gz`. One training batch is enough.

    Raises
    ------
    DataError
        If there is no training batch or no test batch, or a file is damaged.
    """
    with blaming("load: cifar10", data_dir):
        where, batches = _find(data_dir)
    train = [batches[file] for file in _TRAIN if file in batches]
    if not train or _TEST not in batches:
        missing = _TEST if train else "data_batch_1.bin to data_batch_5.bin"
        raise DataError(f"load: cifar10: no {missing} in {where}; get the binary version of CIFAR-10")
    return _dataset(train), _dataset([batches[_TEST]])


def _find(folder: Path) -> tuple[Path, dict[str, Bytes]]:
    """Return the folder or archive of the batches, and the records (n, 3073) of each."""
    for place in (folder, folder / "cifar-10-batches-bin"):
        paths = [place / file for file in (*_TRAIN, _TEST) if (place / file).is_file()]
        if paths:
            return place, {path.name: _records(_content(path, _MOST_BYTES), str(path)) for path in paths}
    archives = sorted(folder.glob("cifar-10-binary*.tar*"))
    if len(archives) > 1:
        raise DataError(f"load: cifar10: {folder} has {len(archives)} archives cifar-10-binary*.tar.gz; keep only one")
    if not archives:
        return folder, {}
    content = memoryview(_content(archives[0], _MOST_TAR))
    members = _members(archives[0], content)
    return archives[0], {file: _records(data, f"{file} of {archives[0]}") for file, data in members}


def _content(path: Path, most: int) -> bytes:
    """Return the content of a file of up to `most` bytes, decompressed if it is gzipped."""
    with unzipped("load: cifar10", path) as (stream, room):
        content = stream.read(min(room, most) + 1)
    if len(content) > most:
        raise DataError(f"load: cifar10: {path} holds more than {most} bytes; CIFAR-10's files do not")
    if len(content) > room:
        raise DataError(f"load: cifar10: {path} unpacks to more than {room} bytes, too many for a file of its length")
    return content


def _members(path: Path, content: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Yield name and content of the batches in a tar archive. Nothing is written to disk.

    An archive is a sequence of 512-byte blocks: a header, its data, the next header, ..., a block of zeros. `tarfile`
    parses only the headers: it overflows or loops on hostile archives, and stops silently at a damaged header.
    """
    at = 0
    while True:
        header = content[at : at + tarfile.BLOCKSIZE].tobytes()
        if header and not any(header):
            return
        try:
            member = tarfile.TarInfo.frombuf(header, "ascii", "replace")
        except tarfile.HeaderError as error:
            raise DataError(f"load: cifar10: {path} is damaged or not a tar archive ({error}); get it again") from None
        at += tarfile.BLOCKSIZE
        data = content[at : at + max(member.size, 0)]
        if len(data) != member.size:
            raise DataError(f"load: cifar10: {path} ends within {member.name!r}; get the file again")
        at += -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        file = PurePosixPath(member.name).name
        if file in (*_TRAIN, _TEST) and member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            yield file, data


def _records(data: bytes | memoryview, where: str) -> Bytes:
    """Check the bytes of a batch and return them as an array (n, 3073), without a copy."""
    if not 0 < len(data) <= _MOST_BYTES or len(data) % _RECORD:
        raise DataError(
            f"load: cifar10: {where} must hold 1 to 10000 records of {_RECORD} bytes, but it has {len(data)} bytes"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
    if (label := int(records[:, 0].max())) >= len(_CLASSES):
        raise DataError(f"load: cifar10: {where} has a label {label}; CIFAR-10 has classes 0 to {len(_CLASSES) - 1}")
    return records


def _dataset(batches: list[Bytes]) -> Dataset:
    images = np.concatenate([records[:, 1:] for records in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([records[:, 0] for records in batches]).astype(np.int64)
    return Dataset(images, labels, _CLASSES, "cifar10")

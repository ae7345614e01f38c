"""Opening a data file that may be gzipped, damaged or hostile: one home for the checks that all readers share."""

import contextlib
import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from xcnn.errors import DataError

__all__ = ["File", "blaming", "opened", "unzipped"]

_GZIP_MAGIC = b"\x1f\x8b"
_SPARE = 1 << 20
_RATIO = 32
"""What a gzipped file may hold: this many bytes for each of its own, and a MiB more.

MNIST, Fashion-MNIST and CIFAR-10 unpack to less than 5 times as much, pure black and white images to 20 times; deflate
could do 1,032 times, and then a small file would make us allocate a large array.
"""


class File(io.BufferedReader):
    """A file, of which a read never makes room for more than the file has, whatever length some header claims."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        """Read so many bytes, or all."""
        return super().read(-1 if size is None else min(size, self.size + 1))


@contextlib.contextmanager
def blaming(reader: str, path: Path) -> Iterator[None]:
    """Turn what the system, gzip or zlib says inside a `with` block about a file or folder into a `DataError`."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{reader}: {path} is damaged ({error}); get the file again") from None
    except OSError as error:
        raise DataError(f"{reader}: {error.filename or path} cannot be read: {error.strerror or error}") from None


@contextlib.contextmanager
def opened(reader: str, path: Path) -> Iterator[File]:
    """Give a file to read bytes from.

    Parameters
    ----------
    reader : name of the caller, which opens every error message.
    path : the file; links are followed.

    Raises
    ------
    DataError
        If there is no such file, or no permission; if it is a folder, a pipe or a device; or, from inside the `with`
        block, if it proves to be damaged while it is read.
    """
    if "\0" in str(path):  # where Python raises a ValueError
        raise DataError(f"{reader}: {path} cannot be read: no file has a zero byte in its name")
    with blaming(reader, path):
        # Opening a pipe would wait for a writer, perhaps for ever; and a device need not have an end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{reader}: {path} must be a file, it is a directory, pipe or device")
        with File(path) as file:
            yield file


@contextlib.contextmanager
def unzipped(reader: str, path: Path) -> Iterator[tuple[IO[bytes] | gzip.GzipFile, int]]:
    """Give a file's content, unzipped if it is gzipped (told by its content, not its name), and the most it may hold.

    Parameters
    ----------
    reader : name of the caller, which opens every error message.
    path : the file.

    Returns
    -------
    (stream, room) : a stream to read bytes from; and how many are to be read at most, known before unpacking.

    Raises
    ------
    DataError
        As `opened`.
    """
    with opened(reader, path) as file:
        zipped = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if zipped:
            with gzip.GzipFile(fileobj=file) as stream:
                yield stream, _SPARE + _RATIO * file.size
        else:
            yield file, file.size

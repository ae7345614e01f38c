"""Open data files that may be gzipped, damaged or hostile, with the checks that all readers share."""

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
"""A gzipped file may expand to this many times its size plus 1 MiB.

MNIST, Fashion-MNIST and CIFAR-10 expand less than 5 times, black-and-white images 20 times. Deflate can reach
1,032 times, so that a small file could fill the memory.
"""


class File(io.BufferedReader):
    """A file whose reads never allocate more memory than its size, whatever length a header declares."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        """Return at most `size` bytes, or all."""
        return super().read(-1 if size is None else min(size, self.size + 1))


@contextlib.contextmanager
def blaming(reader: str, path: Path) -> Iterator[None]:
    """Turn errors of the operating system, gzip or zlib inside a `with` into a `DataError` about a file or folder."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{reader}: {path} is damaged ({error}); get the file again") from None
    except OSError as error:
        raise DataError(f"{reader}: {error.filename or path} cannot be read: {error.strerror or error}") from None


@contextlib.contextmanager
def opened(reader: str, path: Path) -> Iterator[File]:
    """Yield a file to read bytes from; links are followed.

    A DataError, which begins with `reader`, is raised if the file is missing, unreadable, a folder, pipe or device, or
    if reading it inside the `with` fails.
    """
    if "\0" in str(path):  # Python would raise a ValueError
        raise DataError(f"{reader}: {path} cannot be read: a file name cannot contain a zero byte")
    with blaming(reader, path):
        # Opening a pipe would wait for a writer, and a device may have no end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{reader}: {path} must be a file, but it is a directory, pipe or device")
        with File(path) as file:
            yield file


@contextlib.contextmanager
def unzipped(reader: str, path: Path) -> Iterator[tuple[IO[bytes] | gzip.GzipFile, int]]:
    """Yield a stream of the content of a file and the largest number of bytes to read from it.

    A file that begins like gzip is decompressed, whatever its name. Errors are those of `opened`.
    """
    with opened(reader, path) as file:
        zipped = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if zipped:
            with gzip.GzipFile(fileobj=file) as stream:
                yield stream, _SPARE + _RATIO * file.size
        else:
            yield file, file.size

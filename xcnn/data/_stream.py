"""Opening a data file that may be gzipped, damaged or hostile: one home for the checks that IDX and CIFAR share."""

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from xcnn.errors import DataError

__all__ = ["opened"]

_GZIP_MAGIC = b"\x1f\x8b"
_DEFLATE_RATIO = 1032
"""The most bytes that one byte of deflate can stand for, so a small file cannot make us allocate a large array."""


@contextlib.contextmanager
def opened(reader: str, path: Path) -> Iterator[tuple[IO[bytes] | gzip.GzipFile, int]]:
    """Give a file's content, unzipped if it is gzipped (told by its content, not its name), and the most it can hold.

    Parameters
    ----------
    reader : name of the caller, which opens every error message.
    path : the file.

    Returns
    -------
    (stream, room) : a stream to read bytes from; and an upper bound of how many there are, known before unpacking.

    Raises
    ------
    DataError
        If the file cannot be opened; or, from inside the `with` block, proves to be damaged while it is read.
    """
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(path.open("rb"))
            size = path.stat().st_size
            zipped = file.read(2) == _GZIP_MAGIC
            file.seek(0)
            if zipped:
                yield stack.enter_context(gzip.GzipFile(fileobj=file)), size * _DEFLATE_RATIO
            else:
                yield file, size
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{reader}: {path} is damaged ({error}); get the file again") from None
    except OSError as error:
        raise DataError(f"{reader}: {path} cannot be read: {error.strerror or error}") from None

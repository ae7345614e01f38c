"""Writing files so that a reader sees the old content or the new, never a part, whatever happens meanwhile."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from xcnn.errors import WriteError, XcnnError

__all__ = ["locked", "make_folder", "replacing", "sweep"]

_TEMPORARY = ".tmp"
_TEMPORARY_NAME = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success sync it and rename it over `path`, on failure remove it.

    Raises
    ------
    WriteError
        Where the file cannot be written.
    """
    try:
        with _temporary(path) as temporary:
            yield temporary
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp, and some writers of files, let only the owner read them; give this one the usual mode.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder last, where the system knows how: without, a power cut may bring the old file back."""
    with contextlib.suppress(OSError):  # Windows opens no folders, and some network drives do not sync them
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it is in, where they are missing.

    Raises
    ------
    WriteError
        Where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot make the folder {folder}: {error.strerror or error}") from None


def sweep(folder: Path) -> None:
    """Remove the temporary files that processes left in a folder when they were killed; none may be writing there."""
    for path in folder.glob(f".*{_TEMPORARY}"):
        if _TEMPORARY_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, otherwise: str | Callable[[], object]) -> Iterator[None]:
    """Keep every other process that asks for it out of a folder inside a `with`.

    The operating system holds the lock, so a process that is killed leaves none behind.

    Parameters
    ----------
    folder : must exist; its `.lock` stays in it.
    otherwise : where another process has the lock: the sentence to refuse with; or what to call before waiting.

    Raises
    ------
    XcnnError
        With that sentence.
    OSError
        Where the folder cannot be written.
    """
    import filelock

    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if isinstance(otherwise, str):
            raise XcnnError(otherwise) from None
        otherwise()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()

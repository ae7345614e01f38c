"""Write files atomically: a reader sees the old or the new content, never a mixture. Lock folders."""

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from xcnn.errors import WriteError, XcnnError

__all__ = ["cache_folder", "locked", "make_folder", "replacing", "sweep"]

_TEMPORARY = ".tmp"
_TEMPORARY_NAME = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, on failure removed.

    An OSError inside becomes a WriteError.
    """
    try:
        with _temporary(path) as temporary:
            yield temporary
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    # Files of `tempfile` can be read only by their owner; here the umask applies, as for any new file.
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = os.fstat(handle).st_mode
    os.close(handle)
    try:
        yield temporary
        temporary.chmod(stat.S_IMODE(mode))  # some libraries change it
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder durable where the system can; otherwise a power failure may undo them."""
    with contextlib.suppress(OSError):  # Windows cannot open folders, and some network drives cannot sync them
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def cache_folder() -> Path:
    """Return the folder of what can be made or downloaded again, which may not exist yet."""
    if home := os.environ.get("XCNN_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "xcnn"


def make_folder(folder: Path) -> None:
    """Create a folder and its parents unless they exist; raise a WriteError on failure."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot create the folder {folder}: {error.strerror or error}") from None


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files of killed processes from a folder, or those of one file in it.

    No other process may be writing there.
    """
    for path in folder.glob(f".*{_TEMPORARY}"):
        found = _TEMPORARY_NAME.fullmatch(path.name)
        if found and name in (None, found[1]):
            with contextlib.suppress(OSError):  # it does no harm
                path.unlink()


@contextlib.contextmanager
def locked(folder: Path, otherwise: str | Callable[[], object], name: str = ".lock") -> Iterator[bool]:
    """Hold the lock of an existing folder, a file in it, inside a `with`; yield whether it had to wait.

    Only one process at a time can hold it; the operating system releases the lock of a process that is killed.

    Parameters
    ----------
    otherwise : what to do if another process holds the lock: the message of an XcnnError to raise, or a function to
        call before waiting for it.
    name : the name of the file.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    import filelock

    lock, waited = filelock.FileLock(folder / name), False
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if isinstance(otherwise, str):
            raise XcnnError(otherwise) from None
        otherwise()
        lock.acquire()
        waited = True
    try:
        yield waited
    finally:
        lock.release()

"""The folder of a run: creating it, locking it, removing it, and finding runs and their settings."""

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from xcnn._files import locked
from xcnn.errors import UsageError, XcnnError
from xcnn.runs.checkpoint import BEST, CHECKPOINTS, find_newest, step_path
from xcnn.runs.settings import Config, known_settings, read_settings

__all__ = [
    "CONFIG",
    "HISTORY",
    "alone_in",
    "holds_run",
    "latest_run",
    "make_run_folder",
    "recorded_settings",
    "remove_run",
]

CONFIG, HISTORY = "config.json", ("history.csv", "history.jsonl")
_FILES = (CONFIG, *HISTORY, BEST)
_RUNS = Path("runs")


def holds_run(folder: Path) -> bool:
    """Return whether a folder holds files of a run."""
    return any((folder / name).exists() for name in (*_FILES, CHECKPOINTS))


def make_run_folder(folder: Path | None, config: Config) -> Path:
    """Create the folder of a new run if it does not exist; None creates a new `runs/DATASET-MODEL-TIME`."""
    try:
        if folder is None:
            names = f"{config.dataset}-{config.model}".replace(":", ".")  # Windows allows no colon in file names
            return _new_folder(f"{names}-{datetime.now():%Y%m%d-%H%M%S}")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    return folder


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder of a run inside a `with`."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, f"another run is using {folder}; wait for it, or stop it"))
        except OSError as error:
            raise _unwritable(folder, error) from None
        yield


def _unwritable(folder: Path | None, error: OSError) -> XcnnError:
    return XcnnError(f"cannot write into {folder or _RUNS}: {error.strerror or error}")


def _new_folder(name: str) -> Path:
    """Create a folder that no other run uses, even one that starts in the same second."""
    _RUNS.mkdir(exist_ok=True)
    for number in itertools.count(1):
        folder = _RUNS / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def remove_run(folder: Path) -> None:
    """Remove the files of a run that has learned nothing."""
    for name in (*_FILES, ".lock"):
        with contextlib.suppress(OSError):  # Windows does not remove open files
            (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    with contextlib.suppress(OSError):  # it holds other files
        folder.rmdir()


def recorded_settings(folder: Path, tell: Callable[[str], object] = lambda message: None) -> dict[str, Any]:
    """Return the settings of the run in a folder by name, from `config.json` or else from its newest checkpoint.

    If they come from the checkpoint, `tell` is called with a sentence.

    Raises
    ------
    XcnnError
        If there is no run, or its settings cannot be read.
    """
    if not holds_run(folder):
        raise UsageError(f"there is no run in {folder} to resume", setting="resume")
    try:
        return read_settings(folder / CONFIG)
    except UsageError:
        raise
    except XcnnError as error:
        found = find_newest(folder / CHECKPOINTS)
        if found is None:
            raise
        source = step_path(folder / CHECKPOINTS, found[0])
        tell(f"{error}; using the settings in {source}")
        return known_settings(found[1].config, source)


def latest_run(runs: Path = _RUNS) -> Path:
    """Return the folder of the most recently active run below `runs`.

    Raises
    ------
    UsageError
        If there is no run.
    """
    times: dict[Path, int] = {}
    for config in runs.glob(f"*/{CONFIG}"):
        for file in (*config.parent.iterdir(), *config.parent.glob(f"{CHECKPOINTS}/*")):
            with contextlib.suppress(FileNotFoundError):  # a running process has removed it
                times[config.parent] = max(times.get(config.parent, 0), file.stat().st_mtime_ns)
    if not times:
        raise UsageError(f"there is no run in {runs}/", setting="resume")
    return max(times, key=lambda folder: times[folder])

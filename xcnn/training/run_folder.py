"""The folder of a run: which files it has, how it is made, held by one process, taken back, and what is found in it."""

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from xcnn._files import locked
from xcnn.errors import UsageError, XcnnError
from xcnn.training.checkpoint import BEST, LAST
from xcnn.training.checkpoints import Checkpoints
from xcnn.training.config import Config, known_settings, read_settings

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "alone_in",
    "holds_run",
    "latest_run",
    "make_run_folder",
    "recorded_settings",
    "remove_run",
]

CONFIG, CHECKPOINTS = "config.json", "checkpoints"
_FILES = (CONFIG, "history.csv", "history.jsonl", BEST, LAST)
_RUNS = Path("runs")


def holds_run(folder: Path) -> bool:
    """Say whether there is anything of a run in a folder."""
    return any((folder / name).exists() for name in (*_FILES, CHECKPOINTS))


def make_run_folder(folder: Path | None, config: Config) -> Path:
    """Make the folder of a new run if it is missing; None makes a new `runs/DATASET-MODEL-TIME`."""
    try:
        if folder is None:
            names = f"{config.dataset}-{config.model}".replace(":", ".")  # no file name on Windows has a colon
            return _new_folder(f"{names}-{datetime.now():%Y%m%d-%H%M%S}")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    return folder


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, f"another run is at work in {folder}; wait for it, or stop it"))
        except OSError as error:
            raise _unwritable(folder, error) from None
        yield


def _unwritable(folder: Path | None, error: OSError) -> XcnnError:
    return XcnnError(f"cannot write into {folder or _RUNS}: {error.strerror or error}")


def _new_folder(name: str) -> Path:
    """Make a folder that no other run has, even one that starts in the same second."""
    _RUNS.mkdir(exist_ok=True)
    for number in itertools.count(1):
        folder = _RUNS / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def remove_run(folder: Path) -> None:
    """Take back what a run wrote before it had anything to keep."""
    for name in (*_FILES, ".lock"):
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    with contextlib.suppress(OSError):  # something else is in it
        folder.rmdir()


def recorded_settings(folder: Path, tell: Callable[[str], object] | None = None) -> dict[str, Any]:
    """Return the settings of the run in a folder by name, from its `config.json`, else its newest whole checkpoint.

    `tell` is called with a sentence where they come from the checkpoint.

    Raises
    ------
    XcnnError
        Where there is no run, or nothing of it that can be read.
    """
    if not holds_run(folder):
        raise UsageError(f"--resume {folder}: there is no run to go on with")
    try:
        return read_settings(folder / CONFIG)
    except UsageError:
        raise
    except XcnnError as error:
        checkpoints = Checkpoints(folder / CHECKPOINTS)
        found = checkpoints.find()
        if found is None or checkpoints.newest is None:
            raise
        if tell is not None:
            tell(f"{error}; going by the settings in {checkpoints.newest}")
        return known_settings(found.config, checkpoints.newest)


def latest_run(runs: Path = _RUNS) -> Path:
    """Return the folder of the run below `runs` that was at work last.

    Raises
    ------
    UsageError
        Where there is none.
    """
    times: dict[Path, int] = {}
    for config in runs.glob(f"*/{CONFIG}"):
        for file in (*config.parent.iterdir(), *config.parent.glob(f"{CHECKPOINTS}/*")):
            with contextlib.suppress(FileNotFoundError):  # a run at work has removed it
                times[config.parent] = max(times.get(config.parent, 0), file.stat().st_mtime_ns)
    if not times:
        raise UsageError(f"--resume latest: there is no run in {runs}/")
    return max(times, key=lambda folder: times[folder])

"""The folder of a run: creating it, removing it, and finding runs and their settings."""

import contextlib
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from xcnn._files import make_folder
from xcnn.errors import UsageError, WriteError, XcnnError
from xcnn.runs.checkpoint import BEST, CHECKPOINTS, find_newest, step_path
from xcnn.runs.settings import Config, known_settings, read_settings

__all__ = [
    "CONFIG",
    "HISTORY",
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
    if folder is not None:
        make_folder(folder)
        return folder
    make_folder(_RUNS)
    names = f"{config.dataset}-{config.network}".replace(":", ".")  # Windows allows no colon in file names
    stem, number = f"{names}-{datetime.now():%Y%m%d-%H%M%S}", 1
    while True:
        folder = _RUNS / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:  # another run has started in the same second
            number += 1
        except OSError as error:
            raise WriteError(f"cannot create the folder {folder}: {error.strerror or error}") from None
        else:
            return folder


def remove_run(folder: Path) -> None:
    """Remove the files of a run, and the folder if nothing else is in it."""
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

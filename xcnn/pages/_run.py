"""What the folder of a run says about it: settings, history, how far it came, and the command that repeats it."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcnn.errors import UsageError, XcnnError
from xcnn.runs import Config, recorded_settings
from xcnn.runs.checkpoint import CHECKPOINTS, find_newest
from xcnn.runs.folder import HISTORY, holds_run
from xcnn.runs.settings import SETTINGS, check, plain

__all__ = ["Run", "command", "read_run", "require_run"]

_MOST_BYTES = 1 << 24
"""The largest history file, in bytes."""

_LARGEST = 1e100
"""The largest number of a history; sums and pictures of larger ones overflow."""


@dataclass(frozen=True)
class Run:
    """What the folder of a run says.

    Attributes
    ----------
    config : its settings.
    history : a record per epoch, of finite numbers, `epoch` among them.
    ended : whether it was trained to the end; None if that is not known.
    note : why it ended early; "" if it did not, or that is not known.
    """

    config: Config
    history: list[dict[str, float]]
    ended: bool | None
    note: str


def require_run(folder: Path) -> None:
    """Raise a UsageError if a path is not the folder of a run."""
    if holds_run(folder):
        return
    wanted = "the first argument must be the folder of a run"
    if folder.is_file():
        raise UsageError(f"{wanted}, got the file {folder}; xcnn explain takes a file, too")
    if not folder.exists():
        raise UsageError(f"{wanted}, and there is no {folder}")
    trials = sorted(path for path in folder.glob("trial-*") if holds_run(path))
    if trials:
        hint = f"name one of its {len(trials)} trials, such as {trials[0]}; trials.csv says which is the best"
        raise UsageError(f"{wanted}, and {folder} holds a search; {hint}")
    raise UsageError(f"{wanted}, and {folder} has none of its files, such as config.json")


def read_run(folder: Path) -> Run:
    """Read the folder of a run.

    Raises
    ------
    XcnnError
        If its settings cannot be read.
    """
    config = check(_config(recorded_settings(folder)))
    history = _history(folder / HISTORY[1])
    try:
        found = find_newest(folder / CHECKPOINTS)
        training: Mapping[str, Any] = (found and found[1].training) or {}
    except XcnnError:
        training = {}
    note = training.get("stop_reason")
    note = note if isinstance(note, str) else ""
    ended = None if not training and not history else bool(note) or len(history) >= config.epochs
    return Run(config, history, ended, note)


def _config(settings: Mapping[str, Any]) -> Config:
    """Return the settings of a file, whose values are not checked yet."""
    return Config(**{name: value for name, value in settings.items() if name in SETTINGS})


def _history(path: Path) -> list[dict[str, float]]:
    """Return the records of a history file up to the first that makes no sense."""
    records: list[dict[str, float]] = []
    try:
        with path.open("rb") as file:
            lines = file.read(_MOST_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict):
            break
        numbers = {
            key: float(value)
            for key, value in record.items()
            if type(value) in (int, float) and abs(value) <= _LARGEST  # which NaN is not
        }
        if numbers.get("epoch") != len(records) + 1:
            break
        records.append(numbers)
    return records


def command(config: Config) -> str:
    """Return the command that trains with settings, with a flag for each that is not the default."""
    words = ["xcnn", "train"]
    values, defaults = plain(config), plain(Config())
    for name, value in values.items():
        if value == defaults[name] or (name == "accumulate" and value == 1):
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, dict):
            for key, option in value.items():
                words += [flag, f"{key}={json.dumps(option)}"]
        elif value is True:
            words.append(flag)
        else:
            words += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return shlex.join(words)

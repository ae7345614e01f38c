"""The settings of a run, one table: for each its default, what it is, its check, and what a resumed run may change.

A row is a field of `Config`. The command's flags and their help come from it, too.
"""

import dataclasses
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xcnn import data, models, optim
from xcnn._check import integer, number
from xcnn._plugins import is_foreign
from xcnn.errors import UsageError, XcnnError, unknown
from xcnn.runs.saving import Interval

__all__ = ["SETTINGS", "Config", "Setting", "check", "known_settings", "plain", "read_settings"]

_MOST_BYTES = 1 << 16
"""Of a file of settings."""


@dataclass(frozen=True)
class Setting:
    """One row of the table, beside the name, the type and the default of the field.

    Attributes
    ----------
    help : what it is, in a few words.
    check : takes a name and a value; returns the value or raises a UsageError that begins with the name.
    fixed : why it cannot change in a resumed run; empty if it can.
    change : what it means if it changes; empty if no number depends on it.
    """

    help: str
    check: Callable[[str, Any], Any]
    fixed: str = ""
    change: str = ""


def _row(help: str, check: Callable[[str, Any], Any], fixed: str = "", change: str = "") -> dict[str, Setting]:
    return {"setting": Setting(help, check, fixed, change)}


# Checks


def _whole(minimum: int, maximum: int = 10**9) -> Callable[[str, Any], int]:
    return lambda name, value: integer("", name, value, minimum, maximum)


def _real(interval: str) -> Callable[[str, Any], float]:
    return lambda name, value: number("", name, value, interval)


def _one_of(kind: str, table: Mapping[str, Any]) -> Callable[[str, Any], str]:
    def checked(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in table:
            raise unknown(kind, value, table)
        return value

    return checked


def _named(kind: str, table: Mapping[str, Any]) -> Callable[[str, Any], str]:
    """Take code of the user's own as well; it is imported where it is used, never because a file names it."""
    return lambda name, value: str(value) if is_foreign(value) else _one_of(kind, table)(name, value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a string, got {value!r}")
    return value


def _folder(name: str, value: Any) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise UsageError(f"{name} must be a folder, got {value!r}")
    return Path(value)


def _augmentations(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise UsageError(f"{name} must be a list of names, got {value!r}")
    return tuple(_one_of("augmentation", data.AUGMENTATIONS)(name, one) for one in value)


def _interval(name: str, value: Any) -> str:
    Interval.parse(value, name)
    return str(value)


_ON = "it holds from here on"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a run; each is also the command-line flag of its name."""

    # fmt: off
    dataset: str = field(default="digits", metadata=_row(
        "data set by name; see `xcnn datasets`.",
        _named("data set", data.DATASETS), fixed="the network has learned from its images"))
    data_dir: Path | None = field(default=None, metadata=_row(  # a resumed run compares what is in it
        "folder that holds the data set's files, or your images; downloaded ones are kept elsewhere.", _folder))
    image_size: int | None = field(default=None, metadata=_row(
        "height and width that images of the data set `folder` are resized to (32).",
        _whole(1, 1024), fixed="the network is made for it"))
    model: str = field(default="vgg_small", metadata=_row(
        "network by name; see `xcnn models`.", _named("model", models.MODELS), fixed="the weights are that network's"))
    epochs: int = field(default=15, metadata=_row(
        "passes over the training images.",
        _whole(1), change="a schedule that depends on it takes its new course from here on"))
    batch_size: int = field(default=64, metadata=_row(
        "images per step.", _whole(1), fixed="the epochs are cut into batches of that size"))
    opt: str = field(default="adam", metadata=_row(
        "optimizer: sgd, adam, adamw, rmsprop.",
        _named("optimizer", optim.OPTIMIZERS), fixed="the state is that optimizer's"))
    lr: float = field(default=3e-3, metadata=_row("learning rate, at its peak.", _real("(0, inf)"), change=_ON))
    momentum: float = field(default=0.9, metadata=_row("of sgd and rmsprop.", _real("[0, inf)"), change=_ON))
    wd: float = field(default=0.0, metadata=_row("weight decay.", _real("[0, inf)"), change=_ON))
    schedule: str = field(default="one-cycle", metadata=_row(
        "of the learning rate: constant, step, cosine, one-cycle, plateau.",
        _named("schedule", optim.SCHEDULES), fixed="the state is that schedule's"))
    warmup: int = field(default=0, metadata=_row(
        "steps in which the learning rate first rises.", _whole(0), fixed="it is a part of the schedule"))
    label_smoothing: float = field(default=0.0, metadata=_row(
        "share of the target that is spread over all classes.",
        _real("[0, 1)"), change=f"{_ON}, and losses before and after are not alike"))
    clip_norm: float | None = field(default=None, metadata=_row(
        "bound for the norm of all gradients.", _real("(0, inf)"), change=_ON))
    augment: tuple[str, ...] = field(default=(), metadata=_row(
        "distortions of the training images, with commas between: flip, shift, crop, rotate, cutout.",
        _augmentations, change=_ON))
    validation: float = field(default=0.1, metadata=_row(
        "share of the training images that is held out to choose the best epoch.",
        _real("[0, 1)"), fixed="images that were learned would be held out"))
    patience: int | None = field(default=None, metadata=_row(
        "stop after so many epochs without a better validation loss.", _whole(1), change=_ON))
    seed: int = field(default=0, metadata=_row(
        "decides weights, order, augmentation and the held-out images.",
        _whole(0, 2**63 - 1), fixed="it has decided the held-out images and the order"))
    device: str = field(default="cpu", metadata=_row(  # a resumed run compares what it computes with
        "where to compute: cpu, cuda, cuda:1, auto; see `xcnn devices`.", _text))
    checkpoint_every: str = field(default="1epoch", metadata=_row(
        "how often to save what a resumed run needs, such as 500steps, 1epoch or 10minutes.", _interval))
    keep_checkpoints: int = field(default=2, metadata=_row(
        "how many of the last such checkpoints stay.", _whole(1)))
    # fmt: on


SETTINGS: dict[str, Setting] = {row.name: row.metadata["setting"] for row in dataclasses.fields(Config)}
"""Every row of the table by name."""

Config.__doc__ = f"{Config.__doc__}\n\n    Attributes\n    ----------\n" + "\n".join(
    f"    {name} : {row.help}" for name, row in SETTINGS.items()
)


def check(config: Config) -> Config:
    """Return settings with every value checked and converted to its type.

    Raises
    ------
    UsageError
        For the first that makes no sense; its attribute `setting` is the name.
    """
    checked: dict[str, Any] = {}
    for name, row in SETTINGS.items():
        value, default = getattr(config, name), getattr(Config, name)
        try:
            checked[name] = None if value is None and default is None else row.check(name, value)
        except UsageError as error:
            raise UsageError(str(error).removeprefix(": "), setting=name) from None
    if checked["patience"] is not None and checked["validation"] == 0:
        raise UsageError("patience needs validation images; give validation a share above 0", setting="patience")
    return Config(**checked)


def plain(config: Config) -> dict[str, Any]:
    """Return the settings as JSON holds them, with a path that means the same from any folder."""
    fields = {name: getattr(config, name) for name in SETTINGS}
    folder = None if config.data_dir is None else str(config.data_dir.resolve())
    return fields | {"data_dir": folder, "augment": list(config.augment)}


def read_settings(path: Path) -> dict[str, Any]:
    """Read settings by name from a JSON file, such as the `config.json` of a run, or from a TOML file.

    The values are as the file has them; `check` checks them.

    Raises
    ------
    XcnnError
        If the file cannot be read or is neither, by its suffix.
    UsageError
        If a name is not that of a setting.
    """
    read = {".json": json.loads, ".toml": tomllib.loads}.get(path.suffix.lower())
    if read is None:
        raise UsageError(f"a file of settings must end in .json or .toml, got {path}")
    try:
        if not path.is_file():
            raise FileNotFoundError(2, "there is no such file")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"it is longer than {_MOST_BYTES} bytes")
        settings = read(content.decode("utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("it holds no table of settings by name")
    except OSError as error:
        raise XcnnError(f"cannot read the settings {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise XcnnError(f"cannot read the settings {path}: {str(error).splitlines()[0]}") from None
    return known_settings(settings, path)


def known_settings(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings that are not None, after checking that each name is one."""
    for name in settings:
        if name not in SETTINGS:
            raise unknown(f"setting in {path}:", name, SETTINGS)
    return {name: value for name, value in settings.items() if value is not None}

"""The settings of a run: what there is, what makes sense, and reading them from a file."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcnn import data, models, optim
from xcnn._plugins import find
from xcnn.errors import UsageError, XcnnError, unknown
from xcnn.training.checkpoints import Interval

__all__ = ["Config", "check", "known_settings", "plain", "read_settings"]

_MOST_BYTES = 1 << 16
"""Of a file of settings."""

_MOST = 10**9


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a run; each is also the command-line flag of its name.

    Attributes
    ----------
    dataset
        data set by name; see `xcnn datasets`.
    data_dir
        folder that holds the data set's files, or your images; downloaded ones are kept elsewhere.
    image_size
        height and width that images of the data set `folder` are resized to (32).
    model
        network by name; see `xcnn models`.
    epochs
        passes over the training images.
    batch_size
        images per step.
    opt
        optimizer: sgd, adam, adamw, rmsprop.
    lr
        learning rate, at its peak.
    momentum
        of sgd and rmsprop.
    wd
        weight decay.
    schedule
        of the learning rate: constant, step, cosine, one-cycle, plateau.
    warmup
        steps in which the learning rate first rises.
    label_smoothing
        share of the target that is spread over all classes.
    clip_norm
        bound for the norm of all gradients.
    augment
        distortions of the training images, with commas between: flip, shift, crop, rotate, cutout.
    validation
        share of the training images that is held out to choose the best epoch.
    patience
        stop after so many epochs without a better validation loss.
    seed
        decides weights, order, augmentation and the held-out images.
    device
        where to compute: cpu, cuda, cuda:1, auto; see `xcnn devices`.
    checkpoint_every
        how often to save everything that --resume needs, such as 500steps, 1epoch or 10minutes.
    keep_checkpoints
        how many of the last such checkpoints stay.
    """

    dataset: str = "digits"
    data_dir: Path | None = None
    image_size: int | None = None
    model: str = "vgg_small"
    epochs: int = 15
    batch_size: int = 64
    opt: str = "adam"
    lr: float = 3e-3
    momentum: float = 0.9
    wd: float = 0.0
    schedule: str = "one-cycle"
    warmup: int = 0
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    augment: tuple[str, ...] = ()
    validation: float = 0.1
    patience: int | None = None
    seed: int = 0
    device: str = "cpu"
    checkpoint_every: str = "1epoch"
    keep_checkpoints: int = 2


def check(config: Config) -> None:
    """Refuse settings without meaning.

    Raises
    ------
    UsageError
        For the first of them; it names the flag.
    """
    names: list[tuple[str, str, Mapping[str, Any]]] = [
        ("data set", config.dataset, data.DATASETS),
        ("model", config.model, models.MODELS),
        ("optimizer", config.opt, optim.OPTIMIZERS),
        ("schedule", config.schedule, optim.SCHEDULES),
        *(("augmentation", name, data.AUGMENTATIONS) for name in config.augment),
    ]
    for kind, name, table in names:
        find(kind, name, table)
    for flag, good, wanted in (
        ("epochs", 1 <= config.epochs <= _MOST, f"from 1 to {_MOST}"),
        ("batch-size", 1 <= config.batch_size <= _MOST, f"from 1 to {_MOST}"),
        ("seed", config.seed >= 0, "0 or more"),
        ("lr", 0 < config.lr < float("inf"), "a number above 0"),
        ("validation", 0 <= config.validation < 1, "at least 0 and below 1"),
        ("label-smoothing", 0 <= config.label_smoothing < 1, "at least 0 and below 1"),
        ("clip-norm", config.clip_norm is None or config.clip_norm > 0, "above 0"),
        ("warmup", config.warmup >= 0, "0 or more steps"),
        ("patience", config.patience is None or config.patience >= 1, "at least 1"),
        ("keep-checkpoints", config.keep_checkpoints >= 1, "at least 1"),
    ):
        if not good:
            raise UsageError(f"--{flag} must be {wanted}, got {getattr(config, flag.replace('-', '_'))}")
    if config.patience is not None and config.validation == 0:
        raise UsageError("--patience needs validation images; give --validation a share above 0")
    Interval.parse(config.checkpoint_every, "--checkpoint-every")


def plain(config: Config) -> dict[str, Any]:
    """Give the settings as JSON holds them, with a path that means the same from any folder."""
    fields = dataclasses.asdict(config)
    folder = None if config.data_dir is None else str(config.data_dir.resolve())
    return fields | {"data_dir": folder, "augment": list(config.augment)}


def read_settings(path: Path) -> dict[str, Any]:
    """Read settings by name from a JSON file, such as the `config.json` of a run, or from a TOML file.

    Their values are as the file has them; what they may be, whoever makes a `Config` of them says.

    Raises
    ------
    XcnnError
        For a file that cannot be read or is neither, by its suffix.
    UsageError
        For a name that is no setting.
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
    """Return settings that are not None, after refusing names that are none."""
    names = [field.name for field in dataclasses.fields(Config)]
    for name in settings:
        if name not in names:
            raise unknown(f"setting in {path}:", name, names)
    return {name: value for name, value in settings.items() if value is not None}

"""The settings of a run, in one table: defaults, help, checks, and what may change in a resumed run.

Each row is a field of `Config`. The flags of the command and their help are made from it.
"""

import contextlib
import dataclasses
import json
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xcnn import data, models, optim
from xcnn._check import flag, integer, number
from xcnn._plugins import is_foreign
from xcnn.data.catalog import title
from xcnn.data.folder import MOST_SIDE
from xcnn.data.images import RESIZE, colour
from xcnn.errors import UsageError, XcnnError, explained, unknown
from xcnn.runs.saving import interval

__all__ = [
    "DATA_OPTIONS",
    "MODEL",
    "RULE_OPTIONS",
    "SETTINGS",
    "Config",
    "Setting",
    "check",
    "known_settings",
    "plain",
    "read_settings",
]

MODEL = "vgg_small"
"""The network of a run that names none and does not begin with one."""

_MOST_BYTES = 1 << 16
"""The largest settings file, in bytes."""


@dataclass(frozen=True)
class Setting:
    """One row of the table, beside the name, the type and the default of the field.

    Attributes
    ----------
    help : a short description.
    check : takes a name and a value; returns the value or raises a UsageError that begins with the name.
    fixed : why it cannot change in a resumed run; empty if it can.
    change : the effect of a change in a resumed run; empty if no result depends on it.
    """

    help: str
    check: Callable[[str, Any], Any]
    fixed: str = ""
    change: str = ""


def _row(default: Any, help: str, check: Callable[[str, Any], Any], fixed: str = "", change: str = "") -> Any:
    return field(default=default, metadata={"setting": Setting(help, check, fixed, change)})


# Checks


def _whole(minimum: int, maximum: int = 10**9) -> Callable[[str, Any], int]:
    return lambda name, value: integer("", name, value, minimum, maximum)


def _real(interval: str) -> Callable[[str, Any], float]:
    return lambda name, value: number("", name, value, interval)


def _one_of(kind: str, table: Collection[str]) -> Callable[[str, Any], str]:
    def checked(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in table:
            raise unknown(kind, value, table)
        return value

    return checked


def _named(kind: str, table: Mapping[str, Any]) -> Callable[[str, Any], str]:
    """Return a check that a name is in a table, or is a `package.module:function`, which is imported only when used."""
    return lambda name, value: str(value) if is_foreign(value) else _one_of(kind, table)(name, value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a string, got {value!r}")
    return value


def _path(what: str) -> Callable[[str, Any], Path]:
    def checked(name: str, value: Any) -> Path:
        if not isinstance(value, str | Path) or not str(value):
            raise UsageError(f"{name} must be a {what}, got {value!r}")
        return Path(value)

    return checked


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) and one for one in value):
        raise UsageError(f"{name} must be a list of names, got {value!r}")
    return tuple(value)


def _augmentations(name: str, value: Any) -> tuple[str, ...]:
    return tuple(_one_of("augmentation", data.AUGMENTATIONS)(name, one) for one in _names(name, value))


def _options(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            return dict(json.loads(json.dumps(dict(value), allow_nan=False)))  # tuples become lists, as in files
    raise UsageError(f"{name} must be a dict of options and their values, got {value!r}")


def _interval(name: str, value: Any) -> str:
    interval(value, name)
    return str(value)


_ON = "it applies from here on"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a run; each is also the command-line flag of its name."""

    # fmt: off
    dataset: str = _row("digits",
        "data set by name (see `xcnn datasets`), or your own as package.module:function.",
        _named("data set", data.DATASETS), fixed="the network is trained on its images")
    data_dir: Path | None = _row(None,  # a resumed run compares what is in it  # noqa: RUF009
        "folder with files of the data set that you have, or with your own images, or a CSV file of paths and labels.",
        _path("folder"))
    image_size: int | None = _row(None,
        "height and width to which the data set `folder` resizes its images; by default 32.",
        _whole(1, MOST_SIDE), fixed="the network is built for it")
    resize: str = _row("crop",
        "how images of `folder` become square: crop what is outside, pad with the background, or stretch.",
        _one_of("resize", RESIZE), fixed="the network is trained on such images")
    background: str = _row("white",
        "colour behind transparent and around padded images of `folder`: white, grey, black or #RRGGBB.",
        lambda name, value: colour("", name, value) and str(value), fixed="the network is trained on such images")
    skip_broken: bool = _row(False,  # a resumed run compares the images
        "leave out images of `folder` that cannot be read, and name them.",
        lambda name, value: flag("", name, value))
    normalize: bool = _row(False,
        "let the network subtract the mean of each channel of the training images and divide by its deviation.",
        lambda name, value: flag("", name, value), fixed="the network begins with it")
    model: str | None = _row(None,
        "network by name (see `xcnn models`), or your own as package.module:function; by default the network of "
        "--init, if its file holds one, or else vgg_small.",
        _named("model", models.MODELS), fixed="the weights are that network's")
    model_options: dict[str, Any] | None = _row(None,  # noqa: RUF009
        "options of the network, such as filters=8 of the network report; for several, repeat the flag.",
        _options, fixed="the weights are those of the network with these options")
    init: Path | None = _row(None,  # noqa: RUF009
        "begin with the weights of a run, a checkpoint, a file of safetensors, PyTorch (.pth) or ONNX, or an installed "
        "package such as efficientnet_lite0, as far as names and shapes fit.",
        _path("file or folder"), fixed="the run has begun with these weights")
    freeze: tuple[str, ...] = _row((),
        "weights that stay as they are, by patterns of their names, separated by commas, such as `0.*,2.*`; "
        "`xcnn models MODEL` shows the names.",
        _names, change=_ON)
    epochs: int = _row(15,
        "passes over the training images.",
        _whole(1), change="a schedule that depends on it changes from here on")
    batch_size: int = _row(64,
        "images per step.", _whole(1), fixed="the epochs are cut into batches of that size")
    opt: str = _row("adam",
        "optimizer: sgd, adam, adamw, rmsprop, or your own as package.module:class.",
        _named("optimizer", optim.OPTIMIZERS), fixed="the state is that optimizer's")
    lr: float = _row(3e-3, "highest learning rate.", _real("(0, inf)"), change=_ON)
    momentum: float = _row(0.9, "momentum of sgd and rmsprop.", _real("[0, inf)"), change=_ON)
    wd: float = _row(0.0, "weight decay.", _real("[0, inf)"), change=_ON)
    opt_options: dict[str, Any] | None = _row(None,  # noqa: RUF009
        "further options of the optimizer, such as nesterov=true or betas=[0.8,0.99]; for several, repeat the flag.",
        _options, fixed="the state is that of the optimizer with these options")
    schedule: str = _row("one-cycle",
        "learning rate schedule: constant, step, cosine, polynomial, one-cycle, plateau, or package.module:function.",
        _named("schedule", optim.SCHEDULES), fixed="the state is that schedule's")
    warmup: int = _row(0,
        "number of steps at the start in which the learning rate rises.", _whole(0), fixed="it is part of the schedule")
    label_smoothing: float = _row(0.0,
        "share of the target that is spread over all classes.",
        _real("[0, 1)"), change=f"{_ON}, and losses before and after cannot be compared")
    class_weight: str | None = _row(None,
        "balanced: all classes count the same in the loss of training and validation, however many images they have.",
        _one_of("class_weight", ("balanced",)), change=f"{_ON}, and losses before and after cannot be compared")
    ema: float | None = _row(None,
        "decay of an exponential moving average of the weights, such as 0.999, which is validated, kept and tested.",
        _real("[0, 1)"), change=_ON)
    accumulate: int | None = _row(None,
        "number of parts in which a step computes its images, one after the other, to take less memory, or on several "
        "processes; by default the number of processes.",
        _whole(1), change=_ON)
    sync_batch_norm: bool = _row(False,
        "let batch norm use the statistics of all images of a step, instead of those of each of its parts.",
        lambda name, value: flag("", name, value), change=_ON)
    clip_norm: float | None = _row(None,
        "largest norm of all gradients together.", _real("(0, inf)"), change=_ON)
    augment: tuple[str, ...] = _row((),
        f"augmentations of the training images, separated by commas: {', '.join(data.AUGMENTATIONS)}.",
        _augmentations, change=_ON)
    validation: float = _row(0.1,
        "share of the training images that is held out to choose the best epoch.",
        _real("[0, 1)"), fixed="images used for training would be held out")
    monitor: str = _row("val_loss",
        "what chooses the best epoch, and what patience watches: val_loss or val_accuracy.",
        _one_of("monitor", ("val_loss", "val_accuracy")), change="the next epoch counts as the best so far")
    patience: int | None = _row(None,
        "stop after this many epochs without a better value of monitor.", _whole(1), change=_ON)
    seed: int = _row(0,
        "seed of the weights, the order, the augmentation and the held-out images.",
        _whole(0, 2**63 - 1), fixed="it determines the held-out images and their order")
    workers: int | None = _row(None,  # no number depends on it
        "threads that prepare batches ahead; by default 2 if images are decoded when they are needed, 1 if they "
        "are augmented, else none.",
        _whole(0, 1024))
    device: str = _row("cpu",  # a resumed run compares what it computes with
        "where to compute: cpu, cuda, cuda:1, auto; see `xcnn devices`.", _text)
    checkpoint_every: str = _row("1epoch",
        "how often to write a checkpoint from which to resume, such as 500steps, 1epoch or 10minutes.", _interval)
    keep_checkpoints: int = _row(2,
        "number of these checkpoints to keep.", _whole(1))
    # fmt: on

    @property
    def title(self) -> str:
        """The network and the data set, such as `resnet20 on photos`."""
        return f"{self.network} on {title(self.dataset, self.data_dir)}"

    @property
    def network(self) -> str:
        """What the network is called: `model`, or the name of the file of `init`."""
        return self.model or (MODEL if self.init is None else self.init.stem)


Config.__init__ = explained(Config.__init__)  # type: ignore[method-assign]

RULE_OPTIONS = {"lr": "lr", "momentum": "momentum", "wd": "weight_decay"}
"""The options of optimizers that are settings by themselves: the setting, and the option."""

DATA_OPTIONS = {"image_size": "size", "resize": "resize", "background": "background", "skip_broken": "skip_broken"}
"""The settings that are options of the data set `folder`: the setting, and the option."""

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
        For the first invalid setting; its attribute `setting` is the name.
    """
    if not isinstance(config, Config):
        raise UsageError(f"config must be a Config, got {config!r}")
    checked: dict[str, Any] = {}
    for name, row in SETTINGS.items():
        value, default = getattr(config, name), getattr(Config, name)
        try:
            checked[name] = None if value is None and default is None else row.check(name, value)
        except UsageError as error:
            raise UsageError(str(error).removeprefix(": "), setting=name) from None
    if checked["dataset"] in data.DATASETS.keys() - {"folder"}:
        for name in DATA_OPTIONS:
            if checked[name] != getattr(Config, name):
                named = f"the data set {checked['dataset']!r} has images of its own size"
                raise UsageError(f"{name} is for the data set 'folder'; {named}", setting=name)
    return Config(**checked)


def plain(config: Config) -> dict[str, Any]:
    """Return the settings as JSON values, with absolute paths."""
    fields = {name: getattr(config, name) for name in SETTINGS}
    return {name: _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value if str(value) in models.PRETRAINED and not value.exists() else value.resolve())
    return list(value) if isinstance(value, tuple) else value


def read_settings(path: Path) -> dict[str, Any]:
    """Read settings by name from a JSON file, such as the `config.json` of a run, or from a TOML file.

    The values are not checked; see `check`.

    Raises
    ------
    XcnnError
        If the file cannot be read or its suffix is another.
    UsageError
        If a setting is unknown.
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
            raise ValueError("it must hold a table of settings")
    except OSError as error:
        raise XcnnError(f"cannot read the settings {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise XcnnError(f"cannot read the settings {path}: {str(error).splitlines()[0]}") from None
    return known_settings(settings, path)


def known_settings(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings that are not None, after checking their names."""
    for name in settings:
        if name not in SETTINGS:
            raise unknown(f"setting in {path}:", name, SETTINGS)
    return {name: value for name, value in settings.items() if value is not None}

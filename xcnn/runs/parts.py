"""The parts of a run that its settings name: data sets, loss and optimizer."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from xcnn import data, optim
from xcnn._plugins import find
from xcnn.data.lazy import read
from xcnn.errors import UsageError, wrong_call
from xcnn.optim.optimizer import options_of
from xcnn.runs.settings import DATA_OPTIONS, RULE_OPTIONS, Config
from xcnn.training import Loss, class_weight, loss_named

__all__ = ["data_sets", "make_loss", "make_optimizer"]

_UNEQUAL = 5
"""Times the images of the smallest class, from which it is told that the largest has more."""


def data_sets(
    config: Config, size: int, progress: Callable[..., None], tell: Callable[[str], None]
) -> tuple[data.Dataset, data.Dataset, data.Dataset | None]:
    """Return the data sets for training, test and validation; `progress` is called as by `data.splits`.

    `size` is the height and width of images of any size if the settings name none.
    """
    given = {name: getattr(config, name) for name in DATA_OPTIONS}
    options = {DATA_OPTIONS[name]: value for name, value in given.items() if value != getattr(Config, name)}
    if config.dataset == "folder":
        options = {"size": size, **options, "tell": tell, "watch": functools.partial(progress, "checking images")}
    parts = data.splits(config.dataset, config.data_dir, progress=progress, **options)
    train, validation = parts["train"], parts.get("validation")
    if validation is None and config.validation > 0:
        if round(config.validation * len(train)) in (0, len(train)):
            held = f"{config.validation} of {len(train)} images to train holds out none or all of them"
            raise UsageError(f"validation: {held}; set it to 0 to validate on none", setting="validation")
        train, validation = data.split(train, config.validation, config.seed)
        if config.dataset == "folder":
            tell(f"{train.name}: {len(validation):,} of the images to train are held out to validate")
    if config.dataset == "folder" and config.class_weight is None:
        counts = np.bincount(train.y, minlength=len(train.classes))
        if counts.max() >= _UNEQUAL * counts.min() > 0:
            more = f"the largest class to train has {counts.max() / counts.min():.0f} times the images of the smallest"
            tell(f"{train.name}: {more}; consider class_weight='balanced'")
    return train, parts["test"], validation


def make_loss(config: Config, train: data.Dataset) -> Loss:
    """Return the loss for training, with its smoothing and the weights of the classes."""
    options: dict[str, Any] = {"label_smoothing": config.label_smoothing}
    if config.class_weight is not None:
        try:
            y = read(train.y, np.arange(len(train)))
            options["weight"] = class_weight(config.class_weight, y, train.classes).tolist()
        except UsageError as error:
            error.setting = "class_weight"
            raise
    return loss_named("cross_entropy", **options)


def make_optimizer(config: Config, parameters: list[Any]) -> optim.Optimizer:
    """Return the optimizer with its own options and with the settings that stand for some of them."""
    kind: Callable[..., optim.Optimizer] = find("optimizer", config.opt, optim.OPTIMIZERS)
    known, options = options_of(kind), dict(config.opt_options or {})
    for name, option in RULE_OPTIONS.items():
        if option in options and option in known:
            raise UsageError(f"set {name} instead of the option {option}", setting="opt_options")
        value = getattr(config, name)
        if option in known:
            options[option] = value
        elif value != getattr(Config, name) and not wrong_call(config.opt, kind, [parameters], {option: value}):
            options[option] = value  # a function of `**options`
        elif value != getattr(Config, name):
            raise UsageError(f"{name} is not for the optimizer {config.opt}, which has no {option}", setting=name)
    if wrong := wrong_call(config.opt, kind, [parameters], options):
        wrong.setting = "opt_options"
        raise wrong
    return kind(parameters, **options)

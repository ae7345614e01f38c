"""Going on with a run: what may differ from its checkpoint, what that means, and taking the checkpoint's state."""

import hashlib
from typing import Any

import numpy as np

from xcnn.data import Dataset
from xcnn.devices import Device
from xcnn.errors import UsageError
from xcnn.machine import machine
from xcnn.runs.checkpoint import Checkpoint
from xcnn.runs.settings import SETTINGS, Config, plain
from xcnn.training import Trainer

__all__ = ["differences", "load_state", "origin"]


def origin(where: Device, **datasets: Dataset | None) -> dict[str, Any]:
    """Return what a run computes with, and the SHA-256 of the images and labels of each of its data sets."""
    here = machine()
    return {
        "device": where.name,
        "arrays": where.summary,
        "python": here["versions"]["python"],
        "xcnn": here["versions"]["xcnn"],
        "processor": here["cpu"],
        "images": {name: _sha256(dataset) for name, dataset in datasets.items() if dataset is not None},
    }


def _sha256(dataset: Dataset) -> str:
    content = hashlib.sha256(np.ascontiguousarray(dataset.images).data)
    content.update(dataset.labels.astype("<i8").data)
    return content.hexdigest()


def differences(checkpoint: Checkpoint, config: Config, here: dict[str, Any]) -> tuple[set[str], list[str]]:
    """Compare a checkpoint with the run that is to go on from it.

    Parameters
    ----------
    checkpoint : where to go on from.
    config : the settings from now on.
    here : the `origin` of the run from now on.

    Returns
    -------
    (changed, remarks) : the names of the settings that have changed; sentences on what differs and what that means.

    Raises
    ------
    UsageError
        If a setting that cannot change has changed, the training or validation images have, or fewer epochs are wanted
        than are done.
    """
    before, now = checkpoint.config, plain(config)
    changed = {name for name in SETTINGS if before.get(name) != now[name]}
    remarks = []
    for name, setting in SETTINGS.items():
        if name not in changed:
            continue
        if setting.fixed:
            raise UsageError(
                f"{name} cannot change in a resumed run, as {setting.fixed}: it was {before.get(name)}, "
                f"now {now[name]}; start a new run",
                setting=name,
            )
        if setting.change:
            remarks.append(f"{name} was {before.get(name)} and is {now[name]}: {setting.change}")
    then = dict(checkpoint.origin)
    images = dict(then.pop("images"))
    for name, digest in here["images"].items():
        if images.get(name) == digest:
            continue
        if name != "test":
            raise UsageError(
                f"the {name} images of {config.dataset} differ from those that the run has learned from; "
                "give its own data_dir, or start a new run",
                setting="data_dir",
            )
        remarks.append(f"the test images of {config.dataset} have changed: test figures before and after are not alike")
    parted = [f"{name} was {then.get(name)} and is {here[name]}" for name in then if then.get(name) != here.get(name)]
    if parted:
        remarks.append(f"{'; '.join(parted)}: rounding may differ, so not every bit will be the uninterrupted run's")
    training = checkpoint.training or {}
    begun = len(training["history"]) + (training["epoch"] is not None)
    if config.epochs < begun:
        raise UsageError(
            f"epochs must be at least {begun}, which the run has begun, got {config.epochs}", setting="epochs"
        )
    return changed, remarks


_OPTIONS = {"lr": ("lr", "initial_lr"), "momentum": ("momentum",), "wd": ("weight_decay",)}
"""The options of the optimizer that a setting decides."""


def load_state(trainer: Trainer, state: dict[str, Any], changed: set[str], best_epoch: int) -> None:
    """Load a checkpoint's state into the trainer of a run, except for what changed settings decide.

    Parameters
    ----------
    trainer : built from the settings.
    state : of the checkpoint.
    changed : the names of the settings that have changed.
    best_epoch : that of the best weights on disk; 0 if there are none. If the state remembers another, the next epoch
        is the best so far.
    """
    callbacks = dict(state["callbacks"])
    if callbacks.get("KeepBest", {}).get("best_epoch") != best_epoch:
        callbacks.pop("KeepBest", None)
    groups = trainer.optimizer.param_groups
    given = [dict(group) for group in groups]
    trainer.load_state_dict({**state, "callbacks": callbacks})
    options = [option for name in _OPTIONS if name in changed for option in _OPTIONS[name]]
    for group, before in zip(groups, given, strict=True):
        group.update({option: before[option] for option in options if option in before})
    if options and trainer.schedule is not None:
        trainer.schedule.load_state_dict(trainer.schedule.state_dict())  # works out the rate of this step
    if any(SETTINGS[name].change for name in changed):
        trainer.stop_reason = ""  # what ended the run may not end it now

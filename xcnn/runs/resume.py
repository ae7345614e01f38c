"""What a run may change when it is resumed, what that means, and what cannot change."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcnn.data import Dataset
from xcnn.devices import Device
from xcnn.errors import UsageError
from xcnn.machine import machine
from xcnn.runs.checkpoint import Checkpoint
from xcnn.runs.settings import Config, plain

__all__ = ["SETTINGS", "Setting", "differences", "origin"]


@dataclass(frozen=True)
class Setting:
    """Whether a setting may change in a resumed run, and what to say of it; nothing where it matters to no number."""

    may_change: bool
    meaning: str = ""


_ON = "it holds from here on"

SETTINGS: dict[str, Setting] = {
    "dataset": Setting(False, "the network has learned from its images"),
    "data_dir": Setting(True),  # what is in it is compared
    "image_size": Setting(False, "the network is made for it"),
    "model": Setting(False, "the weights are that network's"),
    "epochs": Setting(True, "a schedule that depends on it takes its new course from here on"),
    "batch_size": Setting(False, "the epochs are cut into batches of that size"),
    "opt": Setting(False, "the state is that optimizer's"),
    "lr": Setting(True, _ON),
    "momentum": Setting(True, _ON),
    "wd": Setting(True, _ON),
    "schedule": Setting(False, "the state is that schedule's"),
    "warmup": Setting(False, "it is a part of the schedule"),
    "label_smoothing": Setting(True, f"{_ON}, and losses before and after are not alike"),
    "clip_norm": Setting(True, _ON),
    "augment": Setting(True, _ON),
    "validation": Setting(False, "images that were learned would be held out"),
    "patience": Setting(True, _ON),
    "seed": Setting(False, "it has decided the held-out images and the order"),
    "device": Setting(True),  # what computes is compared
    "checkpoint_every": Setting(True),
    "keep_checkpoints": Setting(True),
}
"""Every setting of `Config`."""


def origin(where: Device, train: Dataset) -> dict[str, Any]:
    """Tell what a run computes with, and the SHA-256 of the images and labels that it learns from."""
    content = hashlib.sha256(np.ascontiguousarray(train.images).data)
    content.update(train.labels.astype("<i8").data)
    here = machine()
    return {
        "device": where.name,
        "arrays": where.summary,
        "python": here["versions"]["python"],
        "xcnn": here["versions"]["xcnn"],
        "processor": here["cpu"],
        "images": content.hexdigest(),
    }


def differences(checkpoint: Checkpoint, config: Config, here: dict[str, Any]) -> tuple[set[str], list[str]]:
    """Compare a checkpoint with the run that is to go on from it.

    Parameters
    ----------
    checkpoint : where to go on from.
    config : the settings from now on.
    here : the `origin` of the run from now on.

    Returns
    -------
    (changed, remarks) : the names of the settings that are others; sentences on what differs and what that means.

    Raises
    ------
    UsageError
        For a setting that cannot change, other training images, or fewer epochs than are done.
    """
    before, now = checkpoint.config, plain(config)
    changed = {name for name in SETTINGS if before.get(name) != now[name]}
    remarks = []
    for name in SETTINGS:
        if name not in changed:
            continue
        setting, flag = SETTINGS[name], name.replace("_", "-")
        if not setting.may_change:
            raise UsageError(
                f"--{flag} cannot change in a resumed run, as {setting.meaning}: it was {before.get(name)}, "
                f"now {now[name]}; start a new run"
            )
        if setting.meaning:
            remarks.append(f"--{flag} was {before.get(name)} and is {now[name]}: {setting.meaning}")
    then = checkpoint.origin
    if then.get("images") != here["images"]:
        raise UsageError(
            f"the training images of {config.dataset} are others than those that the run has learned from; "
            "give its own with --data-dir, or start a new run"
        )
    parted = [f"{name} was {then.get(name)} and is {here[name]}" for name in here if then.get(name) != here[name]]
    if parted:
        remarks.append(f"{'; '.join(parted)}: rounding may differ, so not every bit will be the uninterrupted run's")
    training = checkpoint.training or {}
    begun = len(training["history"]) + (training["epoch"] is not None)
    if config.epochs < begun:
        raise UsageError(f"--epochs must be at least {begun}, which the run has begun, got {config.epochs}")
    return changed, remarks

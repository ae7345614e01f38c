"""Resuming a run: comparing it with its checkpoint, and loading the state of the checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xcnn.data import Dataset
from xcnn.devices import Device
from xcnn.errors import UsageError
from xcnn.machine import machine
from xcnn.runs.checkpoint import Checkpoint
from xcnn.runs.settings import RULE_OPTIONS, SETTINGS, Config, plain
from xcnn.training import Trainer

__all__ = ["changes", "differences", "load_state", "origin", "require_images"]


def origin(where: Device, **datasets: Dataset | None) -> dict[str, Any]:
    """Return the hardware and versions of a run, and the fingerprints of its data sets."""
    here = machine()
    return {
        "device": where.name,
        "arrays": where.summary,
        "python": here["versions"]["python"],
        "xcnn": here["versions"]["xcnn"],
        "processor": here["cpu"],
        "images": {name: dataset.fingerprint() for name, dataset in datasets.items() if dataset is not None},
    }


def require_images(data_dir: Path | None) -> None:
    """Refuse a folder of images that has been moved since a run was begun."""
    if data_dir is not None and not data_dir.exists():
        where = f"the images of the run are looked for in {data_dir}, which is not there"
        raise UsageError(f"{where}; name the place where they are now", setting="data_dir")


def changes(before: Mapping[str, Any], config: Config) -> list[str]:
    """Return the names of the settings that differ from those before, unless one of them must not: then raise."""
    before, now = {**plain(Config()), **before}, plain(config)  # older runs have fewer settings
    changed = [name for name in SETTINGS if before.get(name) != now[name]]
    for name in changed:
        if reason := SETTINGS[name].fixed:
            was = "not set" if before.get(name) is None else before[name]
            raise UsageError(
                f"{name} cannot change in a resumed run, as {reason}: it was {was}, now {now[name]}; start a new run",
                setting=name,
            )
    return changed


def differences(checkpoint: Checkpoint, config: Config, here: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Compare a checkpoint with the settings and the `origin` of the run that resumes from it.

    Returns
    -------
    (changed, remarks) : the names of changed settings, and sentences that describe each difference and its effect.

    Raises
    ------
    UsageError
        If a setting or data set has changed that must not, `epochs` is less than the number of epochs begun, or a
        setting of the training has changed, of which nothing is left.
    """
    before, now, changed = checkpoint.config, plain(config), changes(checkpoint.config, config)
    remarks = [
        f"{name} was {before.get(name)} and is {now[name]}: {SETTINGS[name].change}"
        for name in changed
        if SETTINGS[name].change
    ]
    then = dict(checkpoint.origin)
    images = dict(then.pop("images"))
    for name, digest in here["images"].items():
        if images.get(name) == digest:
            continue
        if name != "test":
            raise UsageError(
                f"the {name} images of {config.dataset} differ from those of the run; "
                "use the data_dir of the run, or start a new run",
                setting="data_dir",
            )
        remarks.append(f"the test images of {config.dataset} have changed: results before and after cannot be compared")
    others = [f"{name} was {then[name]} and is {here.get(name)}" for name in then if then[name] != here.get(name)]
    if others:
        remarks.append(f"{'; '.join(others)}: rounding may differ, so the results may not be bitwise identical")
    training = checkpoint.training or {}
    begun = len(training["history"]) + (training["epoch"] is not None)
    if config.epochs < begun:
        raise UsageError(
            f"epochs must be at least {begun}, as the run has begun epoch {begun}, got {config.epochs}",
            setting="epochs",
        )
    if config.epochs == begun and training["epoch"] is None:
        for name in changed:
            if SETTINGS[name].change and name != "epochs":
                raise UsageError(
                    f"{name} was {before.get(name)} and cannot become {now[name]}, as nothing is left to "
                    "train; raise epochs, too",
                    setting=name,
                )
    return changed, remarks


def load_state(trainer: Trainer, state: dict[str, Any], changed: list[str], best_epoch: int) -> None:
    """Load the state of a checkpoint into the trainer of a run, except for options that changed settings determine.

    `best_epoch` is the epoch of the best weights on disk, or 0. If the state names another, the next epoch counts as
    the best so far.
    """
    callbacks = dict(state["callbacks"])
    if callbacks.get("KeepBest", {}).get("best_epoch") != best_epoch:
        callbacks.pop("KeepBest", None)
    groups = trainer.optimizer.param_groups
    given = [dict(group) for group in groups]
    trainer.load_state_dict({**state, "callbacks": callbacks})
    options = [option for name, option in RULE_OPTIONS.items() if name in changed]
    if "lr" in options:
        options.append("initial_lr")
    for group, before in zip(groups, given, strict=True):
        group.update({option: before[option] for option in options if option in before})
    if options and trainer.schedule is not None:
        trainer.schedule.load_state_dict(trainer.schedule.state_dict())  # computes the learning rate of this step
    if any(SETTINGS[name].change for name in changed):
        trainer.stop_reason = ""  # with the new settings the run may continue

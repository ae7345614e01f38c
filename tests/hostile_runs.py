"""The files of a run that `hostile.py` damages: checkpoints and settings.

The checksum (seal) of a file reveals every change, so damage would never reach the code behind it. So `mend` renews the
seal of a damaged file, and `checkpoint-entry` is the JSON of a checkpoint, which is sealed before it is read.
"""

import hashlib
import json
from pathlib import Path

import cyclopts
import numpy as np
from resumable import make_trainer
from safetensors.numpy import load, save

from xcnn import models, runs
from xcnn.cli import app
from xcnn.errors import UsageError
from xcnn.runs import Checkpoint, Checkpoints, Config, load_checkpoint, save_checkpoint
from xcnn.runs.settings import check

__all__ = [
    "make_entry",
    "make_run",
    "make_settings",
    "make_weights",
    "mend_seal",
    "read_entry",
    "read_run",
    "read_settings",
    "read_weights",
]

ABOUT = Checkpoint("report", (1, 4, 4), ("cat", "dog"), "folder", {"lr": 0.1}, {"epoch": 3})


def make_weights(folder: Path) -> Path:
    return save_checkpoint(folder / "best.safetensors", models.build("report", (1, 4, 4), 2), ABOUT)


def read_weights(path: Path) -> object:
    return load_checkpoint(path).build()


def make_run(folder: Path) -> Path:
    """Write a checkpoint in the middle of an epoch, with every kind of state."""
    trainer = make_trainer("adam", "one-cycle")
    trainer.fit([(np.ones((4, 1, 8, 8), np.float32), np.arange(4))] * 2)
    return Checkpoints(folder, about=ABOUT).save(trainer)


def read_run(path: Path) -> object:
    trainer = make_trainer("adam", "one-cycle")
    assert Checkpoints(path.parent).restore(trainer) is not None
    return trainer.state_dict()


def metadata(content: bytes) -> dict[str, str]:
    header: dict[str, dict[str, str]] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header["__metadata__"]


def seal(tensors: dict[str, np.ndarray], texts: dict[str, str]) -> bytes:
    """Seal a file as a hostile writer would: all its checksums are right."""
    sums = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in tensors.items()}
    content = save(tensors, texts | {"tensors": json.dumps(sums), "sha256": "0" * 64})
    header = content[: 8 + int.from_bytes(content[:8], "little")]
    return content.replace(b"0" * 64, hashlib.sha256(header).hexdigest().encode(), 1)


def mend_seal(content: bytes) -> bytes:
    """Renew the seal of a file, if it can still be parsed as safetensors."""
    try:
        return seal(load(content), metadata(content))
    except Exception:
        return content


def make_entry(folder: Path) -> Path:
    path = folder / "entry.json"
    path.write_text(metadata(make_run(folder).read_bytes())["xcnn"])
    return path


def read_entry(path: Path) -> object:
    (checkpoint,) = path.parent.glob("step-*")
    before = checkpoint.read_bytes()
    checkpoint.write_bytes(seal(load(before), {"xcnn": path.read_bytes().decode("utf-8", "replace")}))
    try:
        return read_run(checkpoint)
    finally:
        checkpoint.write_bytes(before)


SETTINGS = {
    ".json": '{"model": "report", "epochs": 3, "lr": 0.01, "augment": ["shift"], "wd": null}',
    ".toml": 'model = "report"\nepochs = 3\nlr = 0.01\naugment = ["shift"]\ncheckpoint_every = "5steps"\n',
}


def make_settings(suffix: str, folder: Path) -> Path:
    path = folder / f"settings{suffix}"
    path.write_text(SETTINGS[suffix])
    return path


def read_settings(path: Path) -> object:
    """Read settings as `xcnn train --config` does, up to loading the data."""
    runs.read_settings(path)  # the command does the same, but later
    try:
        _, bound, _ = app.parse_args(["train", "--config", str(path)], exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        raise UsageError(" ".join(str(error).split())) from None
    settings = bound.arguments.get("flags", Config())
    check(settings)
    return settings

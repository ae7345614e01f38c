"""Checkpoint files: a model's weights with what is needed to build the model again, in one sealed safetensors file.

The tensors are the model's `state_dict()` under PyTorch's keys, so any reader of safetensors can use them. A checkpoint
that a run can go on from has the state of its trainer beside them, in tensors whose names begin with `xcnn:`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import models
from xcnn._plugins import is_foreign, refuse_foreign
from xcnn.errors import CheckpointError, DivergedError, UsageError
from xcnn.nn import Module
from xcnn.runs.sealed import Sealed, pack, read_sealed, unpack, write_sealed

__all__ = [
    "BEST",
    "CHECKPOINTS",
    "Checkpoint",
    "find_newest",
    "load_checkpoint",
    "read_checkpoint",
    "require_finite",
    "save_checkpoint",
    "step_files",
    "step_path",
    "write_checkpoint",
]

BEST = "best.safetensors"
"""The best weights, in the folder of a run."""

CHECKPOINTS = "checkpoints"
"""The folder of what a run goes on from, in the folder of the run: `step-NUMBER.safetensors`, after so many steps."""

_STEP = re.compile(r"step-(\d{8,12})\.safetensors")
_FORMAT = 3
_TRAINING = "xcnn:"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes
    ----------
    model : the name of the model in `xcnn.models.MODELS`; empty for a network of your own, and then so is what follows.
    shape : channels, height and width of its images.
    classes : the names of its classes.
    dataset : the name of the data set it was trained on.
    config : the settings of the run.
    metrics : the record of the epoch it is from.
    origin : what it was computed with, and from which images; see `xcnn.runs.resume.origin`.
    state : the weights, host arrays by name.
    training : `Trainer.state_dict()`, whose weights are those of `state`; None if the file holds weights alone.
    """

    model: str = ""
    shape: tuple[int, int, int] = (1, 1, 1)
    classes: tuple[str, ...] = ()
    dataset: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    state: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    training: dict[str, Any] | None = field(default=None, repr=False)

    def build(self, model: str | None = None) -> Module:
        """Build the model and load its weights.

        Parameters
        ----------
        model : the name of the model again; needed if it is `package.module:function`, which no file may bring.

        Raises
        ------
        CheckpointError
            If the weights do not fit the model.
        UsageError
            If the model is code outside the table and `model` is not its name.
        """
        if model != self.model:
            refuse_foreign("the checkpoint", model=self.model)
        # Nothing is allocated for what the file only claims: the shapes of its arrays are compared first.
        module = models.build(self.model, self.shape, len(self.classes), seed=None)
        module.load_state_dict(self.state)
        return module


def save_checkpoint(path: str | Path, model: Module, checkpoint: Checkpoint) -> Path:
    """Write a model's weights and the fields of `checkpoint`; an older file stays until the new one is whole.

    Parameters
    ----------
    path : the file to write.
    model : gives the weights.
    checkpoint : describes them; its own `state` is not used.

    Returns
    -------
    The path.

    Raises
    ------
    WriteError
        If the file cannot be written.
    """
    path = Path(path)
    write_checkpoint(path, dataclasses.replace(checkpoint, state=model.state_dict()))
    return path


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as `save_checkpoint` does, with the weights in its `state`."""
    if problem := _impossible(checkpoint.shape, checkpoint.classes):
        raise UsageError(f"a checkpoint cannot be written: {problem}")
    beside = checkpoint.training and {k: part for k, part in checkpoint.training.items() if k != "weights"}
    training, arrays = pack(beside, f"{_TRAINING}training")
    fields = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint) if f.name != "state"}
    metrics, _ = pack(dict(checkpoint.metrics), "metrics")  # NumPy's numbers become Python's
    entry = {"format": _FORMAT, **fields, "metrics": metrics, "training": training}
    write_sealed(path, {**checkpoint.state, **arrays}, {"xcnn": entry})


def load_checkpoint(
    path: str | Path, model: str | None = None, describe: Callable[[], dict[str, Any]] | None = None
) -> Checkpoint:
    """Read a checkpoint, or a plain safetensors weight file.

    Parameters
    ----------
    path : the file; or the folder of a run, for its best weights, or those of its newest checkpoint if it has no best.
    model : the model's name, if you know it: it must then be the checkpoint's, and is needed if the file holds nothing
        but weights.
    describe : called if the file holds nothing but weights; returns its `shape`, `classes` and `dataset`.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, no safetensors file, or nothing but weights that are not described.
    UsageError
        If the checkpoint is of another model than `model`.
    """
    path = Path(path)
    found = None
    if path.is_dir() and not (path / BEST).exists():
        found = find_newest(path / CHECKPOINTS)
    if found is not None:
        path, checkpoint = step_path(path / CHECKPOINTS, found[0]), found[1]
    else:
        path = path / BEST if path.is_dir() else path
        checkpoint = read_checkpoint(path)
    if checkpoint.model:
        if model not in (None, checkpoint.model):
            raise UsageError(f"{path} is a checkpoint of the model {checkpoint.model!r}, not of {model!r}")
        return checkpoint
    if model is None or describe is None:
        raise CheckpointError(f"{path} holds weights but does not name its model; name the model")
    return dataclasses.replace(checkpoint, model=model, **describe())


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint as it is; that of a plain weight file, or of a network of your own, names no model.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged or no safetensors file.
    """
    sealed = read_sealed(path)
    return _parse(path, sealed) if sealed.entries else Checkpoint(state=sealed.tensors)


def step_path(folder: Path, steps: int) -> Path:
    """Return the path of the checkpoint after so many steps."""
    return folder / f"step-{steps:08d}.safetensors"


def step_files(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in a folder by the number of their steps, in order."""
    there = folder.iterdir() if folder.is_dir() else ()
    return dict(sorted((int(found[1]), path) for path in there if (found := _STEP.fullmatch(path.name))))


def find_newest(folder: Path, tell: Callable[[str], object] = lambda message: None) -> tuple[int, Checkpoint] | None:
    """Read the newest checkpoint in a folder that is whole, after so many steps; None if there are none at all.

    Parameters
    ----------
    folder : holds the checkpoints.
    tell : called with a sentence for each newer checkpoint that is damaged.

    Raises
    ------
    CheckpointError
        If there are some, but none is whole.
    """
    files, reasons = step_files(folder), []
    for steps in reversed(files):
        path = files[steps]
        try:
            found = read_checkpoint(path)
            if found.training is None:
                raise CheckpointError(f"{path} holds weights and nothing to go on from")
            if found.training.get("steps") != steps:
                raise CheckpointError(f"{path} is the checkpoint of another step")
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            tell(f"{reason}; going on from {path.name}, which is older")
        return steps, found
    if reasons:
        raise CheckpointError(f"none of the {len(files)} checkpoints in {folder} is whole: {reasons[0]}")
    return None


def require_finite(weights: Mapping[str, np.ndarray], when: str) -> None:
    """Refuse weights that are not finite, so that the file from before stays. `when` opens the sentence.

    Raises
    ------
    DivergedError
        If one is not finite.
    """
    for name, array in weights.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DivergedError(f"{when}: {name} is not finite; lower the learning rate")


_TYPES = {
    "model": str, "shape": list, "classes": list, "dataset": str, "config": dict, "metrics": dict, "origin": dict,
    "training": dict | None,
}  # fmt: skip

# The layers make arrays in proportion to these, whatever else is in the file.
_MOST_PIXELS = 1 << 23
_MOST_CLASSES = 100_000
_MOST_LETTERS = 1 << 20


def _impossible(shape: tuple[int, int, int], classes: tuple[str, ...]) -> str:
    """Return what is wrong with the images and the classes of a checkpoint; empty if nothing is."""
    c, h, w = shape
    letters = sum(map(len, classes))
    if min(c, h, w) < 1 or c * h * w > _MOST_PIXELS:
        return f"its images {c, h, w} are impossible: they may have from 1 to {_MOST_PIXELS} numbers"
    if len(classes) > _MOST_CLASSES or letters > _MOST_LETTERS:
        most = f"at most {_MOST_CLASSES} with {_MOST_LETTERS} characters in all are possible"
        return f"it has {len(classes)} classes with {letters} characters; {most}"
    return ""


def _parse(path: Path, sealed: Sealed) -> Checkpoint:
    raw, tensors = sealed.entries["xcnn"], sealed.tensors
    try:
        if raw.pop("format") != _FORMAT:
            raise ValueError("it was written by another version of xcnn")
        for name, kind in _TYPES.items():
            if not isinstance(raw.get(name), kind):
                raise ValueError(f"its {name} is no {getattr(kind, '__name__', 'dict')}")
        c, h, w = (int(size) for size in raw.pop("shape"))
        classes = tuple(str(name) for name in raw.pop("classes"))
        if problem := _impossible((c, h, w), classes):
            raise ValueError(problem)
        if raw["model"] and not classes:
            raise ValueError("it has no classes")
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(_TRAINING)}
        rest = {name: tensor for name, tensor in tensors.items() if name not in own}
        training = unpack(raw.pop("training"), rest)
        if training is not None:
            training["weights"] = own
        checkpoint = Checkpoint(shape=(c, h, w), classes=classes, state=own, training=training, **raw)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} is no xcnn checkpoint: {error}") from None
    if checkpoint.model and checkpoint.model not in models.MODELS and not is_foreign(checkpoint.model):
        raise CheckpointError(f"{path} is a checkpoint of a model {checkpoint.model!r}, which this xcnn does not have")
    return checkpoint

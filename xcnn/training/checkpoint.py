"""Checkpoints: a model's weights with what it takes to build the model again, in one sealed safetensors file.

The tensors are the model's `state_dict()` under PyTorch's keys, so any reader of safetensors can use them. A checkpoint
that a run can go on from has the state of its trainer beside them, in tensors whose names open with `xcnn:`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import models
from xcnn._plugins import is_foreign, refuse_foreign
from xcnn.errors import CheckpointError, DivergedError, UsageError
from xcnn.nn import Module
from xcnn.training.sealed import Sealed, pack, read_sealed, unpack, write_sealed

__all__ = [
    "BEST",
    "LAST",
    "Checkpoint",
    "load_checkpoint",
    "read_checkpoint",
    "require_finite",
    "save_checkpoint",
    "write_checkpoint",
]

BEST, LAST = "best.safetensors", "last.safetensors"
"""The weights for use in the folder of a run."""

_FORMAT = 2
_TRAINING = "xcnn:"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes
    ----------
    model : the name of the model in `xcnn.models.MODELS`; empty for a network of your own, and then so is what follows.
    shape : channels, height and width of its images.
    classes : the names of its classes.
    dataset : the name of the data set it was trained on.
    config : the settings of the run.
    metrics : the record of the epoch it is from.
    origin : what it was computed with, and from which images; see `resume.origin`.
    state : the weights, host arrays by name.
    training : what else `Trainer.state_dict()` gives; None where there are weights alone.
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
        # Nothing is allocated for what the file only says of itself: the shapes of its arrays are compared first.
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
        Where the file cannot be written.
    """
    path = Path(path)
    write_checkpoint(path, dataclasses.replace(checkpoint, state=model.state_dict()))
    return path


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> str:
    """Write a checkpoint as `save_checkpoint` does, with the weights in its `state`; return the SHA-256 of the seal."""
    training, arrays = pack(checkpoint.training, f"{_TRAINING}training")
    fields = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint) if f.name != "state"}
    entry = {"format": _FORMAT, **fields, "training": training}
    return write_sealed(path, {**checkpoint.state, **arrays}, {"xcnn": entry})


def load_checkpoint(
    path: str | Path, model: str | None = None, describe: Callable[[], dict[str, Any]] | None = None
) -> Checkpoint:
    """Read a checkpoint, or a plain safetensors weight file.

    Parameters
    ----------
    path : the file; of a run's folder, its best checkpoint, else its last.
    model : the model's name, if you know it: it must then be the checkpoint's, and stands in for it where the file
        holds nothing but weights.
    describe : called for a file that holds nothing but weights; gives its `shape`, `classes` and `dataset`.

    Raises
    ------
    CheckpointError
        For a file that is missing, damaged, no safetensors file, or nothing but weights that nobody describes.
    UsageError
        For a checkpoint of another model than `model`.
    """
    path = Path(path)
    if path.is_dir():
        path = path / (BEST if (path / BEST).exists() else LAST)
    checkpoint = read_checkpoint(path)
    if checkpoint.model:
        if model not in (None, checkpoint.model):
            raise UsageError(f"{path} is a checkpoint of the model {checkpoint.model!r}, not of {model!r}")
        return checkpoint
    if model is None or describe is None:
        raise CheckpointError(f"{path} holds weights but does not name its model; name it with --model")
    return dataclasses.replace(checkpoint, model=model, **describe())


def read_checkpoint(path: Path, sha256: str | None = None) -> Checkpoint:
    """Read a checkpoint as it is; of a plain weight file, or of a network of one's own, it says nothing of the model.

    Raises
    ------
    CheckpointError
        For a file that is missing, damaged or no safetensors file, or whose seal is not `sha256`.
    """
    sealed = read_sealed(path)
    if sha256 not in (None, sealed.sha256):
        raise CheckpointError(f"{path} is another file than was written there")
    return _parse(path, sealed) if sealed.entries else Checkpoint(state=sealed.tensors)


def require_finite(weights: Mapping[str, np.ndarray], when: str) -> None:
    """Refuse weights that are ruined: the file from before is to stay. `when` opens the sentence.

    Raises
    ------
    DivergedError
        Where one is not finite.
    """
    for name, array in weights.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DivergedError(f"{when}: {name} is not finite; lower the learning rate")


_TYPES = {
    "model": str, "shape": list, "classes": list, "dataset": str, "config": dict, "metrics": dict, "origin": dict,
    "training": dict | None,
}  # fmt: skip
_MOST_PIXELS = 1 << 23
"""No image that a checkpoint speaks of is larger: what the layers make of one must fit in memory."""


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
        if min(c, h, w) < 1 or c * h * w > _MOST_PIXELS or (raw["model"] and not classes):
            raise ValueError(f"its images {c, h, w} or its {len(classes)} classes are impossible")
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(_TRAINING)}
        rest = {name: tensor for name, tensor in tensors.items() if name not in own}
        training = unpack(raw.pop("training"), rest)
        checkpoint = Checkpoint(shape=(c, h, w), classes=classes, state=own, training=training, **raw)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} is no xcnn checkpoint: {error}") from None
    if checkpoint.model and checkpoint.model not in models.MODELS and not is_foreign(checkpoint.model):
        raise CheckpointError(f"{path} is a checkpoint of a model {checkpoint.model!r}, which this xcnn does not have")
    return checkpoint

"""Checkpoints: a model's weights with what it takes to build the model again, as one safetensors file, never pickle.

The tensors are the model's `state_dict()` under PyTorch's keys, so any reader of safetensors can use them. The file's
metadata holds one entry, `xcnn`: a JSON object with the fields of `Checkpoint` other than the weights.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import models
from xcnn._files import replacing
from xcnn.errors import CheckpointError, UsageError
from xcnn.nn import Module

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes
    ----------
    model : the name of the model in `xcnn.models.MODELS`.
    shape : channels, height and width of its images.
    classes : the names of its classes.
    dataset : the name of the data set it was trained on.
    config : the settings of the run.
    metrics : the record of the epoch it is from.
    state : the weights, host arrays by name.
    """

    model: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    dataset: str
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    state: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def build(self) -> Module:
        """Build the model and load its weights.

        Raises
        ------
        CheckpointError
            Where the weights do not fit the model.
        """
        module = models.build(self.model, self.shape, len(self.classes))
        module.load_state_dict(self.state)
        return module


def save_checkpoint(path: str | Path, model: Module, checkpoint: Checkpoint) -> Path:
    """Write a model's weights and the fields of `checkpoint`; an older file stays until the new one is whole.

    Parameters
    ----------
    path : the file to write.
    model : gives the weights.
    checkpoint : describes them; its own `state` is not used.

    Raises
    ------
    CheckpointError
        Where the file cannot be written.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    fields = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint) if f.name != "state"}
    metadata = {"xcnn": json.dumps({"format": _FORMAT, **fields})}
    try:
        with replacing(path) as temporary:
            save_file(model.state_dict(), temporary, metadata)
    except Exception as error:
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise CheckpointError(f"cannot write the checkpoint {path}: {error}") from None
        raise
    return path


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
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if path.is_dir():
        best = path / "best.safetensors"
        path = best if best.exists() else path / "last.safetensors"
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file: {error}") from None
    except TypeError as error:
        raise CheckpointError(f"{path} holds a dtype that NumPy does not have: {error}") from None
    if "xcnn" not in metadata:
        if model is None or describe is None:
            raise CheckpointError(f"{path} holds weights but does not name its model; name it with --model")
        return Checkpoint(model=model, state=state, **describe())
    checkpoint = _parse(path, metadata["xcnn"], state)
    if model is not None and model != checkpoint.model:
        raise UsageError(f"{path} is a checkpoint of the model {checkpoint.model!r}, not of {model!r}")
    return checkpoint


_TYPES = {"model": str, "shape": list, "classes": list, "dataset": str, "config": dict, "metrics": dict}
_MOST_PIXELS = 1 << 26
"""No image that a checkpoint speaks of is larger: the layers that are built for it must fit in memory."""


def _parse(path: Path, text: str, state: dict[str, np.ndarray]) -> Checkpoint:
    try:
        raw = json.loads(text)
        if raw.pop("format") != _FORMAT:
            raise ValueError("it was written by a newer xcnn")
        for name, kind in _TYPES.items():
            if not isinstance(raw.get(name), kind):
                raise ValueError(f"its {name} is no {kind.__name__}")
        c, h, w = (int(size) for size in raw.pop("shape"))
        classes = tuple(str(name) for name in raw.pop("classes"))
        if min(c, h, w) < 1 or c * h * w > _MOST_PIXELS or not classes:
            raise ValueError(f"its images {c, h, w} or its {len(classes)} classes are impossible")
        checkpoint = Checkpoint(shape=(c, h, w), classes=classes, state=state, **raw)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no xcnn checkpoint: {error}") from None
    if checkpoint.model not in models.MODELS:
        raise CheckpointError(f"{path} is a checkpoint of a model {checkpoint.model!r}, which this xcnn does not have")
    return checkpoint

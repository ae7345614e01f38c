"""Checkpoints: a model's weights with what it takes to build the model again, as one safetensors file, never pickle.

The tensors are the model's `state_dict()` under PyTorch's keys, so any reader of safetensors can use them. The file's
metadata holds one entry, `xcnn`: a JSON object with the fields of `Checkpoint` other than the weights.
"""

import dataclasses
import json
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
            # safetensors writes the buffer as it lies, whatever the strides.
            state = {name: np.asarray(array, order="C") for name, array in model.state_dict().items()}
            save_file(state, temporary, metadata)
    except Exception as error:
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise CheckpointError(f"cannot write the checkpoint {path}: {error}") from None
        raise
    return path


def load_checkpoint(path: str | Path, model: str | None = None, **fields: Any) -> Checkpoint:
    """Read a checkpoint, or a plain safetensors weight file.

    Parameters
    ----------
    path : the file.
    model : the model's name, if you know it: it must then be the checkpoint's, and stands in for it where the file
        holds nothing but weights.
    **fields : `shape`, `classes` and `dataset` for a file that holds nothing but weights.

    Raises
    ------
    CheckpointError
        For a file that is missing, damaged, no safetensors file, or of another model.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file: {error}") from None
    if "xcnn" not in metadata:
        if model is None:
            raise CheckpointError(f"{path} holds weights but does not name its model; name it with --model")
        return Checkpoint(model=model, state=state, **fields)
    checkpoint = _parse(path, metadata["xcnn"], state)
    if model is not None and model != checkpoint.model:
        raise UsageError(f"{path} is a checkpoint of the model {checkpoint.model!r}, not of {model!r}")
    return checkpoint


def _parse(path: Path, text: str, state: dict[str, np.ndarray]) -> Checkpoint:
    try:
        raw = json.loads(text)
        if raw.pop("format") != _FORMAT:
            raise ValueError("it was written by a newer xcnn")
        shape, classes = raw.pop("shape"), raw.pop("classes")
        c, h, w = (int(size) for size in shape)
        checkpoint = Checkpoint(shape=(c, h, w), classes=tuple(str(name) for name in classes), state=state, **raw)
        if not isinstance(checkpoint.model, str) or min(c, h, w) < 1 or not checkpoint.classes:
            raise ValueError("its fields have impossible values")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is no xcnn checkpoint: {error}") from None
    if checkpoint.model not in models.MODELS:
        raise CheckpointError(f"{path} is a checkpoint of a model {checkpoint.model!r}, which this xcnn does not have")
    return checkpoint

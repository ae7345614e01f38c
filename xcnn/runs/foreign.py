"""Weights that others have trained: what their files do not say."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xcnn import models
from xcnn._array import is_array
from xcnn._check import shown
from xcnn._plugins import refuse_foreign
from xcnn.errors import UsageError, XcnnError
from xcnn.models import MODELS
from xcnn.runs.checkpoint import Checkpoint, require_moderate
from xcnn.runs.matching import NETWORK, shapes
from xcnn.runs.structure import Makers

__all__ = ["complete", "read_classes", "usual_size"]

_MOST_BYTES = 1 << 22
"""The largest file of class names, in bytes."""


def read_classes(path: Path) -> tuple[str, ...]:
    """Return the names of classes from a file: a JSON list, or one name per line.

    Where a name is that of two classes, such as crane among those of ImageNet, the number of the class follows.

    Raises
    ------
    UsageError
        If the file cannot be read or holds no names.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"it is longer than {_MOST_BYTES:,} bytes")
        text = content.decode("utf-8-sig")
        listed = text.lstrip().startswith(("[", "{"))
        names = json.loads(text) if listed else [line.strip() for line in text.rstrip().splitlines()]
        if not names or not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise ValueError("it must have one name per line, or be a JSON list of names")
    except OSError as error:
        raise UsageError(f"cannot read the classes {path}: {error.strerror or error}", setting="classes") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"cannot read the classes {path}: {error}", setting="classes") from None
    often = Counter(names)
    return tuple(name + (f" (class {k})" if often[name] > 1 else "") for k, name in enumerate(names))


def usual_size(model: str) -> int:
    """Return the height and width of images of any size for a network: those for which it is meant, and at least 32."""
    return max(32, MODELS[model].shape[-1]) if model in MODELS else 32


def complete(
    checkpoint: Checkpoint,
    image_size: int | None,
    classes: Sequence[str],
    model: str | None = None,
    modules: Makers | None = None,
) -> Checkpoint:
    """Return a checkpoint with the shape of an input and the classes that its file does not state.

    Parameters
    ----------
    checkpoint : the network, or weights with the name of a model.
    image_size : height and width; by default those of the file, or those for which the model is meant.
    classes : their names; by default those of the file, or else `class 0`, `class 1`, one for each score.
    model, modules : what the caller has named, see `Checkpoint.build`; nothing is imported because a file names it.

    Returns
    -------
    The checkpoint; its shape and its classes are still empty if nothing tells them.

    Raises
    ------
    UsageError
        If the number of classes is not that of the scores, or the network takes no images of this size.
    """
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise UsageError(f"classes must be a list of names, got {shown(classes)}", setting="classes")
    first = next((array.shape for array in checkpoint.state.values() if array.ndim == 4), None)
    shape = checkpoint.shape or (MODELS[checkpoint.model].shape if checkpoint.model in MODELS else ())
    channels = first[1] if first is not None and not checkpoint.shape else shape[0] if shape else None
    if image_size is not None and channels is not None:
        shape = (channels, image_size, image_size)
    elif channels is not None and shape:
        shape = (channels, *shape[1:])
    require_moderate(shape)
    checkpoint = dataclasses.replace(checkpoint, shape=shape)
    names = tuple(classes) or checkpoint.classes
    count = (
        _scores(checkpoint, model, modules)
        if shape and (len(names) != len(checkpoint.classes) or not names)
        else len(names)
    )
    if names and len(names) != count:
        raise UsageError(f"classes: {len(names)} names are given, the network gives {count} scores", setting="classes")
    return dataclasses.replace(checkpoint, classes=names or tuple(f"class {k}" for k in range(count)))


def _scores(checkpoint: Checkpoint, model: str | None, modules: Makers | None) -> int:
    """Return how many scores a network gives for an input."""
    if checkpoint.structure is None:  # of weights: those that are not the same for one class
        if model != checkpoint.model:
            refuse_foreign("the checkpoint", model=checkpoint.model)
        ours = shapes(models.build(checkpoint.model, checkpoint.shape, 1, seed=None))
        theirs = {name.removeprefix(NETWORK): array for name, array in checkpoint.state.items() if array.ndim}
        named = [array.shape[0] for name, array in theirs.items() if array.shape != ours.get(name, array.shape)]
        return named[0] if named else next((array.shape[0] for array in reversed(theirs.values())), 0)
    try:
        y = checkpoint.build(model, modules)(np.zeros((1, *checkpoint.shape), np.float32))
    except XcnnError as error:
        raise UsageError(f"the network does not take an input of the shape {checkpoint.shape}: {error}") from None
    return int(y.shape[1]) if is_array(y) and len(y.shape) == 2 else 0  # several outputs are a tuple

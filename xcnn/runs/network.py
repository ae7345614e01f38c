"""`xcnn.save` and `xcnn.load`: a network of any modules in one file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xcnn import _check
from xcnn.errors import CheckpointError, UsageError, explained
from xcnn.nn import Module
from xcnn.runs.checkpoint import Checkpoint, load_checkpoint, write_checkpoint
from xcnn.runs.sealed import pack
from xcnn.runs.structure import Makers, describe, require_faithful

__all__ = ["load", "save"]


@explained
def save(
    model: Module, /, path: str | Path, *, shape: Sequence[int] | None = None, classes: Sequence[str] = (), **about: Any
) -> Path:
    """Save a network of any modules to one file, from which `load` makes it again.

    The file has the weights in their dtype, the running statistics, which of both are frozen, the states of random
    generators such as dropout's, and the structure: the classes of the modules by name, with the arguments of their
    constructors. The classes of `xcnn.nn` keep these; your own must keep each argument as an attribute of its name, or
    define `options()`. An initialiser (argument `init`) that is a function is left out. An older file stays until the
    new one is complete.

    Parameters
    ----------
    model : the network.
    path : the file to write.
    shape : the shape of one input, such as (channels, height, width); `xcnn predict` needs it.
    classes : the names of the classes; `xcnn predict` needs them.
    **about : anything else to keep, numbers, text, lists and dicts: `load_checkpoint(path).config` returns it. The data
        set to evaluate on is `dataset`.

    Returns
    -------
    The path.

    Raises
    ------
    UsageError
        If an argument of a module is not kept or cannot be saved, or the network would not come back as it is, as when
        an attribute was added later.
    WriteError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile, xcnn
    >>> from xcnn import nn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = xcnn.save(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), f"{folder}/small.safetensors")
    ...     xcnn.load(path)
    Sequential(
      (0): Linear(2, 3)
      (1): ReLU()
    )
    """
    path = _check.path("save", "path", path)
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise UsageError(f"save: classes must be the names of the classes, got {classes!r}")
    if not isinstance(shape, Sequence | None):
        raise UsageError(f"save: shape must be the sizes of an input, got {shape!r}")
    sizes = () if shape is None else _check.integers("save", "shape", shape, len(shape))
    config, arrays = pack(about, "save")
    if arrays:
        raise UsageError(f"save: {min(arrays).removeprefix('save.')} is an array; pass a list")
    found = describe(model)
    require_faithful(model, found)
    dataset = str(config.get("dataset") or "")
    state = model.state_dict()
    write_checkpoint(path, Checkpoint("", sizes, tuple(classes), dataset, config, state=state, structure=found))
    return path


@explained
def load(path: str | Path, modules: Makers | None = None) -> Module:
    """Load a network from the file of `save`, from a checkpoint or from the folder of a run, onto the host.

    Parameters
    ----------
    path : the file, or the folder of a run; see `load_checkpoint`.
    modules : your own classes in the network, by name: `{"Block": Block}`. They are called with the options that the
        file holds. No code is imported or run because a file names it.

    Returns
    -------
    The network with its weights, in the dtype in which it was saved.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, holds no network, or one with other classes.
    """
    path = _check.path("load", "path", path)
    checkpoint = load_checkpoint(path)
    try:
        return checkpoint.build(modules={} if modules is None else modules)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None

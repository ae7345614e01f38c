"""How the network of a run begins: with weights of another file, and with frozen parameters."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xcnn import models
from xcnn._check import matching
from xcnn._plugins import refuse_foreign
from xcnn.errors import UsageError, XcnnError
from xcnn.nn import Module, Normalize, Sequential
from xcnn.runs.checkpoint import CHECKPOINTS, Checkpoint, find_newest, open_checkpoint, step_path
from xcnn.runs.foreign import usual_size
from xcnn.runs.matching import fitting, shapes
from xcnn.runs.settings import MODEL, Config
from xcnn.runs.structure import Structure, build, strangers

__all__ = ["Beginning", "at_start", "beginning", "freeze", "image_size", "load_fitting", "make_network"]

_MOST_NAMES = 8
"""Names in a sentence."""

_OUTPUTS = {"Linear": "out_features", "Conv1d": "out_channels", "Conv2d": "out_channels", "Conv3d": "out_channels"}
"""The layers that may give scores, and their option for how many."""


class Beginning(NamedTuple):
    """The file that a run begins with.

    Attributes
    ----------
    path : the file.
    checkpoint : what it holds.
    """

    path: Path
    checkpoint: Checkpoint

    def constants(self, channels: int) -> dict[str, Any]:
        """Return `mean` and `std` of each channel by which inputs are normalised before the network; empty if not."""
        found = {name: self.checkpoint.statistics.get(name) for name in ("mean", "std")}
        return found if all(isinstance(one, list) and len(one) == channels for one in found.values()) else {}


def beginning(config: Config, folder: Path | None) -> Beginning | None:
    """Return what a run begins with: the file of `init`, if the settings name one.

    A run in a folder, which is resumed, begins with its newest checkpoint, if it has one, and does not need the file.
    """
    if config.init is None:
        return None
    found = None if folder is None else find_newest(folder / CHECKPOINTS)
    if folder is not None and found is not None:
        return Beginning(step_path(folder / CHECKPOINTS, found[0]), found[1])
    return Beginning(*open_checkpoint(config.init))


def image_size(config: Config, source: Beginning | None) -> int:
    """Return the height and width of images of any size: those of the file, or else those usual for the model."""
    shape = source.checkpoint.shape if source is not None else ()
    return shape[-1] if len(shape) == 3 else usual_size(config.model or MODEL)


def make_network(
    config: Config, source: Beginning | None, shape: tuple[int, ...], classes: int, tell: Callable[[str], object]
) -> tuple[Module, str]:
    """Return the network of a run with new weights, and its name.

    It is the model that the settings name, or else that of the file, which may have a network without a name: the name
    is then "", and the last layer is made anew if it gives scores for another number of classes.

    Raises
    ------
    UsageError
        If the network of the file cannot be made, does not take such inputs, or has no layer that could be made for
        other classes.
    """
    known = Checkpoint() if source is None else source.checkpoint
    name = config.model or (known.model if known.model in models.MODELS else "")
    if not name and known.structure is None:
        refuse_foreign(config.init, model=known.model)
        name = MODEL
    options = config.model_options
    if not config.model and options is None and (theirs := known.config.get("model_options")):
        raise UsageError(
            f"model_options are missing: the network of {config.init} is built with {theirs}; pass the same",
            setting="model_options",
        )
    if name:
        return models.build(name, shape, classes, config.seed, **(options or {})), name
    if options:
        raise UsageError("model_options are for a network by its name; name the model", setting="model_options")
    structure = known.structure or {}
    try:
        network, count = _network(structure, source, shape, config.seed)
        if count != classes:
            _replace_head(structure, count, classes)
            network, now = _network(structure, source, shape, config.seed)
            if now != classes:
                raise UsageError(f"its last layer for {count} classes does not give its scores")
            tell(f"the last layer of the network is new, as it gave {count} scores, and there are {classes} classes")
    except XcnnError as error:
        raise UsageError(f"init: the network of {config.init} cannot be used here: {error}", setting="init") from None
    return network.unfreeze(), ""


def _network(structure: Structure, source: Beginning | None, shape: tuple[int, ...], seed: int) -> tuple[Module, int]:
    """Return a network with new weights, and how many scores it gives for an input."""
    unknown = strangers(structure, {})
    if unknown:
        raise UsageError(f"its classes {', '.join(unknown[:4])} are not in xcnn.nn; name the model")
    network = build(structure, {})
    if source is not None and source.constants(shape[0]) and isinstance(network, Sequential):
        network = network[-1]  # after `nn.Normalize`
    network.reset_parameters(seed)
    y = network(np.zeros((1, *shape), np.float32))
    if y.ndim != 2:
        raise UsageError(f"it gives {tuple(y.shape)} for one input, not a score per class")
    return network, y.shape[1]


def _replace_head(structure: Structure, count: int, classes: int) -> None:
    """Give the last layer with `count` outputs as many as there are classes."""
    for entry in reversed(structure["modules"]):
        outputs = _OUTPUTS.get(entry["class"])
        if outputs is not None and entry["options"].get(outputs) == count:
            entry["options"][outputs] = classes
            return
    raise UsageError(f"it gives {count} scores, and no linear layer or convolution that could be made for {classes}")


def load_fitting(model: Module, source: Beginning, tell: Callable[[str], object]) -> None:
    """Load those weights of a file whose name and shape fit a network, and tell which entries keep their new weights.

    Parameters
    ----------
    model : the network, for instance with a new head.
    source : the file.
    tell : called with a sentence.

    Raises
    ------
    UsageError
        If no entry fits.
    """
    path, found = source
    ours = shapes(model)
    names, in_order = fitting(shapes(found.state), ours)
    if not names:
        theirs = _listed([f"{name} {array.shape}" for name, array in found.state.items()])
        hint = "; name the model of these weights" if found.structure is None and not found.model else ""
        raise UsageError(
            f"init: no weights of {path} have a name and a shape of this network; the file has {theirs}, "
            f"the network {_listed([f'{name} {shape}' for name, shape in ours.items()])}{hint}",
            setting="init",
        )
    for arrays in (found.state, found.average):
        model.load_state_dict({our: arrays[name] for name, our in names.items() if name in arrays}, strict=False)
    new = sorted(ours.keys() - names.values(), key=[*ours].index)
    left = [name for name in found.state if name not in names]
    stay = [name for name, parameter in model.named_parameters() if name in new and not parameter.trainable]
    tell(
        f"begins with {len(names)} of {len(ours)} arrays from {path}"
        + (", which have other names there, in their order" if in_order else "")
        + (f"; new: {_listed(new)}" if new else "")
        + (f"; not used: {_listed(left)}" if left else "")
        + (f"; new and frozen, so they stay as they are drawn: {_listed(stay)}" if stay else "")
    )


def at_start(model: Module, config: Config, tell: Callable[[str], object]) -> Module:
    """Return the trained network of a run, on the host, with the weights that it had before its first step.

    They are drawn again from the seed, and then loaded from the file of `init`, if the settings name one, as far as it
    fits. The initialisers of the layers must be known by name, as those of `xcnn.models` are.

    Parameters
    ----------
    model : the network with its trained weights, which stay.
    config : the settings of the run.
    tell : called with sentences on what is loaded from the file.

    Raises
    ------
    XcnnError
        If the file of `init` is missing or does not fit.
    """
    fresh = copy.deepcopy(model).to("cpu")
    fresh.reset_parameters(config.seed)
    source = beginning(config, None)
    if source is not None:
        normalised = isinstance(fresh, Sequential) and len(fresh) == 2 and isinstance(fresh[0], Normalize)
        load_fitting(fresh[-1] if normalised and isinstance(fresh, Sequential) else fresh, source, tell)
    return fresh


def freeze(model: Module, patterns: Sequence[str], tell: Callable[[str], object]) -> None:
    """Freeze the parameters and buffers whose names match patterns, and tell how many weights are trained.

    Parameters
    ----------
    model : the network.
    patterns : such as `0.*` or `*.bias`; see `optim.param_groups`.
    tell : called with a sentence, if there are patterns.

    Raises
    ------
    UsageError
        If a pattern matches no name, or nothing is left to train.
    """
    if not patterns:
        return
    parameters = dict(model.named_parameters())
    slots = {**parameters, **dict(model.named_buffers())}
    try:
        frozen = [name for pattern in patterns for name in matching("freeze", "parameter", pattern, tuple(slots))]
    except UsageError as error:
        error.setting = "freeze"
        raise
    for name in frozen:
        slots[name].trainable = False
    sizes = {name: int(parameter.data.size) for name, parameter in parameters.items()}
    trained = sum(size for name, size in sizes.items() if parameters[name].trainable)
    if not trained:
        raise UsageError(f"freeze: the patterns {_listed(list(patterns))} leave no weight to train", setting="freeze")
    tell(f"{trained:,} of {sum(sizes.values()):,} weights are trained, the others are frozen")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more

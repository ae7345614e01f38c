"""How the network of a run begins: with weights of another file, and with frozen parameters."""

from collections.abc import Callable, Sequence
from pathlib import Path

from xcnn._check import matching
from xcnn.errors import UsageError
from xcnn.nn import Module
from xcnn.runs.checkpoint import Checkpoint, open_checkpoint
from xcnn.runs.matching import fitting, shapes

__all__ = ["freeze", "load_fitting"]

_MOST_NAMES = 8
"""Names in a sentence."""


def load_fitting(model: Module, path: Path, tell: Callable[[str], object]) -> Checkpoint:
    """Load those weights of a file whose name and shape fit a network, and tell which entries keep their new weights.

    Parameters
    ----------
    model : the network, for instance with a new head.
    path : a checkpoint, the folder of a run, a file of `xcnn.save`, or weights of safetensors or PyTorch.
    tell : called with a sentence.

    Returns
    -------
    The checkpoint of the file.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged.
    UsageError
        If no entry fits.
    """
    path, found = open_checkpoint(path)
    ours = shapes(model.state_dict())
    names, in_order = fitting(shapes(found.state), ours)
    if not names:
        theirs = _listed([f"{name} {array.shape}" for name, array in found.state.items()])
        raise UsageError(
            f"init: no weights of {path} have a name and a shape of this network; the file has {theirs}, "
            f"the network {_listed([f'{name} {shape}' for name, shape in ours.items()])}",
            setting="init",
        )
    for arrays in (found.state, found.average):
        model.load_state_dict({our: arrays[name] for name, our in names.items() if name in arrays}, strict=False)
    new = sorted(ours.keys() - names.values(), key=[*ours].index)
    left = [name for name in found.state if name not in names]
    tell(
        f"begins with {len(names)} of {len(ours)} arrays from {path}"
        + (", which have other names there, in their order" if in_order else "")
        + (f"; new: {_listed(new)}" if new else "")
        + (f"; not used: {_listed(left)}" if left else "")
    )
    return found


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

"""Which arrays of a file are which of a network: by their names, or in their order."""

from collections.abc import Mapping
from typing import Any

from xcnn.nn import Buffer, Module, Parameter

__all__ = ["AUXILIARY", "COUNTER", "NETWORK", "fitting", "shapes"]

AUXILIARY = ("aux1.", "aux2.")
"""What the names of classifiers begin with that only training needs, as in torchvision's files of GoogLeNet."""

NETWORK = "1."
"""The prefix of the names of a network that follows `nn.Normalize`."""

COUNTER = "num_batches_tracked"
"""The last name of the buffers that files may lack: PyTorch's batch norm has them since 0.4.1."""

Shapes = Mapping[str, tuple[int, ...]]


def shapes(state: Mapping[str, Any] | Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of arrays by name, or of those of a network, which are not copied as by its `state_dict`."""
    if isinstance(state, Module):
        state = {name: slot.data for name, slot in state._attributes(Parameter, Buffer)}
    return {name: tuple(array.shape) for name, array in state.items()}


def fitting(theirs: Shapes, ours: Shapes) -> tuple[dict[str, str], bool]:
    """Match the arrays of a file with those of a network by name and shape, or else in their order.

    Parameters
    ----------
    theirs : the shapes in the file by name. Names may begin with `1.`, as those of a network after `nn.Normalize`.
    ours : the shapes of the network by name.

    Returns
    -------
    (names, in_order) : our names by theirs, and whether no names but the order was compared: there are as many arrays,
        their last names (weight, bias, running_mean) are the same one by one, and so are their shapes, but for those
        of the last layer, which are left out if they differ.

    Examples
    --------
    >>> fitting({"conv.weight": (4, 3), "fc.weight": (5, 4)}, {"0.weight": (4, 3), "1.weight": (2, 4)})
    ({'conv.weight': '0.weight'}, True)
    """
    found: dict[str, str] = {}
    for prefix in ("", NETWORK):
        called = {name: name.removeprefix(prefix) for name in theirs if name.startswith(prefix)}
        fits = {name: our for name, our in called.items() if ours.get(our) == theirs[name]}
        found = max(found, fits, key=len)
    paired = _paired(theirs, ours)
    return (paired, True) if len(paired) > len(found) else (found, False)


def _paired(theirs: Shapes, ours: Shapes) -> dict[str, str]:
    """Return our names by theirs if the arrays match in their order."""
    pairs = list(zip(*([name for name in names if _last(name) != COUNTER] for names in (theirs, ours)), strict=False))
    if not pairs or sum(_last(name) != COUNTER for names in (theirs, ours) for name in names) != 2 * len(pairs):
        return {}
    head = pairs[-1][1].rpartition(".")[0]
    for their, our in pairs:
        if _last(their) != _last(our) or (theirs[their] != ours[our] and our.rpartition(".")[0] != head):
            return {}
    found = {their: our for their, our in pairs if theirs[their] == ours[our]}
    modules = {their.rpartition(".")[0]: our.rpartition(".")[0] for their, our in found.items()}
    counters = {name: f"{modules.get(name.rpartition('.')[0])}.{COUNTER}" for name in theirs if _last(name) == COUNTER}
    return found | {name: our for name, our in counters.items() if our in ours}


def _last(name: str) -> str:
    return name.rpartition(".")[2]

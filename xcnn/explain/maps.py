"""The maps of a network: what each layer makes of an image, and the filters that make it."""

from typing import NamedTuple

from xcnn._array import Array, is_array
from xcnn.errors import UsageError, explained, unknown
from xcnn.explain.target import check_input
from xcnn.explain.trace import trace
from xcnn.nn import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Module,
)

__all__ = ["Filters", "feature_maps", "filters"]

_CONVS = (Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)


class Filters(NamedTuple):
    """The filters of a convolution.

    Attributes
    ----------
    name : dotted name of the layer.
    weight : (out, in, *kernel); of a transposed convolution (in, out, *kernel). `in` and `out` are those of a group.
    """

    name: str
    weight: Array


@explained
def feature_maps(model: Module, x: Array) -> dict[str, Array]:
    """Return the output of every layer for x by its dotted name, in the order of the forward pass.

    Parameters
    ----------
    model : the network, on any device; it runs in inference mode.
    x : its input (n, ...), a floating-point array on that device.

    Returns
    -------
    Maps (n, c, h, w), and rows of numbers (n, k) behind the last maps; of a layer that is called several times, the
    last output.

    Raises
    ------
    ShapeError, DtypeError
        If x has no batch axis or is not floating point.
    """
    found = trace(model, check_input("feature_maps", model, x))
    return {call.name: call.y for call in found.layers if is_array(call.y)}


@explained
def filters(model: Module, layer: str | None = None) -> Filters:
    """Return the filters of the first convolution, or of that of a name, as an array of the network's device.

    Raises
    ------
    UsageError
        If the network has no convolution, or none of this name.

    Examples
    --------
    >>> from xcnn import models
    >>> found = filters(models.build("lenet5"))
    >>> found.name, found.weight.shape
    ('0', (6, 1, 5, 5))
    """
    if not isinstance(model, Module):
        raise UsageError(f"filters: model must be a module, got {type(model).__name__}")
    convs = {name: module for name, module in model.modules() if isinstance(module, _CONVS)}
    if not convs:
        raise UsageError("filters: the network has no convolution")
    name = next(iter(convs)) if layer is None else layer
    if name not in convs:
        raise unknown("filters: convolution", name, convs)
    return Filters(name, convs[name].weight.data)

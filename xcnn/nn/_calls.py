"""What a layer calls: the op, and its options, if they are known before it runs."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from xcnn.errors import XcnnError
from xcnn.nn._layer import Layer
from xcnn.nn._module import Module
from xcnn.ops._formula import Activation, activation_of
from xcnn.ops._op import OPS

__all__ = ["activation", "calls", "options_after", "repeats"]


@functools.cache
def _known(kind: Any) -> bool:
    """Return whether the class that defines `forward`, or one below it, says what it calls."""
    mro, layer = kind.__mro__, issubclass(kind, Layer)
    first = {name: next((i for i, c in enumerate(mro) if name in vars(c)), -1) for name in ("forward", "_calls")}
    own = layer and (kind.call_op is not Layer.call_op)
    return first["_calls"] <= first["forward"] and kind.__call__ is Module.__call__ and not own


@functools.cache
def _of_class(kind: type[Layer]) -> tuple[tuple[str, bool], ...]:
    """Return the arguments of a layer's op that its class defines too, and whether it computes them."""
    found = [(name, inspect.getattr_static(kind, name, None)) for name in (*kind._slots, *kind._options)]
    return tuple((name, hasattr(value, "__get__")) for name, value in found if value is not None)


def calls(module: Any, watched: bool = False) -> tuple[str, dict[str, Any]] | None:
    """Return the op that `forward(x, train=False)` of a layer of xcnn calls, and its options; None if unknown.

    It is unknown of a layer whose `forward` is replaced, as by `observing`, unless `watched`; and of one whose options
    or parameters are not its own attributes but properties, or attributes of its class, as these may change unseen.
    """
    kind: Any = type(module)
    if not isinstance(module, Module) or not _known(kind):
        return None
    if isinstance(module, Layer) and any(computed or name not in vars(module) for name, computed in _of_class(kind)):
        return None
    if "forward" in vars(module) and not watched:
        return None
    try:
        found = module._calls()
    except XcnnError:  # which a call reports
        return None
    return found if found is not None and found[0] in OPS else None


def repeats(module: Any) -> bool:
    """Return whether a layer calls an op of which shapes and options decide what it does."""
    found = calls(module)
    return found is not None and OPS[found[0]].apart is not False


def activation(module: Any) -> Activation:
    """Return the activation that a layer applies, or None if it does something else."""
    found = calls(module)
    try:
        return None if found is None else activation_of(*found)
    except (TypeError, XcnnError):
        return None


@functools.cache
def options_after(op: Callable[..., Any]) -> frozenset[str]:
    """Return which of `activation` and `residual` an op has as arguments."""
    return frozenset({"activation", "residual"} & inspect.signature(op).parameters.keys())

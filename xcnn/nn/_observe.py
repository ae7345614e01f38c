"""Observe the layers of a network while it runs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from xcnn.nn._module import Module

__all__ = ["observing"]

Forward = Callable[..., tuple[Any, Any]]


@contextlib.contextmanager
def observing(module: Module, observer: Callable[[str, Module], Forward], containers: bool = False) -> Iterator[None]:
    """Replace `forward` of every layer (a module without children) inside a `with`; it can be nested.

    Parameters
    ----------
    module : the network.
    observer : called once with each layer's dotted name and the layer, before any is replaced; it returns the function
        that replaces its `forward`.
    containers : whether to replace that of the modules with children inside the network, too.
    """
    layers = {
        layer: name for name, layer in module.modules() if not any(layer.children()) or (containers and name != "")
    }
    watched = {layer: vars(layer)["forward"] for layer in layers if "forward" in vars(layer)}
    for layer, forward in {layer: observer(name, layer) for layer, name in layers.items()}.items():
        vars(layer)["forward"] = forward  # shadows the method on this instance alone
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]
        for layer, forward in watched.items():
            vars(layer)["forward"] = forward

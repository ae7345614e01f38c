"""`trace`: the arrays of a network while it runs, forward and backward. All of `xcnn.explain` reads them."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xcnn._array import Array, is_array
from xcnn._check import is_integer, shown
from xcnn.devices import like
from xcnn.errors import UsageError, explained, unknown
from xcnn.nn import Module
from xcnn.nn._observe import observing

__all__ = ["Call", "Rule", "Trace", "trace"]

Rule = Callable[["Call", Array, Callable[[Array], Array]], Array]
"""A backward pass of one's own: `rule(call, dy, backward)` returns dx, often from the true one, `backward(dy)`."""

_TURN = threading.RLock()
"""Held while a network is not as its owner left it: its layers observed, or its parameters frozen."""


@dataclass(eq=False)
class Call:
    """A call of a module inside a network.

    Attributes
    ----------
    name : dotted name of the module.
    module : the module.
    leaf : whether it is a layer; otherwise it is a container, whose call comes after those of its layers.
    x, y : its input, an array or a tuple of them, and its output.
    dy, dx : the gradients of y and of x after `Trace.backward`; None if nothing asked for them.
    """

    name: str
    module: Module
    leaf: bool
    x: Any = field(repr=False)
    y: Any = field(repr=False)
    dy: Any = field(default=None, repr=False)
    dx: Any = field(default=None, repr=False)


class Trace:
    """What `trace` returns.

    Attributes
    ----------
    model : the network.
    x, y : its input and output.
    calls : the calls of its modules in the order in which they ended.
    gradients : the gradients of the parameters by dotted name, after `backward(dy, parameters=True)`.
    """

    def __init__(self, model: Module, x: Any) -> None:
        self.model, self.x, self.y = model, x, None
        self.calls: list[Call] = []
        self.gradients: dict[str, Array] = {}
        self._backward: Callable[..., Any] = lambda dy: None

    @property
    def layers(self) -> list[Call]:
        """The calls of layers, without containers, in the order of the forward pass."""
        return [call for call in self.calls if call.leaf]

    @explained
    def __getitem__(self, name: str) -> Call:
        """Return the call of a module by its dotted name, or one of its names, the last one if there are several."""
        named = [module for key, module in self.model.modules() if key == name]
        for call in reversed(self.calls):
            if call.module in named:
                return call
        raise unknown("layer", name, dict.fromkeys(call.name for call in self.calls))

    @explained
    def backward(self, dy: Array, parameters: bool = False) -> Any:
        """Return the gradient of the input, and set `dy` and `dx` of every call; it can be called once.

        Parameters
        ----------
        dy : the gradient of y, an array of its shape: one at a class and zeros elsewhere for the gradient of its score.
        parameters : whether to set `gradients`, too. Those that the parameters have already are left as they are.
        """
        slots = dict(self.model.named_parameters())
        with _TURN:
            kept = {slot: (slot.grad, slot.hook, slot.trainable) for slot in slots.values()}
            try:
                for slot in kept:
                    slot.grad = slot.hook = None
                    if not parameters and slot.trainable:
                        slot.trainable = False  # no gradient is computed for it
                dx = self._backward(dy)
                if parameters:
                    self.gradients = {name: slot.grad for name, slot in slots.items() if slot.grad is not None}
                return dx
            finally:
                for slot, (slot.grad, slot.hook, trainable) in kept.items():
                    if slot.trainable != trainable:
                        slot.trainable = trainable


@explained
def trace(
    model: Module,
    x: Any,
    *,
    off: Mapping[str, Sequence[int]] | None = None,
    rule: Rule | None = None,
) -> Trace:
    """Run a network forward in inference mode, and keep the input and output of every module in it.

    Parameters
    ----------
    model : the network, on any device.
    x : its input (n, ...), an array on that device; a tuple of arrays if it takes several.
    off : channels (axis 1) to switch off, by the dotted name of a module: its output is zero there, and no gradient
        passes.
    rule : replaces the backward pass of every layer, such as `guided`; see `Rule`.

    Returns
    -------
    The calls; `backward` goes on to the gradients. The network itself is unchanged, its gradients included. Threads
    that trace take turns, but none may run or train the network otherwise meanwhile.

    Raises
    ------
    UsageError
        If `off` names an unknown module or channel.

    Examples
    --------
    >>> import numpy as np
    >>> from xcnn import nn
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> model.reset_parameters(0)
    >>> found = trace(model, np.ones((1, 2), np.float32))
    >>> [(call.name, call.y.shape) for call in found.calls]
    [('0', (1, 3)), ('1', (1, 3)), ('2', (1, 2))]
    >>> found.backward(np.asarray([[1, 0]], np.float32)).shape
    (1, 2)
    >>> found["1"].dy.shape
    (1, 3)
    """
    if not isinstance(model, Module):
        raise UsageError(f"trace: model must be a module, got {shown(model)}")
    if off is not None and not isinstance(off, Mapping):
        raise UsageError(f"trace: off must map names of modules to channels, got {shown(off)}")
    found = Trace(model, x)
    inside = {name: module for name, module in model.modules() if name}
    dark: dict[Module, Sequence[int]] = {}
    for name, channels in (off or {}).items():
        if name not in inside:
            raise UsageError(f"trace: off: {unknown('layer', name, inside)}")
        dark[inside[name]] = channels
    calls: list[Call] = []

    def observer(name: str, module: Module) -> Callable[..., tuple[Any, Any]]:
        forward, leaf = module.forward, not any(module.children())

        def observed(x: Any, train: bool = True) -> tuple[Any, Any]:
            y, true_backward = forward(x, train)
            mask = _mask(y, dark[module]) if module in dark else None
            y = y if mask is None else y * mask
            call = Call(name, module, leaf, x, y)
            calls.append(call)

            def masked(dy: Any) -> Any:
                return true_backward(dy if mask is None else dy * mask)

            def backward(dy: Any, need_dx: bool = True) -> Any:
                call.dy = dy
                call.dx = masked(dy) if rule is None or not leaf else rule(call, dy, masked)
                return call.dx

            return y, backward

        return observed

    with _TURN, observing(model, observer, containers=True):
        found.y, found._backward = model.forward(x, train=False)
    found.calls = calls.copy()
    calls.clear()  # the network remembers `observed`, which would keep all arrays alive
    return found


def _mask(y: Any, channels: Sequence[int]) -> Array:
    """Return an array that is 0 at the channels of y and 1 elsewhere, and broadcasts with y."""
    if not is_array(y) or y.ndim < 2:
        came = f"shape {tuple(y.shape)}" if is_array(y) else type(y).__name__
        raise UsageError(f"off must name layers with channels (n, c, ...), got one whose output is {came}")
    mask = np.ones((1, y.shape[1], *(1,) * (y.ndim - 2)), np.float32)
    wanted = f"off must list channels of this layer, 0 to {y.shape[1] - 1}"
    if not isinstance(channels, Iterable):
        raise UsageError(f"{wanted}, got {shown(channels)}")
    for channel in channels:
        if not is_integer(channel) or not 0 <= channel < y.shape[1]:
            raise UsageError(f"{wanted}, got {shown(channel)}")
        mask[:, channel] = 0
    return like(mask, y)

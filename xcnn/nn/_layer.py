"""`Layer`: a module that is one op. The op's arguments are the layer's attributes of the same names.

    class ReLU(nn.Layer, op=ops.relu):
        ...

A layer with options declares those that its constructor takes:

    @nn.options
    class LeakyReLU(nn.Layer, op=ops.leaky_relu):
        negative_slope: float = 0.01

A layer with parameters assigns them under the names of the op's array arguments (`self.weight`, `self.bias`; None for
an argument that is left out) and draws them in `initialize`.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from xcnn.errors import UsageError
from xcnn.nn._module import Module
from xcnn.ops._op import OPS, Backward, captured
from xcnn.parameter import Buffer, Parameter

__all__ = ["Layer", "LayerBackward", "Wanted"]


class Wanted:
    """The gradients that the op of a module is asked for.

    Attributes
    ----------
    module : the module.
    parameters : its parameters by their place among the arrays of the op.
    returned : the places of the gradients that backward returns as a tuple; None for the first alone.
    needs, others : which gradients are needed besides those of parameters, with the gradient of the input or without.
    outer : what checks dy, if somebody else gives it, or None.
    """

    __slots__ = ("module", "needs", "others", "outer", "parameters", "returned")

    def __init__(
        self, module: Module, slots: Sequence[Any], returned: Sequence[int] | None, outer: Backward | None = None
    ) -> None:
        self.module, self.returned, self.outer = module, returned, outer
        self.parameters = [(i, slot) for i, slot in enumerate(slots, 1) if isinstance(slot, Parameter)]
        self.needs = [i in (returned or (0,)) for i in range(len(slots) + 1)]
        self.others = [False] * len(self.needs)


class LayerBackward:
    """The backward pass of a module from that of its op, `function`."""

    __slots__ = ("function", "updates", "wanted")

    def __init__(self, wanted: Wanted, function: Callable[..., Any]) -> None:
        self.wanted, self.function = wanted, function
        self.updates: Any = wanted.parameters and [parameter.updates for _, parameter in wanted.parameters]

    def __call__(self, dy: Any, need_dx: bool) -> Any:
        wanted = self.wanted
        needs, parameters = wanted.needs if need_dx else wanted.others, wanted.parameters
        if parameters:
            needs = needs.copy()
            for (i, parameter), updates in zip(parameters, self.updates, strict=True):
                if parameter.updates != updates:
                    changed = "an optimizer has changed the parameters since forward; call backward first"
                    raise UsageError(f"{type(wanted.module).__name__}: {changed}")
                needs[i] = parameter.trainable
        if True not in needs:
            return None
        if wanted.outer is not None:
            dy = wanted.outer.checked(dy)
        grads = self.function(dy, tuple(needs))
        for i, parameter in parameters:
            if (grad := grads[i]) is not None:
                parameter.accumulate(grad)
        returned = wanted.returned
        return grads[0] if returned is None else tuple([grads[i] for i in returned])

    def saved(self) -> dict[str, Any]:
        """Return the arrays that this backward keeps alive."""
        return captured(self.function)


@functools.cache
def _follows(kind: Any) -> bool:
    """Return whether the class that defines `forward`, or one below it, says what it does around its op."""
    defined = {name: [name in vars(c) for c in kind.__mro__].index(True) for name in ("forward", "_forward", "_given")}
    return defined["_given"] <= min(defined["forward"], defined["_forward"])


class Layer(Module):
    """Base of the layers that call one op; a subclass names it: `class ReLU(Layer, op=ops.relu)`.

    The op's first array argument is the layer's input. Each other array is the attribute of that name: a `Parameter`,
    whose gradient the backward pass adds to unless it is frozen, a `Buffer`, or None if there is no such attribute. An
    option is the attribute of that name, or the op's default if there is none; `training` is the argument `train` of
    `forward`.

    Raises
    ------
    UsageError
        When the class is defined, if `op` is not an op.
    """

    _slots: ClassVar[tuple[str, ...]] = ()
    _options: ClassVar[dict[str, Any]] = {}

    activation: ClassVar[Any] = None  # an option of ops that can apply the activation after them, see `_plan.py`

    def __init_subclass__(cls, op: Callable[..., Any] | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if op is not None:
            name = getattr(op, "__name__", "")
            if name not in OPS:
                raise UsageError(f"{cls.__name__}: op must be a function decorated with ops.op, got {op!r}")
            arrays = OPS[name].arrays
            cls._op = staticmethod(op)  # type: ignore[method-assign]
            cls._slots = arrays[1:]
            signature = inspect.signature(op)
            cls._options = {key: p.default for key, p in signature.parameters.items() if key not in arrays}

    def _op(self, x: Any, **options: Any) -> Any:
        raise UsageError(f"{type(self).__name__}: a layer needs an op: class {type(self).__name__}(nn.Layer, op=...)")

    def _trains(self) -> bool:
        for name in self._slots:  # much faster than the walk that finds all parameters
            slot = getattr(self, name, None)
            if isinstance(slot, Parameter) and slot.trainable:
                return True
        return super()._trains()

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        return self._forward(x, train)

    def _forward(self, x: Any, train: bool, **more: Any) -> tuple[Any, Callable[..., Any]]:
        """Do what `forward` does, with more arguments for the op: `activation` and `residual`, see `_plan.py`."""
        return self.call_op(x, **self._given(x, train), **more)

    def _given(self, x: Any, train: bool) -> dict[str, Any]:
        """Check x and return the options that depend on the call, or on whether buffers are trained."""
        return {"training": train} if "training" in self._options else {}

    def _store(self, results: Sequence[Any], train: bool) -> None:
        """Keep what the op returns besides y."""

    def _steady(self, x: Any) -> bool:
        """Return whether `_given` and `_store` are all that `forward` does, and the former depends on shapes alone."""
        kind: Any = type(self)
        return _follows(kind)

    def _calls(self) -> tuple[str, dict[str, Any]] | None:
        name, _, options = self.bound()
        return name, options | ({"training": False} if "training" in options else {})

    def bound(self) -> tuple[str, dict[str, Parameter | Buffer | None], dict[str, Any]]:
        """Return what the layer gives its op besides x.

        Returns
        -------
        op : the name of the op in `ops.OPS`.
        slots : the other array arguments by name: parameters, buffers, or None for one that is left out. `residual` is
            not among them unless the layer has one.
        options : the options by name, without those that only `forward` sets.
        """
        found = {name: self._slot(name) for name in self._slots}
        slots = {name: slot for name, slot in found.items() if slot is not None or name != "residual"}
        given = {name: getattr(self, name, default) for name, default in self._options.items()}
        options = {name: value for name, value in given.items() if value is not inspect.Parameter.empty}
        return self._op.__name__, slots, options

    def _slot(self, name: str) -> Parameter | Buffer | None:
        slot = getattr(self, name, None)
        if slot is None or isinstance(slot, Parameter | Buffer):
            return slot
        kind = type(slot).__name__
        raise UsageError(f"{type(self).__name__}: {name} must be a Parameter, a Buffer or None, got {kind}")

    def call_op(self, x: Any, residual: Any = None, **options: Any) -> tuple[Any, Callable[[Any, bool], Any]]:
        """Call the op with `options`, and with the layer's attributes for all other arguments.

        Returns
        -------
        y : the result of the op.
        backward : `backward(dy, need_dx)`, as `forward` must return it. With a `residual`, an array for the op's
            argument of this name, it returns two gradients, that of x, or None, and always that of the residual.
        """
        y, op_backward, slots = self._called(x, residual, options)
        at = None if residual is None else 1 + self._slots.index("residual")
        wanted = Wanted(self, slots, None if at is None else (0, at))
        if at is not None:
            wanted.others[at] = True
        return y, LayerBackward(wanted, op_backward)

    def _called(self, x: Any, residual: Any, options: dict[str, Any]) -> tuple[Any, Any, list[Any]]:
        """Call the op; return its result, its backward pass, and the slots of its arrays after the first."""
        slots: list[Parameter | Buffer | None] = []
        for name in self._slots:
            given = residual is not None and name == "residual"
            slot = None if given else self._slot(name)
            slots.append(slot)
            options[name] = residual if given else None if slot is None else slot.data
        for name, default in self._options.items():
            if name not in options and (value := getattr(self, name, default)) is not inspect.Parameter.empty:
                options[name] = value
        y, op_backward = self._op(x, **options)
        return y, op_backward, slots

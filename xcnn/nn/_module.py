"""`Module`: the base of every layer, container and network.

A module owns parameters and buffers, calls ops, and in its backward pass adds gradients into its parameters:

    class Scale(nn.Module):
        def __init__(self) -> None:
            self.weight = nn.Parameter(np.ones((), np.float32))

        def forward(self, x, train):
            weight = self.weight.data
            def backward(dy, need_dx):
                self.weight.accumulate((dy * x).sum())
                return dy * weight if need_dx else None
            return x * weight, backward

Parameters, buffers, random generators and child modules are found among the attributes, also in lists, tuples and
dicts, in the order of their assignment. `_layer.py` has a shorter way for layers that call one op.
"""

import functools
import inspect
import reprlib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np

from xcnn._check import flag, generator
from xcnn.devices import Device, device, like, to_numpy
from xcnn.errors import CheckpointError, Explained, UsageError, explained
from xcnn.nn._forward import ABSENT, call, prepared, refuse
from xcnn.nn._members import members
from xcnn.parameter import Buffer, Parameter

__all__ = ["IncompatibleKeys", "Module", "options"]

T = TypeVar("T")


class IncompatibleKeys(typing.NamedTuple):
    """What `Module.load_state_dict` did not load.

    Attributes
    ----------
    missing_keys : names of the module that are not in the state; they keep their values.
    unexpected_keys : names in the state that the module does not have; they are ignored.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


@typing.dataclass_transform(eq_default=False)
def options(cls: type[T]) -> type[T]:
    """Decorate a module to make its annotated attributes the arguments of its constructor, as `dataclass` does.

    Unlike dataclasses, modules are equal only to themselves.

    >>> @options
    ... class Scale(Module):
    ...     factor: float = 1.0
    >>> Scale(factor=2.0)
    Scale(factor=2.0)
    """
    made: Any = dataclass(eq=False, repr=False)(cls)
    made.__init__ = explained(made.__init__)
    return cls


class Module(Explained):
    """Base of all layers, containers and networks.

    A subclass defines `forward(x, train)`, which returns `y` and a function `backward(dy, need_dx)`; modules with
    several inputs take and return tuples. The base class wraps `forward`, so that callers may leave out `train` and
    `need_dx` (True), a backward pass runs at most once, and an error names the layer in which it was raised.
    """

    def __init__(self) -> None:
        pass

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "forward" in vars(cls):
            cls.forward = prepared(cls.forward)  # type: ignore[method-assign]

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        """Return `y` and its backward pass.

        Parameters
        ----------
        x : the input, an array on the module's device; a tuple of arrays if the module takes several.
        train : whether to compute as in training: dropout drops, and batch normalisation uses the statistics of the
            batch and updates its running ones.

        Returns
        -------
        y : the output.
        backward : a function to call once. `backward(dy)` takes the gradient with respect to y, adds into the gradient
            of every parameter and returns the gradient with respect to x; `backward(dy, need_dx=False)` returns None.
            It may read x and the parameters once more: until then, change their numbers only by new arrays.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: forward is not defined; define forward(x, train) that returns (y, backward)"
        )

    def __call__(self, x: Any = ABSENT, *more: Any, **others: Any) -> Any:
        """Return the output for x, the only argument, in inference mode."""
        if x is ABSENT or more or others:
            refuse(type(self).__name__, call, (x, *more), others)
        return self.forward(x, train=False)[0]

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """Yield the direct child modules with their names; `blocks.0` is the first entry of the list `blocks`."""
        return iter(members(self._entries(), Module))

    def _entries(self) -> Iterable[tuple[str, Any]]:
        """Return the names and values among which parameters, buffers, generators and modules are found."""
        return vars(self).items()

    def modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """Yield this module and all below it with their dotted names, parents first.

        Raises
        ------
        UsageError
            If a module contains itself.
        """
        found: list[tuple[str, Module]] = []
        _walk(self, prefix, (), found)
        return iter(found)

    def _attributes(self, *kinds: type) -> Iterator[tuple[str, Any]]:
        """Yield the attributes of some types of this module and all below it with their dotted names."""
        for prefix, module in self.modules():
            yield from members(module._entries(), kinds, f"{prefix}." if prefix else "")

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield the parameters of this module and all below it with their dotted names, a shared one once."""
        seen = set()
        for name, parameter in self._attributes(Parameter):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """Yield the buffers of this module and all below it (running statistics) with their dotted names."""
        yield from self._attributes(Buffer)

    def named_generators(self) -> Iterator[tuple[str, np.random.Generator]]:
        """Yield the random generators of this module and all below it (dropout's) with their dotted names."""
        yield from self._attributes(np.random.Generator)

    def parameters(self) -> list[Parameter]:
        """Return the parameters of this module and all below it."""
        return [parameter for _, parameter in self.named_parameters()]

    def _trains(self) -> bool:
        """Return whether a parameter of this module or of one below it is trainable."""
        return any(parameter.trainable for _, parameter in self._attributes(Parameter))

    @explained
    def freeze(self) -> Self:
        """Stop training this module and all below it, and return the module.

        Every parameter and buffer gets `trainable = False`, and parameters lose their gradients. A frozen parameter
        costs nothing in a backward pass: containers compute no gradient below the first trainable layer. Optimizers
        leave it alone, weight decay and momentum included. Frozen batch normalisation normalises by its running
        statistics in training too, and keeps them. Dropout still drops.

        Parameters are frozen, not modules: one that is shared is frozen everywhere. `state_dict` does not tell,
        but `xcnn.load` freezes what was frozen when the network was saved.

        Examples
        --------
        >>> from xcnn import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.GlobalAvgPool(), nn.Linear(8, 2))
        >>> _ = model[:-1].freeze()
        >>> [name for name, parameter in model.named_parameters() if parameter.trainable]
        ['3.weight', '3.bias']
        """
        self.zero_grad()
        return self._set_trainable(False)

    def unfreeze(self) -> Self:
        """Train the parameters and buffers of this module and all below it again, and return the module."""
        return self._set_trainable(True)

    def _set_trainable(self, value: bool) -> Self:
        for _, slot in self._attributes(Parameter, Buffer):
            slot.trainable = value
        return self

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for _, module in self.modules():
            for _, parameter in members(module._entries(), Parameter):
                parameter.grad = None

    @explained
    def to(self, where: str | Device, dtype: str | None = None) -> Self:
        """Move parameters and buffers to a device, set all gradients to None, and return the module.

        Parameters
        ----------
        where : a device or its name, such as `"cuda:1"`.
        dtype : `"float32"` or `"float64"` to convert floating-point state; None keeps it.

        Raises
        ------
        UsageError
            If the dtype is another, or the device is unknown.
        DeviceError, DtypeError
            If the device cannot be used here, or lacks a dtype.
        """
        if dtype not in (None, "float32", "float64"):
            raise UsageError(f"to: dtype must be 'float32' or 'float64', got {dtype!r}")
        if dtype is None and getattr(where, "__name__", str(where)) in ("float32", "float64"):
            name = getattr(where, "__name__", where)
            raise UsageError(f"to: where must be a device, got the dtype {name}; pass both: to('cpu', dtype='{name}')")
        target = device(where)
        for _, slot in self._attributes(Parameter, Buffer):
            array = to_numpy(slot.data)
            slot.data = target.asarray(array.astype(dtype) if dtype is not None and array.dtype.kind == "f" else array)
        self.zero_grad()
        return self

    @explained
    def state_dict(self) -> dict[str, np.ndarray]:
        """Return every parameter and buffer as a host array, by PyTorch's keys (`0.weight`, `2.running_mean`)."""
        return {name: to_numpy(slot.data) for name, slot in self._attributes(Parameter, Buffer)}

    @explained
    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Load parameters and buffers by name, converted to the dtype and device that the module has.

        If an error is raised, the module is unchanged.

        Parameters
        ----------
        state : host arrays by name, as `state_dict` returns them.
        strict : True to raise an error for names that are missing or unknown, False to ignore them, as for all weights
            of a trained network but its head. A shape that differs is an error either way.

        Returns
        -------
        (missing_keys, unexpected_keys), which are empty if `strict`.

        Raises
        ------
        CheckpointError
            If names are missing or unknown, or an array has another shape or does not hold numbers.
        UsageError
            If `state` is not a mapping, or `strict` is not True or False.

        Examples
        --------
        >>> from xcnn import nn
        >>> trained, new = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, k)) for k in (10, 3))
        >>> trunk = {name: array for name, array in trained.state_dict().items() if not name.startswith("2.")}
        >>> new.load_state_dict(trunk, strict=False)
        IncompatibleKeys(missing_keys=['2.weight', '2.bias'], unexpected_keys=[])
        """
        if not isinstance(state, Mapping):
            raise UsageError(f"load_state_dict: state must map names to arrays, got {type(state).__name__}")
        slots = dict(self._attributes(Parameter, Buffer))
        missing, unexpected = [n for n in slots if n not in state], [n for n in state if n not in slots]
        if flag("load_state_dict", "strict", strict) and (missing or unexpected):
            parts = [
                f"{kind} {', '.join(map(str, names[:4]))}{', ...' if len(names) > 4 else ''}"
                for kind, names in (("missing", missing), ("unknown", unexpected))
                if names
            ]
            raise CheckpointError(f"load_state_dict: the state does not match this model: {'; '.join(parts)}")
        arrays = {}
        for name in [name for name in slots if name in state]:
            data = slots[name].data
            try:
                came = np.asarray(state[name])
            except (TypeError, ValueError, RuntimeError):  # lists of unequal lengths, tensors with gradients
                came = np.asarray(None)
            if came.dtype == object:
                kind, torch = type(state[name]).__name__, hasattr(state[name], "detach")
                remedy = "; convert it, as in tensor.detach().cpu().float().numpy()" if torch else ""
                raise CheckpointError(f"load_state_dict: {name} must be a host array, got {kind}{remedy}")
            if tuple(data.shape) != came.shape:
                raise CheckpointError(
                    f"load_state_dict: {name} has shape {tuple(data.shape)} in this model, {came.shape} in the state"
                )
            if came.dtype.kind not in "fiub":
                raise CheckpointError(f"load_state_dict: {name} must hold numbers, got dtype {came.dtype}")
            arrays[name] = came
        for name, came in arrays.items():  # one after the other, so that old and new weights share their memory
            slots[name].data = like(came, slots[name].data)
        return IncompatibleKeys(missing, unexpected)

    @explained
    def reset_parameters(self, rng: np.random.Generator | int | None = None) -> None:
        """Draw new initial weights for this module and all below it, and a new seed for each dropout.

        Parameters
        ----------
        rng : a generator, or the seed for one; without it, the numbers differ from call to call. They are drawn on the
            host in the order of `modules()`, so one seed gives the same weights on every device.

        Raises
        ------
        UsageError
            If `rng` is neither a generator nor a seed.
        """
        rng = np.random.default_rng() if rng is None else generator("reset_parameters", "rng", rng)
        for _, module in self.modules():
            module.initialize(rng)

    def initialize(self, rng: np.random.Generator) -> None:
        """Draw the initial state of this module, without its children; `reset_parameters` calls it.

        Subclasses with parameters or random generators override it. The base class does nothing.
        """

    def _calls(self) -> tuple[str, dict[str, Any]] | None:
        """Return the op that `forward(x, train=False)` calls and its options; None if it may do anything else.

        It holds for the `forward` of the class that defines it, not for that of a subclass; see `_calls.py`.
        """
        return None

    def _inner(self) -> Any:
        """Return the plan of a graph that may run as part of the graph around it; None for other modules."""
        return None

    def multiply_adds(self, x: Any, y: Any) -> int:
        """Return the number of multiply-adds of a forward pass from `x` to `y`; layers that do any override it."""
        return 0

    def options(self) -> dict[str, Any]:
        """Return the arguments from which the constructor makes this module again; `xcnn.save` writes them.

        They are the attributes with the names of the constructor's arguments. Override it if they are kept elsewhere.
        The arguments of `*modules` are a tuple under that name, those of `**options` a dict.

        Raises
        ------
        UsageError
            If an argument is not kept.
        """
        kept, missing = _kept(self)
        if missing:
            raise UsageError(
                f"{type(self).__name__}: the argument {missing[0]!r} of __init__ is not kept; assign it to "
                f"self.{missing[0]}, or define options() that returns all arguments by name"
            )
        return kept

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        inner = "".join(f"\n  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.children())
        return f"{type(self).__name__}({inner}\n)" if inner else f"{type(self).__name__}({self._arguments()})"

    def _arguments(self) -> str:
        """Return the constructor's arguments that are kept under their names and differ from the defaults."""
        (kept, missing), shown, by_name = _kept(self), [], False
        for name, parameter in inspect.signature(type(self)).parameters.items():
            by_name = by_name or name in missing or parameter.default is not parameter.empty
            if name in kept and repr(kept[name]) != repr(parameter.default):
                shown.append(f"{name}={_text(kept[name])}" if by_name else _text(kept[name]))
        return ", ".join(shown)


def _text(value: Any) -> str:
    """Return what represents an argument: `kaiming_normal(mode='fan_out')` for a function with some of its options."""
    if isinstance(value, functools.partial):
        return f"{_text(value.func)}({', '.join(f'{key}={option!r}' for key, option in value.keywords.items())})"
    return value.__name__ if inspect.isfunction(value) else repr(value)


def _walk(module: Module, name: str, above: tuple[Module, ...], found: list[tuple[str, Module]]) -> None:
    """Append a module and all below it with their dotted names to `found`; `above` holds those that contain it."""
    found.append((name, module))
    above = (*above, module)
    for key, child in module.children():
        inner = f"{name}.{key}" if name else key
        if child in above:
            kind = type(child).__name__
            raise UsageError(f"{kind}: {inner!r} is a module that contains itself; refer to it by weakref.ref")
        _walk(child, inner, above, found)


def _kept(module: Module) -> tuple[dict[str, Any], list[str]]:
    """Return the constructor's arguments that are attributes of the same names, and the names of the others."""
    kept, missing = {}, []
    for name, parameter in inspect.signature(type(module)).parameters.items():
        if name not in vars(module):
            missing.append(name)
            continue
        value = vars(module)[name]
        if isinstance(parameter.default, bool) and isinstance(value, Parameter | Buffer | Module | None):
            value = value is not None  # such as `bias`, afterwards a parameter or None
        kept[name] = value
    return kept, missing

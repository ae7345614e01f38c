"""`Module`: what every layer and container is.

A layer owns parameters and buffers, calls ops, and in its backward adds gradients into its parameters. To write one:

    class Scale(nn.Module):
        def __init__(self) -> None:
            self.weight = nn.Parameter(np.ones((), np.float32))

        def _forward(self, x, train):
            xp, weight = x.__array_namespace__(), self.weight.data
            def backward(dy, need_dx):
                self.weight.accumulate(xp.sum(dy * x))
                return dy * weight if need_dx else None
            return x * weight, backward

Parameters, buffers, random generators and child modules are found among the attributes, in the order of their
assignment. A layer that is one op takes two lines: see `_layer.py`.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from xcnn._array import Array
from xcnn.devices import Device, device, like, to_numpy
from xcnn.errors import CheckpointError, UsageError
from xcnn.ops._op import captured
from xcnn.parameter import Parameter

__all__ = ["Buffer", "Module", "Once"]


class Buffer:
    """An array that belongs to a layer's state but is not trained, such as running statistics."""

    __slots__ = ("data",)

    def __init__(self, data: Array) -> None:
        self.data = data


class Once:
    """A module's backward pass: callable once, after which the arrays that it kept are released.

    Call it with `dy`, the gradient with respect to the module's output. It adds into the gradient of every parameter
    and returns the gradient with respect to the module's input, or None if `need_dx` is False.
    """

    __slots__ = ("_function", "_name")

    def __init__(self, name: str, function: Callable[[Any, bool], Any]) -> None:
        self._name = name
        self._function: Callable[[Any, bool], Any] | None = function

    def __call__(self, dy: Any, need_dx: bool = True) -> Any:
        function, self._function = self._function, None
        if function is None:
            raise UsageError(f"{self._name}: backward was called already; call forward again first")
        return function(dy, need_dx)

    def saved(self) -> dict[str, Array]:
        """Return the arrays that this backward keeps alive; those of a container's layers are not among them."""
        return {} if self._function is None else captured(self._function)


class Module:
    """Base of all layers and containers.

    A subclass gives `_forward(x, train)`, which returns `y` and a function `backward(dy, need_dx)`; layers with several
    inputs take and return tuples. Users call `forward` (training) or the module itself (inference).
    """

    def _forward(self, x: Any, train: bool) -> tuple[Any, Callable[[Any, bool], Any]]:
        raise NotImplementedError(f"{type(self).__name__} gives no _forward(x, train)")

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Once]:
        """Return `y` and its backward pass.

        Parameters
        ----------
        x : the input, an array on the module's device; a tuple of arrays where the layer takes several.
        train : whether dropout drops and batch normalisation uses, and learns from, the statistics of the batch.
        """
        y, backward = self._forward(x, train)
        return y, Once(type(self).__name__, backward)

    def __call__(self, x: Any) -> Any:
        """Return the output in inference mode."""
        return self.forward(x, train=False)[0]

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """Yield the direct child modules with their names."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """Yield this module and all below it with their dotted names, parents first."""
        yield prefix, self
        for name, child in self.children():
            yield from child.modules(f"{prefix}.{name}" if prefix else name)

    def _attributes(self, *kinds: type) -> Iterator[tuple[str, Any]]:
        for prefix, module in self.modules():
            for name, value in vars(module).items():
                if isinstance(value, kinds):
                    yield f"{prefix}.{name}" if prefix else name, value

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
        """Yield the random streams of this module and all below it (dropout's) with their dotted names."""
        yield from self._attributes(np.random.Generator)

    def parameters(self) -> list[Parameter]:
        """Return the parameters of this module and all below it."""
        return [parameter for _, parameter in self.named_parameters()]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, where: str | Device, dtype: str | None = None) -> Self:
        """Move parameters and buffers to a device, gradients being forgotten, and return the module.

        Parameters
        ----------
        where : a device or its name, such as `"cuda:1"`.
        dtype : `"float32"` or `"float64"` to convert floating-point state; None keeps it.

        Raises
        ------
        UsageError
            For another dtype, or an unknown device.
        DeviceError, DtypeError
            For a device that cannot be used here, or that lacks a dtype.
        """
        if dtype not in (None, "float32", "float64"):
            raise UsageError(f"to: dtype must be 'float32' or 'float64', got {dtype!r}")
        target = device(where)
        for _, slot in self._attributes(Parameter, Buffer):
            array = to_numpy(slot.data)
            slot.data = target.asarray(array.astype(dtype) if dtype is not None and array.dtype.kind == "f" else array)
        self.zero_grad()
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return every parameter and buffer as a host array, by PyTorch's keys (`0.weight`, `2.running_mean`)."""
        return {name: to_numpy(slot.data) for name, slot in self._attributes(Parameter, Buffer)}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take over parameters and buffers by name, converted to the dtype and device that the module has.

        Nothing is changed where an error is raised.

        Parameters
        ----------
        state : host arrays by name, as `state_dict` gives them.
        strict : whether names that are missing or unknown are errors, or passed over.

        Raises
        ------
        CheckpointError
            For missing or unknown names, and for arrays of another shape or without numbers.
        """
        slots = dict(self._attributes(Parameter, Buffer))
        missing, unexpected = [n for n in slots if n not in state], [n for n in state if n not in slots]
        if strict and (missing or unexpected):
            parts = [
                f"{kind} {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
                for kind, names in (("missing", missing), ("unknown", unexpected))
                if names
            ]
            raise CheckpointError(f"load_state_dict: the state is not of this model: {'; '.join(parts)}")
        shared = [name for name in slots if name in state]
        for name in shared:
            have, came = tuple(slots[name].data.shape), np.asarray(state[name])
            if have != came.shape:
                raise CheckpointError(
                    f"load_state_dict: {name} has shape {have} in this model, {came.shape} in the state"
                )
            if came.dtype.kind not in "fiub":
                raise CheckpointError(f"load_state_dict: {name} must hold numbers, got dtype {came.dtype}")
        arrays = {name: like(np.asarray(state[name]), slots[name].data) for name in shared}
        for name, array in arrays.items():
            slots[name].data = array

    def reset_parameters(self, rng: np.random.Generator | int) -> None:
        """Draw every initial weight of this module and those below it anew, and seed every dropout.

        Parameters
        ----------
        rng : a generator, or the seed for one. Numbers are drawn on the host in the order of `modules()`, so the
            weights are the same on every device.
        """
        rng = np.random.default_rng(rng)
        for _, module in self.modules():
            module._reset(rng)

    def _reset(self, rng: np.random.Generator) -> None:
        """Draw the initial state of this module alone; layers with parameters or random streams override it."""

    def multiply_adds(self, x: Any, y: Any) -> int:
        """Return the multiply-adds of one forward pass from `x` to `y`; layers that multiply override it."""
        return 0

    def __repr__(self) -> str:
        inner = "".join(f"\n  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.children())
        return f"{type(self).__name__}({inner}\n)" if inner else f"{type(self).__name__}({self._arguments()})"

    def _arguments(self) -> str:
        """Write the constructor's arguments, as far as attributes of the same names tell and they are no defaults."""
        shown = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, parameter.default)
            if isinstance(parameter.default, bool) and not isinstance(value, bool):
                value = value is not None  # `bias`: a flag to the constructor, then the parameter or None
            if parameter.default is inspect.Parameter.empty:
                shown.append(repr(value))
            elif value != parameter.default:
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)

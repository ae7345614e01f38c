"""`Builder`: the ONNX graph that an export makes, module by module, and the table of the ops that it can write.

An exporter is a function with the arguments of its op, in which names of values take the place of arrays:

    @exports("leaky_relu")
    def leaky_relu(graph, x, negative_slope=0.01):
        return graph.node("LeakyRelu", [x], alpha=negative_slope)

A module of your own may have a method `onnx(self, graph, *inputs)` instead, which returns the name of its output. It
adds nodes by `graph.node`, and the modules that it is made of by `graph.call`.
"""

import contextlib
import inspect
import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from xcnn import nn
from xcnn._check import shown
from xcnn._dispatch import FORMULAS
from xcnn.errors import UsageError, XcnnError
from xcnn.nn._observe import observing
from xcnn.onnx.runtime import package
from xcnn.ops._options import activation
from xcnn.parameter import Buffer, Parameter

__all__ = ["EXPORTS", "MODULES", "Builder", "Exporter", "exports", "free", "shapes_of"]

Exporter = Callable[..., Any]
"""(graph, name of x, names of the op's other arrays or None, options of the op) -> name of y."""

EXPORTS: dict[str, Exporter] = {}
"""The exporter of every op by the op's name."""

MODULES: dict[Callable[..., Any], Callable[..., Any]] = {}
"""For modules that are not layers of one op, by their `forward`: (graph, module, names of inputs) -> name of y."""

F = TypeVar("F", bound=Exporter)


def exports(ops: str) -> Callable[[F], F]:
    """Decorate a function to make it the exporter of ops, whose names are separated by spaces; see `Builder`."""

    def register(function: F) -> F:
        EXPORTS.update(dict.fromkeys(ops.split(), function))
        return function

    return register


@dataclass
class _Node:
    type: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any]
    module: nn.Module


class _View(str):
    """The name of an array of the network that is written in another shape than its own."""


class Builder:
    """An ONNX graph in the making. Exporters of ops and `onnx` methods of modules get it as their first argument.

    Parameters
    ----------
    model : the network, on the host; the names of its parameters and buffers become those of the initializers.
    opset : the version of the operators.
    inputs : the names of the inputs with their shapes.
    reserved : names that no value gets, either.

    Attributes
    ----------
    opset : the version of the operators.
    """

    def __init__(
        self, model: nn.Module, opset: int, inputs: Mapping[str, tuple[int, ...]], reserved: Sequence[str] = ()
    ) -> None:
        self.opset, self._model = opset, model
        self._paths: dict[nn.Module, str] = {}
        for path, module in model.modules():
            self._paths.setdefault(module, path)
        self._slots: dict[int, str] = {}
        self._arrays: dict[str, np.ndarray] = {}
        for name, slot in model._attributes(Parameter, Buffer):
            self._slots.setdefault(id(slot), name)
            self._arrays[name] = np.asarray(slot.data)
        self._used = {*inputs, *reserved, *self._arrays}
        self._nodes: list[_Node] = []
        self._held: dict[str, np.ndarray] = {}
        self._shapes: dict[str, tuple[Any, ...]] = dict(inputs)
        self._calls: dict[nn.Module, deque[tuple[Any, Any]]] = {}
        self._at: nn.Module = model

    def tracing(self) -> contextlib.AbstractContextManager[None]:
        """Note the shapes of the inputs and outputs of every layer that runs inside a `with`."""

        def observer(name: str, layer: nn.Module) -> Callable[..., tuple[Any, Any]]:
            forward, calls = layer.forward, self._calls.setdefault(layer, deque())

            def observed(x: Any, train: bool = True) -> tuple[Any, Any]:
                y, backward = forward(x, train)
                calls.append((shapes_of(x), shapes_of(y)))
                return y, backward

            return observed

        return observing(self._model, observer)

    def node(self, type: str, inputs: Sequence[Any], **attributes: Any) -> str:
        """Add a node of one output and return the name of its value.

        Parameters
        ----------
        type : the operator, such as `"Relu"`.
        inputs : names of values; None for an optional one that is left out; arrays and numbers become constants.
        **attributes : the attributes of the operator; those that are None are left out.
        """
        known = []
        for value in inputs:
            if value is None:
                known.append("")
            elif not isinstance(value, str):
                known.append(self.constant(value))
            elif value in self._arrays and not isinstance(value, _View):
                known.append(self.view(value, self._arrays[value].shape))
            else:
                known.append(value)
        while known and not known[-1]:
            known.pop()
        return self._add(type, known, {name: value for name, value in attributes.items() if value is not None})

    def _add(self, type: str, inputs: list[str], attributes: dict[str, Any]) -> str:
        self._nodes.append(_Node(type, inputs, self._fresh(type), attributes, self._at))
        return self._nodes[-1].output

    def constant(self, value: Any) -> str:
        """Add a constant and return its name; floating-point numbers become float32, Python's integers int64."""
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise self.refuse(f"a node takes names of values, arrays and numbers, got {shown(value)}")
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        name = self._fresh("constant")
        self._held[name] = array
        return name

    def slot(self, slot: Parameter | Buffer) -> str:
        """Return the name of a parameter or buffer of the network, its key in `state_dict`."""
        if id(slot) not in self._slots:
            raise self.refuse("an array of it is no parameter or buffer of the network; use constant(array)")
        return self._slots[id(slot)]

    def view(self, name: str, shape: Sequence[int]) -> str:
        """Return a value in another shape. A parameter or buffer is written in the first one that it is used in."""
        if name in self._arrays:
            held = self._held.setdefault(name, self._arrays[name].reshape(shape))
            if held.shape == tuple(shape):
                return _View(name)
        return self._add("Reshape", [name, self.constant(np.asarray(shape, np.int64))], {})

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an input or output of a layer, of a parameter or of a buffer.

        The network is written for a batch of 2 and for one of 3, and refused if the nodes differ.

        Raises
        ------
        UsageError
            If it is not known, as for the values inside a module.
        """
        if name in self._arrays:
            return self._arrays[name].shape
        if name not in self._shapes:
            raise self.refuse(f"the shape of {name} is not known; only those of inputs and outputs of layers are")
        return self._shapes[name]

    def refuse(self, reason: str) -> UsageError:
        """Return the error that the module which is exported now cannot be written."""
        path, kind = self._paths.get(self._at, ""), type(self._at).__name__
        return UsageError(f"{f'{path} ({kind})' if path else kind} cannot be written as ONNX: {reason}")

    def call(self, module: nn.Module, *inputs: str) -> Any:
        """Add the nodes of a module for its inputs and return the name of its output, or a tuple of several."""
        outer, self._at, start = self._at, module, len(self._nodes)
        calls = self._calls.get(module)
        took, gave = calls.popleft() if calls else ((), ())
        self._shapes.update(zip(inputs, took, strict=False))
        try:
            result = self._export(module, inputs)
        except XcnnError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise self.refuse(f"{type(error).__name__}: {error}") from error
        outputs = [result] if isinstance(result, str) else result
        if not isinstance(outputs, list | tuple) or not all(isinstance(name, str) for name in outputs):
            raise self.refuse(f"its onnx method must return the name of its output, got {type(result).__name__}")
        if isinstance(result, str) and not any(module.children()):
            outputs = [result := self._rename(result, self._paths.get(module, ""), start)]
        self._shapes.update(zip(outputs, gave, strict=False))
        self._at = outer
        return result if isinstance(result, str) else tuple(outputs)

    def _export(self, module: nn.Module, inputs: tuple[str, ...]) -> Any:
        own = getattr(type(module), "onnx", None)
        if callable(own):
            return own(module, self, *inputs)
        if type(module).forward in MODULES:
            return MODULES[type(module).forward](self, module, *inputs)
        home = next(cls for cls in type(module).__mro__ if "forward" in vars(cls))
        if isinstance(module, nn.Layer) and home.__module__.startswith("xcnn.nn."):
            op, slots, options = module.bound()
            return self.op(op, *inputs, *(slot and self.slot(slot) for slot in slots.values()), **options)
        raise self.refuse("give it a method onnx(self, graph, *inputs); see docs/extending.md")

    def op(self, op: str, *arrays: Any, **options: Any) -> Any:
        """Add the nodes of an op by its name in `ops.OPS`, and return the name of its result.

        Parameters
        ----------
        op : the name of the op.
        *arrays : the names of its arrays, in order; None for one that is left out.
        **options : its options.
        """
        if op not in EXPORTS:
            raise self.refuse(f"the op {op} has no exporter; add one: xcnn.onnx.EXPORTS[{op!r}] = function")
        options.pop("training", None)
        after = activation(op, options.pop("activation", None))
        y = EXPORTS[op](self, *arrays, **options)
        if after is None:
            return y
        name, *parameters = after
        _, *names = inspect.signature(FORMULAS[name].check).parameters  # the first one is the caller
        return self.op(name, y, **dict(zip(names, parameters, strict=True)))

    def _fresh(self, name: str) -> str:
        """Return a new name below that of the current module."""
        path = self._paths.get(self._at, "")
        return self._new(f"{path}/{name}" if path else name)

    def _new(self, name: str) -> str:
        count, free = 1, name
        while free in self._used:
            count, free = count + 1, f"{name}_{count + 1}"
        self._used.add(free)
        return free

    def _rename(self, old: str, new: str, start: int = 0) -> str:
        """Give a value that a node from `start` on makes a better name, and return the name that it has then."""
        made = [node for node in self._nodes[start:] if node.output == old]
        if not made or not new:
            return old
        self._used.discard(old)
        made[0].output = new = self._new(new)
        for node in self._nodes[start:]:
            node.inputs = [new if name == old else name for name in node.inputs]
        if old in self._shapes:
            self._shapes[new] = self._shapes.pop(old)
        return new

    def join(self, other: "Builder") -> None:
        """Make the sizes free that are others in the graph of the same network for another batch.

        Raises
        ------
        UsageError
            If the nodes differ, so that the graph would be right for one batch only.
        """
        for pair in itertools.zip_longest(self._nodes, other._nodes):
            contents = [node and graph._content(node) for graph, node in zip((self, other), pair, strict=True)]
            if contents[0] != contents[1]:
                self._at = next(node.module for node in pair if node)
                raise self.refuse("its nodes depend on the number of inputs in a batch; use -1 or 0 in a Reshape")
        self._shapes = {name: free(sizes, other._shapes[name]) for name, sizes in self._shapes.items()}

    def _content(self, node: _Node) -> tuple[Any, ...]:
        """Return what two nodes that compute the same have in common."""
        held = {name: self._held[name] for name in node.inputs if name in self._held}
        values = {name: (a.shape, b"" if name in self._arrays else a.tobytes()) for name, a in held.items()}
        return node.type, node.inputs, node.output, repr(node.attributes), values

    def finish(
        self, inputs: Sequence[str], outputs: Sequence[str], results: Sequence[str], shapes: Sequence[tuple[Any, ...]]
    ) -> Any:
        """Return the `onnx.ModelProto`.

        Parameters
        ----------
        inputs, outputs : the names of the inputs and outputs.
        results : the values that become the outputs.
        shapes : their shapes, of which None or a letter is free.
        """
        helper, proto = package("onnx").helper, package("onnx").TensorProto
        ends: list[str] = []
        renamed: dict[str, str] = {}
        for result, name, shape in zip(results, outputs, shapes, strict=True):
            if name not in (*inputs, *ends):
                self._used.discard(name)
            value = renamed.get(result, result)
            if value in ends or all(node.output != value for node in self._nodes):  # an output already, or an input
                value = self.node("Identity", [value])
            renamed[result] = self._rename(value, name)
            ends.append(renamed[result])
            self._shapes[ends[-1]] = shape

        def info(name: str) -> Any:
            return helper.make_tensor_value_info(name, proto.FLOAT, self._shapes[name])

        inner = [node.output for node in self._nodes if node.output not in ends and node.output in self._shapes]
        tensors = {name: package("onnx").numpy_helper.from_array(array, name) for name, array in self._held.items()}
        constants = [name for name in tensors if name not in self._arrays]  # the others are the state of the network
        graph = helper.make_graph(
            [helper.make_node("Constant", [], [name], name, value=tensors.pop(name)) for name in constants]
            + [helper.make_node(n.type, n.inputs, [n.output], n.output, **n.attributes) for n in self._nodes],
            "xcnn",
            [info(name) for name in inputs],
            [info(name) for name in ends],
            list(tensors.values()),
            value_info=[info(name) for name in inner],
        )
        operators = [helper.make_opsetid("", self.opset)]
        return helper.make_model(
            graph, opset_imports=operators, ir_version=helper.find_min_ir_version_for(operators), producer_name="xcnn"
        )


def free(sizes: tuple[int, ...], others: tuple[int, ...]) -> tuple[Any, ...]:
    """Return a shape for any batch from those for batches of 2 and of 3; an axis that is no batch may be None."""
    if len(sizes) != len(others):
        return ()
    return tuple(m if m == n else "N" if (m, n) == (2, 3) else None for m, n in zip(sizes, others, strict=True))


def shapes_of(value: Any) -> tuple[tuple[int, ...], ...]:
    """Return the shape of an array, or of each array of a tuple."""
    return tuple(
        tuple(getattr(array, "shape", ())) for array in (value if isinstance(value, tuple | list) else (value,))
    )

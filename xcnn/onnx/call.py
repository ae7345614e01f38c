"""A graph of layers in the making, and what an operator may ask of one node of the file.

`Network` collects the nodes of an `nn.Graph`. `Call` is one node of the file, as the functions of `operators.py` see
it.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import TensorProto

from xcnn import nn
from xcnn._check import shown
from xcnn.onnx.limits import FLOATS, Budget
from xcnn.onnx.values import Value, attributes, schema_of

__all__ = ["Call", "Follows", "Network", "Operand", "Shape", "Unsupported", "Weight", "fill", "path"]

Shape = tuple[int | None, ...]
"""A shape with None for sizes that are open, such as that of the batch."""

Operand = str | float
"""The node that gives an array, or a number."""

Slot = TypeVar("Slot", nn.Parameter, nn.Buffer)

_LONGEST = 200
"""The most letters of a name."""


class Unsupported(Exception):
    """Why a node of the file cannot be a node of the graph."""


class Follows(Unsupported):
    """What a node of the file takes is not known because of one that is not supported."""


@dataclass(frozen=True)
class Weight:
    """A constant of the file that becomes the weight of a layer.

    Attributes
    ----------
    array : its numbers.
    origin : its name in the file, or "".
    layout : how the numbers are arranged, if not as in the file.
    """

    array: np.ndarray
    origin: str
    layout: str = ""

    def arranged(self, layout: str, function: Callable[[np.ndarray], np.ndarray]) -> "Weight":
        """Return the weight with its numbers arranged by a function, which `layout` names."""
        return replace(self, array=function(self.array), layout=f"{self.layout} {layout}")


class Network:
    """The nodes of a graph in the making.

    Parameters
    ----------
    inputs : names of the inputs.
    tensors : names of the tensors in the file, which are weights.
    first, second : what is known of the values with two sizes of the batch.
    uses : how many nodes and outputs of the file take each value.
    opset : version of the operators.
    budget : pays for arrays that are larger than those in the file.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        tensors: Iterable[str],
        first: Mapping[str, Value],
        second: Mapping[str, Value],
        uses: Counter[str],
        opset: int,
        budget: Budget,
    ) -> None:
        self.first, self.second, self.uses, self.opset, self.budget = first, second, uses, opset, budget
        self.inputs, self.tensors = tuple(inputs), set(tensors)
        self.nodes: dict[str, tuple[Any, str | tuple[str, ...]]] = {}
        self.names = {name: name for name in inputs}  # of the nodes that give the values of the file
        self.refused: dict[str, list[str]] = {}  # why nodes of the file cannot be nodes, with their names
        self._taken, self._tries = set(inputs), Counter[str]()
        self._above: Counter[str] = Counter()  # the dotted beginnings of names, which cannot be names themselves
        self._reserved = {above for name in self.tensors if len(name) <= _LONGEST for above in _beginnings(name)}
        self._layers = {name[: -len(".weight")] for name in self.tensors if name.endswith(".weight")}
        self._slots: dict[tuple[object, ...], Any] = {}
        self._modules: dict[tuple[object, ...], nn.Module] = {}

    def name(self, wanted: str, op: str = "", owner: bool = False) -> str:
        """Return a new name for a node, as near to `wanted` as can be.

        A name that tensors of the file begin with is only for their `owner`; others get that of the operator behind it.
        """
        if len(wanted) > _LONGEST or not all(wanted.split(".")):
            wanted = wanted[:_LONGEST].replace(".", "_") or "node"
        flat = wanted.replace(".", "_")
        self._tries[flat] += 1
        more = (f"{flat}_{k}" for k in itertools.count(self._tries[flat]))
        tries = itertools.chain([wanted, f"{wanted}.{op.lower()}", f"{wanted}_{op.lower()}", flat], more)
        return next(name for name in tries if self._free(name) and (owner or self._public(name)))

    def _public(self, name: str) -> bool:
        """Return whether a name neither is that of an owner nor lies in a layer that has a weight."""
        return name not in self._reserved and self._layers.isdisjoint(_beginnings(name))

    def _free(self, name: str) -> bool:
        return (
            name[-1] != "."
            and name not in self._taken
            and not self._above[name]
            and self._taken.isdisjoint(_beginnings(name))
        )

    def add(self, name: str, module: Any, inputs: str | tuple[str, ...]) -> str:
        """Add a node under a name from `name`, and return the name."""
        self.nodes[name] = module, inputs
        self._taken.add(name)
        self._above.update(_beginnings(name))
        return name

    def remove(self, name: str) -> Any:
        """Remove a node, and return its inputs."""
        self._taken.discard(name)
        for above in _beginnings(name):
            self._above[above] -= 1
        return self.nodes.pop(name)[1]

    def constant(self, value: str) -> np.ndarray | None:
        """Return a value if it is a constant, whatever the size of the batch."""
        first, second = self.first[value].data, self.second[value].data
        same = first is second or (first is not None and second is not None and np.array_equal(first, second))
        return first if same else None

    def shape(self, value: str) -> Shape | None:
        """Return the shape of a value, with None for sizes that are open; None if nothing is known."""
        first, second = self.first[value].shape, self.second[value].shape
        if first is None or second is None or len(first) != len(second):
            return None
        return tuple(a if a == b else None for a, b in zip(first, second, strict=True))

    def batch(self) -> int | None:
        """Return the size of the batch for which the file was written, or None if it is open."""
        return next(iter(self.shape(self.inputs[0]) or ()), None)

    def node(self, value: str) -> str:
        """Return the node that gives a value; for a constant it is added."""
        if value in self.names:
            return self.names[value]
        if self.first[value].kind not in (0, *FLOATS):
            raise Unsupported(f"it computes with {shown(value)}, which is not of floating-point numbers")
        if self.first[value].data is None:
            raise Follows
        data, origin = self.constant(value), self.first[value].origin
        if data is None:
            raise Unsupported(f"it computes with {shown(value)}, which depends on the size of the batch")
        weight = Weight(data, origin or value, str(data.shape))
        trained = origin in self.tensors and data.ndim > 0
        slot = self.slot(nn.Parameter, weight) if trained else self.slot(nn.Buffer, weight)
        self.names[value] = self.add(self.name(origin or path(value), owner=True), slot, ())
        return self.names[value]

    def number(self, value: str, rank: int) -> float | None:
        """Return a constant as a number if it is one that is no weight, and no array of more than `rank` axes."""
        data, origin = self.constant(value), self.first[value].origin
        if data is None or data.size != 1 or data.dtype.kind != "f" or (origin in self.tensors and data.ndim > 0):
            return None
        return float(data.reshape(())) if data.ndim <= rank and np.isfinite(data).all() else None

    def slot(self, kind: type[Slot], weight: Weight, owner: object = None) -> Slot:
        """Return the parameter or buffer of a weight; uses of the same weight for the same owner share it."""
        key = kind, weight.origin, weight.layout, owner
        if key not in self._slots or not weight.origin:
            copy = kind is not nn.Parameter  # a parameter copies its array
            self._slots[key] = kind(np.array(weight.array, order="C", copy=copy or None))
        return self._slots[key]  # type: ignore[no-any-return]

    def shared(self, module: nn.Module) -> nn.Module:
        """Return the module itself, or an earlier one with the same weights and options."""
        slots = [id(slot) for _, slot in (*module.named_parameters(), *module.named_buffers()) if slot.data.ndim]
        return self._modules.setdefault((repr(module), *slots), module) if slots else module


class Call:
    """One node of the file.

    Attributes
    ----------
    op : the operator.
    opset : the version of the operators.
    """

    def __init__(self, network: Network, node: onnx.NodeProto) -> None:
        self.network, self.node = network, node
        self.op, self.opset = node.op_type, network.opset
        self._attributes = attributes(node)
        self._schema = schema_of(node, self.opset)
        self._wanted = path(node.output[0], node.name, node.op_type)

    def __len__(self) -> int:
        return len(self.node.input)

    def has(self, i: int) -> bool:
        """Return whether there is an input at place i."""
        return i < len(self.node.input) and self.node.input[i] != ""

    def constant(self, i: int) -> np.ndarray | None:
        """Return input i if it is a constant, else None."""
        return self.network.constant(self.node.input[i]) if self.has(i) else None

    def scalar(self, i: int) -> float | None:
        """Return input i if it is a constant of one number, else None."""
        array = self.constant(i)
        return float(array.reshape(())) if array is not None and array.size == 1 and array.dtype.kind in "fiu" else None

    def option(self, name: str, default: Any = None) -> Any:
        """Return an option: the attribute, or the constant of the input of this name, or the operator's default.

        Older versions of operators have attributes where later ones have inputs. `default` is for those without either.
        """
        row = None if self._schema is None else self._schema.attributes.get(name)
        given = self._attributes.get(name)
        if given is not None and row is not None:
            if given.type != row.type.value:  # type: ignore[attr-defined]
                raise Unsupported(f"its attribute {name} is of another type than the operator's")
            return _plain(given, default)
        if self._schema is not None:
            for i, formal in enumerate(self._schema.inputs):
                if formal.name == name and self.has(i):
                    array = self.constant(i)
                    if array is None:
                        raise Unsupported(f"its {name} are computed, or depend on sizes that the file leaves open")
                    return array.tolist()
            if row is not None and row.default_value.type:
                return _plain(row.default_value, default)
        return default

    def shape(self, i: int = 0) -> Shape:
        """Return the shape of input i, with None for sizes that are open."""
        return self._known(self.node.input[i], "the number of axes of its input is not known")

    def rank(self, i: int = 0) -> int:
        """Return the number of axes of input i."""
        return len(self.shape(i))

    def result(self, i: int = 0) -> Shape:
        """Return the shape of output i, with None for sizes that are open."""
        return self._known(self.node.output[i], "the shape of its result is not known")

    def _known(self, value: str, otherwise: str) -> Shape:
        shape = self.network.shape(value)
        if shape is None:
            raise Follows if self.network.refused else Unsupported(otherwise)
        return shape

    def axis(self, axis: Any, rank: int | None = None) -> int:
        """Return an axis, counted from 0."""
        rank = self.rank() if rank is None else rank
        if not isinstance(axis, int) or not -rank <= axis < rank:
            raise Unsupported(f"its input of {rank} axes has no axis {shown(axis)}")
        return axis % rank

    def input(self, i: int = 0) -> str:
        """Return the node that gives input i."""
        if not self.has(i):
            raise Unsupported(f"it has no input {i}")
        return self.network.node(self.node.input[i])

    def weight(self, i: int, axes: int | None = None) -> Weight:
        """Return input i, which must be a constant of floating-point numbers, with this number of axes."""
        if not self.has(i):
            raise Unsupported(f"it has no input {i}")
        name, array = self.node.input[i], self.constant(i)
        if array is None or array.dtype.kind != "f":
            raise Unsupported(f"its input {i}, {shown(name)}, must be a constant of floating-point numbers")
        if axes is not None and array.ndim != axes:
            raise Unsupported(f"its input {i}, {shown(name)}, must have {axes} axes, got {array.shape}")
        return Weight(array, self.network.first[name].origin or name)

    def add(self, module: Any, *inputs: str, suffix: str = "") -> str:
        """Add a node that applies a module to nodes, by default to input 0, and return its name."""
        inputs = inputs or (self.input(),)
        wanted = f"{self._wanted}_{suffix}" if suffix else self._wanted
        return self.network.add(self.network.name(wanted, self.op), module, inputs[0] if len(inputs) == 1 else inputs)

    def chain(self, *modules: nn.Module, start: str = "") -> str:
        """Add nodes that apply modules one after the other, and return the name of the last."""
        node = start or self.input()
        for i, module in enumerate(modules, 1):
            node = self.add(module, node, suffix="" if i == len(modules) else str(i))
        return node

    def weighted(self, module: nn.Module, *inputs: str, **weights: Weight | None) -> str:
        """Add a node that applies a layer with weights, and return its name.

        The node is called `P` if the weight is called `P.weight` in the file, or else the bias `P.bias`.
        """
        fill(self.network, module, weights)
        given = [(name, weight.origin) for name, weight in weights.items() if weight is not None]
        owner = next((origin[: -len(name) - 1] for name, origin in given if origin.endswith(f".{name}")), "")
        name = self.network.name(owner or self._wanted, self.op, owner=bool(owner))
        return self.network.add(name, self.network.shared(module), inputs[0] if inputs else self.input())

    def instead(self, i: int, module: nn.Module, **weights: Weight | None) -> str:
        """Add a layer with weights that takes the place of the node which gives input i, and return its name."""
        return self.weighted(module, self.network.remove(self.input(i)), **weights)

    def operands(self) -> list[Operand]:
        """Return the node that gives each input, or the number that it is."""
        ranks = [len(self.network.shape(name) or ()) for name in self.node.input]
        numbers = [self.network.number(name, max(ranks)) for name in self.node.input]
        return [self.input(i) if number is None else number for i, number in enumerate(numbers)]

    def pair(self, op: str, x: Operand, other: Operand, suffix: str = "") -> str:
        """Add a node for an op of two arrays, or of an array and a number."""
        if isinstance(x, float):
            if isinstance(other, float) or op == "divide":
                x = self.array(np.asarray(x), "number")
            elif op == "subtract":
                return self.pair("add", self.add(nn.Apply("negative"), other, suffix=f"{suffix}minus"), x, suffix)
            else:
                x, other = other, x
        if isinstance(other, float) and (op != "divide" or other):
            return self.add(nn.Apply(op, other=other), x, suffix=suffix)
        if isinstance(other, float):
            other = self.array(np.asarray(other), "number")
        layer = {"add": nn.Add, "multiply": nn.Multiply}.get(op, lambda: nn.Apply(op))
        return self.add(layer(), x, other, suffix=suffix)

    def array(self, array: np.ndarray, suffix: str) -> str:
        """Return a node that gives an array, in the dtype of input 0."""
        dtype = np.float64 if self.network.first[self.node.input[0]].kind == TensorProto.DOUBLE else np.float32
        name = self.network.name(f"{self._wanted}_{suffix}")
        return self.network.add(name, nn.Buffer(array.astype(dtype)), ())

    def used(self, i: int) -> bool:
        """Return whether output i is used."""
        return i < len(self.node.output) and self.network.uses[self.node.output[i]] > 0

    def made(self, i: int, kind: type) -> tuple[Any, Any] | None:
        """Return the module and the inputs of the node that gives input i, if it is a `kind` used once."""
        if not self.has(i) or self.network.uses[self.node.input[i]] != 1:
            return None
        module, inputs = self.network.nodes.get(self.network.names.get(self.node.input[i], ""), (None, ()))
        return (module, inputs) if isinstance(module, kind) else None


def fill(network: Network, module: nn.Module, weights: Mapping[str, Weight | None]) -> None:
    """Give a layer its weights, which must have the shapes of its own.

    Exporters merge equal tensors, such as the biases of a new network, which are all 0. So a vector of one repeated
    number is shared only by layers that share a matrix, too.
    """
    given = [weight for weight in weights.values() if weight is not None]
    matrix = next(((weight.origin, weight.layout) for weight in given if weight.array.ndim > 1), None)
    for name, weight in weights.items():
        if weight is None:
            continue
        plain = weight.array.ndim == 1 < weight.array.size and np.ptp(weight.array) == 0
        own = getattr(module, name)
        if own.data.shape != weight.array.shape:
            raise Unsupported(f"its {name} must have the shape {own.data.shape}, got {weight.array.shape}")
        setattr(module, name, network.slot(type(own), weight, (matrix or module) if plain else None))


def path(value: str, node: str = "", op: str = "") -> str:
    """Return a name for a node of the graph from those in the file.

    >>> path("/layer1/layer1.0/conv1/Conv_output_0", "/layer1/layer1.0/conv1/Conv", "Conv")
    'layer1.0.conv1'
    >>> path("relu_3", "node_relu_3", "Relu"), path("17", "", "Relu")
    ('relu_3', 'Relu_17')
    """
    name = node if node.startswith("/") and len(node) <= _LONGEST else value
    if not name.startswith("/") or len(name) > _LONGEST:
        return f"{op or 'constant'}_{name}" if name.isdecimal() else name
    parts, last = [], ""
    for part in filter(None, name.split("/")):  # PyTorch repeats the path of a container: /layer1/layer1.0
        parts.append(part.removeprefix(f"{last}."))
        last = part
    if len(parts) > 1 and op and parts[-1].startswith(op):
        parts.pop()
    return ".".join(parts) or "node"


def _beginnings(name: str) -> list[str]:
    """Return the names of what would contain a node of this name: `a` and `a.b` for `a.b.c`."""
    return [name[:i] for i, letter in enumerate(name) if letter == "."]


def _plain(attribute: onnx.AttributeProto, default: Any) -> Any:
    """Return the value of an attribute."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, int | float):
        return value
    if isinstance(value, Iterable):
        return [one.decode(errors="replace") if isinstance(one, bytes) else one for one in value]
    return default

"""Reads an ONNX file: the nodes of the file, in their order, become the nodes of an `nn.Graph`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from xcnn import nn
from xcnn._check import integers, shown
from xcnn.errors import CheckpointError, XcnnError
from xcnn.onnx import metadata, operators_layers, operators_shapes, resize  # noqa: F401  (rows of OPERATORS)
from xcnn.onnx.call import Call, Follows, Network, Shape, Unsupported
from xcnn.onnx.limits import FLOATS, Budget, Invalid, arrays, open_file
from xcnn.onnx.operators import OPERATORS
from xcnn.onnx.values import Value, known, tensor_type

__all__ = ["read_file"]

_BATCHES = 59, 61
"""The two sizes of the batch with which the shapes are found."""

_MOST_REASONS, _MOST_NAMES = 20, 10
"""Of nodes that are not supported, in one message; and of the nodes with the same reason."""

_LONGEST_REASON, _LONGEST_NAME = 400, 80
"""The most letters of one of them."""


def read_file(path: str | Path, shape: Sequence[int] | None) -> dict[str, Any]:
    """Return the fields of a `File`; see `load.read`."""
    model, path, budget = open_file(path, "read")
    try:
        return _read(model, path, budget, shape)
    except Invalid as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read(model: onnx.ModelProto, path: Path, budget: Budget, shape: Sequence[int] | None) -> dict[str, Any]:
    graph, opset = model.graph, next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    tensors = {name: Value.of(array, name) for name, array in arrays(graph.initializer, path.parent).items()}
    inputs = {one.name: one.type for one in graph.input if one.name not in tensors}
    outputs = [one.name for one in graph.output]
    sizes = _sizes(inputs, shape)
    nodes, uses = _needed(graph.node, outputs)
    first, second = _probes(nodes, opset, inputs, sizes, tensors, budget)
    for name in outputs:
        if name not in first:
            raise Invalid(f"no node gives the output {shown(name)}")
    network = Network(list(inputs), tensors, first, second, uses, opset, budget)
    _convert(network, nodes)
    said = metadata.read(model)
    alone = next(iter(sizes.values()))[1:] if len(sizes) == 1 else ()
    return {
        "graph": _graph(network, tuple(inputs), outputs),
        "shape": () if None in alone else alone,
        "classes": said.classes,
        "preprocessing": said.preprocessing,
        "softmax": said.softmax,
        "inputs": tuple(inputs),
        "outputs": tuple(outputs),
        "opset": opset,
        "producer": model.producer_name,
    }


def _sizes(inputs: Mapping[str, onnx.TypeProto], shape: Sequence[int] | None) -> dict[str, Shape]:
    """Return the shapes of the inputs, with None for sizes that are open."""
    sizes: dict[str, Shape] = {}
    for name, kind in inputs.items():
        if kind.tensor_type.elem_type not in FLOATS:
            raise Invalid(f"the input {shown(name)} is not a tensor of floating-point numbers")
        sizes[name] = Value(kind).shape or ()
    if not sizes:
        raise Invalid("the network has no input")
    if shape is not None:
        given = integers("read", "shape", tuple(shape), len(shape))
        if len(sizes) > 1:
            raise Invalid(f"shape is for networks with one input; it has {len(sizes)}")
        ((name, said),) = sizes.items()
        if said and (
            len(said) != len(given) + 1 or any(a not in (None, b) for a, b in zip(said[1:], given, strict=True))
        ):
            raise Invalid(f"its input is {said} with the batch first, and cannot have the shape {given}")
        sizes[name] = (said[0] if said else None, *given)
    return sizes


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> tuple[list[onnx.NodeProto], Counter[str]]:
    """Return the nodes that lead to the outputs, and how often each value is used."""
    needed, uses = [], Counter(outputs)
    for node in reversed(nodes):
        if any(uses[name] for name in node.output if name):
            needed.append(node)
            uses.update(name for name in node.input if name)
    return needed[::-1], uses


def _probes(
    nodes: Sequence[onnx.NodeProto],
    opset: int,
    inputs: Mapping[str, onnx.TypeProto],
    sizes: Mapping[str, Shape],
    tensors: Mapping[str, Value],
    budget: Budget,
) -> tuple[dict[str, Value], dict[str, Value]]:
    """Return what is known of the values with two sizes of the batch; the same twice if the file says the size."""

    def given(batch: int) -> dict[str, Value]:
        return dict(tensors) | {
            name: Value(tensor_type(kind.tensor_type.elem_type, _with_batch(sizes[name], batch, kind)))
            for name, kind in inputs.items()
        }

    first = known(nodes, opset, given(_BATCHES[0]), budget)
    if all(shape and shape[0] is not None for shape in sizes.values()):
        return first, first
    return first, known(nodes, opset, given(_BATCHES[1]), budget, before=first)


def _with_batch(sizes: Shape, batch: int, kind: onnx.TypeProto) -> Shape | None:
    if not kind.tensor_type.HasField("shape") and not sizes:
        return None
    return (batch, *sizes[1:]) if sizes and sizes[0] is None else sizes


def _convert(network: Network, nodes: Sequence[onnx.NodeProto]) -> None:
    """Add the nodes of the file to the network, or refuse them all at once."""
    refused = network.refused
    for node in nodes:
        if all(network.first[name].data is not None for name in node.output if name) and not _grows(network, node):
            continue
        reason = _refusal(network, node)
        if reason is not None:
            reason = f"{node.op_type}: {reason}" if reason else node.op_type
            refused.setdefault(_short(reason, _LONGEST_REASON), []).append(_short(_called(node), _LONGEST_NAME))
        if refused:  # so that the nodes behind it can be looked at
            network.names.update((name, network.names.get(name, "")) for name in node.output)
    if refused:
        parts = [f"{what} ({_list(names)})" for what, names in refused.items()]
        raise Invalid(
            f"{sum(map(len, refused.values()))} of {len(nodes)} nodes are not supported: {_list(parts, '; ')}"
        )


def _grows(network: Network, node: onnx.NodeProto) -> bool:
    """Return whether a node repeats a constant as often as the batch is long."""
    (name, *_) = node.output
    return node.op_type == "Expand" and network.first[name].kind in FLOATS and network.constant(name) is None


def _called(node: onnx.NodeProto) -> str:
    return node.name or next(iter(node.output), "")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _list(parts: Sequence[str], between: str = ", ") -> str:
    most = _MOST_NAMES if between == ", " else _MOST_REASONS
    return between.join([*parts[:most], *([f"and {len(parts) - most} more"] if len(parts) > most else [])])


def _refusal(network: Network, node: onnx.NodeProto) -> str | None:
    """Add one node; return why it cannot be, or None if it can, or if only a node before it cannot."""
    reader = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    kinds = {network.first[name].kind for name in node.output if name}
    if node.domain in ("", "ai.onnx") and kinds and not {0, *FLOATS} & kinds:
        return None  # arithmetic of shapes that depend on open sizes: those who need the result say so
    if reader is None:
        return ""
    try:
        call = Call(network, node)
        results = reader(call)
        results = [results] if isinstance(results, str) else results
        for i, name in enumerate(node.output[len(results) :], len(results)):
            if call.used(i):
                raise Unsupported(f"its output {shown(name)} is used, and it has only {len(results)} here")
    except Follows:
        return None
    except (Unsupported, XcnnError) as error:
        return str(error)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return f"its options make no sense: {type(error).__name__}: {error}"
    network.names.update(zip(node.output, results, strict=False))
    return None


def _graph(network: Network, inputs: tuple[str, ...], outputs: Sequence[str]) -> nn.Graph:
    """Return the graph of the nodes that lead to the outputs."""
    try:
        results = [network.node(name) for name in outputs]
    except Unsupported as error:
        raise Invalid(f"its outputs are not supported: {error}") from None
    needed, nodes = set(results), []
    for name, (module, sources) in reversed(network.nodes.items()):
        if name in needed:
            nodes.append((name, module, sources))
            needed.update((sources,) if isinstance(sources, str) else sources)
    # Parameters come as late as possible, just before the first node that takes them.
    one = len(results) == 1
    return nn.Graph(nodes[::-1], results[0] if one else tuple(results), inputs[0] if len(inputs) == 1 else inputs)

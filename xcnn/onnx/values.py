"""What is known of the values of an ONNX graph before it runs: types, shapes, and the numbers of constants.

Exporters write arithmetic of shapes into a graph: `Shape`, `Gather`, `Concat`, and then `Reshape`. `known` goes through
the nodes with one size for each open axis. It asks onnx for the types and shapes of results, and computes what depends
on constants alone. Done with two sizes of the batch, it shows what depends on the batch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, TypeProto, defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from xcnn._check import shown
from xcnn.onnx.limits import FLOATS, Budget, Invalid, arrays

__all__ = ["Value", "attributes", "known", "schema_of", "tensor_type"]

_SMALL = 1024
"""The most numbers of a constant that onnx gets to see when it infers shapes: sizes, axes and the like."""

_COMPUTED = """
    Abs Add And ArgMax ArgMin Cast CastLike Ceil Clip Concat ConstantOfShape DequantizeLinear Div Equal Exp Expand
    Flatten Floor Gather GatherElements GatherND Greater GreaterOrEqual Identity Less LessOrEqual Log MatMul Max Min
    Mod Mul Neg Not Or Pow Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Reshape Round
    ScatterElements ScatterND Sign Slice Split Sqrt Squeeze Sub Sum Tile Transpose Unsqueeze Where Xor
"""
_FOLDED = frozenset(_COMPUTED.split())
"""The operators that are computed where all inputs are constants, in time and memory that the sizes bound."""

_VIEWS = frozenset(["Cast", "CastLike", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"])
"""Those whose results have the numbers of their first input, and so are known by its name."""


@dataclass(slots=True, eq=False)
class Value:
    """What is known of one value.

    Attributes
    ----------
    type : its type and shape as onnx describes them, or None.
    data : its numbers if it is a constant.
    origin : the name of the tensor in the file whose numbers these are, or "".
    """

    type: TypeProto | None = None
    data: np.ndarray | None = None
    origin: str = ""

    @property
    def kind(self) -> int:
        """The type of the numbers, or 0 if it is not known."""
        return 0 if self.type is None else self.type.tensor_type.elem_type

    @property
    def shape(self) -> tuple[int | None, ...] | None:
        """The shape, with None for sizes that are not known; None if nothing is."""
        if self.type is None or not self.type.tensor_type.HasField("shape"):
            return None
        sizes = self.type.tensor_type.shape.dim
        return tuple(size.dim_value if size.HasField("dim_value") and size.dim_value >= 0 else None for size in sizes)

    @classmethod
    def of(cls, data: np.ndarray, origin: str = "") -> "Value":
        """Return the value of a constant."""
        kind = helper.np_dtype_to_tensor_dtype(data.dtype)
        return cls(tensor_type(kind, data.shape), data, origin)


def tensor_type(kind: int, shape: Iterable[int | None] | None) -> TypeProto:
    """Return the type of tensors of a kind and shape; numbers of 16 bits are read as float32."""
    return helper.make_tensor_type_proto(_read_as(kind), None if shape is None else list(shape))


def _read_as(kind: int) -> int:
    return TensorProto.FLOAT if kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16) else kind


def schema_of(node: onnx.NodeProto, opset: int) -> defs.OpSchema | None:
    """Return what onnx knows of an operator, or None if it does not know it."""
    if node.domain not in ("", "ai.onnx"):
        return None
    try:
        return defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return None


def attributes(node: onnx.NodeProto) -> dict[str, onnx.AttributeProto]:
    """Return the attributes of a node by name."""
    return {one.name: one for one in node.attribute}


def known(
    nodes: Iterable[onnx.NodeProto],
    opset: int,
    given: Mapping[str, Value],
    budget: Budget,
    before: Mapping[str, Value] | None = None,
) -> dict[str, Value]:
    """Return what is known of every value.

    Parameters
    ----------
    nodes, opset : the nodes in the order in which they run, and the version of the operators.
    given : the inputs and the tensors of the file.
    budget : pays for the constants that are computed.
    before : the result for another size of the batch; values that do not depend on it are the same objects.

    Raises
    ------
    Invalid
        If a node takes what no node before it gives, or the constants are too large.
    """
    values = dict(given)
    for node in nodes:
        inputs = []
        for name in filter(None, node.input):
            if name not in values:
                raise Invalid(f"{node.op_type} takes {shown(name)}, which is not given before it")
            inputs.append(values[name])
        names = [name for name in node.output if name]
        same = before is not None and all(values[name] is before[name] for name in node.input if name)
        found = {name: before[name] for name in names} if same and before else _results(node, opset, values, budget)
        values |= {name: found.get(name) or Value() for name in names}
    return values


def _results(node: onnx.NodeProto, opset: int, values: Mapping[str, Value], budget: Budget) -> dict[str, Value]:
    """Return what is known of the results of a node, by name."""
    schema = schema_of(node, opset)
    inputs = {name: values[name] for name in node.input if name}
    if schema is None or not schema.min_input <= len(node.input) <= schema.max_input:
        return {}
    if not schema.min_output <= len(node.output) <= schema.max_output:
        return {}
    if node.op_type == "Constant":
        return {node.output[0]: Value.of(_constant(node))}
    (first, *_) = inputs.values() or [Value()]
    if node.op_type in ("Shape", "Size") and first.shape is not None and None not in first.shape:
        sizes, given = np.asarray(first.shape, np.int64), attributes(node)
        start, end = given["start"].i if "start" in given else 0, given["end"].i if "end" in given else None
        return {node.output[0]: Value.of(sizes[start:end] if node.op_type == "Shape" else np.asarray(sizes.prod()))}
    like = node.input[1] if node.op_type == "CastLike" else ""
    if like in inputs and like != node.input[0] and inputs[like].kind in FLOATS:  # of which only the type matters
        inputs[like] = Value.of(np.zeros((), helper.tensor_dtype_to_np_dtype(inputs[like].kind)))
    types = _types(schema, node, inputs, opset)
    found = {name: Value(one) for name, one in types.items()}
    if node.op_type in _FOLDED and all(value.data is not None for value in inputs.values()):
        shapes = [value.shape for value in found.values()]
        if len(found) == len(node.output) and all(shape is not None and None not in shape for shape in shapes):
            for value in found.values():
                budget.take(value.shape, 8)  # type: ignore[arg-type]
            return _computed(node, opset, inputs) or found
    return found


def _types(
    schema: defs.OpSchema, node: onnx.NodeProto, inputs: Mapping[str, Value], opset: int
) -> dict[str, TypeProto]:
    """Return the types of the results of a node as far as onnx infers them."""
    types = {name: value.type for name, value in inputs.items() if value.type is not None}
    if len(types) < len(inputs):
        return {}
    data = {
        name: numpy_helper.from_array(value.data, name)
        for name, value in inputs.items()
        if value.data is not None and value.data.size <= _SMALL
    }
    try:
        imports = [helper.make_opsetid("", opset)]
        found = shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=imports)
    except Exception:  # the node does not fit its inputs; this shows when it is read
        return {}
    found = {name: one for name, one in found.items() if one.HasField("tensor_type")}
    for one in found.values():
        one.tensor_type.elem_type = _read_as(one.tensor_type.elem_type)
    return found


def _constant(node: onnx.NodeProto) -> np.ndarray:
    """Return the array of a node of the operator Constant."""
    (attribute,) = node.attribute if len(node.attribute) == 1 else [onnx.AttributeProto()]
    match attribute.name:
        case "value":
            (array,) = arrays([attribute.t], None).values()
            return array
        case "value_float" | "value_floats":
            return np.asarray(attribute.floats if attribute.name[-1] == "s" else attribute.f, np.float32)
        case "value_int" | "value_ints":
            return np.asarray(attribute.ints if attribute.name[-1] == "s" else attribute.i, np.int64)
    raise Invalid(f"the constant {shown(node.output[0])} is not a tensor of numbers")


def _single(array: np.ndarray) -> np.ndarray:
    """Return numbers of 16 bits as float32."""
    return array.astype(np.float32) if array.dtype.kind == "f" and array.dtype.itemsize == 2 else array


def _computed(node: onnx.NodeProto, opset: int, inputs: Mapping[str, Value]) -> dict[str, Value]:
    """Return the results of a node from constants, or nothing if it cannot be computed."""
    feeds = {name: value.data for name, value in inputs.items()}
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(node, opsets={"": opset}).run(None, feeds)
    except Exception:  # of any kind, from what the node says; the node is then refused by name
        return {}
    first = inputs.get(node.input[0]) if node.op_type in _VIEWS else None
    origin = "" if first is None or first.kind not in (TensorProto.FLOAT, TensorProto.DOUBLE) else first.origin
    found = {}
    for name, result in zip(node.output, results, strict=True):
        array = np.asarray(result)
        if array.dtype.kind not in "fiub":
            return {}
        found[name] = Value.of(_single(array), origin)
    return found

"""`to_model` and `save`: a network as an ONNX model, and as a file that has been compared with the network."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import ops
from xcnn._check import flag, integer, integers, shown
from xcnn._check import path as checked_path
from xcnn._files import replacing
from xcnn.errors import UsageError, explained
from xcnn.nn import Graph, Module
from xcnn.nn._plan import names
from xcnn.onnx import layers, windows  # noqa: F401 fill the table of exporters
from xcnn.onnx.builder import Builder, free, shapes_of
from xcnn.onnx.metadata import Metadata, write
from xcnn.onnx.runtime import Session, package, sentence

__all__ = ["OLDEST", "Difference", "compared", "difference", "save", "to_model"]

OLDEST = 17
"""The oldest opset; it has layer norm."""

_MOST_BYTES = 2**31 - 2**20
"""The largest file that protobuf can read, less the graph without its weights."""

_RANGES = ((0, 1), (-1, 1), (-8, 8))
"""The numbers of the inputs on which a file is compared with its network."""


@explained
def to_model(
    model: Module,
    shape: Sequence[Any],
    *,
    classes: Sequence[str] = (),
    preprocessing: Mapping[str, Any] | None = None,
    softmax: bool = False,
    opset: int = OLDEST,
) -> Any:
    """Return a network in its inference form as an `onnx.ModelProto`.

    Initializers have the keys of `state_dict` as their names, and values the dotted names of the layers that they come
    from. The number of inputs in a batch is free; the other sizes are those of `shape`. Everything is float32. The same
    network gives the same bytes.

    Parameters
    ----------
    model : the network.
    shape : shape of one input without the batch axis, such as (3, 224, 224); a tuple of shapes for several inputs.
    classes : names of the classes, for the metadata.
    preprocessing : how images become inputs, for the metadata; see `metadata.IMAGES`. None says nothing about it.
    softmax : whether to add a softmax along axis 1, so that the output has probabilities in place of scores.
    opset : version of the operators, 17 or later.

    Returns
    -------
    The model, checked by `onnx.checker`. Its input is `x` and its output `y`; several have the names that a `nn.Graph`
    gives them, or are numbered.

    Raises
    ------
    UsageError
        If onnx is not installed, an argument is out of range, or a layer cannot be written: the error names it.
    ShapeError
        If the network does not take inputs of `shape`.

    Examples
    --------
    >>> from xcnn import nn
    >>> model = to_model(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (3, 8, 8))
    >>> [node.op_type for node in model.graph.node], [held.name for held in model.graph.initializer]
    (['Conv', 'Relu'], ['0.weight', '0.bias'])
    """
    onnx = package("onnx")
    if not isinstance(model, Module):
        raise UsageError(f"to_model: model must be an nn.Module, got {shown(model)}")
    shapes = _shapes(shape)
    flag("to_model", "softmax", softmax)
    integer("to_model", "opset", opset, OLDEST, onnx.defs.onnx_opset_version())
    prepared: Any = {} if preprocessing is None else preprocessing
    about = Metadata(shapes if len(shapes) > 1 else shapes[0], _tuple(classes), prepared, softmax)
    host = copy.deepcopy(model).to("cpu", "float32")
    inputs, outputs = _ends(host, len(shapes))
    builder, results, sizes = _built(host, shapes, opset, inputs, outputs, 2)
    other, _, others = _built(host, shapes, opset, inputs, outputs, 3)
    builder.join(other)
    if softmax:
        results = [builder.node("Softmax", [y], axis=1) for y in results]
    if not outputs:
        outputs = [f"y{i}" for i in range(len(results))] if len(results) > 1 else ["y"]
    made = builder.finish(inputs, outputs, results, list(map(free, sizes, others)))
    if made.ByteSize() > _MOST_BYTES:
        raise UsageError(f"to_model: the network takes {made.ByteSize():,} bytes, an ONNX file at most {_MOST_BYTES:,}")
    write(made, about)
    try:
        onnx.checker.check_model(made, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UsageError(f"to_model: onnx refuses the graph: {sentence(error)}") from error
    return made


@dataclass(frozen=True)
class Difference:
    """How far ONNX Runtime is from a network.

    Attributes
    ----------
    units : largest |error| of an output in units of eps * S, where S is the largest finite magnitude of that output in
        float64 and eps that of float32.
    bound : the largest units that are allowed: ten times those of the network's own float32, and 100.
    """

    units: float
    bound: float

    @property
    def within(self) -> bool:
        """Whether the difference is allowed."""
        return self.units <= self.bound

    def __str__(self) -> str:
        return f"{self.units:.2f} of {self.bound:.1f}"


def difference(model: Module, session: Session, shape: Sequence[Any], *, softmax: bool = False) -> Difference:
    """Return how far ONNX Runtime is from a network in float64, on three random inputs.

    Their numbers are from 0 to 1, from -1 to 1 and from -8 to 8, so that they reach what layers do with negative and
    with large ones.

    Parameters
    ----------
    model : the network.
    session : the same network in ONNX Runtime.
    shape, softmax : as in `to_model`.
    """
    x = _drawn(_shapes(shape), len(_RANGES))
    for one in x:
        for row, (low, high) in enumerate(_RANGES):
            one[row] = low + (high - low) * one[row]
    found = session(*x)
    wide, own = (_outputs(model, x, dtype, softmax) for dtype in ("float64", "float32"))
    results = found if isinstance(found, tuple) else (found,)
    if [y.shape for y in results] != [y.shape for y in wide]:
        return Difference(math.inf, 0.0)
    eps = float(np.finfo(np.float32).eps)

    def units(outputs: Sequence[np.ndarray]) -> float:
        worst = 0.0
        for y, wanted in zip(outputs, wide, strict=True):
            scale = float(np.max(np.abs(wanted), initial=0.0, where=np.isfinite(wanted))) or 1.0
            with np.errstate(invalid="ignore"):  # of two infinities
                off = np.where(np.isnan(y) & np.isnan(wanted) | (y == wanted), 0.0, np.abs(y - wanted))
            worst = max(worst, float(np.max(np.where(np.isnan(off), np.inf, off), initial=0.0)) / (eps * scale))
        return worst

    return Difference(units(results), 100.0 + 10.0 * units(own))


@explained
def save(
    model: Module,
    path: str | Path,
    shape: Sequence[Any],
    *,
    classes: Sequence[str] = (),
    preprocessing: Mapping[str, Any] | None = None,
    softmax: bool = False,
    opset: int = OLDEST,
) -> Path:
    """Write a network in its inference form to an ONNX file, after comparing it with ONNX Runtime on random inputs.

    An older file stays until the new one is complete.

    Parameters
    ----------
    model : the network.
    path : the file to write.
    shape, classes, preprocessing, softmax, opset : as in `to_model`.

    Returns
    -------
    The path.

    Raises
    ------
    UsageError, ShapeError
        As `to_model`; also if onnxruntime is not installed, or its results differ from those of the network.
    WriteError
        If the file cannot be written.
    """
    path = checked_path("save", "path", path)
    options: dict[str, Any] = {"preprocessing": preprocessing, "softmax": softmax, "opset": opset}
    made, _ = compared(model, shape, classes=classes, **options)
    with replacing(path) as temporary:
        temporary.write_bytes(made)
    return path


def compared(model: Module, shape: Sequence[Any], *, softmax: bool = False, **options: Any) -> tuple[bytes, Difference]:
    """Return what `save` writes, and its difference from the network, which is allowed; the arguments are those of it.

    Raises
    ------
    UsageError
        If the difference is not allowed.
    """
    made = to_model(model, shape, softmax=softmax, **options).SerializeToString(deterministic=True)
    found = difference(model, Session(made), shape, softmax=softmax)
    if not found.within:
        raise UsageError(f"save: ONNX Runtime computes something else than the network; the difference is {found}")
    return made, found


def _tuple(names: Any) -> Any:
    return tuple(names) if isinstance(names, list) else names


def _shapes(shape: Any) -> tuple[tuple[int, ...], ...]:
    """Return the shape of each input."""
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise UsageError(f"to_model: shape must be the sizes of one input, such as (3, 224, 224), got {shown(shape)}")
    several = len(shape) > 0 and all(isinstance(one, Sequence) for one in shape)
    return tuple(integers("to_model", "shape", tuple(one), len(one)) for one in (shape if several else (shape,)))


def _drawn(shapes: Sequence[tuple[int, ...]], batch: int) -> tuple[np.ndarray, ...]:
    """Return a random batch for each input, with numbers from 0 to 1."""
    rng = np.random.default_rng(0)
    return tuple(rng.random((batch, *shape), np.float32) for shape in shapes)


def _run(model: Module, inputs: Sequence[np.ndarray]) -> Any:
    """Return the result of the network, which takes a tuple of several inputs."""
    several = len(inputs) > 1 or (isinstance(model, Graph) and not isinstance(model._plan.inputs, str))
    return model(tuple(inputs) if several else inputs[0])


def _built(
    host: Module, shapes: Sequence[tuple[int, ...]], opset: int, inputs: list[str], outputs: list[str], batch: int
) -> tuple[Builder, list[str], tuple[tuple[int, ...], ...]]:
    """Return the graph of a network for a batch, the names of its results, and their shapes."""
    took = {name: (batch, *sizes) for name, sizes in zip(inputs, shapes, strict=True)}
    builder = Builder(host, opset, took, outputs)
    with builder.tracing(), np.errstate(all="ignore"):
        result = _run(host, _drawn(shapes, batch))
    if not all(hasattr(y, "shape") for y in (result if isinstance(result, tuple) else (result,))):
        raise builder.refuse(f"it must return an array or a tuple of arrays, got {shown(result)}")
    traced = shapes_of(result)
    found = builder.call(host, *inputs)
    results = [found] if isinstance(found, str) else list(found)
    if len(results) != len(traced):
        raise builder.refuse(f"it has {len(traced)} outputs, of which {len(results)} are written")
    return builder, results, traced


def _ends(model: Module, count: int) -> tuple[list[str], list[str]]:
    """Return the names of the inputs and outputs; those of outputs are empty if only the result tells their number."""
    inputs, outputs = ["x"], []
    if type(model).forward is Graph.forward and isinstance(model, Graph):
        inputs = list(names(model._plan.inputs))
        outputs = ["y"] if isinstance(model._plan.output, str) else list(model._plan.output)
    if len(inputs) != count:
        inputs = [f"x{i}" for i in range(count)]
    return inputs, outputs


def _outputs(model: Module, x: Sequence[np.ndarray], dtype: str, softmax: bool) -> list[np.ndarray]:
    """Return the outputs of the network in a dtype."""
    with np.errstate(all="ignore"):
        y = _run(copy.deepcopy(model).to("cpu", dtype), [one.astype(dtype) for one in x])
        results = list(y) if isinstance(y, tuple) else [y]
        return [ops.softmax(one, dim=1)[0] for one in results] if softmax else results

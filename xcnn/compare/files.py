"""Two networks from files side by side: what they take and give, their weights, and where their activations part.

Both run on the same input in float64, where networks that differ only in rounding stay together. Layers are matched in
their order by op and shape of the output, weights by name or else in their order. The counters of batches that batch
norms have seen in training are left out. If one of the networks has more batch norms than the other, each counts as a
part of the convolution before it.
"""

import copy
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from xcnn import nn, onnx
from xcnn.compare.op import called
from xcnn.errors import UsageError, XcnnError
from xcnn.nn._observe import observing
from xcnn.runs import load_checkpoint
from xcnn.runs.checkpoint import open_checkpoint, require_moderate
from xcnn.runs.foreign import complete
from xcnn.runs.matching import COUNTER, fitting, shapes

__all__ = ["TOGETHER", "Comparison", "Opened", "Pair", "compare_files", "open_file"]

TOGETHER = 100.0
"""The largest difference, in units of eps * S, of activations that count as equal: S is the largest magnitude of the
first network's, eps that of float32. Weights that were rounded to float32 otherwise, as by folding batch norm into
convolutions, differ by less."""

_PASSIVE = {"dropout", "dropout1d", "dropout2d", "dropout3d", "flatten", "reshape", "stochastic_depth", "Identity"}
"""The ops that compute nothing in inference; they are not matched."""


_MEANS = {"mean", "global_avg_pool", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"}


@dataclass(frozen=True)
class Opened:
    """A network or weights from a file.

    Attributes
    ----------
    path : the file, or the folder of a run.
    network : the network; None for a file of weights alone.
    state : the weights by name.
    shape : shape of one input without the batch axis; () if it is not known.
    classes : the names of the classes; () if they are not known.
    preprocessing : how images become inputs, as far as it is known; see `onnx.Metadata`.
    """

    path: Path
    network: nn.Module | None
    state: Mapping[str, np.ndarray] = field(repr=False)
    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


def open_file(path: Path, model: str | None = None) -> Opened:
    """Read a network, or weights, from a file or from the folder of a run.

    Parameters
    ----------
    path : an ONNX file, or whatever `load_checkpoint` takes.
    model : the name of the model of plain weights; without it, only they are compared.

    Raises
    ------
    XcnnError
        If the file cannot be read, or its network takes several inputs.
    """
    if path.suffix.lower() == ".onnx":
        file = onnx.read(path)
        if len(file.inputs) > 1:
            raise UsageError(
                f"{path} takes several inputs, {', '.join(file.inputs)}; only networks of one are compared"
            )
        require_moderate(file.shape)
        return Opened(path, file.graph, file.graph.state_dict(), file.shape, file.classes, file.preprocessing)
    _, found = open_checkpoint(path)
    classes, network = found.classes, None
    if found.structure is not None:
        network = found.build()
    elif found.model or model is not None:
        found = complete(load_checkpoint(path, model), None, (), model)
        network = found.build(model)
    require_moderate(found.shape)
    state = found.state if network is None else network.state_dict()
    made: dict[str, Any] = {name: found.config[name] for name in ("resize", "background") if name in found.config}
    return Opened(path, network, state, found.shape, classes, made)


@dataclass(frozen=True)
class Pair:
    """A layer of each network, or one of a single network.

    Attributes
    ----------
    a, b : the names of the layers; "" if there is none.
    op : the op of the layers, or their class.
    weights : largest difference of their arrays, relative to the largest magnitude in the first network; None if they
        have none.
    units : largest difference of their outputs in units of eps * S, see `TOGETHER`; None for a layer without
        counterpart.
    """

    a: str
    b: str
    op: str
    weights: float | None = None
    units: float | None = None

    @property
    def equal(self) -> bool:
        """Whether neither weights nor outputs differ at all."""
        return self.units == 0 and not self.weights

    @property
    def parted(self) -> bool:
        """Whether the outputs differ by more than rounding."""
        return self.units is not None and self.units > TOGETHER


@dataclass(frozen=True)
class Comparison:
    """What two files have in common, and where they differ.

    Attributes
    ----------
    facts : (what, of the first, of the second) for the inputs, outputs, classes and sizes.
    pairs : the layers in the order of the forward pass; empty if one of the files has no network.
    weights : (name in the first file, name in the second, relative difference) of every pair of arrays.
    alone : the names of arrays without counterpart, of the first file and of the second.
    in_order : whether the weights are matched in their order, as their names differ.
    units : largest difference of the outputs, as in `Pair`; None if they were not computed.
    agreed : share of inputs for which the largest score is the same; None if the outputs are not scores.
    reason : why the outputs were not compared, or "".
    """

    facts: tuple[tuple[str, str, str], ...]
    pairs: tuple[Pair, ...]
    weights: tuple[tuple[str, str, float], ...]
    alone: tuple[tuple[str, ...], tuple[str, ...]]
    in_order: bool
    units: float | None = None
    agreed: float | None = None
    reason: str = ""

    @property
    def first(self) -> Pair | None:
        """The first layers whose outputs part; None if there are none."""
        return next((pair for pair in self.pairs if pair.parted), None)

    @property
    def same(self) -> bool:
        """Whether the outputs agree, or without networks, whether all weights are equal."""
        if self.units is not None:
            return self.units <= TOGETHER
        return not self.reason and not any(self.alone) and all(off == 0 for *_, off in self.weights)


def compare_files(a: Opened, b: Opened, x: np.ndarray | None = None) -> Comparison:
    """Compare two networks, or the weights of two files.

    Parameters
    ----------
    a, b : the files.
    x : the input of both, a host array; None to compare the weights only.
    """
    ours, theirs = _weights(a.state), _weights(b.state)
    matched, in_order = fitting(shapes(ours), shapes(theirs))
    weights = tuple((one, other, _relative(ours[one], theirs[other])) for one, other in matched.items())
    alone = (tuple(n for n in ours if n not in matched), tuple(n for n in theirs if n not in matched.values()))
    facts = [
        ("input", _shape(a.shape), _shape(b.shape)),
        ("classes", _classes(a.classes), _classes(b.classes)),
        *((name, _said(a, name), _said(b, name)) for name in {**a.preprocessing, **b.preprocessing}),
        ("arrays", str(len(a.state)), str(len(b.state))),
        ("numbers", _numbers(a.state), _numbers(b.state)),
    ]
    if a.network is None or b.network is None or x is None:
        return Comparison(tuple(facts), (), weights, alone, in_order)
    runs, reason = [], ""
    for one, network in ((a, a.network), (b, b.network)):
        try:
            runs.append(_Run(network, x))
        except XcnnError as error:
            reason = f"{one.path} does not take the input {_shapes(x)}: {error}"
    if reason:
        return Comparison(tuple(facts), (), weights, alone, in_order, reason=reason)
    first, second = runs
    facts.insert(1, ("output", _shapes(first.y), _shapes(second.y)))
    pairs = tuple(_pairs(first.layers, second.layers, weights))
    ys, others = (_several(run.y) for run in runs)
    if [y.shape for y in ys] != [y.shape for y in others]:
        reason = f"their shapes are {_shapes(first.y)} and {_shapes(second.y)}"
        return Comparison(tuple(facts), pairs, weights, alone, in_order, reason=reason)
    units = max(map(_units, ys, others))
    scores = len(ys) == 1 and ys[0].ndim == 2
    agreed = float(np.mean(np.argmax(ys[0], 1) == np.argmax(others[0], 1))) if scores else None
    return Comparison(tuple(facts), pairs, weights, alone, in_order, units, agreed)


@dataclass(frozen=True)
class _Layer:
    name: str
    op: str
    y: Any

    @property
    def key(self) -> tuple[str, str]:
        """What layers that are matched have in common.

        Means of whole maps have several names and shapes, and a linear layer may see its leading axes as one.
        """
        if self.op == "linear":
            return self.op, f"{self.y.size} of {self.y.shape[-1]}"
        shapes = [tuple(size for size in one.shape if size != 1) for one in _several(self.y)]
        return "mean" if self.op in _MEANS else self.op, str(shapes)


class _Run:
    """The inference of a network in float64: its output, and the layers that compute something with theirs."""

    def __init__(self, network: nn.Module, x: Any) -> None:
        self.layers: list[_Layer] = []

        def observer(name: str, layer: nn.Module) -> Callable[..., tuple[Any, Any]]:
            forward, known = layer.forward, called(layer)
            op = type(layer).__name__ if known is None else known[0]

            def observed(x: Any, train: bool = True) -> tuple[Any, Any]:
                y, backward = forward(x, train)
                if op not in _PASSIVE:
                    self.layers.append(_Layer(name, op, y))
                return y, backward

            return observed

        network = copy.deepcopy(network).to("cpu", "float64")
        with observing(network, observer), np.errstate(all="ignore"):
            self.y = network(x.astype(np.float64))


def _pairs(ours: Sequence[_Layer], theirs: Sequence[_Layer], weights: Sequence[tuple[str, str, float]]) -> list[Pair]:
    """Return the layers of both in order, matched where their ops and the shapes of their outputs are the same."""
    normed = [sum(one.op == "batch_norm" for one in layers) for layers in (ours, theirs)]
    if normed[0] != normed[1]:
        ours, theirs = _folded(ours), _folded(theirs)
    found = []
    matcher = difflib.SequenceMatcher(None, [one.key for one in ours], [one.key for one in theirs], autojunk=False)
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        if kind == "equal":
            for one, other in zip(ours[start:end], theirs[other_start:other_end], strict=True):
                off = [off for name, _, off in weights if name.rpartition(".")[0] == one.name]
                units = max(map(_units, _several(one.y), _several(other.y)))
                found.append(Pair(one.name, other.name, one.op, max(off, default=None), units))
            continue
        found += [Pair(one.name, "", one.op) for one in ours[start:end]]
        found += [Pair("", one.name, one.op) for one in theirs[other_start:other_end]]
    return found


def _folded(layers: Sequence[_Layer]) -> list[_Layer]:
    """Return the layers with batch norms as parts of the convolutions before them, as many programs export them."""
    found: list[_Layer] = []
    for layer in layers:
        if layer.op == "batch_norm" and found and found[-1].op.startswith("conv"):
            found[-1] = replace(found[-1], y=layer.y)
        else:
            found.append(layer)
    return found


def _several(y: Any) -> list[Any]:
    return list(y) if isinstance(y, tuple) else [y]


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest |a - b| over the largest |a|; infinite where only one is NaN or infinite."""
    a, b = a.astype(np.float64), b.astype(np.float64).reshape(a.shape)
    with np.errstate(invalid="ignore"):
        off = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    off = np.where(np.isnan(off), np.inf, off)
    most, scale = float(np.max(off, initial=0.0)), float(np.max(np.abs(a[np.isfinite(a)]), initial=0.0))
    return most / scale if scale else math.inf if most else 0.0


def _units(a: np.ndarray, b: np.ndarray) -> float:
    return _relative(a, b) / float(np.finfo(np.float32).eps)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "unknown"


def _shapes(value: Any) -> str:
    return ", ".join(_shape(one.shape) for one in _several(value))


def _said(one: Opened, name: str) -> str:
    return str(one.preprocessing.get(name, "unknown"))


def _weights(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays without counters of batches, which are no part of a network's function."""
    return {name: array for name, array in state.items() if name.rpartition(".")[2] != COUNTER}


def _numbers(state: Mapping[str, np.ndarray]) -> str:
    return f"{sum(array.size for array in state.values()):,}"


def _classes(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}" if names else "unknown"

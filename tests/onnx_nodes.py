"""ONNX's own tests of operators, through the importer: how many of them pass, and why the others do not.

    python tests/onnx_nodes.py                                        # the table, on numpy
    python tests/onnx_nodes.py --devices cpu,torch,jax --markdown docs/onnx.md
    python tests/onnx_nodes.py --operator Resize                      # every case of one operator

A case is a model of one node, with inputs and outputs. It is read as any file is. If the network cannot take an input
where it is one, as the weights of layers, all inputs but the first become tensors of the file. `test_onnx_load.py` runs
a part of them.
"""

import argparse
import importlib
import math
import re
import sys
import tempfile
import textwrap
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case import node as node_cases
from onnx.backend.test.loader import load_model_tests

from xcnn import devices
from xcnn.errors import XcnnError
from xcnn.onnx import Session
from xcnn.onnx.load import read
from xcnn.onnx.reader import OPERATORS

__all__ = ["KNOWN", "Case", "cases", "converted", "networks", "outcome"]

KNOWN = {"Constant", "ConstantOfShape", "Shape", "Size"}
"""Operators that are computed when a file is read."""

MARKERS = "<!-- begin of the table -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Case:
    """A model with inputs and the outputs that it should give."""

    name: str
    model: onnx.ModelProto
    data: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float

    @property
    def operators(self) -> set[str]:
        return {node.op_type for node in self.model.graph.node}


def cases(modules: Iterable[str] = ()) -> list[Case]:
    """Return the cases of some modules of onnx's tests, such as `conv`, or all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules:
            importlib.import_module(f"onnx.backend.test.case.node.{name}")
        found = node_cases._NodeTestCases if modules else node_cases.collect_testcases(None)
    return [
        Case(
            one.name,
            one.model,
            [tuple([*map(_array, side)] for side in part) for part in one.data_sets],
            one.rtol,
            one.atol,
        )
        for one in found
    ]


def _array(value: Any) -> Any:
    """Return a tensor as an array, and anything else as it is."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic | float | int) else value


def converted(kind: str) -> Iterator[Case]:
    """Yield the cases that are files: `"pytorch-converted"`, `"pytorch-operator"` or `"simple"`."""
    for one in load_model_tests(kind=kind):
        folder = Path(one.model_dir)
        model = onnx.load(folder / "model.onnx")
        data = []
        for part in sorted(folder.glob("test_data_set_*")):
            sides = []
            for side, declared in (("input", model.graph.input), ("output", model.graph.output)):
                files = [part / f"{side}_{i}.pb" for i in range(len(list(part.glob(f"{side}_*.pb"))))]
                kinds = [entry.type.WhichOneof("value") for entry in declared]
                sides.append(
                    [
                        numpy_helper.to_array(TensorProto.FromString(file.read_bytes()))
                        if kind == "tensor_type"
                        else None
                        for file, kind in zip(files, kinds, strict=False)
                    ]
                )
            data.append(tuple(sides))
        yield Case(one.name, model, data, one.rtol, one.atol)


def outcome(case: Case, device: str = "cpu") -> str:
    """Run a case on a device; return why it does not pass, or ""."""
    data = case.data
    for inputs, outputs in data:
        if any(not isinstance(array, np.ndarray) for array in (*inputs, *outputs)):
            return "an input or output is not a tensor"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            onnx.save(case.model, path)
            file, count = read(path), len(data[0][0])
        except XcnnError:
            try:
                onnx.save(with_constants(case), path)
                file, count = read(path), 1
            except XcnnError as error:
                return str(error).removeprefix(f"{path}: ").removeprefix("1 of 1 nodes are not supported: ")
    where = devices.device(device)
    file.graph.to(where)
    for inputs, outputs in data:
        given = [where.asarray(floating(array)) for array in inputs[:count]]
        try:
            with np.errstate(all="ignore"):
                y = file.graph(given[0] if count == 1 else tuple(given))
        except XcnnError as error:
            return f"running: {error}"
        results = y if isinstance(y, tuple) else (y,)
        for result, wanted in zip(results, outputs, strict=True):
            came = devices.to_numpy(result)
            half = wanted.dtype.itemsize == 2
            rtol = max(case.rtol, 1e-2) if half else case.rtol
            try:
                np.testing.assert_allclose(came, floating(wanted), rtol=rtol, atol=max(case.atol, 1e-3 * half))
            except AssertionError as error:
                if "Dropout" in case.operators:
                    return "it draws random numbers"
                return "wrong: " + " ".join(str(error).split())[:200]
            if came.shape != wanted.shape or came.dtype != floating(wanted).dtype:
                return f"wrong: {came.shape} {came.dtype}, expected {wanted.shape} {wanted.dtype}"
    return ""


def floating(array: np.ndarray) -> np.ndarray:
    """Return numbers of 16 bits as float32, in which networks compute with them."""
    return array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array


def with_constants(case: Case) -> onnx.ModelProto:
    """Return the model with all inputs but the first as tensors of the file."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    inputs = [entry for entry in model.graph.input if entry.name not in {one.name for one in model.graph.initializer}]
    for entry, array in zip(inputs[1:], case.data[0][0][1:], strict=True):
        model.graph.initializer.append(numpy_helper.from_array(array, entry.name))
        model.graph.input.remove(entry)
    return model


def light(path: Path) -> onnx.ModelProto:
    """Return one of the wheel's well-known networks, without its softmax and with random weights.

    The files of the wheel make all weights of a tensor the same number, with ConstantOfShape.
    """
    model, rng = onnx.load(path), np.random.default_rng(0)
    shapes = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "ConstantOfShape"]:
        shape = tuple(shapes[node.input[0]])
        scale = math.sqrt(2 / max(math.prod(shape[1:]), 1))
        array = rng.standard_normal(shape) * scale if len(shape) > 1 else rng.uniform(0.5, 1, shape)
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), node.output[0]))
        model.graph.node.remove(node)
    if model.graph.node[-1].op_type == "Softmax":
        model.graph.output[0].name = model.graph.node.pop().input[0]
    return model


def networks(folder: Path, names: Iterable[str] = ()) -> Iterator[tuple[str, float]]:
    """Yield the name and the largest error of each light network, in units of its largest score in ONNX Runtime."""
    for path in sorted(Path(onnx.__file__).parent.glob("backend/test/data/light/light_*.onnx")):
        name = path.stem.removeprefix("light_")
        if names and name not in names:
            continue
        onnx.save(light(path), folder / "light.onnx")
        file = read(folder / "light.onnx")
        x = np.random.default_rng(1).standard_normal((1, *file.shape)).astype(np.float32)
        expected = Session(folder / "light.onnx")(x)
        yield name, float(np.abs(file.graph(x) - expected).max() / np.abs(expected).max())


GROUPS = {
    "not (a tensor )?of floating-point|only floating-point numbers are|which is not read|not a tensor$": "other types",
    "changes between float32 and float64": "two dtypes",
    "its output '.*' is used": "outputs for training",
    "it draws random numbers": "random numbers",
    "its exponent must be": "an array as exponent",
    "its coordinates are 'tf_crop": "`tf_crop_and_resize`",
    "padding takes integers of at least 0": "a larger output than its windows give",
    "its repeats must be": "more than 64 copies",
    "the maximum of nothing": "the maximum of nothing",
}
"""Why cases do not pass: a pattern of the reason, and how the table says it."""


def grouped(reason: str) -> str:
    """Return how the table says why a case does not pass."""
    return next((text for pattern, text in GROUPS.items() if re.search(pattern, reason)), reason)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", default="cpu")
    parser.add_argument("--operator", help="show every case of this operator")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table into this file")
    options = parser.parse_args()
    chosen = options.devices.split(",")
    rows: dict[str, list[Case]] = defaultdict(list)
    for case in cases():
        if len(case.model.graph.node) == 1 and case.operators <= OPERATORS.keys():
            rows[case.model.graph.node[0].op_type].append(case)
    if options.operator:
        for case in rows[options.operator]:
            print(f"{case.name}: {outcome(case, chosen[0]) or 'passes'}")
        return 0
    for kind in ("pytorch-converted", "pytorch-operator"):
        rows[f"`{kind}`"] = [case for case in converted(kind) if case.operators <= OPERATORS.keys() | KNOWN]
    lines = [f"| | {' | '.join(chosen)} | of | those that do not pass have |", f"|---|{'---|' * (len(chosen) + 2)}"]
    sums = [0] * (len(chosen) + 1)
    for operator, group in sorted(rows.items(), key=lambda row: (row[0][0] == "`", row[0])):
        found = [[outcome(case, device) for case in group] for device in chosen]
        numbers = [*(reasons.count("") for reasons in found), len(group)]
        sums = [a + b for a, b in zip(sums, numbers, strict=True)]
        why = Counter(grouped(reason) for reason in found[0] if reason)
        told = "; ".join(f"{count} {reason}" for reason, count in why.items())
        lines.append(f"| {operator} | {' | '.join(map(str, numbers))} | {told} |")
        print(lines[-1], flush=True)
    lines.append(f"| all | {' | '.join(map(str, sums))} | |")
    with tempfile.TemporaryDirectory() as folder:
        errors = [f"{name} {error:.0e}" for name, error in networks(Path(folder))]
    told = (
        "The largest errors of the networks in the package, with random weights, beside ONNX Runtime, as parts of the"
    )
    lines += ["", textwrap.fill(f"{told} largest score: {', '.join(errors)}.", 118)]
    print(lines[-1])
    if options.markdown:
        text = options.markdown.read_text()
        start, end = text.index(MARKERS[0]) + len(MARKERS[0]), text.index(MARKERS[1])
        options.markdown.write_text(f"{text[:start]}\n\n{chr(10).join(lines)}\n\n{text[end:]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

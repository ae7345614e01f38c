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
import sys
import tempfile
import warnings
from collections import defaultdict
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
from xcnn.onnx.load import read
from xcnn.onnx.reader import OPERATORS

__all__ = ["Case", "cases", "converted", "outcome"]

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
    lines, sums = [], [0] * len(chosen)
    for operator, group in sorted(rows.items()):
        reasons: dict[str, int] = defaultdict(int)
        passed = []
        for device in chosen:
            found = [outcome(case, device) for case in group]
            passed.append(found.count(""))
            for reason in found:
                if reason and device == chosen[0]:
                    reasons[reason] += 1
        sums = [a + b for a, b in zip(sums, passed, strict=True)]
        print(f"{operator:<24} {' '.join(map(str, passed))} of {len(group)}", flush=True)
        for reason, count in reasons.items():
            print(f"    {count} {reason[:220]}")
        lines.append((operator, passed, len(group)))
    total = sum(map(len, rows.values()))
    print(f"{'all':<24} {' '.join(map(str, sums))} of {total}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The published table of error budgets, `docs/budgets.md`: it is complete, agrees with the code, and shows failures."""

import json
import re
import shlex
from pathlib import Path

import pytest

from xcnn import compare
from xcnn.cli import main
from xcnn.compare import Error, Finding
from xcnn.devices import device
from xcnn.ops._op import OPS

TABLE = Path(__file__).parents[1] / "docs" / "budgets.md"

in_the_source_tree = pytest.mark.skipif(not TABLE.exists(), reason="runs away from the source tree, without docs/")


def tables(text: str) -> dict[str, list[list[str]]]:
    """Return the cells of each dtype's table, row by row, the header first."""
    found: dict[str, list[list[str]]] = {}
    for section in text.split("\n## ")[1:]:
        dtype, *lines = section.splitlines()
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
        found[dtype] = [[cell.strip("`") for cell in row] for row in rows]
    return found


@in_the_source_tree
def test_the_published_table_has_every_tensor_of_every_op_with_its_budget() -> None:
    published = tables(TABLE.read_text("utf-8"))
    assert list(published) == ["float32", "float64"]
    cpu = device("cpu")
    wanted = {(op, finding.error.tensor) for op in OPS for finding in compare.op_errors(op, cpu)}
    for header, *rows in published.values():
        assert header == ["op", "tensor", "budget", "cpu", "strict", "torch:cpu", "jax:cpu"]
        hint = "the table is out of date: nox -s budgets"
        assert {(op, tensor) for op, tensor, *_ in rows} == wanted, hint
        assert [(op, budget) for op, _, budget, *_ in rows if budget != str(compare.BUDGETS[op])] == [], hint


@in_the_source_tree
def test_the_published_table_marks_what_exceeds_its_budget() -> None:
    for _, *rows in tables(TABLE.read_text("utf-8")).values():
        for op, tensor, _, *cells in rows:
            for cell in cells:
                units, bound, marked = re.fullmatch(r"\**([\d.]+|inf) of ([\d.]+) \(.*\)( OVER)?\**", cell).groups()
                assert (float(units) > float(bound)) == (marked is not None), f"{op} {tensor}"


def finding(device: str, dtype: str, units: float) -> Finding:
    return Finding("3", "Linear", "linear", device, dtype, Error("dweight", units, 8.0, 12.0))


def test_a_failure_stands_at_the_top_and_in_its_cell() -> None:
    cpu = device("cpu")
    found = [finding("cpu", "float32", 2.0), finding("gpu", "float32", 9.0), finding("gpu", "float32", 1.0)]
    text = compare.markdown(found, [cpu], "Errors", "xcnn compare")
    assert text.startswith("# Errors\n")
    assert "\n    xcnn compare\n" in text
    assert f"- `cpu`: {cpu.summary}\n" in text
    assert "**1 of 3 errors exceed their budgets:**" in text
    assert "- 3 (Linear) dweight on gpu in float32: 9.00 units of at most 8.0, 12 ULP" in text
    ((header, row),) = tables(text).values()
    assert header == ["layer", "op", "tensor", "budget", "cpu", "gpu"]
    assert row == ["3", "linear", "dweight", "2 + 2 √K", "2.00 of 8.0 (12)", "**9.00 of 8.0 (12) OVER**"]
    text = compare.markdown([finding("cpu", "float64", 2.0)], [cpu], "Errors", "xcnn compare")
    assert "**All 1 errors are within their budgets; the largest takes 25% of its own.**" in text


def test_the_command_writes_both_dtypes_and_every_tensor(tmp_path, capsys) -> None:
    path = tmp_path / "table.md"
    options = ["--op", "linear", "--devices", "cpu", "--dtype", "float32,float64"]
    assert main(["compare", *options, "--markdown", str(path)]) == 0
    found = tables(path.read_text("utf-8"))
    assert list(found) == ["float32", "float64"]
    for rows in found.values():
        assert [row[1] for row in rows] == ["tensor", "y", "dx", "dweight", "dbias"]
    assert shlex.join(options) in path.read_text("utf-8")
    out, _ = capsys.readouterr()
    assert [line.partition(":")[0] for line in out.splitlines() if "per op" in line] == ["float32", "float64"]


def test_two_dtypes_of_a_network(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = "compare --devices cpu --model report --steps 1 --dtype float32,float64 --json"
    assert main([*argv.split(), "--plot", "both.png", "--markdown", "m.md"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines[-1:]] == ["verdict"]
    for kind in ("layer", "steps", "speed"):
        assert {line["dtype"] for line in lines if line["kind"] == kind} == {"float32", "float64"}, kind
    assert Path("both.png").stat().st_size > 10_000
    assert list(tables(Path("m.md").read_text("utf-8"))) == ["float32", "float64"]

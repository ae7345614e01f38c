"""The rooms of the package: which may import which, what `__all__` lists, and what `import xcnn` must not load."""

import ast
import graphlib
import importlib
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cuda_emulator
import pytest

import xcnn

ROOT = Path(xcnn.__file__).parent

FLOORS = [
    {"__main__"},
    {"cli"},
    {"__init__"},
    {"serve", "pages"},
    {"compare", "plots"},
    {"runs"},
    {"parallel", "explain"},
    {"training", "models", "testing", "onnx"},
    {"nn", "optim"},
    {"ops"},
    {"kernels", "data"},
    {"devices"},
    {"parameter", "_cuda", "_dispatch", "threads"},
    {"_array", "_check", "_files", "_plugins", "_taps", "machine"},
    {"errors"},
]
"""From top to bottom. A room imports from itself and from lower floors, not from other rooms of its own floor."""

STRANGERS = {("ops", "data")}
"""Imports that the floors would allow, but that are forbidden."""

HEAVY = [
    "PIL", "cupy", "cyclopts", "filelock", "jax", "llvmlite", "matplotlib", "mpi4py", "onnx", "onnxruntime", "optuna",
    "requests", "rich", "sklearn", "starlette", "torch", "umap", "uvicorn",
]  # fmt: skip
"""What `import xcnn` must not load."""

FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def _name(path: Path) -> str:
    parts = ("xcnn", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in PATHS.items()}
every_module = pytest.mark.parametrize("module", PATHS)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(tree: ast.AST) -> Iterator[str]:
    """Return every module that a file imports anywhere, including imports for type checking."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in PATHS else str(node.module)
        else:
            yield from imports(node)


def own(module: str) -> set[str]:
    return {name for name in imports(TREES[module]) if name in PATHS}


@every_module
def test_a_room_imports_only_from_rooms_below(module: str) -> None:
    here = room(module)
    assert here in FLOOR, "a new room needs a floor"
    for other in own(module):
        there = room(other)
        assert here == there or FLOOR[here] < FLOOR[there], f"{module} imports {other}"
        assert (here, there) not in STRANGERS, f"{module} imports {other}"


def test_the_picture_in_the_readme_is_of_these_rooms() -> None:
    readme = Path(__file__).parents[1] / "README.md"
    if not readme.exists():
        pytest.skip("runs away from the source tree, without the README")
    section = readme.read_text("utf-8").partition("## How it is built")[2].partition("\n## ")[0]
    lines = re.findall(r"^    (\w+(?:  ?\w+)*?)   +\S", section, flags=re.MULTILINE)
    pictured = [line.split() for line in lines]
    assert sorted(itertools.chain.from_iterable(pictured)) == sorted(FLOOR)
    for line in pictured:
        assert len({FLOOR[name] for name in line}) == 1, f"{line} are on several floors"
    levels = [FLOOR[line[0]] for line in pictured]
    assert levels == sorted(levels)


def test_imports_have_no_cycles() -> None:
    tuple(graphlib.TopologicalSorter({module: own(module) for module in PATHS}).static_order())


@every_module
def test_array_libraries_are_imported_where_they_are_the_subject(module: str) -> None:
    libraries = {name.split(".")[0] for name in imports(TREES[module])} & {"cupy", "torch", "jax", "array_api_strict"}
    assert not libraries or room(module) in ("_cuda", "kernels") or module.startswith("xcnn.compare.contestants.")


@pytest.mark.parametrize("module", [module for module in PATHS if room(module) == "ops"])
def test_ops_never_ask_which_library_they_run_on(module: str) -> None:
    # These draw numbers on the host.
    if module not in ("xcnn.ops._op", "xcnn.ops.dropout"):
        assert not {"numpy", "array_api_compat.numpy"} & set(imports(TREES[module]))
    asked = [ast.unparse(node) for node in ast.walk(TREES[module]) if isinstance(node, (ast.Compare, ast.Call))]
    assert [
        question for question in asked if re.search(r"is_\w+_(array|namespace)\(|__name__ (==|!=|in)", question)
    ] == []


@every_module
def test_all_lists_the_public_names(module: str) -> None:
    if module == "xcnn.__main__":
        return
    if module.startswith(cuda_emulator.ROOM):  # CuPy may be missing
        cuda_emulator.room()
        loaded = cuda_emulator.LOADED[module]
    else:
        loaded = importlib.import_module(module)
    listed = getattr(loaded, "__all__", None)
    assert listed is not None, "no __all__"
    assert len(set(listed)) == len(listed)
    for name in listed:
        assert hasattr(loaded, name), f"{name} is listed but not there"
    assert set(defined(TREES[module])) <= set(listed)


def defined(tree: ast.Module) -> Iterator[str]:
    """Return the public functions, classes and constants of a module. Aliases for annotations may stay unlisted."""
    for node in tree.body:
        names = []
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            names = [name for name in names if name.islower() or (name.isupper() and len(name) > 1)]
        yield from (name for name in names if not name.startswith("_") and name != "TYPE_CHECKING")


@every_module
def test_every_file_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(TREES[module])


@pytest.mark.with_libraries
def test_import_loads_nothing_heavy(capsys: pytest.CaptureFixture[str]) -> None:
    code = f"""
import sys, time, numpy
start = time.perf_counter()
import xcnn
rooms = [name for name in dir(xcnn) if f"xcnn.{{name}}" in sys.modules]
for name in dir(xcnn):
    getattr(xcnn, name)
print(round(time.perf_counter() - start, 3))
print(*sorted(set(sys.modules) & set({HEAVY})))
print(*rooms)
print(*(name for name in dir(xcnn) if f"xcnn.{{name}}" in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, loaded, at_once, used = done.stdout.splitlines()
    with capsys.disabled():
        print(f"\nimport xcnn takes {seconds} s over NumPy")
    assert loaded == ""
    assert not {
        "compare",
        "data",
        "models",
        "nn",
        "onnx",
        "ops",
        "optim",
        "plots",
        "runs",
        "testing",
        "training",
    } & set(at_once.split())
    assert {"compare", "data", "models", "nn", "onnx", "ops", "optim", "plots", "runs", "testing", "training"} <= set(
        used.split()
    )

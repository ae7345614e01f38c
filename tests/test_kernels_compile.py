"""Compiling kernels under failures: no folder for machine code, a full disk, no compiler, damaged files, upgrades."""

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import xcnn
from xcnn._dispatch import Compilation

pytest.importorskip("llvmlite")

from xcnn.kernels.cpu import _native

TURNED = """
import numpy as np
from xcnn import ops
print(*ops.permute(np.array([[0.0, 1.0], [2.0, 3.0]]), (1, 0))[0][0])
"""
"""A kernel that is compiled fast."""


COMPILED = "\nfrom xcnn._dispatch import COMPILATION\nprint(COMPILATION.seconds > 0)"


def run(code: str, cache: Path, *, says: str = "", code_of_exit: int = 0, **environment: str) -> list[str]:
    """Run code in a new process, with machine code in `cache`; return the words of its stdout.

    Warnings are errors there. Its stderr must be one line that begins with `says`, or empty if `says` is.
    """
    paths = [Path(xcnn.__file__).parents[1], *filter(None, sys.path)]
    known = {"XCNN_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=paths[0],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | known | environment,
    )
    assert done.returncode == code_of_exit, done.stderr
    assert done.stderr.startswith(says), done.stderr
    assert done.stderr.count("\n") == bool(says), done.stderr
    return done.stdout.split()


def kept(cache: Path) -> list[Path]:
    return list(cache.rglob("*.kernel"))


FRESH, READ = ["0.0", "2.0", "True"], ["0.0", "2.0", "False"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with machine code, which no test may change."""
    folder = tmp_path_factory.mktemp("compiled")
    assert run(TURNED + COMPILED, folder / "new") == FRESH
    assert kept(folder)
    return folder / "new"


def test_code_is_kept_and_read_again(compiled: Path) -> None:
    assert run(TURNED + COMPILED, compiled) == READ


@pytest.mark.parametrize("change", ["processor", "compiler", "system"])
def test_code_for_another_processor_or_system_or_of_another_compiler_is_not_used(
    tmp_path: Path, compiled: Path, change: str
) -> None:
    shutil.copytree(compiled, tmp_path, dirs_exist_ok=True)
    other = {
        "processor": "",
        "compiler": "import llvmlite\nllvmlite.__version__ = 'another'\n",
        "system": "import llvmlite.binding\nllvmlite.binding.get_default_triple = lambda: 'another'\n",
    }[change]
    environment = {} if other else {"XCNN_CPU_NAME": "x86-64" if "x86" in platform.machine() else "generic"}
    for wanted in (FRESH, READ):
        assert run(other + TURNED + COMPILED, tmp_path, **environment) == wanted
    assert run(TURNED + COMPILED, tmp_path) == READ


def test_other_instructions_are_compiled_after_an_upgrade(tmp_path: Path) -> None:
    code = """
import sys
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._vectors import INT
print(native("n:n")(lambda emit, n: emit.builder.ret(emit.builder.mul(n, INT(int({0})))))(8)(7))
"""
    for factor, wanted in ((2, ["14", "True"]), (3, ["21", "True"]), (2, ["14", "False"])):
        assert run(code.format(factor) + COMPILED, tmp_path) == wanted


def test_compiling_is_announced_once_and_in_its_scope_and_reading_is_not(tmp_path: Path) -> None:
    code = """
import numpy as np
from xcnn import ops
from xcnn._dispatch import COMPILATION
said = []
with COMPILATION.announced(lambda: said.append("inside")):
    ops.relu(np.ones(2))
    ops.relu(np.ones((2, 2), np.float32))
    ops.global_avg_pool(np.ones((1, 1, 2, 2)))
ops.global_avg_pool(np.ones((1, 1, 2, 2), np.float32))
print(COMPILATION.seconds > 0, *said)
"""
    assert run(code, tmp_path) == ["True", "inside"]
    assert run(code, tmp_path) == ["False"]


def test_time_is_recorded_after_an_announcement_that_failed() -> None:
    record = Compilation()

    def fail() -> None:
        raise BrokenPipeError

    with contextlib.suppress(BrokenPipeError), record.announced(fail):
        record.begin()
    record.begin()
    record.end()
    assert record.seconds > 0


@pytest.mark.parametrize("damage", ["cut", "one byte", "empty"])
def test_damaged_files_are_compiled_again(tmp_path: Path, compiled: Path, damage: str) -> None:
    shutil.copytree(compiled, tmp_path, dirs_exist_ok=True)
    for path in kept(tmp_path):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content[: {"cut": len(content) // 2, "one byte": len(content), "empty": 0}[damage]])
    assert run(TURNED + COMPILED, tmp_path) == FRESH
    assert run(TURNED + COMPILED, tmp_path) == READ


def test_code_under_the_name_of_another_is_not_used(tmp_path: Path) -> None:
    code = """
import os, shutil
from xcnn.kernels.cpu import _native
folder = os.environ["XCNN_CACHE_DIR"]
_native._keep("one", b"instructions")
shutil.copy(f"{folder}/one.kernel", f"{folder}/two.kernel")
print(_native._read("one"), _native._read("two"))
"""
    assert run(code, tmp_path) == ["b'instructions'", "None"]


def test_no_folder_to_keep_code_in(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert run(TURNED + COMPILED, tmp_path / "file" / "folder", says="machine code cannot be kept in") == FRESH


def test_the_folder_is_beside_the_sources_or_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = _native._folder.__wrapped__
    monkeypatch.delenv("XCNN_CACHE_DIR", raising=False)
    monkeypatch.setenv("XCNN_HOME", str(tmp_path / "home"))
    beside = tmp_path / "__pycache__"
    monkeypatch.setattr(_native, "__file__", str(tmp_path / "_native.py"))
    assert find() == beside
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != beside and access(path, mode))
    assert find() == tmp_path / "home" / "kernels"
    monkeypatch.setenv("XCNN_HOME", str(tmp_path / "file" / "home"))
    (tmp_path / "file").touch()
    assert find() is None
    monkeypatch.setenv("XCNN_CACHE_DIR", str(tmp_path / "chosen"))
    assert find() == tmp_path / "chosen"


FAILING = """
import os
def replace(source, target, replaced=os.replace):
    if str(target).endswith(".kernel"):
        {}
    replaced(source, target)
os.replace = replace
"""
FULL = FAILING.format("raise OSError(28, 'No space left on device')")
KILLED = FAILING.format(f"os.kill(os.getpid(), {int(signal.SIGKILL)})")


def test_a_full_disk_does_not_stop_compiling(tmp_path: Path) -> None:
    assert run(FULL + TURNED + COMPILED, tmp_path, says="machine code cannot be kept in") == FRESH
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """A younger file stays: another process may be writing it."""
    run(KILLED + TURNED, tmp_path, code_of_exit=-signal.SIGKILL)
    (left,) = tmp_path.iterdir()
    assert run(TURNED + COMPILED, tmp_path) == FRESH
    assert left.exists()
    os.utime(left, (0, 0))
    for path in kept(tmp_path):
        path.unlink()
    run(TURNED, tmp_path)
    assert not left.exists()


def test_the_oldest_files_are_removed_when_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_MOST", 2)
    paths = [tmp_path / name for name in ("a.kernel", "b.kernel", "c.kernel", "other.txt")]
    for age, path in enumerate(paths):
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    _native._sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == [paths[0], paths[1], paths[3]]


def test_two_processes_compile_at_once_into_one_folder(tmp_path: Path) -> None:
    never = "from xcnn.kernels.cpu import _native\n_native._read = lambda name: None\n"  # makes both compile
    with ThreadPoolExecutor(2) as pool:
        for words in pool.map(lambda _: run(never + TURNED + COMPILED, tmp_path), range(2)):
            assert words == FRESH
    assert run(TURNED + COMPILED, tmp_path) == READ
    assert not list(tmp_path.rglob("*.tmp"))


def test_threads_compile_a_function_once(tmp_path: Path) -> None:
    code = """
import threading
from concurrent.futures import ThreadPoolExecutor
from xcnn.kernels.cpu import _native
compile, count, both = _native._compiled, [], threading.Barrier(2)
_native._compiled = lambda *a: count.append(1) or compile(*a)
square = _native.native("n:n")(lambda emit, n: emit.builder.ret(emit.builder.mul(n, n)))
with ThreadPoolExecutor(2) as pool:
    print(*pool.map(lambda n: both.wait() >= 0 and square(8)(n), (3, 4)), len(count))
"""
    assert run(code, tmp_path) == ["9", "16", "1"]


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        ("import llvmlite.binding\nllvmlite.binding.get_host_cpu_name = None", "compiled kernels cannot be used"),
        ("import sys, types\nsys.modules['llvmlite'] = types.ModuleType('llvmlite')", ""),
    ],
    ids=["another interface", "nothing in it"],
)
def test_a_llvmlite_that_does_not_work(tmp_path: Path, failure: str, says: str) -> None:
    code = failure + TURNED + "from xcnn._dispatch import kernels\nprint(kernels(np)['conv'][0].__module__)"
    assert run(code, tmp_path, says=says) == ["0.0", "2.0", "xcnn.kernels.cpu.columns"]


def test_a_llvmlite_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "llvmlite").mkdir()
    (tmp_path / "llvmlite" / "__init__.py").write_text("raise OSError('it was built for another system')", "utf-8")
    code = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{TURNED}"
    assert run(code, tmp_path, says="llvmlite cannot be used") == ["0.0", "2.0"]


def test_a_room_that_cannot_be_loaded(tmp_path: Path) -> None:
    code = f"import sys\nsys.modules['xcnn.kernels.cpu.columns'] = None\n{TURNED}"
    assert run(code, tmp_path, says="kernels for numpy cannot be used") == ["0.0", "2.0"]


def test_a_processor_that_llvm_does_not_know(tmp_path: Path) -> None:
    """LLVM would end the process."""
    says = 'compiled kernels cannot be used, so everything is slower: ValueError("XCNN_CPU_NAME takes x86-64'
    assert run(TURNED, tmp_path, says=says, XCNN_CPU_NAME="znver9") == ["0.0", "2.0"]

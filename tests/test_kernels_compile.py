"""Compiling kernels under failures: no cache folder, a full disk, no compiler, damaged files, changed sources."""

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import xcnn

pytest.importorskip("numba")

TURNED = """
import numpy as np
from xcnn import ops
print(*ops.permute(np.array([[0.0, 1.0], [2.0, 3.0]]), (1, 0))[0][0])
"""
"""A kernel that Numba compiles fast."""


COMPILED = "\nfrom xcnn._dispatch import COMPILATION\nprint(COMPILATION.seconds > 0)"


def run(
    code: str, cache: Path, packages: Path | None = None, *, says: str = "", code_of_exit: int = 0, **environment: str
) -> str:
    """Run code in a new process, with compiled code in `cache` and the xcnn in `packages`; return its stdout.

    Warnings are errors there. Its stderr must be one line that begins with `says`, or empty if `says` is.
    """
    paths = [packages or Path(xcnn.__file__).parents[1], *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=paths[0],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={
            **os.environ,
            "NUMBA_CACHE_DIR": str(cache),
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            **environment,
        },
    )
    assert done.returncode == code_of_exit, done.stderr
    assert done.stderr.startswith(says), done.stderr
    assert done.stderr.count("\n") == bool(says), done.stderr
    return done.stdout


def kept(cache: Path) -> list[Path]:
    return list(cache.rglob("*.nbc"))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with compiled code, which no test may change."""
    folder = tmp_path_factory.mktemp("compiled")
    assert run(TURNED + COMPILED, folder).split() == ["0.0", "2.0", "True"]
    assert kept(folder)
    return folder


def test_code_is_kept_and_read_again(compiled: Path) -> None:
    assert run(TURNED + COMPILED, compiled).split() == ["0.0", "2.0", "False"]


def test_only_our_kernels_count_as_compiled_and_it_is_announced_once_and_in_its_scope(tmp_path: Path) -> None:
    code = """
import numba
import numpy as np
from xcnn import ops
from xcnn._dispatch import COMPILATION
said = []
with COMPILATION.announced(lambda: said.append("inside")):
    numba.njit(lambda x: x + 1)(1)
    assert not said and not COMPILATION.seconds
    ops.relu(np.ones(2))
    ops.relu(np.ones((2, 2), np.float32))
    ops.global_avg_pool(np.ones((1, 1, 2, 2)))
assert COMPILATION.seconds > 0
ops.global_avg_pool(np.ones((1, 1, 2, 2), np.float32))
print(*said)
"""
    assert run(code, tmp_path).split() == ["inside"]


@pytest.mark.parametrize("damage", ["cut", "one byte"])
def test_damaged_files_are_compiled_again(tmp_path: Path, compiled: Path, damage: str) -> None:
    shutil.copytree(compiled, tmp_path, dirs_exist_ok=True)
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    assert run(TURNED + COMPILED, tmp_path).split() == ["0.0", "2.0", "True"]
    assert run(TURNED + COMPILED, tmp_path).split() == ["0.0", "2.0", "False"]


def test_no_folder_to_keep_code_in(tmp_path: Path) -> None:
    """As in a container with read-only file systems."""
    nowhere = "from numba.core import caching\ncaching.CacheImpl._locator_classes = []\n"
    assert run(nowhere + TURNED, tmp_path).split() == ["0.0", "2.0"]
    assert not kept(tmp_path)


FAILING = """
import os
def replace(source, target, replaced=os.replace):
    if str(target).endswith(".nbc"):
        {}
    replaced(source, target)
os.replace = replace
"""
FULL = FAILING.format("raise OSError(28, 'No space left on device')")
KILLED = FAILING.format(f"os.kill(os.getpid(), {int(signal.SIGKILL)})")


def test_a_full_disk_does_not_stop_compiling(tmp_path: Path) -> None:
    assert run(FULL + TURNED + COMPILED, tmp_path).split() == ["0.0", "2.0", "True"]
    assert not kept(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_numba_whose_cache_is_not_known(tmp_path: Path) -> None:
    unknown = """
from numba.core import caching
def renamed(self, function, init=caching.Cache.__init__):
    init(self, function)
    self._files = self.__dict__.pop("_cache_file")
caching.Cache.__init__ = renamed
"""
    says = "compiled code is not kept on disk: unexpected internals of Numba"
    assert run(unknown + TURNED + COMPILED, tmp_path, says=says).split() == ["0.0", "2.0", "True"]
    assert not kept(tmp_path)


@pytest.mark.parametrize("failure", ["numba.njit = None", "numba.core.event.register = None"])
def test_a_numba_that_does_not_work(tmp_path: Path, failure: str) -> None:
    code = f"import numba, numba.core.event\n{failure}\n{TURNED}"
    assert run(code, tmp_path, says="compiled kernels cannot be used").split() == ["0.0", "2.0"]


def test_a_room_that_cannot_be_loaded(tmp_path: Path) -> None:
    code = f"import sys\nsys.modules['xcnn.kernels.cpu.products'] = None\n{TURNED}"
    assert run(code, tmp_path, says="kernels for numpy cannot be used").split() == ["0.0", "2.0"]


def test_a_numba_that_is_told_not_to_compile(tmp_path: Path) -> None:
    code = TURNED + "from xcnn._dispatch import kernels\nprint(kernels(np)['conv'][0].__module__)"
    assert run(code, tmp_path, NUMBA_DISABLE_JIT="1").split() == ["0.0", "2.0", "xcnn.kernels.cpu.columns"]
    assert not kept(tmp_path)


DOUBLED = """
import numpy as np
from xcnn.kernels.cpu.doubled import doubled
print(doubled(np.array([1.0, 2.0])))
"""
SOURCES = {
    "doubled": """
from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._twice import twice

@compiled
def doubled(x):
    return twice(x[0]) + twice(x[1])
""",
    "_twice": """
from numba import njit

@njit
def twice(x):
    return 2 * x
""",
}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package with a compiled function that calls one of another file; return that file."""
    shutil.copytree(Path(xcnn.__file__).parent, tmp_path / "xcnn", ignore=shutil.ignore_patterns("__pycache__"))
    for name, source in SOURCES.items():
        (tmp_path / "xcnn" / "kernels" / "cpu" / f"{name}.py").write_text(source, "utf-8")
    return tmp_path / "xcnn" / "kernels" / "cpu" / "_twice.py"


def test_a_process_that_runs_during_an_upgrade_saves_no_old_code_as_new(tmp_path: Path, copied: Path) -> None:
    upgrade = f"""
from pathlib import Path
import xcnn.kernels.cpu.doubled
Path({str(copied)!r}).write_text({SOURCES["_twice"].replace("2 *", "3 *")!r}, "utf-8")
"""
    assert run(upgrade + DOUBLED, tmp_path / "cache", tmp_path).split() == ["6.0"]
    assert kept(tmp_path / "cache")
    assert run(DOUBLED, tmp_path / "cache", tmp_path).split() == ["9.0"]


def test_two_processes_compile_at_once_into_one_folder(tmp_path: Path) -> None:
    never = "from xcnn.kernels.cpu._compile import _Kept\n_Kept.load = lambda self, key: None\n"  # makes both compile
    with ThreadPoolExecutor(2) as pool:
        for printed in pool.map(lambda _: run(never + TURNED + COMPILED, tmp_path), range(2)):
            assert printed.split() == ["0.0", "2.0", "True"]
    assert run(TURNED + COMPILED, tmp_path).split() == ["0.0", "2.0", "False"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_code_is_compiled_again_when_another_file_of_it_changes(tmp_path: Path, copied: Path) -> None:
    """Neither a full disk nor a kill brings the old code back."""
    cache = tmp_path / "cache"
    assert run(DOUBLED, cache, tmp_path).split() == ["6.0"]
    before = kept(cache)
    copied.write_text(SOURCES["_twice"].replace("2 *", "3 *"), "utf-8")
    assert run(FULL + DOUBLED, cache, tmp_path).split() == ["9.0"]
    run(KILLED + DOUBLED, cache, tmp_path, code_of_exit=-signal.SIGKILL)
    assert run(DOUBLED, cache, tmp_path).split() == ["9.0"]
    assert run(DOUBLED + COMPILED, cache, tmp_path).split() == ["9.0", "False"]
    assert len(kept(cache)) == len(before) == 1, "old files stay"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """A younger file stays: another process may be writing it."""
    run(KILLED + TURNED, tmp_path, code_of_exit=-signal.SIGKILL)
    (left,) = tmp_path.rglob(".*.nbc.*.tmp")
    run(TURNED, tmp_path)
    assert left.exists()
    os.utime(left, (0, 0))
    run(TURNED, tmp_path)
    assert not left.exists()

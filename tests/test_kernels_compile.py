"""Compiling kernels where it is hard: no folder for the code, a full disk, no compiler, code that has changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import xcnn

pytest.importorskip("numba")

RELU = """
import numpy as np
from xcnn import ops
print(*ops.relu(np.array([-1.0, 2.0]))[0])
"""


def run(code: str, cache: Path, packages: Path | None = None, **environment: str) -> str:
    """Run code in a new process, whose compiled code is kept in `cache`, with the xcnn of a folder."""
    paths = [packages or Path(xcnn.__file__).parents[1], *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", code],
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
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def kept(cache: Path) -> list[Path]:
    return list(cache.rglob("*.nbc"))


def test_code_is_kept_and_read_again(tmp_path: Path) -> None:
    code = RELU + "from xcnn._dispatch import COMPILATION\nprint(COMPILATION.seconds > 0)"
    assert run(code, tmp_path).split() == ["0.0", "2.0", "True"]
    assert kept(tmp_path)
    assert run(code, tmp_path).split() == ["0.0", "2.0", "False"]


def test_no_folder_to_keep_code_in(tmp_path: Path) -> None:
    """As in a container whose file systems are all read-only."""
    nowhere = "from numba.core import caching\ncaching.CacheImpl._locator_classes = []\n"
    assert run(nowhere + RELU, tmp_path).split() == ["0.0", "2.0"]
    assert not kept(tmp_path)


def test_a_full_disk_where_code_is_kept(tmp_path: Path) -> None:
    full = """
from numba.core import caching
def save(self, signature, data):
    saved.append(signature)
    raise OSError(28, "No space left on device")
saved, caching.FunctionCache.save_overload = [], save
"""
    assert run(full + RELU + "print(len(saved) > 0)", tmp_path).split() == ["0.0", "2.0", "True"]


def test_a_numba_that_is_told_not_to_compile(tmp_path: Path) -> None:
    code = RELU + "from xcnn._dispatch import kernels\nprint(kernels(np)['conv'].__module__)"
    assert run(code, tmp_path, NUMBA_DISABLE_JIT="1").split() == ["0.0", "2.0", "xcnn.kernels.cpu.columns"]
    assert not kept(tmp_path)


def test_code_is_compiled_again_when_another_file_of_it_changes(tmp_path: Path) -> None:
    """`pool.py` calls `lay` of `_passes.py`, which Numba does not look at by itself."""
    shutil.copytree(Path(xcnn.__file__).parent, tmp_path / "xcnn", ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import numpy as np
from xcnn import ops
print(ops.max_pool2d(np.arange(25.0).reshape(1, 1, 5, 5), 3, 1)[0].sum())
"""
    assert run(code, tmp_path / "cache", tmp_path).split() == ["162.0"]
    passes = tmp_path / "xcnn" / "kernels" / "cpu" / "_passes.py"
    before = passes.read_text("utf-8")
    passes.write_text(before.replace("target[k] = source[k]\n", "target[k] = source[k] + 1\n"), "utf-8")
    assert passes.read_text("utf-8") != before
    assert run(code, tmp_path / "cache", tmp_path).split() == ["171.0"]

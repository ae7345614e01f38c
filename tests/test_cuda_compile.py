"""The CUDA kernels with NVRTC and CuPy, without a GPU: all compile, and CuPy has every function that they use.

`pip install 'xcnn[cuda12]'` installs NVRTC, as does a separate wheel: see the session `cuda` of noxfile.py.
"""

import ast
import importlib
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import cuda_emulator
import pytest

from xcnn import _dispatch

ARCHITECTURES = ("sm_80", "sm_90")
"""Architectures that kernels are compiled for here: A100 and H100. CuPy compiles them for the present device."""


CUPYS = ("-ftz=true", "--device-as-default-execution-space")
"""Options that CuPy adds when it compiles a kernel: float32 treats subnormal numbers as 0."""


@pytest.fixture(scope="module")
def nvrtc(request: pytest.FixtureRequest) -> Any:
    """CuPy's NVRTC. Without it, skip the test, or fail with `--require-backend nvrtc`."""
    try:
        library = importlib.import_module("cupy_backends.cuda.libs.nvrtc")
        library.getVersion()
    except Exception as error:
        reason = f"no NVRTC to compile CUDA kernels ({error}); `nox -s cuda` installs it"
        if "nvrtc" in request.config.getoption("--require-backend"):
            pytest.fail(reason)
        pytest.skip(reason)
    return library


@pytest.fixture(scope="module")
def launcher(nvrtc: Any) -> Any:
    """The module that launches kernels, imported with the real CuPy."""
    return importlib.import_module("xcnn.kernels.cuda._launch")


def compiled(nvrtc: Any, source: str, options: tuple[str, ...]) -> tuple[bytes, str]:
    """Compile a source; return the code for the device and the output of the compiler."""
    program = nvrtc.createProgram(source, "xcnn.cu", (), ())
    try:
        nvrtc.compileProgram(program, options)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    return nvrtc.getCUBIN(program), nvrtc.getProgramLog(program)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
@pytest.mark.parametrize("real", ["float", "double"])
def test_every_kernel_compiles(nvrtc: Any, launcher: Any, real: str, wide: bool, architecture: str) -> None:
    options = (*launcher.OPTIONS, *CUPYS, f"-arch={architecture}", "--ptxas-options=-v")
    code, log = compiled(nvrtc, launcher.source(real, wide), options)
    assert "warning" not in log
    used = dict(re.findall(r"entry function '(\w+)'.*?Used (\d+) registers", log, re.DOTALL))
    assert set(used) == set(launcher.PARAMETERS)
    # 64 for each thread of a full multiprocessor; with more, some of its threads would have none.
    assert max(map(int, used.values())) <= 64
    assert all(name.encode() in code for name in launcher.PARAMETERS)


def test_invalid_cuda_code_does_not_compile(nvrtc: Any, launcher: Any) -> None:
    with pytest.raises(pytest.fail.Exception, match='identifier "nothing" is undefined'):
        compiled(nvrtc, launcher.source("float", False) + "KERNEL bad() { nothing; }", launcher.OPTIONS)


def test_cupy_has_what_the_kernels_take_from_it(launcher: Any) -> None:
    """Importing the modules checks names at module level; this checks those that functions use when they run."""
    library = importlib.import_module("xcnn.kernels.cuda._library")
    used = set()
    for path in Path(launcher.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "namespace":
                used.add(node.attr)
    assert {"maximum", "sqrt", "zeros_like"} <= used
    for name in used:
        assert hasattr(library.namespace, name)
    assert library.RawModule(code=launcher.source("float", False), options=launcher.OPTIONS).options == launcher.OPTIONS
    array = importlib.import_module("cupy").ndarray
    for name in (
        "astype",
        "copy",
        "data",
        "dtype",
        "flags",
        "itemsize",
        "ndim",
        "reshape",
        "size",
        "strides",
        "swapaxes",
    ):
        assert hasattr(array, name)


def test_cupy_has_what_exchanges_take_from_it(nvrtc: Any) -> None:
    """Without a GPU nothing can be sent; that the arguments are these stands in the first line of the docstrings."""
    cuda = importlib.import_module("cupy").cuda
    with warnings.catch_warnings(action="ignore"):  # if it does not find the library
        nccl = importlib.import_module("cupy.cuda.nccl")
    if not nccl.available:
        pytest.skip("no NCCL; pip install nvidia-nccl-cu12")
    name = nccl.get_unique_id()
    assert (type(name), len(name), nccl.NCCL_UINT8) == (bytes, 128, 1)
    assert "(int ndev, bytes commId, int rank" in nccl.NcclCommunicator.__doc__
    for call, buffer in ((nccl.NcclCommunicator.send, "sendbuf"), (nccl.NcclCommunicator.recv, "recvbuf")):
        assert f"(self, intptr_t {buffer}, size_t count, int datatype, int peer, intptr_t stream)" in call.__doc__
    nccl.groupStart()
    nccl.groupEnd()
    assert "record(self, event=None)" in cuda.Stream.record.__doc__
    assert "wait_event(self, event)" in cuda.Stream.wait_event.__doc__
    assert callable(cuda.get_current_stream)
    assert "disable_timing" in cuda.Event.__doc__


def test_the_room_has_the_same_kernels_with_cupy(launcher: Any) -> None:
    library = importlib.import_module("xcnn.kernels.cuda._library")
    assert library.namespace.__name__ == "array_api_compat.cupy"
    assert set(_dispatch.kernels(library.namespace)) == set(cuda_emulator.room())


@pytest.mark.parametrize("command", ["train --epochs 1", "evaluate .", "predict . x.png", "bench", "compare"])
def test_cuda_without_a_driver_is_one_sentence(nvrtc: Any, command: str, tmp_path: Path) -> None:
    """If CuPy is installed, but there is no GPU."""
    if importlib.import_module("cupy").cuda.is_available():
        pytest.skip("there is a GPU")
    flag = "--devices" if command in ("bench", "compare") else "--device"
    done = subprocess.run(
        [sys.executable, "-m", "xcnn", *command.split(), flag, "cuda" if flag == "--device" else "cpu,cuda"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1", "COLUMNS": "300"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: cuda: CuPy finds no CUDA driver, or one that is too old (")
    assert list(tmp_path.iterdir()) == []

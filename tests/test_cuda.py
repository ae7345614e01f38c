"""GPUs: how they are probed, and what is reported about them. Most tests need no GPU."""

import json
import re
import sys

import numpy as np
import pytest
from conftest import Backend
from fake_cupy import Fake

import xcnn as package
from xcnn import _cuda, ops
from xcnn.devices import devices, gpus
from xcnn.errors import DeviceError

MEND = "reinstall CuPy: pip install 'cupy-cuda12x[ctk]' (or cupy-cuda13x, by your driver)"
WORDS = {"elementwise": "elementwise operations", "matmul": "matrix products", "compilation": "compiled kernels"}
NEEDED = list(WORDS)

each_ability = pytest.mark.parametrize("ability", NEEDED)


def test_the_fake_gpus_are_as_strict_as_real_ones(machine: Fake) -> None:
    """Otherwise the tests below would prove nothing."""
    first, second = package.device("cuda:0"), package.device("cuda:1")
    xp, host = second.xp, np.ones(2, np.float32)
    there = second.asarray(host)
    for operation in (lambda: there + there, lambda: xp.exp(there), lambda: there.get(), lambda: ops.relu(there)):
        with pytest.raises(ValueError, match=r"resides \(1\) is different from the current device \(0\)"):
            operation()
    assert xp.zeros(2, device=second.handle).device.id == 0
    assert xp.zeros_like(there).device.id == 0
    with second.active(), pytest.raises(ValueError, match="two different devices"):
        there + first.asarray(host)
    with second.active(), pytest.raises(ValueError, match=r"resides \(0\) is different from the current device \(1\)"):
        first.asarray(host) + 1


def test_a_gpu_that_works_is_opened(machine: Fake) -> None:
    assert package.device("cuda") == package.device("cuda:0")
    opened = package.device("cuda:1")
    assert opened.name == "cuda:1"
    assert opened.summary == "CuPy 14.2.0 on NVIDIA Pretence 1"
    assert opened.handle.id == 1
    assert package.device("auto").name == "cuda:0"


@each_ability
@pytest.mark.parametrize("index", [0, 1])
def test_an_ability_that_fails_is_named_with_a_fix(machine: Fake, ability: str, index: int) -> None:
    machine.broken[index, ability] = RuntimeError("\nCUDA_ERROR_NO_BINARY_FOR_GPU: too old\nmore lines\n")
    with pytest.raises(DeviceError) as caught:
        package.device(f"cuda:{index}")
    reason = "CUDA_ERROR_NO_BINARY_FOR_GPU: too old"
    assert str(caught.value) == f"cuda:{index}: {WORDS[ability]} fail ({reason}); {MEND}"
    assert package.device(f"cuda:{1 - index}").name == f"cuda:{1 - index}"
    assert machine.current == 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Out of memory allocating 512 bytes (allocated so far: 0 bytes)."),
        RuntimeError("cudaErrorMemoryAllocation: out of memory"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
    ],
    ids=["pool", "runtime", "cublas"],
)
def test_a_full_gpu_is_not_told_to_reinstall(machine: Fake, error: Exception) -> None:
    machine.broken[0, "matmul"] = error
    with pytest.raises(DeviceError, match=r"; check with nvidia-smi which processes use its memory$"):
        package.device("cuda")


def test_a_gpu_without_a_name_can_be_opened(machine: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(index: int) -> None:
        raise RuntimeError("no properties")

    monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "getDeviceProperties", nothing)
    assert package.device("cuda:1").summary == "CuPy 14.2.0 on a GPU"


def test_an_exception_that_says_nothing_is_named(machine: Fake) -> None:
    machine.broken[0, "matmul"] = OSError()
    with pytest.raises(DeviceError, match=r"^cuda:0: matrix products fail \(OSError\); "):
        package.device("cuda")


@pytest.mark.parametrize(
    ("ability", "came", "expected"),
    [
        ("elementwise", "[1.0, 1.0, 1.0, 1.0]", "[1.0, 3.0, 5.0, 7.0]"),
        ("matmul", "[[0.0, 0.0], [0.0, 0.0]]", "[[10.0, 13.0], [28.0, 40.0]]"),
        ("compilation", "[0.0, 0.0, 0.0, 0.0]", "[1.0, 3.0, 5.0, 7.0]"),
    ],
)
def test_a_wrong_result_is_a_failure(machine: Fake, ability: str, came: str, expected: str) -> None:
    machine.wrong.add((1, ability))
    with pytest.raises(DeviceError) as caught:
        package.device("cuda:1")
    assert str(caught.value) == (f"cuda:1: {WORDS[ability]} fail (the result is {came}, expected {expected}); {MEND}")
    assert package.device("cuda:0").name == "cuda:0"


def test_what_is_expected_of_an_ability_is_what_numpy_gives() -> None:
    x, a = np.arange(4.0), np.arange(6.0)
    wanted = {
        "elementwise": 2 * x + 1,
        "matmul": a.reshape(2, 3) @ a.reshape(3, 2),
        "compilation": 2 * x + 1,
        "graph_capture": 2 * (2 * (2 * x + 1) + 1) + 1,
    }
    assert {name: ability.expected for name, ability in _cuda.ABILITIES.items()} == {
        name: array.tolist() for name, array in wanted.items()
    }
    assert [name for name, ability in _cuda.ABILITIES.items() if ability.required] == NEEDED


def test_missing_gpus_are_named(machine: Fake) -> None:
    for index in (2, 7):
        with pytest.raises(DeviceError, match=rf"^cuda:{index}: there are 2 GPUs here, numbered from 0$"):
            package.device(f"cuda:{index}")
    machine.no_driver = RuntimeError("cudaErrorInsufficientDriver: too old\nfor this")
    with pytest.raises(DeviceError) as caught:
        package.device("cuda:1")
    assert str(caught.value) == (
        "cuda: CuPy finds no CUDA driver, or one that is too old (cudaErrorInsufficientDriver: too old); "
        "install a newer NVIDIA driver"
    )
    assert gpus() == []
    assert package.device("auto").name == "cpu"


@pytest.mark.parametrize(
    ("cupy", "sentence"),
    [
        (None, "cuda: the package cupy is not installed; pip install "),
        (
            "raise ImportError('libcuda is\\nodd')",
            r"cuda: the package cupy does not import \(libcuda is\); pip install ",
        ),
    ],
)
def test_a_cupy_that_does_not_import(monkeypatch, tmp_path, cupy, sentence) -> None:
    if cupy is None:
        monkeypatch.setitem(sys.modules, "cupy", None)
    else:
        (tmp_path / "cupy.py").write_text(cupy)
        monkeypatch.delitem(sys.modules, "cupy", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DeviceError, match=f"^{sentence}"):
        package.device("cuda")
    assert gpus() == []


def test_what_worked_is_not_tried_again(machine: Fake) -> None:
    package.device("cuda:1")
    assert machine.tried == [(1, ability) for ability in NEEDED]
    package.device("cuda:1")
    assert len(machine.tried) == 3
    package.device("cuda:0")
    assert machine.tried[3:] == [(0, ability) for ability in NEEDED]
    machine.tried.clear()
    gpus()
    assert {ability for _, ability in machine.tried}.isdisjoint({"elementwise", "matmul"})
    machine.tried.clear()
    gpus()
    assert machine.tried == [(0, "memory"), (1, "memory")]


def test_what_failed_is_tried_again(machine: Fake) -> None:
    machine.broken[0, "matmul"] = RuntimeError("busy")
    for _ in range(2):
        with pytest.raises(DeviceError, match="matrix products"):
            package.device("cuda")
    assert machine.tried == [(0, "elementwise"), (0, "matmul"), (0, "matmul")]
    machine.broken.clear()
    assert package.device("cuda").name == "cuda:0"


def test_the_report_has_a_row_for_every_gpu(machine: Fake) -> None:
    first, second = gpus()
    assert first == _cuda.Gpu(
        "cuda:0",
        *("NVIDIA Pretence 0", "9.0", "12.8", "12.9", "12.9"),
        *(1 << 30, 80 << 30),
        dict.fromkeys([*NEEDED, "graph_capture"], ""),
    )
    assert first.usable
    assert (second.device, second.name, second.compute_capability) == ("cuda:1", "NVIDIA Pretence 1", "9.1")
    assert second.memory_free == 2 << 30
    assert machine.current == 0


@each_ability
def test_a_gpu_that_fails_does_not_hide_one_that_works(machine: Fake, ability: str) -> None:
    machine.broken[0, ability] = RuntimeError("dead")
    first, second = gpus()
    assert (first.usable, second.usable) == (False, True)
    assert first.faults[ability] == "dead"
    assert not any(second.faults.values())
    assert isinstance(devices()["cuda"], DeviceError)
    assert package.device("cuda:1").name == "cuda:1"


def test_a_gpu_without_properties_keeps_its_row(machine: Fake) -> None:
    machine.broken |= {(1, what): RuntimeError("lost") for what in (*NEEDED, "memory", "properties")}
    _, lost = gpus()
    assert (lost.name, lost.compute_capability, lost.memory_free, lost.memory_total) == (None,) * 4
    assert set(lost.faults.values()) == {"lost"}


def test_graph_capture_is_told_but_not_required(machine: Fake) -> None:
    machine.broken[0, "graph_capture"] = RuntimeError("cudaErrorNotSupported: no graphs")
    first, second = gpus()
    assert first.usable
    assert first.faults["graph_capture"] == "cudaErrorNotSupported: no graphs"
    assert second.faults["graph_capture"] == ""
    assert package.device("cuda:0").name == "cuda:0"


@pytest.mark.parametrize(
    ("what", "came"),
    [
        ("graph_capture", "[1.0, 3.0, 5.0, 7.0]"),  # an empty graph
        ("launch in capture", "[15.0, 31.0, 47.0, 63.0]"),  # a capture that also runs the work
    ],
)
def test_a_graph_that_gives_a_wrong_result(machine: Fake, what: str, came: str) -> None:
    machine.wrong.add((0, what))
    fault = gpus()[0].faults["graph_capture"]
    assert fault == f"the result is {came}, expected [7.0, 15.0, 23.0, 31.0]"


def test_the_cause_of_a_broken_capture_is_reported(machine: Fake) -> None:
    machine.broken[0, "launch in capture"] = RuntimeError("the reason")
    assert gpus()[0].faults["graph_capture"] == "the reason"
    assert machine.streams[1:] == []
    assert len(machine.made) > 1
    assert all(stream.captured is None for stream in machine.made)


def test_the_command_shows_every_gpu(machine: Fake, xcnn) -> None:
    machine.broken[0, "graph_capture"] = RuntimeError("no graphs")
    machine.broken |= {(1, what): RuntimeError("lost") for what in ("matmul", "memory", "properties")}
    code, out, err = xcnn("devices")
    assert (code, err) == (0, "")
    libraries, facts, abilities, _ = (
        [re.sub(" +", " ", row).strip() for row in part.splitlines()] for part in out.split("\n\n")
    )
    assert "cuda yes CuPy 14.2.0 on NVIDIA Pretence 0" in libraries
    assert facts == [
        "GPU name compute capability driver toolkit memory free",
        "cuda:0 NVIDIA Pretence 0 9.0 CUDA 12.8 CUDA 12.9, NVRTC 12.9 1.0 of 80.0 GiB",
        "cuda:1 - - CUDA 12.8 CUDA 12.9, NVRTC 12.9 -",
    ]
    assert abilities == [
        "GPU usable elementwise operations matrix products compiled kernels captured graphs",
        "cuda:0 yes works works works no graphs",
        "cuda:1 no works lost works works",
    ]


def test_the_command_gives_a_json_line_for_every_gpu(machine: Fake, xcnn) -> None:
    machine.broken[1, "matmul"] = RuntimeError("lost")
    code, out, _ = xcnn("devices", "--json")
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines.pop()["processes"] == "mpi"
    assert [line["device"] for line in lines] == ["cpu", "cuda", "torch", "jax", "strict", "cuda:0", "cuda:1"]
    assert all(line.keys() == {"device", "usable", "detail"} for line in lines[:5])
    works = dict.fromkeys([*NEEDED, "graph_capture"], True)
    assert lines[5] == {
        "device": "cuda:0",
        "name": "NVIDIA Pretence 0",
        "compute_capability": "9.0",
        "driver": "12.8",
        "runtime": "12.9",
        "nvrtc": "12.9",
        "memory_free": 1 << 30,
        "memory_total": 80 << 30,
        "usable": True,
        "abilities": works,
        "faults": {},
    }
    assert lines[6]["usable"] is False
    assert lines[6]["abilities"] == works | {"matmul": False}
    assert lines[6]["faults"] == {"matmul": "lost"}


def test_without_a_gpu_the_command_shows_no_table_of_them(machine: Fake, xcnn) -> None:
    machine.no_driver = RuntimeError("none")
    assert "GPU " not in xcnn("devices")[1].replace("NVIDIA GPU", "")
    assert len(xcnn("devices", "--json")[1].splitlines()) == 5 + 1


@pytest.mark.parametrize("backend", ["cupy"], indirect=True)
def test_a_real_gpu_reports_itself(backend: Backend) -> None:
    gpu = gpus()[0]
    assert gpu.device == "cuda:0"
    assert gpu.usable
    assert set(gpu.faults) == set(_cuda.ABILITIES)
    assert gpu.faults["graph_capture"] == ""
    assert None not in (gpu.name, gpu.compute_capability, gpu.driver, gpu.runtime, gpu.nvrtc)
    assert 0 < gpu.memory_free <= gpu.memory_total

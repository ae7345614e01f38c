"""`xcnn bench` on a fake GPU, which replaces the calls into CUDA, and on a real one if there is one."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import fake_gpu
import pytest

from xcnn import compare
from xcnn.cli import _speed
from xcnn.compare import gpu, launches, meter, worker
from xcnn.compare.bench import Dropped, Result, Timing
from xcnn.compare.contestants import YARDSTICKS
from xcnn.compare.launches import STEPS, Launches

QUICK = ["--models", "report", "--batch-sizes", "2", "--rounds", "1", "--seconds", "0.001", "--threads", "1"]


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """A fake GPU, a driver that reports its version, and PyTorch without Triton."""
    fake_gpu.install(monkeypatch.setattr, monkeypatch.setitem)
    monkeypatch.setattr(worker, "COMMAND", fake_gpu.COMMAND)
    monkeypatch.delenv("CUPY_TF32", raising=False)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 123.45\necho 123.45\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


def lines_of(out):
    lines = [json.loads(line) for line in out.splitlines()]
    return {kind: [line for line in lines if line["kind"] == kind] for kind in {line["kind"] for line in lines}}


def test_cpu_and_gpu_side_by_side(xcnn, pretended):
    code, out, err = xcnn("bench", *QUICK, "--device", "cpu,cuda", "--json")
    assert code == 0, err
    found = lines_of(out)
    (machine,) = found["machine"]
    assert machine["gpus"] == [
        {"device": "cuda:0", "name": "Pretended GPU", "driver": "123.45", "library": "cupy", "version": "99.9",
         "tf32": False},
    ]  # fmt: skip
    assert machine["versions"]["cupy"] == "99.9"
    cpu, cuda = found["speed"]
    assert [(one["variant"], one["hardware"]) for one in (cpu, cuda)] == [("cpu", "cpu"), ("cuda:0", "cuda:0")]
    assert cpu["rounds"][0] < 1
    steps = fake_gpu.ELAPSED / 1e3 / cuda["rounds"][0]  # according to the events
    assert round(steps) >= 1
    assert steps == pytest.approx(round(steps))
    assert 0 < cuda["first"] < 60
    assert cuda["memory"] == fake_gpu.GROWN
    assert set(cpu["rates"]) == {"sgemm"}
    assert set(cuda["rates"]) == {"sgemm", "copy"}
    assert cpu["copy_share"] is None
    seconds = cuda["rounds"][0]
    moved, flops = compare.Case("report", 2, "train", 1).moved(), cuda["gflops"] * 1e9 * seconds
    assert cuda["copy_share"] == pytest.approx(moved / seconds / cuda["rates"]["copy"])
    assert cuda["peak_share"] == pytest.approx(flops / seconds / cuda["rates"]["sgemm"])
    assert cpu["launches"] == {"kernels": None, "copies": None, "missing": None}
    missing = cuda["launches"].pop("missing")
    assert cuda["launches"] == {"kernels": None, "copies": None}
    assert any(why in missing for why in ("no CUDA here", "No module named 'torch'", "recorded no launches"))


def test_each_is_compared_with_peers_on_the_same_hardware(xcnn, pretended):
    pytest.importorskip("torch")
    code, out, err = xcnn("bench", *QUICK, "--device", "cpu,cuda", "--against", "torch", "--json")
    assert code == 0, err
    found = lines_of(out)
    cpu, cuda = (one for one in found["speed"] if one["contestant"] == "xcnn")
    assert set(cpu["ratios"]) == {f"torch {way}" for way in compare.PEERS["torch"]["cpu"]}
    assert set(cuda["ratios"]) == {"torch cuda:0 NCHW", "torch cuda:0 channels_last"}
    assert cpu["ratio"] == min(cpu["ratios"].values())
    assert cuda["best_peer"] in cuda["ratios"]
    for dropped, way in zip(found["dropped"], ("NCHW compiled", "NCHW graphs"), strict=True):
        why = f"torch cuda:0 {way} fails at report, batch 2, train: RuntimeError: backend='inductor' raised: " \
              "TritonMissing: Cannot find Triton."  # fmt: skip
        assert (dropped["variant"], dropped["hardware"], dropped["reason"]) == (way, "cuda:0", why)
        assert f"torch cuda:0 {way} is left out: {why}" in err.splitlines()
    assert [mean["device"] for mean in found["mean"]] == ["cpu", "cuda:0"]


def test_no_peer_is_left(xcnn, pretended, monkeypatch):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this PyTorch can use a GPU")
    monkeypatch.setenv("XCNN_TRUE_TORCH", "1")
    code, out, err = xcnn("bench", *QUICK, "--device", "cuda", "--against", "torch", "--json")
    assert code == 1
    assert "speed" not in lines_of(out)
    (error,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert error.startswith(
        "error: bench: no peer is left on cuda:0: torch cuda:0 NCHW fails at report, batch 2, train: "
    )
    assert "PyTorch cannot use it (" in error  # the reason depends on whether this PyTorch is built with CUDA


def test_jax_is_a_peer_on_the_cpu_only():
    with pytest.raises(compare.SpeedError, match="jax is measured on the cpu only, not on cuda:1"):
        compare.contestants(["cpu", "cuda:1"], ["jax"])


def test_who_takes_part():
    found = compare.contestants(["cpu", "strict", "cuda:1", "torch:cuda:1"], ["torch"])
    ways = compare.PEERS["torch"]
    assert [one for one in found if one.name == "torch"] == [
        *(compare.Contestant("torch", "torch:cpu", way) for way in ways["cpu"]),
        *(compare.Contestant("torch", "torch:cuda:1", way) for way in ways["cuda"]),
    ]
    assert len({str(one) for one in found}) == len(found)


def test_ways_choose_who_takes_part():
    found = compare.contestants(["cpu", "cuda"], ["torch"], ["channels_last", "NCHW compiled"])
    assert [(one.hardware, one.way) for one in found if one.name == "torch"] == [
        ("cpu", "channels_last"), ("cuda:0", "channels_last"), ("cuda:0", "NCHW compiled"),
    ]  # fmt: skip
    with pytest.raises(compare.SpeedError, match="on cpu jax has the ways NCHW, NHWC, not channels_last"):
        compare.contestants(["cpu"], ["torch", "jax"], ["channels_last"])


def test_a_yardstick_that_fails_leaves_its_share_open(xcnn, pretended, monkeypatch):
    monkeypatch.setitem(YARDSTICKS, "cuda", ("sgemm", "ruler"))  # there is no such module
    code, out, err = xcnn("bench", *QUICK, "--device", "cuda", "--json")
    assert code == 0
    (speed,) = lines_of(out)["speed"]
    assert speed["copy_share"] is None
    assert speed["peak_share"] > 0
    assert "ruler cuda:0 is left out: ruler cuda:0 fails at report, batch 2, train: ModuleNotFoundError" in err


def test_the_head_says_what_it_is_measured_on(xcnn, pretended, monkeypatch):
    """Before anything is measured."""
    heads = []
    monkeypatch.setattr(compare, "bench", lambda *arguments, **options: iter(()))
    for tf32 in ("", "1"):
        monkeypatch.setenv("CUPY_TF32", tf32)
        code, out, _ = xcnn("bench", *QUICK, "--device", "cuda")
        assert code == 1  # StopIteration
        heads.append(out.splitlines()[:2])
    assert heads[0][0].endswith("cupy 99.9")
    assert heads[0][1] == "cuda:0: Pretended GPU, driver 123.45; TF32 off on both sides"
    assert heads[1][1].startswith("cuda:0: Pretended GPU, driver 123.45; TF32 on for xcnn cuda:0 (CUPY_TF32), off for ")


def test_a_driver_without_a_version(monkeypatch, tmp_path):
    fake_gpu.install(monkeypatch.setattr, monkeypatch.setitem)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compare.describe(["cuda"])[0]["driver"] is None
    assert compare.describe(["cpu"]) == []


def test_table_of_cpu_and_gpu(capsys):
    def timing(contestant, seconds, calls=launches.UNCOUNTED):
        return Timing(contestant, 10, 1.5, (seconds,), 2**21, None, calls)

    ours = (timing(compare.Contestant("xcnn", "cpu"), 2.0),
            timing(compare.Contestant("xcnn", "cuda:0"), 0.5, Launches(45.0, 3.0)))  # fmt: skip
    peers = (timing(compare.Contestant("torch", "torch:cpu", "NCHW"), 1.0),
             timing(compare.Contestant("torch", "torch:cuda:0", "NCHW"), 1.0, Launches(missing="no CUPTI")),
             timing(compare.Contestant("torch", "torch:cuda:0", "channels_last"), 0.75))  # fmt: skip
    rates = {"cpu": {"sgemm": 4e9}, "cuda:0": {"sgemm": 8e9, "copy": 2e9}}
    dropped = (Dropped(compare.Contestant("torch", "torch:cuda:0", "NCHW compiled"), "no Triton"),)
    result = Result(compare.Case("report", 10, "train", 1), ours, peers, 2 * 10**9, 10**8, rates, dropped)
    _speed.print_results("train", [result])
    lines = capsys.readouterr().out.splitlines()
    (head,) = (number for number, line in enumerate(lines) if line.startswith("model"))
    columns = "model batch device images/s spread GFLOP/s of-peak of-copy launches copies memory first ratio best peer"
    assert [" ".join(line.split()) for line in lines[head : head + 3]] == [
        f"{columns} images/s spread launches copies memory first",
        "report 10 cpu 5 0% 1.0 25% - - - 2.0 MiB 1.50 s 0.50 torch NCHW 10 0% - - 2.0 MiB 1.50 s",
        "report 10 cuda:0 20 0% 4.0 50% 10% 45 3 2.0 MiB 1.50 s "
        "1.50 torch cuda:0 channels_last 13 0% - - 2.0 MiB 1.50 s",
    ]
    assert "cuda:0: a large matrix product does 8 GFLOP/s, without TF32; a large copy reads and writes 2 GB/s" in lines
    assert "launches not counted: no CUPTI" in lines
    _speed.print_means([result], as_json=True)
    cpu, cuda = map(json.loads, capsys.readouterr().out.splitlines())
    assert (cpu["geometric_mean"], cuda["geometric_mean"]) == (pytest.approx(0.5), pytest.approx(1.5))


def test_events_time_all_steps_of_a_turn():
    """On an asynchronous GPU: a step returns at once, and its work takes 3 s; each wait is recorded."""
    clock, log = [10.0], []

    class Event:
        def __init__(self):
            self.at = clock[0]
            log.append("mark")

        def synchronize(self):
            log.append("wait")

    def step():
        clock[0] += 3.0

    pretended = SimpleNamespace(mark=Event, elapsed=lambda start, end: 1e3 * (end.at - start.at),
                                synchronize=lambda: log.append("settle"))  # fmt: skip
    one, whole = meter.Events(pretended).turn(step, 1e-3)
    assert one == pytest.approx(3.0)
    assert whole == pytest.approx(clock[0] - 10)
    assert whole > 3.5  # a turn is not over after one step
    assert log == ["mark", "settle", "mark", "wait"]
    assert meter.Events(pretended).turn(step, 0.0) == pytest.approx((3.0, 3.0))  # but has at least one


def test_memory_counts_from_where_it_began():
    said = iter([100, 700, 40])
    log = []
    grown = meter.Events(SimpleNamespace(held=lambda: next(said), reset=lambda: log.append("reset"))).growth()
    assert log == ["reset"]
    assert [grown(), grown()] == [600, 0]


@pytest.mark.parametrize(("spec", "kind"), [("cpu", meter.Clock), ("torch", meter.Clock), ("cuda", meter.Events)])
def test_each_device_has_its_clock(spec, kind, monkeypatch):
    fake_gpu.install(monkeypatch.setattr, monkeypatch.setitem)
    if spec == "torch":
        pytest.importorskip("torch")
    assert type(meter.meter(spec)) is kind


def test_launches_are_counted_per_step(monkeypatch):
    events = [
        ("cudaLaunchKernel", 8),
        ("cudaLaunchKernelExC_v11060", 4),
        ("cudaGraphLaunch_v10000", 4),
        ("cuLaunchKernel", 4),
        ("cuLaunchKernelEx_ptsz", 4),
        ("cudaMemcpyAsync", 12),
        ("cudaMemsetAsync", 2),
        *[("cudaMemGetInfo", 3), ("cudaStreamSynchronize", 7), ("cudaLaunchHostFunc", 5)],
        ("Memcpy DtoH (Device -> Pageable)", 12),
        ("void gemm<cuLaunchKernel>", 5),
        ("aten::conv2d", 99),
    ]
    monkeypatch.setattr(launches, "profiled", lambda step: events)
    assert launches.launches(lambda: None) == Launches(24 / STEPS, 14 / STEPS)


def test_launches_that_cannot_be_counted(monkeypatch):
    def failing(step):
        raise RuntimeError("CUPTI says no\nand more")

    monkeypatch.setattr(launches, "profiled", failing)
    assert launches.launches(lambda: None) == Launches(missing="RuntimeError: CUPTI says no")
    monkeypatch.setattr(launches, "profiled", lambda step: [("cudaMemcpyAsync", 1)])
    blind = launches.launches(lambda: None)
    assert blind.kernels is None
    assert "recorded no launches" in blind.missing


def test_pytorchs_profiler_is_asked_for_the_warm_steps(monkeypatch):
    done = []

    class Profiler:
        def __init__(self, activities):
            assert activities == ["cpu", "cuda"]

        def __enter__(self):
            assert done == []
            return self

        def __exit__(self, *exception):
            done.append("end")

        def key_averages(self):
            assert done == [*["step"] * STEPS, "end"]
            return [SimpleNamespace(key="cudaLaunchKernel", count=3)]

    profiler = SimpleNamespace(ProfilerActivity=SimpleNamespace(CPU="cpu", CUDA="cuda"), profile=Profiler)
    cuda = SimpleNamespace(is_available=lambda: True)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="9", cuda=cuda, profiler=profiler))
    assert launches.profiled(lambda: done.append("step")) == [("cudaLaunchKernel", 3)]
    cuda.is_available = lambda: False
    with pytest.raises(RuntimeError, match="PyTorch 9, whose profiler counts, has no CUDA here"):
        launches.profiled(lambda: None)


def test_a_worker_that_dies_while_it_counts_loses_nothing_else(xcnn, pretended, monkeypatch):
    dying = "from xcnn.compare import worker as w, launches as l; w.launches = lambda step: l._gone; "
    monkeypatch.setattr(
        worker, "COMMAND", fake_gpu.COMMAND.replace(original := "from xcnn.compare.worker", dying + original)
    )
    code, out, _ = xcnn("bench", *QUICK, "--device", "cuda", "--json")
    assert code == 0
    (speed,) = lines_of(out)["speed"]
    assert speed["images_per_second"] > 0
    assert speed["launches"]["kernels"] is None
    assert "_gone" in speed["launches"]["missing"]


@pytest.mark.parametrize(
    ("contestant", "name", "value"), [("sgemm", "CUPY_TF32", "0"), ("jax", "JAX_PLATFORMS", "cpu")]
)
def test_the_environment_of_a_contestant(contestant, name, value, monkeypatch):
    """The matrix product that shares refer to never uses TF32; JAX must not reserve the memory of a GPU."""
    started = []
    monkeypatch.setenv("CUPY_TF32", "1")
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, env, **options: started.append(env) or SimpleNamespace(
        stdin="", stdout=""))  # fmt: skip
    case = compare.Case("report", 1, "train", 1)
    for one in (contestant, "xcnn"):
        worker.Worker(compare.Contestant(one), case).errors.close()
    theirs, ours = started
    assert theirs[name] == value
    assert ours["CUPY_TF32"] == "1"


class Stream:
    def record(self):
        return "event"


def test_what_cupy_is_asked_for(monkeypatch):
    runtime = SimpleNamespace(getDeviceProperties=lambda index: {"name": f"GPU {index}".encode()})
    waited = []
    cuda = SimpleNamespace(runtime=runtime, get_current_stream=Stream, get_elapsed_time=lambda start, end: 2.5,
                           Device=lambda index: SimpleNamespace(synchronize=lambda: waited.append(index)))  # fmt: skip
    pool = SimpleNamespace(total_bytes=lambda: 512)
    cupy = SimpleNamespace(__version__="14", cuda=cuda, get_default_memory_pool=lambda: pool)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for said, tf32 in ((None, False), ("0", False), ("", False), ("1", True)):
        monkeypatch.delenv("CUPY_TF32", raising=False)
        if said is not None:
            monkeypatch.setenv("CUPY_TF32", said)
        assert gpu.GAUGES["cuda"](1).tf32 == tf32
    found = gpu.GAUGES["cuda"](1)
    found.synchronize()
    assert waited == [1]
    assert (found.name, found.version, found.mark(), found.held()) == ("GPU 1", "14", "event", 512)
    assert found.elapsed(found.mark(), found.mark()) == 2.5


def test_pytorch_does_without_tf32(monkeypatch):
    torch = pytest.importorskip("torch")
    switches, entered = (torch.backends.cuda.matmul, torch.backends.cudnn), []

    @contextlib.contextmanager
    def chosen(index):
        entered.append(index)
        yield

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "device", chosen)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda index: 512 + index)
    found = gpu.GAUGES["torch"](1)
    assert (found.name, found.version, found.tf32, found.held()) == ("GPU 1", torch.__version__, False, 513)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = True
        with found.setting():
            assert entered == [1]
            assert [switch.allow_tf32 for switch in switches] == [False, False]
        assert [switch.allow_tf32 for switch in switches] == [True, True]
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def test_what_pytorch_is_asked_for_exists():
    torch = pytest.importorskip("torch")
    for name in ("synchronize", "reset_peak_memory_stats", "max_memory_reserved", "get_device_name", "device"):
        assert callable(getattr(torch.cuda, name))
    for name in ("record", "synchronize", "elapsed_time"):
        assert callable(getattr(torch.cuda.Event, name))
    assert {"CPU", "CUDA"} <= set(torch.profiler.ProfilerActivity.__members__)


def test_pytorchs_settings_are_set_back():
    torch = pytest.importorskip("torch")
    before = torch.backends.cudnn.benchmark
    with compare.Contestant("torch", "torch:cpu", "NCHW").opened(compare.Case("report", 1, "train", 1)):
        assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark == before


@pytest.mark.parametrize("name", YARDSTICKS["cuda"])
def test_yardsticks_do_the_work_that_they_say(name, monkeypatch):
    fake_gpu.install(monkeypatch.setattr, monkeypatch.setitem)
    module = importlib.import_module(f"xcnn.compare.contestants.{name}")
    one = compare.Contestant(name, "cuda:0")
    assert one.work() == {"sgemm": 2 * 64**3, "copy": 2 * 2**16 * module.COPIES if name == "copy" else 0}[name]
    with one.opened(compare.Case("report", 1, "train", 1)) as step:
        assert step() == pytest.approx({"sgemm": 16, "copy": 1}[name], rel=0.4)  # 64 products of two from 0 to 1


@pytest.mark.parametrize("backend", ["cupy"], indirect=True)
def test_on_a_gpu(backend, xcnn):
    """The calls into CUDA themselves; PyTorch's where it has CUDA."""
    try:
        against = ["--against", "torch"] if importlib.import_module("torch").cuda.is_available() else []
    except ImportError:
        against = []
    ways = ["--ways", "NCHW,channels_last"] if against else []  # compiling takes minutes
    code, out, err = xcnn("bench", *QUICK, "--device", "cuda", "--mode", "both", *against, *ways, "--json")
    assert code == 0, err
    found = lines_of(out)
    assert found["machine"][0]["gpus"][0]["name"]
    for speed in found["speed"]:
        assert 0 < speed["rounds"][0] < 10
        assert speed["memory"] >= 0  # a pool may have had enough memory
        assert 0 < speed["peak_share"] < 1
        assert speed["copy_share"] > 0
        assert not against or speed["launches"]["kernels"] > 0, speed["launches"]["missing"]

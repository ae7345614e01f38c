"""`xcnn bench`: tables, JSON, pictures, and requests that are refused."""

import contextlib
import functools
import importlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcnn import compare, models, nn, plots
from xcnn.cli import _console
from xcnn.compare import worker

QUICK = ["--models", "report", "--batch-sizes", "2", "--rounds", "1", "--seconds", "0.001", "--threads", "1"]


@pytest.fixture
def xcnn(xcnn):
    """Run `xcnn bench` in an empty folder: (exit code, stdout, stderr)."""
    return functools.partial(xcnn, "bench")


class Inside(contextlib.ExitStack):
    """A worker in this process, which need not start one."""

    def __init__(self, contestant, case):
        super().__init__()
        self.contestant, self.case = contestant, case

    def __enter__(self):
        self.work = worker._Work(self.contestant, self.case, self.enter_context(self.contestant.opened(self.case)))
        return self

    def ask(self, request, **arguments):
        return getattr(self.work, request)(**arguments)


@pytest.fixture
def inside(monkeypatch):
    monkeypatch.setattr(importlib.import_module("xcnn.compare.bench"), "Worker", Inside)


def test_json_lines(xcnn):
    code, out, err = xcnn(*QUICK, "--mode", "both", "--json", "--profile")
    assert code == 0, err
    head, *lines = map(json.loads, out.splitlines())
    assert list(head) == ["kind", "cpu", "cores", "load", "versions", "threads"]
    assert head["threads"] == 1
    assert head["versions"]["numpy"] == np.__version__
    speeds = [line for line in lines if line["kind"] == "speed"]
    assert [(line["mode"], line["contestant"], line["variant"]) for line in speeds] == [
        ("train", "xcnn", "cpu"), ("infer", "xcnn", "cpu"),
    ]  # fmt: skip
    for line in speeds:
        assert line["images_per_second"] == pytest.approx(2 / line["rounds"][0])
        assert line["first"] > 0
        assert line["waited"] is None or line["waited"] >= 0
        assert line["gflops"] > 0
        assert line["ratios"] == {}
    layers = [line for line in lines if line["kind"] == "profile" and line["mode"] == "train"]
    assert [line["what"] for line in layers] == [
        "conv2d 3x3 1 + relu", "maxpool2d 2", "flatten", "linear 10", "update", "loss and the rest", "whole step",
    ]  # fmt: skip
    assert len(speeds) + sum(line["kind"] == "profile" for line in lines) == len(lines)
    assert "report, batch 2, infer (2 of 2)" in err


def test_several_libraries_have_a_ratio_each(xcnn):
    for name in ("torch", "onnxruntime"):
        pytest.importorskip(name)
    argv = ("--models", "report", "-b", 2, "--mode", "infer", "--ways", "NCHW", "--rounds", 1, "--seconds", 0.01)
    code, out, _ = xcnn("--against", "torch,onnxruntime", *argv)
    assert code == 0
    header, row = (line.split() for line in out.splitlines() if line.startswith(("model ", "report ")))
    start = header.index("first") + 1
    assert header[start : start + 6] == ["to", "torch", "to", "onnxruntime", "ratio", "best"]
    ratios = [float(cell) for cell in row[row.index("s") + 1 :][:3]]
    assert ratios[2] == min(ratios[:2])


def test_table_against_pytorch(xcnn, tmp_path):
    pytest.importorskip("torch")
    code, out, err = xcnn(*QUICK, "--against", "torch", "--profile", "--plot", "speeds.png")
    assert code == 0
    lines = out.splitlines()
    assert "1 thread of" in lines[0]
    assert "torch 2" in lines[0]
    (header,) = (line for line in lines if line.startswith("model"))
    ours, theirs = "images/s  spread  GFLOP/s  of-peak memory first", "ratio best peer images/s spread memory first"
    assert header.split() == f"model batch {ours} {theirs}".split()
    (row,) = (line for line in lines if line.startswith("report "))
    assert any(way in row for way in compare.PEERS["torch"]["cpu"])
    (mean,) = (line for line in lines if line.startswith("train on cpu: geometric mean of the ratios"))
    assert mean.endswith("(report, batch 2)")
    (header,) = (line for line in lines if line.startswith("part "))
    assert header.endswith("torch forward  torch backward  to torch  lost to torch")
    (row,) = (line.split() for line in lines if line.startswith("0 "))
    assert row[1] == "conv2d"
    assert row[-1].endswith("%")
    assert "picture: speeds.png" in err
    with Image.open(tmp_path / "speeds.png") as image:
        assert np.asarray(image.convert("L")).std() > 5  # not blank


def test_several_batches_and_sizes(xcnn, inside):
    code, out, _ = xcnn(*QUICK[:2], "-b", "2,3", "--sizes", "12,20", *QUICK[4:])
    assert code == 0
    assert [line.split(" on cpu")[0] for line in out.splitlines() if ": time per " in line] == [
        "report at 12x12, train", "report, batch 2, train", "report at 20x20, train", "report, batch 3, train",
    ]  # fmt: skip
    assert "times its least, batch 2 to 3" in out
    assert "times its least, 12 to 20 pixels square" in out
    code, out, _ = xcnn(*QUICK, "--sizes", "12,20", "--json")
    assert code == 0
    *speeds, growth = [json.loads(line) for line in out.splitlines()[1:]]
    assert [line["shape"] for line in speeds] == [[1, 12, 12], [1, 20, 20]]
    small, large = (144 * speeds[0]["images_per_second"], 400 * speeds[1]["images_per_second"])
    assert growth.pop("factor") == pytest.approx(max(small, large) / min(small, large))
    assert growth == {
        "kind": "growth", "cases": "report, batch 2, train", "device": "cpu", "unit": "pixel",
        "smallest": 12, "largest": 20,
    }  # fmt: skip


def test_the_speed_that_is_kept_while_a_core_is_busy(xcnn, inside, monkeypatch):
    used = []
    busy = lambda cores: contextlib.nullcontext(used.append(cores))  # noqa: E731
    monkeypatch.setattr(importlib.import_module("xcnn.compare.bench"), "busy", busy)
    code, out, _ = xcnn(*QUICK, "--busy", "2")
    assert (code, used) == (0, [2])
    assert "busy: speed kept while other programs use cores" in out
    code, out, _ = xcnn(*QUICK, "--busy", "2", "--json")
    (speed,) = (json.loads(line) for line in out.splitlines()[1:])
    assert speed["kept"] == pytest.approx(speed["rounds"][0] / speed["loaded"][0])


def test_random_networks(xcnn):
    pytest.importorskip("torch")
    argv = ("--against", "torch", "--ways", "NCHW", "-b", "2", *QUICK[4:])
    code, out, err = xcnn("--random", 30, "--only", "22,3", *argv)
    assert code == 0
    table, worst = ([line.split() for line in half.splitlines() if line.startswith("random-0-")]
                    for half in out.split("the lowest ratios"))  # fmt: skip
    assert [row[0] for row in table] == ["random-0-22", "random-0-3"]
    ratios = [float(row[3]) for row in worst]
    assert len(ratios) == 2
    assert ratios == sorted(ratios)
    assert f"lowest {ratios[0]:.2f} ({worst[0][0]}, batch 2)" in out
    assert "random-0-3, batch 2, train (2 of 2)" in err


def test_parts_of_random_networks_are_timed_without_peers_too(xcnn, inside):
    code, out, _ = xcnn("--random", 5, "--only", "4", "-b", "1", *QUICK[4:], "--profile", "--json")
    assert code == 0
    assert {line["model"] for line in map(json.loads, out.splitlines()) if line["kind"] == "profile"} == {"random-0-4"}


def test_random_networks_are_shown(xcnn):
    code, out, _ = xcnn("--random", 3, "--seed", 5, "--show")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()[::2]] == ["random-5-0", "random-5-1", "random-5-2"]
    code, out, _ = xcnn("--random", 3, "--seed", 5, "--only", "1", "--show", "--json")
    assert code == 0
    (line,) = map(json.loads, out.splitlines())
    entry = models.entry("random-5-1")
    assert (line["model"], line["shape"], line["classes"]) == ("random-5-1", list(entry.shape), entry.classes)
    assert line["layers"] == models.sketch(models.build("random-5-1", seed=None))


def test_a_random_network_that_fails_does_not_stop_the_others(xcnn, inside, monkeypatch):
    def fitted(case):
        if case.model == "random-0-3":
            raise ZeroDivisionError("in a kernel")
        return case

    monkeypatch.setattr(compare.Case, "fitted", fitted)
    code, out, err = xcnn("--random", 30, "--only", "3,22", "-b", "2", *QUICK[4:], "--json")
    assert code == 1
    _, failed, speed = map(json.loads, out.splitlines())
    reason = {"reason": "ZeroDivisionError: in a kernel"}
    assert failed == {"kind": "failed", "model": "random-0-3", "batch": 2, "mode": "train"} | reason
    assert speed["model"] == "random-0-22"
    assert "random-0-3, batch 2, train is left out: ZeroDivisionError: in a kernel" in err


def test_large_batches_of_random_networks_are_halved(xcnn, inside, monkeypatch):
    each = nn.summary(models.build("random-0-22"), models.entry("random-0-22").shape).total.kept
    monkeypatch.setattr(importlib.import_module("xcnn.cli.bench"), "KEPT", 3 * each)
    code, out, _ = xcnn("--random", 30, "--only", "22", "-b", "2,4,16", *QUICK[4:], "--json")
    assert code == 0
    assert [json.loads(line)["batch"] for line in out.splitlines()[1:]] == [2]


def line(mode, batch, who, *rounds, model="random-0-2", memory=2**21):
    fields = {"contestant": who, "variant": "cpu" if who == "xcnn" else "NCHW", "hardware": "cpu", "memory": memory}
    case = {"kind": "speed", "model": model, "batch": batch, "mode": mode, "shape": [3, 56, 73]}
    return json.dumps(case | fields | {"rounds": rounds, "first": 1.0, "waited": None})


def test_the_parts_of_a_long_measurement_are_one_report(xcnn, tmp_path):
    machine = json.dumps(
        {"kind": "machine", "cpu": "Z", "cores": 4, "load": 1.5, "versions": {"xcnn": "1"}, "threads": 2}
    )
    first = [
        line("train", 1, "xcnn", 9.0), line("train", 1, "torch", 1.0),
        line("infer", 32, "xcnn", 1.0, 2.0, 1.0), line("infer", 32, "torch", 2.0, 2.0, 2.0, memory=2**20),
        line("infer", 32, "onnxruntime", 0.5, 0.5, 0.5),
        json.dumps({"kind": "failed", "model": "random-0-3", "batch": 1, "mode": "train", "reason": "too deep"}),
    ]  # fmt: skip
    second = [line("train", 1, "xcnn", 1.0), line("train", 1, "torch", 3.0), line("train", 1, "torch-compile", 0.75)]
    (tmp_path / "a").write_text("\n".join([machine, *first]))
    (tmp_path / "b").write_text("\n".join([machine, *second]))
    code, out, _ = xcnn("--report", "a,b")
    assert code == 0
    assert out.count("- Z, 2 of 4 cores; xcnn 1") == 1
    rows = [[cell.strip(" `*") for cell in row.split("|")[1:-1]] for row in out.splitlines() if row.startswith("| ")]
    means = {tuple(row[:3]): row[3:] for row in rows if row[0] in compare.MODES}
    below = ["1", "0.75", "0.75", "100%", "0%", "0%", "1.00"]  # measured again: one cell, of the second file
    assert means["train", "all", "the fastest"] == means["train", "1", "torch or torch-compile"] == below
    assert means["train", "1", "torch"] == ["1", "3.00", "3.00", "0%", "0%", "0%", "1.00"]
    assert means["infer", "2 to 32", "torch"] == ["1", "2.00", "2.00", "0%", "0%", "0%", "2.00"]
    assert means["infer", "all", "onnxruntime"] == ["1", "0.50", "0.50", "100%", "100%", "0%", "1.00"]
    cells = [row for row in rows if row[0] == "random-0-2"]
    assert cells[0][1:] == ["1", "1", "3.00", "0.75", "0.75", "torch-compile NCHW", "2.0 MiB", "2.0 MiB"]
    assert cells[1][1:] == ["32", "32", "2.00", "0.50", "onnxruntime NCHW", "2.0 MiB", "2.0 MiB"]
    assert cells[2][1:] == ["ResNet, batch norm, ReLU, bottlenecks", "3x56x73", "56.9"]
    assert ["random-0-3, batch 1, train", "too deep"] in rows
    (tmp_path / "alone").write_text("\n".join([machine, line("train", 8, "xcnn", 1.0)]))
    code, out, _ = xcnn("--report", "alone")
    assert "| `random-0-2` | 8 | 8 | 2.0 MiB |" in out.splitlines()
    (tmp_path / "c").write_text("[]")
    for name, reason in {"a,c": "c:1 is not a line of bench --json", "d": "cannot read d: No such file"}.items():
        code, out, err = xcnn("--report", name)
        assert (code, out) == (2, "")
        assert reason in err


def test_means_in_json(xcnn):
    pytest.importorskip("torch")
    code, out, _ = xcnn("--models", "report,lenet5", *QUICK[2:], "--against", "torch", "--json")
    assert code == 0
    *_, mean = lines = [json.loads(line) for line in out.splitlines()]
    ratios = {line["model"]: line["ratio"] for line in lines if line.get("contestant") == "xcnn"}
    assert mean["kind"] == "mean"
    assert mean["geometric_mean"] == pytest.approx(math.sqrt(ratios["report"] * ratios["lenet5"]))
    assert mean["lowest"] == min(ratios.values())
    assert {line["variant"] for line in lines if line.get("contestant") == "torch"} == set(
        compare.PEERS["torch"]["cpu"]
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--models", "lenet"], "unknown model 'lenet'; did you mean 'lenet5'?"),
        (["--devices", "cdua"], "unknown device 'cdua'; did you mean 'cuda'?"),
        (["--against", "troch"], "unknown peer 'troch'; did you mean 'torch'?"),
        (["--against", "torch", "--ways", "channel_last"], "unknown way 'channel_last'; did you mean 'channels_last'?"),
        (["--ways", "NCHW"], "--ways selects ways of the libraries in against; name one there, such as torch"),
        (["--mode", "training"], "unknown mode 'training'; did you mean 'train'?"),
        (["--batch-sizes", "1,many"], "--batch-sizes takes integers separated by commas, got '1,many'"),
        (["--sizes", "28,x"], "--sizes takes integers separated by commas, got '28,x'"),
        (["--sizes", "8"], "lenet5 takes images of 12 x 12 or more, got 8"),
        (["--batch-sizes", "0"], "batch size must be an integer of at least 1, got 0"),
        (["--threads", "0"], "threads must be an integer of at least 1, got 0"),
        (["--rounds", "0"], "rounds must be an integer of at least 1, got 0"),
        (["--seconds", "0"], "seconds must be a number in (0, inf), got 0"),
        (["--models", ","], "--models takes values separated by commas, got ','"),
        (["--against", ","], "--against takes values separated by commas, got ','"),
        (["--against", "torch", "--ways", ","], "--ways takes values separated by commas, got ','"),
        (["-b", ""], "--batch-sizes takes values separated by commas, got ''"),
        (["--devices", ","], "--devices takes values separated by commas, got ','"),
        (["--report", os.devnull], "--report: there is no line of bench --json"),
        (["--random", "-1"], "random must be an integer of at least 1, got -1"),
        (["--random", "3", "--seed", "-1"], "seed must be an integer of at least 0, got -1"),
        (["--random", "0"], "random must be an integer of at least 1, got 0"),
        (["--random", "3", "--only", "3"], "ranges below 3, the number of networks, got '3'"),
        (["--random", "9", "--only", "5-3"], "--only takes numbers and rising ranges below 9, the number of networks"),
        (["--random", "3", "--only", "0-99999999999"], "ranges below 3, the number of networks, got '0-99999999999'"),
        (["--random", "3", "--only", ""], "--only takes numbers and ranges separated by commas, got ''"),
        (["--batch-sizes", "1,,2"], "--batch-sizes takes integers separated by commas, got '1,,2'"),
        (["--report", ""], "--report takes files separated by commas, got ''"),
        (["--random", "3", "--only", "1-x"], "--only takes numbers and ranges separated by commas, got '1-x'"),
        (["--only", "1"], "--only selects random networks; pass --random, the number of networks"),
        (["--seed", "4"], "--seed draws random networks; pass --random, the number of networks"),
        (["--random", "3", "--models", "report"], "--models and random networks cannot be measured together"),
        (["--show"], "--show prints random networks; pass --random, the number of networks"),
    ],
)
def test_invalid_requests_are_refused(xcnn, argv, message):
    code, out, err = xcnn(*argv)
    assert (code, out) == (2, "")
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1


def test_a_peer_that_is_not_installed(xcnn, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, out, err = xcnn(*QUICK, "--against", "jax")
    assert (code, out) == (1, "")
    assert "error: bench: jax is not installed; pip install jax" in err


def test_all_peers_that_are_not_installed(xcnn, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    argv = ("--models", "report", "--mode", "infer", "--against", "onnxruntime,torch,torch-compile,jax")
    code, out, err = xcnn(*argv)
    assert (code, out) == (1, "")
    names = "onnxruntime and torch and jax are not installed"
    assert f"error: bench: {names}; pip install onnx onnxruntime; pip install torch; pip install jax" in err


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (compare.SpeedError("it fails"), 1)])
def test_what_is_measured_is_printed_before_an_interrupted_bench_ends(xcnn, inside, monkeypatch, stop, code, as_json):
    def fitted(case):
        if case.batch == 4:
            raise stop
        return case

    monkeypatch.setattr(compare.Case, "fitted", fitted)
    ended, out, err = xcnn(*QUICK[:2], "-b", "2,3,4,5", *QUICK[4:], *["--json"] * as_json)
    assert ended == code
    assert err.splitlines()[-1] == f"error: {'interrupted' if code == 130 else 'it fails'}"
    if as_json:
        assert [json.loads(line)["kind"] for line in out.splitlines()] == ["machine", "speed", "speed", "growth"]
    else:
        assert [line.split()[1] for line in out.splitlines() if line.startswith("report  ")] == ["2", "3"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_measured(xcnn, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "bench", lambda *_: pytest.fail("measured"))
    code, out, err = xcnn("--plot", "nowhere/x.png")
    assert (code, out) == (2, "")
    assert err == "error: cannot write nowhere/x.png: there is no folder nowhere\n"
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    code, _, err = xcnn("--plot", str(tmp_path / "x.png"))
    assert code == 2
    assert err == f"error: cannot write {tmp_path}/x.png: {tmp_path} is read-only\n"


def test_a_table_wider_than_the_terminal_keeps_its_columns(monkeypatch, capsys):
    """Columns of no width are worse than lines that the terminal wraps."""
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    _console.print_table("name", "number", "unit", rows=[("mnist_cnn", "1,234,567", "images/s")], fold=False)
    out = capsys.readouterr().out
    assert "mnist_cnn" in out
    assert "1,234,567" in out
    assert "images/s" in out


def test_ctrl_c_ends_the_workers(tmp_path):
    """They run in separate sessions, which the signal does not reach."""
    command = [sys.executable, "-m", "xcnn", "bench", "--models", "report", "--batch-sizes", "2", "--seconds", "60"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "(1 of 1)" not in process.stderr.readline():
            assert process.poll() is None
        children, workers = Path(f"/proc/{process.pid}/task/{process.pid}/children"), list[str]()
        while not workers:
            time.sleep(0.1)
            workers = children.read_text("ascii").split()
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        assert process.wait(30) == 130
    assert err.splitlines()[-1] == "error: interrupted"
    assert workers
    for _ in range(600):  # whoever inherits an ended process may take a while to notice
        if not any(Path(f"/proc/{one}").exists() for one in workers):
            break
        time.sleep(0.1)
    else:
        raise AssertionError("workers are still running")


def test_the_picture_shows_every_contestant(tmp_path):
    rates = {
        "lenet5 at $5": {"xcnn cpu": (10.0, 9.0, 12.0), "torch NCHW": (20.0, 20.0, 20.0)},
        "report": {"xcnn cpu": (5, 4, 6)},
    }
    with Image.open(plots.speeds(rates, tmp_path / "speeds.png", "2 threads")) as image:
        assert np.asarray(image.convert("L")).std() > 5  # not blank


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_measured(xcnn, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else found(name))
    code, out, err = xcnn("--plot", "speeds.png")
    assert (code, out) == (1, "")
    assert err == "error: pictures need matplotlib; pip install matplotlib\n"

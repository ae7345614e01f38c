"""`xcnn bench --ranks`: contestants in several processes."""

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time

import pytest

from xcnn import compare
from xcnn.cli._console import print_json
from xcnn.cli._speed import print_lines, print_results
from xcnn.compare import worker
from xcnn.compare.contestants import refusal
from xcnn.compare.traffic import Metered
from xcnn.parallel import mpi_status
from xcnn.parallel.launch import INSTALL, mpiexec
from xcnn.training.processes import Processes

needs_mpiexec = pytest.mark.skipif(mpiexec() is None, reason="mpiexec is missing")
needs_mpi = pytest.mark.skipif(not mpi_status()["usable"], reason="mpi4py or its MPI library is missing")
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is missing")

OURS = compare.Contestant("xcnn", ranks=2)
TORCH = compare.Contestant("torch", "torch:cpu", "NCHW", 2)
CASE = compare.Case("report", 6, "train", 1)


def test_contestants_of_each_number_of_ranks():
    found = compare.contestants(["cpu"], ["torch"], ["NCHW"], [1, 2])
    assert list(map(str, found)) == ["xcnn cpu", "torch NCHW", "xcnn cpu 2 ranks", "torch NCHW 2 ranks"]
    assert found[2].variant == "cpu 2 ranks"
    with pytest.raises(compare.SpeedError, match="jax is measured in one process only, not in 3"):
        compare.contestants(["cpu"], ["jax"], ranks=[1, 3])
    assert refusal(TORCH, CASE) == ""
    for case in (compare.Case("report", 1, "train", 1), compare.Case("report", 6, "infer", 1)):
        assert refusal(TORCH, case) == "2 ranks train, with an image each or more"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--ranks", "1,2", "--mode", "both"], "several ranks train together"),
        (["--ranks", "4", "--batch-sizes", "8,2"], "4 ranks need a batch of as many images or more, got 2"),
        (["--ranks", "0"], "ranks must be an integer of at least 1, got 0"),
        (["--ranks", "two"], "--ranks takes integers separated by commas, got 'two'"),
        (["--ranks", ""], "--ranks takes values separated by commas"),
    ],
)
def test_requests_that_make_no_sense(xcnn, argv, message):
    code, _, err = xcnn("bench", *argv)
    assert code == 2
    assert message in err


def test_efficiency_is_that_of_the_same_contestant_with_the_fewest_ranks():
    def timing(name, way, ranks, seconds, **more):
        device = "cpu" if name == "xcnn" else "torch:cpu"
        one = compare.Contestant(name, device, way, ranks)
        return compare.Timing(one, 8, 1.0, (seconds, seconds), None, None, **more)

    ours = timing("xcnn", "", 1, 1.0), timing("xcnn", "", 2, 0.625, waiting=0.1, under_way=0.4)
    peers = timing("torch", "NCHW", 1, 2.0), timing("torch", "channels_last", 1, 1.5), timing("torch", "NCHW", 2, 1.0)
    result = compare.Result(CASE, ours, peers, 100, 1, {"cpu": {"sgemm": 200.0}})
    assert [result.efficiency(one) for one in (*ours, *peers)] == [None, 0.8, None, None, 0.75]
    assert ours[1].overlap == pytest.approx(0.75)
    assert ours[0].overlap is None
    assert [ours[1].ratio(one) for one in result.rivals(ours[1])] == [1.6]
    assert [one.contestant.way for one in result.rivals(ours[0])] == ["NCHW", "channels_last"]
    assert result.share(ours[1], "sgemm") == pytest.approx(100 / 0.625 / 200 / 2)


def test_the_time_of_exchanges_is_metered():
    class Slow(Processes):
        size = 2

        def exchange(self, sends, receives, tag=0):
            end = time.perf_counter() + 0.1
            return lambda: time.perf_counter() > end

    metered = Metered(Slow())
    first = metered.exchange([], [])
    second = metered.exchange([], [])
    time.sleep(0.06)  # computes meanwhile
    assert not first()
    metered.wait(lambda: first() and second())
    assert first()
    assert metered.under_way >= 0.1
    assert 0 < metered.waited <= metered.under_way - 0.06


STEPS = """
import json, sys
from xcnn.compare import Case, Contestant
from xcnn.compare.contestants import Group
group = Group(int(sys.argv[1]), 2, sys.argv[2])
with Contestant("torch", "torch:cpu", "NCHW", 2).opened(Case("report", 6, "train", 1, lr=0.1), group) as step:
    print(json.dumps([step() for _ in range(4)]))
"""


@needs_torch
def test_the_steps_of_pytorch_in_two_processes_are_those_of_one(tmp_path):
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", STEPS, rank, str(tmp_path)], stdout=subprocess.PIPE, text=True)
            )
            for rank in "01"
        ]
        parts = [json.loads(one.communicate(timeout=120)[0]) for one in running]
    alone = compare.Contestant("torch", "torch:cpu", "NCHW")
    with alone.opened(compare.Case("report", 6, "train", 1, lr=0.1)) as step:
        whole = [step() for _ in range(4)]
    assert whole[-1] < whole[0]
    assert [statistics.fmean(losses) for losses in zip(*parts, strict=True)] == pytest.approx(whole, rel=1e-5)


def _alive(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


@needs_mpiexec
@needs_mpi
def test_a_team_answers_as_one_and_ends_with_the_context():
    with worker.Team(OURS, CASE) as team:
        assert team.ask("ready") is None
        assert team.ask("first") > 0
        seconds, waited, traffic = team.ask("burst", seconds=0.05)
        assert 0 < seconds < 1
        waiting, under_way = traffic
        assert 0 < waiting < 1
        assert 0 < under_way < 1
        assert waited is None or waited >= 0
        assert team.ask("memory") > 0
        assert len(team._pids) == 2
    assert not any(map(_alive, team._pids))
    assert not os.path.exists(team._folder.name)


@needs_mpiexec
@needs_mpi
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the state of a process is not told")
def test_a_rank_that_dies_ends_the_team_at_once():
    with worker.Team(OURS, CASE) as team:
        team.ask("first")
        os.kill(team._pids[1], 9)
        with pytest.raises(compare.SpeedError, match=r"xcnn cpu 2 ranks fails at .*: one of its processes"):
            team.ask("burst", seconds=0.1)
    assert not any(map(_alive, team._pids))


@needs_mpiexec
def test_a_team_that_fails_gives_its_reason():
    with (
        worker.Team(compare.Contestant("xcnn", "cdua", "", 2), CASE) as team,
        pytest.raises(compare.SpeedError, match=r"xcnn cdua 2 ranks fails at .*: .*unknown device 'cdua'; did you"),
    ):
        team.ask("ready")


def test_mpiexec_may_be_missing(xcnn, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *a, **k: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    code, _, err = xcnn("bench", "--ranks", "2", "--models", "report", "-b", "2")
    assert (code, err) == (2, "error: MPI: there is no mpiexec, which starts several processes; " + INSTALL + "\n")


def test_mpi4py_may_be_missing(xcnn, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mpi4py" else name)
    code, _, err = xcnn("bench", "--ranks", "2", "--models", "report", "-b", "2")
    assert (code, err) == (1, f"error: bench: mpi4py is not installed; {INSTALL}\n")


@needs_mpiexec
@needs_mpi
def test_the_lines_of_several_ranks(xcnn):
    quick = ("--models", "report", "-b", "4", "--rounds", "1", "--seconds", "0.01", "--threads", "1", "--json")
    code, out, err = xcnn("bench", "--ranks", "1,2", *quick)
    assert code == 0, err
    lines = [line for line in map(json.loads, out.splitlines()) if line["kind"] == "speed"]
    assert [(line["contestant"], line["variant"], line["ranks"]) for line in lines] == [
        ("xcnn", "cpu", 1), ("xcnn", "cpu", 2),
    ]  # fmt: skip
    alone, both = lines
    assert (alone["waiting"], alone["overlap"], alone["efficiency"]) == (None, None, None)
    assert both["efficiency"] == pytest.approx(alone["rounds"][0] / both["rounds"][0] / 2)
    assert 0 < both["waiting"] < 1
    assert 0 <= both["overlap"] < 1


@pytest.fixture
def result():
    timings = (
        compare.Timing(compare.Contestant("xcnn"), 8, 1.0, (0.010,), None, None),
        compare.Timing(OURS, 8, 1.0, (0.008,), None, None, waiting=0.1, under_way=0.4),
    )
    alone = compare.Contestant("torch", "torch:cpu", "NCHW")
    peers = tuple(compare.Timing(one, 8, 1.0, (0.016,), None, None) for one in (alone, TORCH))
    return compare.Result(CASE, timings, peers, 100, 1, {})


def test_the_table_of_several_ranks(result, capsys):
    print_results("train", [result])
    header, one, two = capsys.readouterr().out.splitlines()[-3:]
    columns = "model batch ranks ms/step images/s spread efficiency waiting overlap GFLOP/s of-peak memory first"
    assert header.split()[:13] == columns.split()
    assert one.split()[:9] == ["report", "6", "1", "10.00", "800", "0%", "-", "-", "-"]
    assert two.split()[:9] == ["report", "6", "2", "8.00", "1,000", "0%", "0.62", "10.0%", "75%"]
    assert "2.00  torch NCHW 2 ranks" in two


def test_the_report_of_several_ranks(result, capsys, tmp_path):
    print_json({"kind": "machine", "cpu": "a", "cores": 2, "threads": 1, "versions": {}})
    print_lines(result)
    (tmp_path / "lines").write_text(capsys.readouterr().out)
    text = compare.report(compare.read([str(tmp_path / "lines")]))
    assert "| train on cpu 2 ranks | all | the fastest | 1 | **2.00** |" in text
    assert "| `report` | 6 | 600 | 1.60 | torch NCHW |" in text
    assert "| `report`, 2 ranks | 6 | 750 | 2.00 | torch NCHW 2 ranks |" in text

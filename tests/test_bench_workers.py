"""The processes of `xcnn bench`: no worker hangs or is lost, and each says in one sentence why it ends."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from xcnn import compare, ops
from xcnn.compare import worker
from xcnn.compare.busy import busy

OURS = compare.Contestant("xcnn", "cpu")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the state of a process is not told")
def test_a_busy_process_ends_with_a_parent_that_is_killed():
    code = """
import subprocess, time
from xcnn.compare.busy import busy
popen, started = subprocess.Popen, []
subprocess.Popen = lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
with busy(1):
    print(started[0].pid, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        state = Path(f"/proc/{int(parent.stdout.readline())}/stat")
        assert state.exists()
        parent.kill()
    end = time.monotonic() + 30
    while state.exists() and state.read_text().split()[2] != "Z":
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes cannot be bound to cores")
def test_other_programs_keep_cores_busy_inside_a_with(monkeypatch):
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    with busy(2):
        where = [os.sched_getaffinity(one.pid) for one in started]
        assert [one.poll() for one in started] == [None, None]
        assert all(len(cores) == 1 for cores in where)
        assert len(set(map(tuple, where))) == min(2, len(os.sched_getaffinity(0)))
    assert [one.returncode for one in started] == [-9, -9]
    with busy(0):
        assert len(started) == 2


def test_a_worker_that_dies_is_one_sentence_at_once():
    with worker.Worker(OURS, compare.Case("report", 1, "train", 1)) as one:
        assert one.ask("ready") is None
        one.process.kill()
        with pytest.raises(
            compare.SpeedError, match=r"xcnn cpu fails at report, batch 1, train: .* exit code -9, as when "
        ):
            one.ask("burst", seconds=0.1)


def test_a_batch_without_enough_memory_is_one_sentence():
    with worker.Worker(OURS, compare.Case("report", 10**13, "infer", 1)) as one:
        message = r"^xcnn cpu fails at .*, infer: out of memory; choose a smaller batch \(Unable to allocate .*\)$"
        with pytest.raises(compare.SpeedError, match=message):
            one.ask("ready")


@pytest.mark.parametrize("fast", [0, 1])
def test_the_faster_product_is_the_yardstick_of_the_cpu(fast, monkeypatch):
    calls = []
    monkeypatch.setattr(np, "matmul", lambda a, b, out: (calls.append(0), time.sleep(0.05 * (fast != 0)), a)[2])
    monkeypatch.setattr(ops, "linear", lambda a, b: (calls.append(1), time.sleep(0.05 * (fast != 1)), (a,))[2])
    with compare.Contestant("sgemm", "cpu").opened(compare.Case("report", 1, "train", 1)) as step:
        assert {*calls} == {0, 1}
        step()
    assert calls[-1] == fast


def test_a_worker_that_fails_gives_its_reason():
    with (
        worker.Worker(compare.Contestant("xcnn", "cdua"), compare.Case("report", 1, "train", 1)) as one,
        pytest.raises(compare.SpeedError, match=r"xcnn cdua fails at .*: .*unknown device 'cdua'; did you mean 'cuda'"),
    ):
        one.ask("ready")


@pytest.mark.parametrize(
    ("errors", "gist"),
    [
        ("", ""),
        ("one\n\ntwo\n", "two"),
        ("Traceback (most recent call last):\n  File\nx.Error: no triton\n\nSet FLAG for more\n", "x.Error: no triton"),
        ("Traceback (most recent call last):\nA: b\n\nTraceback (most recent call last):\nC: it raised:\nD: e\n\nf\n",
         "C: it raised: D: e"),
        ("Traceback (most recent call last):\nC: it raised:\n", "C: it raised:"),
        ("Traceback (most recent call last):\n", ""),
    ],
)  # fmt: skip
def test_the_last_line_of_an_error_is_reported(errors, gist):
    assert worker._gist(errors) == gist


def test_a_worker_that_does_not_answer_times_out(monkeypatch):
    monkeypatch.setattr(worker, "PATIENCE", 0.5)
    with (
        worker.Worker(OURS, compare.Case("report", 1, "train", 1)) as one,
        pytest.raises(compare.SpeedError, match=r"no answer in 0\.5 seconds"),
    ):
        one.ask("burst", seconds=60)


def test_ctrl_c_while_a_worker_is_asked_leaves_nothing_that_delays_the_end(monkeypatch):
    timers = []

    class Interrupted(threading.Timer):
        def start(self):
            super().start()
            timers.append(self)
            raise KeyboardInterrupt

    with worker.Worker(OURS, compare.Case("report", 1, "train", 1)) as one:
        monkeypatch.setattr(threading, "Timer", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            one.ask("burst", seconds=1)
    timers[0].join(30)
    assert not timers[0].is_alive()
    assert timers[0].daemon


def test_workers_end_with_the_context():
    with worker.Worker(OURS, compare.Case("report", 1, "train", 1)) as one:
        pass
    assert one.process.returncode is not None

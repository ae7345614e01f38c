"""Several processes over MPI: what they exchange, and that they end together, however one of them ends."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import kill_ranks
import numpy as np
import pytest
import ranks
from commands import PORTABLE
from kill_runs import result
from ranks import needs_mpi

from xcnn.cli.devices import _mpi
from xcnn.errors import DtypeError
from xcnn.parallel import Launch, launch, mpi, mpi_status, processes
from xcnn.parallel.launch import wait_for_reader

OPEN = """
import os, sys, time
import numpy as np
from xcnn.parallel import failure, mpi, processes
failure.PATIENCE = float(os.environ.get("PATIENCE", failure.PATIENCE))
mpi._GRACE = 0.5
p = processes()
others = [k for k in range(p.size) if k != p.rank]
"""
"""The beginning of a program."""


def program(text: str, count: int = 2, patience: float = 0.3, **options) -> ranks.Ended:
    """Run a program; one of its processes that fails waits `patience` for the others."""
    return ranks.run(count, "-c", OPEN + text, env=os.environ | {"PATIENCE": str(patience)}, **options)


BUSY = 60.0
"""For processes that end together: on a machine that is so busy that one of them is late."""


# Exchanges

EXCHANGES = """
mpi._MOST = 1000  # bytes of a message

def numbers(sender, receiver, size, dtype, turn):
    rng = np.random.default_rng([sender, receiver, size, turn])
    return rng.integers(0, 256, (size, np.dtype(dtype).itemsize)).astype(np.uint8).view(dtype).reshape(size, 1)

cases = [(size, dtype, tag) for size in (0, 1, 3, 125, 40_000) for dtype in ("f4", "f8", "u1", "?") for tag in (0, 7)]
cases *= 2  # two exchanges of the same tag are matched in order
pending = []
for turn, (size, dtype, tag) in enumerate(cases):
    sent = [(k, numbers(p.rank, k, size, dtype, turn)) for k in others]
    rooms = [(k, np.empty((size, 1), dtype)) for k in others]
    pending.append((turn, p.exchange(sent, rooms, tag), rooms))
    del sent
for turn, done, rooms in pending[::-1]:
    p.wait(done)
    assert done() and done()
    size, dtype, tag = cases[turn]
    for k, room in rooms:
        assert room.tobytes() == numbers(k, p.rank, size, dtype, turn).tobytes(), (turn, k)
assert [int(x[0]) for x in p.gather(np.array([p.rank**2]))] == [k**2 for k in range(p.size)]
assert p.gather_bytes(bytes([p.rank]) * p.rank) == [bytes([k]) * k for k in range(p.size)]
counts = [k % 3 for k in range(p.size)]
rows = p.gather_rows(np.full((counts[p.rank], 2), p.rank))
assert rows.tolist() == [[k, k] for k in range(p.size) for _ in range(counts[k])]
p.exchange([(k, np.arange(5000)) for k in others], [], 3)  # what it sends lives on
room = [np.empty(5000, np.int64) for _ in others]
time.sleep(0.1)
p.wait(p.exchange([], list(zip(others, room)), 3))
assert all((one == np.arange(5000)).all() for one in room)
assert 0 <= p.local_rank < p.local_size == p.size and p.library
import xcnn

print(xcnn.get_num_threads())
"""


@needs_mpi
def test_exchanges_bring_each_array_to_its_process_and_cores_are_shared() -> None:
    found = program(EXCHANGES, 4)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert (found.code, "".join(found.out.split())) == (0, str(max(1, cores // 4)) * 4), found


@pytest.mark.parametrize("array", [np.zeros((4, 4))[:, 1:], [1.0], 3, np.zeros((3, 2)).T])
def test_only_contiguous_numpy_arrays_are_exchanged(array: object) -> None:
    with pytest.raises(DtypeError, match=r"^MPI: exchange takes [^\n]*, got [^\n]*$"):
        list(mpi._parts(array))


# Ends

FOREVER = "\ntime.sleep(0.1 * p.rank); p.gather(np.zeros(3))\n"
"""Waits for a process that never comes, if one does not."""


@needs_mpi
def test_an_exception_in_one_process_ends_all() -> None:
    found = program("if p.rank == 1: raise KeyError('lost')" + FOREVER)
    assert found.code == 1
    assert "rank 1: Traceback (most recent call last):" in found.err
    assert found.err.count("KeyError: 'lost'") == 1


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("cannot load MPI library\nlibmpi.so: cannot open: No such file\na.so: No such file", "finds no MPI library"),
        (
            "cannot load MPI library\nlibmpi.so: wrong ELF class",
            "cannot load an MPI library (cannot load MPI",
        ),
    ],
)
def test_without_an_mpi_library_it_says_so(monkeypatch: pytest.MonkeyPatch, reason: str, says: str) -> None:
    class Broken(types.ModuleType):
        rc = types.SimpleNamespace()

        def __getattr__(self, name: str) -> object:
            raise RuntimeError(reason) if name == "MPI" else AttributeError(name)

    monkeypatch.setitem(sys.modules, "mpi4py", Broken("mpi4py"))
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    found = mpi_status()
    assert not found["usable"]
    assert found["detail"].startswith(f"mpi4py {says}")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell how much of a pipe is unread")
def test_a_job_is_not_aborted_before_the_launcher_has_read_the_message() -> None:
    out, into = os.pipe()
    os.write(into, b"KeyError")
    threading.Timer(0.2, os.read, (out, 100)).start()
    wait_for_reader(into, patience=60)
    assert not select.select([out], [], [], 0)[0]
    os.write(into, b"unread")
    wait_for_reader(into, patience=0.01)  # and not for ever
    os.close(out)
    os.close(into)


@needs_mpi
def test_an_exception_in_all_processes_is_printed_once() -> None:
    found = program("raise KeyError('lost')", 3, BUSY)
    assert found.code == 1
    assert found.err.startswith("Traceback")
    assert found.err.count("KeyError: 'lost'") == 1


@needs_mpi
def test_different_exceptions_are_all_printed() -> None:
    found = program("raise KeyError('lost', p.rank % 2)", 3, BUSY)
    assert found.code == 1
    assert sorted(re.findall(r"(?:rank \d: )?Traceback|KeyError: .*", found.err)) == [
        "KeyError: ('lost', 0)", "KeyError: ('lost', 1)", "rank 0: Traceback", "rank 1: Traceback"
    ]  # fmt: skip


@needs_mpi
def test_a_process_that_has_ended_is_not_waited_for() -> None:
    found = program("if p.rank == 1: sys.exit(3)" + FOREVER)
    assert found.code & 1
    assert "process 0 waits for process 1, which has ended: all processes must take the same steps" in found.err


@needs_mpi
def test_a_process_that_ends_first_waits_for_the_others(tmp_path: Path) -> None:
    last = tmp_path / "last"
    found = program(f"if p.rank == 0:\n    time.sleep(1)\n    open({str(last)!r}, 'w').write('written')")
    assert (found.code, found.err) == (0, "")
    assert last.read_text() == "written"


@needs_mpi
def test_a_second_interruption_ends_a_process_that_waits_for_the_others() -> None:
    found = program(
        """
import signal, threading
if p.rank == 1:
    failure.PATIENCE = 600
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    raise KeyError("lost")
"""
        + FOREVER
    )
    assert found.code == 1
    assert "rank 1: Traceback" in found.err


def started(text: str, folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a program of two processes, and return it with their ids when both are ready."""
    ready = """
with open(f"{sys.argv[1]}/{p.rank}.new", "w") as file:
    file.write(str(os.getpid()))
os.rename(file.name, file.name.removesuffix(".new"))
"""
    running = ranks.start(2, "-c", OPEN + ready + text, str(folder))
    files, deadline = [folder / "0", folder / "1"], time.monotonic() + ranks.LONGEST
    while not all(file.exists() for file in files) and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.02)
    return running, [int(file.read_text()) for file in files]


def ended(ids: list[int]) -> bool:
    """Return whether processes end; those of Open MPI live a little longer than its `mpiexec`."""
    deadline = time.monotonic() + ranks.LONGEST
    while time.monotonic() < deadline:
        try:
            os.kill(ids[0], 0)
            time.sleep(0.01)
        except ProcessLookupError:
            ids = ids[1:]
            if not ids:
                return True
    return False


@needs_mpi
@pytest.mark.parametrize(("number", "who"), [(signal.SIGKILL, 1), (signal.SIGTERM, 0)])
def test_a_killed_process_ends_all(number: signal.Signals, who: int, tmp_path: Path) -> None:
    running, ids = started("while True: p.gather(np.zeros(3)); time.sleep(0.01)", tmp_path)
    os.kill(ids[who], number)
    assert ranks.wait(running).code != 0
    assert ended(ids)


@needs_mpi
@pytest.mark.skipif(not Path("/dev/shm").exists(), reason="shared memory has no folder here")
def test_a_killed_job_leaves_no_shared_memory() -> None:
    found = program(
        """
import signal
paths = sorted({line.split()[-1] for line in open("/proc/self/maps") if "/dev/shm/" in line})
p.gather(np.zeros(100_000))
if p.rank == 0:
    print(*(path for path in paths if path.startswith("/dev/shm/")), flush=True)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
"""
        + FOREVER
    )
    assert found.code != 0
    assert not [path for path in found.out.split() if os.path.exists(path)]


@needs_mpi
def test_ctrl_c_ends_all(tmp_path: Path) -> None:
    running, ids = started("while True: p.gather(np.zeros(3)); time.sleep(0.01)", tmp_path)
    running.send_signal(signal.SIGINT)
    assert ranks.wait(running).code != 0
    assert ended(ids)


@needs_mpi
def test_a_fork_has_no_part_in_the_job() -> None:
    found = program(
        """
child = os.fork()
if not child:
    raise KeyError("in the fork")
_, status = os.waitpid(child, 0)
p.gather(np.zeros(1000))
print(os.waitstatus_to_exitcode(status))
"""
    )
    assert (found.code, "".join(found.out.split())) == (0, "11"), found


# The command

COMMAND = """
import os, sys
from xcnn.parallel import failure
failure.PATIENCE = float(os.environ.get("PATIENCE", failure.PATIENCE))
from xcnn.__main__ import main
sys.exit(main())
"""


def xcnn(*argv: str, before: str = "", patience: float = BUSY) -> ranks.Ended:
    environment = PORTABLE | {"PATIENCE": str(patience)}
    return ranks.run(2, "-c", before + COMMAND, *argv, env=environment)


def lines(text: str) -> list[str]:
    """Return the lines on stderr without those that Open MPI's `mpiexec` adds for each exit code but 0."""
    return [line for line in text.split("-" * 60)[0].splitlines() if line]


@needs_mpi
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--lr", "-1"], "--lr must be a number in (0, inf), got -1.0"),
        (["bench"], "xcnn bench runs in one process; start it without mpiexec or srun"),
    ],
)
def test_a_mistake_is_reported_once(argv: list[str], message: str) -> None:
    found = xcnn(*argv)
    assert (found.code, found.out, lines(found.err)) == (2, "", [f"error: {message}"])


@needs_mpi
def test_a_list_is_printed_once() -> None:
    found = xcnn("models")
    assert (found.code, found.err, found.out.count("lenet5")) == (0, "", 1)


LOST = """
import numpy as np
from xcnn import cli
from xcnn.errors import DataError
from xcnn.parallel import processes

def lost():
    if processes().rank == 1:
        raise DataError("no such disk")
    processes().gather(np.zeros(3))

cli.app.command(lost)
"""


@needs_mpi
def test_an_error_of_one_process_ends_all() -> None:
    found = xcnn("lost", before=LOST, patience=0.3)
    assert (found.code, found.out, found.err.count("error: rank 1: no such disk\n")) == (1, "", 1)
    found = xcnn("lost", "--debug", before=LOST, patience=0.3)
    assert (found.code, found.err.count("rank 1: Traceback")) == (1, 1)


@needs_mpi
def test_sigterm_ends_a_command_that_waits_for_a_process_that_never_comes(tmp_path: Path) -> None:
    never = "if '1' in (os.environ.get('PMI_RANK'), os.environ.get('OMPI_COMM_WORLD_RANK')): sys.exit(3)\n"
    ready = f"open({str(tmp_path / 'ready')!r}, 'w')\n"
    begun = ranks.start(2, "-c", f"import os, sys\n{never}from xcnn.cli import main\n{ready}sys.exit(main(['models']))")
    deadline = time.monotonic() + ranks.LONGEST
    while not (tmp_path / "ready").exists() and begun.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)  # until it waits; it also ends if it does not yet
    begun.terminate()
    assert ranks.wait(begun).code != 0


@needs_mpi
def test_without_mpi4py_one_sentence_says_what_to_install() -> None:
    found = xcnn("models", before="import sys; sys.modules['mpi4py'] = None\n")
    assert found.code == 2
    assert lines(found.err) == ["error: MPI: mpi4py is not installed; pip install mpi4py mpich"]


@needs_mpi
def test_the_devices_tell_of_mpi() -> None:
    name, usable, text = _mpi()
    assert (name, usable) == ("mpi", "yes")
    assert re.fullmatch(r"\S.* [\d.]+, mpi4py [\d.]+; start with \S*mpiexec -n 2 xcnn train \.\.\.", text)
    tell = "from xcnn.cli.devices import _mpi; told = p.gather_bytes(_mpi()[2].encode())\n"
    found = program(tell + "if p.rank == 0: print(*(text.decode() for text in told), sep='\\n')")
    one, other = found.out.splitlines()
    assert re.fullmatch(r"\S.* [\d.]+, mpi4py [\d.]+; process 0 of 2 of mpiexec of (Open MPI|MPICH)", one)
    assert other == one.replace("process 0", "process 1")


@needs_mpi
@pytest.mark.parametrize("srun", [False, True])
def test_a_launcher_that_does_not_connect_the_processes_is_named(srun: bool) -> None:
    rank, size = "PMI_RANK", "PMI_SIZE"
    launcher = "mpiexec of MPICH"
    fix = "start them with the mpiexec of that library, or install the library of the launcher"
    if srun:
        rank, size, launcher = "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "srun"
        fix = "let srun connect them, with the --mpi that this library knows (srun --mpi=list)"
    elif not mpi_status()["library"].startswith("Open MPI"):
        rank, size, launcher = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "mpiexec of Open MPI"
    command = [sys.executable, "-m", "xcnn", "models"]
    environment = PORTABLE | {rank: "0", size: "2"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=ranks.LONGEST)
    assert found.returncode == 2
    begin = (
        f"error: MPI: {launcher} has started 2 processes, but mpi4py uses {mpi_status()['library']}, in which each is"
    )
    assert f"{begin} alone; {fix}\n" in found.stderr


# Launchers


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"PMI_RANK": "1", "PMI_SIZE": "4"}, Launch("mpiexec of MPICH", 1, 4)),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3", "PMIX_RANK": "2"},
         Launch("mpiexec of Open MPI", 2, 3)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"}, None),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "PMIX_RANK": "3"}, Launch("srun", 3, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # in a script of sbatch, outside srun
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"PMIX_RANK": "1"}, Launch("PMIx", 1, 0)),
        ({"PMI_RANK": "", "PMI_SIZE": "many"}, None),
    ],
)  # fmt: skip
def test_a_launcher_is_known_by_its_environment(environment: dict[str, str], expected: Launch | None) -> None:
    assert launch(environment) == expected


def test_without_a_launcher_there_is_one_process_and_no_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("PMI", "OMPI", "SLURM"))]:
        monkeypatch.delenv(name)
    code = "import sys; from xcnn.parallel import processes; p = processes(); print(p.size, 'mpi4py' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "False"]
    assert processes().size == 1


# Runs

TRAIN = COMMAND.replace("import os, sys\n", f"import os, sys\nsys.path.append({str(Path(__file__).parent)!r})\n")
SETTINGS = ["train", *kill_ranks.SETTINGS]
ENVIRONMENT = PORTABLE | {"PATIENCE": str(BUSY)}


@needs_mpi
def test_a_run_that_a_signal_to_one_process_stops_goes_on_with_others_to_the_same_bits(tmp_path: Path) -> None:
    """Batch norm, dropout, augmentation, momentum, averaged weights; without a launcher, on 3 processes, and on 2."""
    alone, folder = tmp_path / "alone", tmp_path / "run"
    subprocess.run([sys.executable, "-c", TRAIN, *SETTINGS, "--out", str(alone)], env=ENVIRONMENT, check=True)
    begun = ranks.start(3, "-c", TRAIN, *SETTINGS, "--out", str(folder), env=ENVIRONMENT)
    deadline = time.monotonic() + ranks.LONGEST
    while not [*folder.glob("checkpoints/step-*[1-9]*")] and begun.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    for rank, process in kill_ranks.ranks(folder).items():
        with contextlib.suppress(ProcessLookupError):
            if rank == 1:
                os.kill(process, signal.SIGTERM)
    found = ranks.wait(begun)
    assert found.code in (0, 143), found  # 0 if the machine was so busy that the signal came too late
    assert found.code == 0 or len(re.findall(r"interrupted after \d of 6 epochs; the weights are in", found.err)) == 1
    again = ranks.run(2, "-c", TRAIN, "train", *kill_ranks.MODEL, "--resume", str(folder), env=ENVIRONMENT)
    assert again.code == 0, again
    assert again.err.count("resuming from ") == 1
    assert result(folder) == result(alone)
    assert json.loads((folder / "config.json").read_text())["accumulate"] == 4

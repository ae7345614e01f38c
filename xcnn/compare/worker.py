"""A contestant in its own process, with its own threads, allocator and peak of memory.

The parent sends a request, a line of JSON on stdin, and waits for the answer, a line of JSON on stdout. The worker is
idle in between, and ends when stdin is closed.

A contestant with several processes is a `Team`, which `mpiexec` starts. Each of them connects to a socket of the parent
and then does the same there, so that none of them waits for requests in a library of communication, which takes time of
the processor.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, Self

from xcnn.compare.case import Case
from xcnn.compare.contestants import ENVIRONMENT, Contestant, Group, Step
from xcnn.compare.gpu import CPU
from xcnn.compare.launches import launches
from xcnn.compare.meter import meter
from xcnn.compare.parts import costs
from xcnn.errors import XcnnError
from xcnn.machine import waited
from xcnn.parallel import launch_command

__all__ = ["COMMAND", "PATIENCE", "THREADS", "SpeedError", "Team", "Worker", "main", "started"]

COMMAND = "from xcnn.compare.worker import main; main()"
"""The Python code that the process runs."""

PATIENCE = 300.0
"""Seconds after which a worker without an answer is killed. Compiling a network takes less."""

THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NPROC",  # XLA's
)
"""Environment variables from which libraries read their number of threads on import."""


class SpeedError(XcnnError):
    """Raised when a measurement fails."""


class Worker:
    """A process that runs a case of a contestant, until the `with` block ends."""

    def __init__(self, contestant: Contestant, case: Case) -> None:
        self.contestant, self.case = contestant, case
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = self._start(json.dumps([dataclasses.asdict(contestant), dataclasses.asdict(case)]))

    def _start(self, arguments: str) -> subprocess.Popen[str]:
        process = self._popen([sys.executable, "-c", COMMAND, arguments], subprocess.PIPE, subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        self.questions, self.answers = process.stdin, process.stdout
        return process

    def _popen(self, command: Sequence[str], stdin: int, stdout: int | IO[str]) -> subprocess.Popen[str]:
        threads = dict.fromkeys(THREADS, str(self.case.threads))
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=self.errors,
            text=True,
            env=os.environ | threads | ENVIRONMENT.get(self.contestant.name, {}),
            start_new_session=True,  # Ctrl-C reaches only the parent, which ends the workers
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._kill()
        with contextlib.suppress(BrokenPipeError):  # the process may have died before it read the last request
            self._hang_up()
        with self.process, self.errors:  # closes the pipes and waits
            pass

    def _kill(self) -> None:
        self.process.kill()

    def _hang_up(self) -> None:
        self.questions.close()

    def _answer(self, request: str, arguments: dict[str, Any]) -> Any:
        """Return the answer to a request; None, which is no answer, if the process has ended."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([request, arguments]), file=self.questions, flush=True)
        line = self.answers.readline()
        return json.loads(line) if line else None

    def _written(self) -> str:
        """Return what the process has written to stderr."""
        self.errors.seek(0)
        return self.errors.read()

    def ask(self, request: str, **arguments: Any) -> Any:
        """Call a method of `_Work` in the process, and return its result.

        Raises
        ------
        SpeedError
            If the process ends or does not answer. The message quotes its exception, or the last line that it wrote.
        """
        stuck = threading.Timer(PATIENCE, self._kill)
        stuck.daemon = True  # Ctrl-C may come at any place here, and the process must end without it
        try:
            stuck.start()
            answer = self._answer(request, arguments)
        finally:
            late = not stuck.is_alive()
            stuck.cancel()
        if answer is not None:
            return answer[0]
        code = self.process.wait()
        why = _gist(self._written()) or f"the process ended with exit code {code}"
        if late:
            why = f"no answer in {PATIENCE:g} seconds"
        elif "MemoryError: " in why and "OutOfMemoryError" not in why:  # whose message says what to do
            why = f"out of memory; choose a smaller batch ({why.partition('MemoryError: ')[2]})"
        elif code == -signal.SIGKILL:  # which the system sends
            why += ", as when memory runs out; choose a smaller batch"
        raise SpeedError(f"{self.contestant} fails at {self.case}: {why}")


def _gist(errors: str) -> str:
    """Return the message of an uncaught exception as one line, or the last line."""
    lines = errors.strip().splitlines()
    traced = [number for number, line in enumerate(lines) if line.startswith("Traceback (")]
    # The indented lines of a traceback are its stack. A line that ends with a colon continues on the next one.
    message = [line for line in lines[traced[-1] + 1 :] if line[:1].strip()] if traced else lines[-1:]
    end = next((number for number, line in enumerate(message) if not line.endswith(":")), 0)
    return " ".join(message[: end + 1])


class Team(Worker):
    """The processes that run a case of a contestant together, until the `with` block ends."""

    def _start(self, arguments: str) -> subprocess.Popen[str]:
        self._connections: list[socket.socket] = []
        self._files: list[IO[str]] = []
        self._pids: list[int] = []
        self._pace = 0.0
        self._folder = tempfile.TemporaryDirectory()
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(f"{self._folder.name}/door")
        self._door.listen(self.contestant.ranks)
        command = [sys.executable, "-c", COMMAND, arguments, self._folder.name]
        return self._popen(launch_command(self.contestant.ranks, *command), subprocess.DEVNULL, self.errors)

    def _kill(self) -> None:
        self.process.terminate()  # mpiexec, which ends the processes
        for pid in self._pids:  # also of one that does not
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _hang_up(self) -> None:
        self._door.close()
        for file, connection in zip(self._files, self._connections, strict=True):
            with contextlib.suppress(BrokenPipeError):
                file.close()
            connection.close()
        try:
            self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._folder.cleanup()

    def _meet(self) -> bool:
        """Wait until all processes have connected, unless one ends before; return whether they have."""
        self._door.settimeout(0.1)
        while len(self._files) < self.contestant.ranks:
            try:
                connection, _ = self._door.accept()
            except TimeoutError:
                if self.process.poll() is not None:
                    return False
                continue
            connection.settimeout(None)
            self._connections.append(connection)
            self._files.append(connection.makefile("rw", encoding="utf-8"))
            self._pids.append(int(self._files[-1].readline()))
        for rank, file in enumerate(self._files):
            print(rank, self.contestant.ranks, file=file, flush=True)
        return True

    def _answer(self, request: str, arguments: dict[str, Any]) -> Any:
        """Return the answer of all processes, which take the same number of steps."""
        if not self._files and not self._meet():
            return None
        if "seconds" in arguments:
            if not self._pace:
                self._pace = 1e9  # so that it is one step
                if self._answer("burst", {"seconds": 0.0}) is None:
                    return None
            arguments = {**arguments, "count": max(1, round(arguments["seconds"] / self._pace))}
        answers: dict[int, Any] = {}
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for file in self._files:
                print(json.dumps([request, arguments]), file=file, flush=True)
            while len(answers) < len(self._files):
                for ready in wait([one for rank, one in enumerate(self._connections) if rank not in answers]):
                    rank = self._connections.index(ready)  # type: ignore[arg-type]
                    line = self._files[rank].readline()
                    if not line:
                        break
                    answers[rank] = json.loads(line)[0]
                else:
                    continue
                break
        if len(answers) < len(self._files):
            self._kill()  # the others would wait for the one that has ended
            return None
        found = _together(request, [answers[rank] for rank in range(len(answers))])
        if request == "burst":
            self._pace = found[0]
        return [found]

    def _written(self) -> str:
        """Return the traceback of the first process that an exception has ended, or what `mpiexec` has written."""
        every = [path.read_text("utf-8", "replace") for path in sorted(Path(self._folder.name).glob("stderr-*"))]
        quiet = _SILENT if self._files else super()._written()
        return next((text for text in every if "Traceback (" in text), quiet)


_SILENT = "one of its processes ended, as when memory runs out; choose a smaller batch"

_GRACE = 5.0
"""Seconds in which `mpiexec` must end the processes."""


def _together(request: str, answers: Sequence[Any]) -> Any:
    """Return one answer for all processes: of times, the longest."""
    if request == "burst":
        waits, shares = ([one[k] for one in answers if one[k] is not None] for k in (1, 2))
        share = [statistics.fmean(column) for column in zip(*shares, strict=True)] if shares else None
        return max(one[0] for one in answers), statistics.fmean(waits) if waits else None, share
    if request == "memory":
        return None if None in answers else sum(answers)
    return max(answers) if isinstance(answers[0], float) else answers[0]


def started(contestant: Contestant, case: Case) -> Worker:
    """Start the process or the processes of a contestant."""
    return (Team if contestant.ranks > 1 else Worker)(contestant, case)


class _Work:
    """The requests, as methods with JSON values as arguments and results."""

    def __init__(self, contestant: Contestant, case: Case, step: Step, group: Group | None = None) -> None:
        self._contestant, self._case, self._step, self._group = contestant, case, step, group
        self._meter = meter(contestant.device)
        self._grown = self._meter.growth()

    def ready(self) -> None:
        """Return when the contestant is ready."""

    def first(self) -> float:
        """Return the seconds of the first step, which compiles kernels and fills caches."""
        start = time.perf_counter()
        self._step()
        self._meter.settle()
        return time.perf_counter() - start

    def burst(self, seconds: float, count: int = 0) -> tuple[float, float | None, tuple[float, float] | None]:
        """Run steps for about `seconds`, or `count` if that is not 0.

        Return seconds per step, and as shares of the time, that for which a thread waited for a core, and those for
        which the process waited for others, and for which exchanges with others were under way.
        """
        self._step()  # wakes the threads, and fills the processor's caches again
        self._meter.settle()
        traffic = None if self._group is None else self._group.traffic
        before, told = waited(), None if traffic is None else (traffic.waited, traffic.under_way)
        one, whole = self._meter.turn(self._step, seconds, count)
        after = waited()
        threads = self._case.threads if self._contestant.hardware == CPU else 1  # the thread that launches kernels
        shares = None
        if traffic is not None and told is not None:
            shares = (traffic.waited - told[0]) / whole, (traffic.under_way - told[1]) / whole
        return one, None if before is None or after is None else (after - before) / threads / whole, shares

    def loaded(self, seconds: float, count: int = 0) -> float:
        """Return the mean seconds of a step; a median would leave out the steps that waited for a core."""
        self._step()
        self._meter.settle()
        done, start = 0, time.perf_counter()
        while done < count if count else not done or time.perf_counter() < start + seconds:
            self._step()
            done += 1
        self._meter.settle()
        return (time.perf_counter() - start) / done

    def memory(self) -> int | None:
        """Return the growth of memory in bytes from before the first step to the peak."""
        return self._grown()

    def costs(self, seconds: float) -> list[dict[str, Any]]:
        """Return the time of each part of the network, measured for about `seconds`."""
        return [*costs(self._case, self._contestant, self._step, seconds)]

    def launches(self) -> dict[str, Any]:
        """Return the GPU calls of a step. This loads PyTorch, so no measurement may follow."""
        return dataclasses.asdict(launches(self._step))


def main() -> None:
    """Run the worker described by the arguments of the process, until there are no more requests."""
    contestant, case = json.loads(sys.argv[1])
    contestant, case = Contestant(**contestant), Case(**case)
    if len(sys.argv) > 2:
        _run_member(contestant, case, sys.argv[2])
        return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of a library must not be read as an answer
    with contestant.opened(case) as step:
        _serve(_Work(contestant, case, step), sys.stdin, answers)


def _serve(work: _Work, requests: IO[str], answers: IO[str]) -> None:
    for line in requests:
        request, arguments = json.loads(line)
        print(json.dumps([getattr(work, request)(**arguments)]), file=answers, flush=True)


def _run_member(contestant: Contestant, case: Case, folder: str) -> None:
    """Run one of the processes of a team."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{folder}/door")
        with connection.makefile("rw", encoding="utf-8") as parent:
            print(os.getpid(), file=parent, flush=True)
            rank, size = map(int, parent.readline().split())
            with open(f"{folder}/stderr-{rank}", "w", encoding="utf-8") as errors:
                os.dup2(errors.fileno(), 2)
            group = Group(rank, size, folder)
            try:
                with contestant.opened(case, group) as step:
                    _serve(_Work(contestant, case, step, group), parent, parent)
            except BaseException:
                traceback.print_exc()
                os._exit(1)  # at once: the others may wait for this one

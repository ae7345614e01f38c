"""A contestant in its own process, with its own threads, allocator and peak of memory.

The parent sends a request, a line of JSON on stdin, and waits for the answer, a line of JSON on stdout. The worker is
idle in between, and ends when stdin is closed.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Self

from xcnn.compare.case import Case
from xcnn.compare.contestants import ENVIRONMENT, Contestant, Step
from xcnn.compare.gpu import CPU
from xcnn.compare.launches import launches
from xcnn.compare.meter import meter
from xcnn.compare.parts import costs
from xcnn.errors import XcnnError
from xcnn.machine import waited

__all__ = ["COMMAND", "PATIENCE", "THREADS", "SpeedError", "Worker", "main"]

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
        arguments = json.dumps([dataclasses.asdict(contestant), dataclasses.asdict(case)])
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | dict.fromkeys(THREADS, str(case.threads)) | ENVIRONMENT.get(contestant.name, {}),
            start_new_session=True,  # Ctrl-C reaches only the parent, which ends the workers
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.questions, self.answers = self.process.stdin, self.process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):  # the process may have died before it read the last request
            self.questions.close()
        with self.process, self.errors:  # closes the pipes and waits
            pass

    def ask(self, request: str, **arguments: Any) -> Any:
        """Call a method of `_Work` in the process, and return its result.

        Raises
        ------
        SpeedError
            If the process ends or does not answer. The message quotes its exception, or the last line that it wrote.
        """
        stuck = threading.Timer(PATIENCE, self.process.kill)
        stuck.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps([request, arguments]), file=self.questions, flush=True)
            line = self.answers.readline()
        finally:
            late = not stuck.is_alive()
            stuck.cancel()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.errors.seek(0)
        why = _gist(self.errors.read()) or f"the process ended with exit code {code}"
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


class _Work:
    """The requests, as methods with JSON values as arguments and results."""

    def __init__(self, contestant: Contestant, case: Case, step: Step) -> None:
        self._contestant, self._case, self._step = contestant, case, step
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

    def burst(self, seconds: float) -> tuple[float, float | None]:
        """Run steps for about `seconds`; return seconds per step, and the share of time spent waiting for a core."""
        self._step()  # wakes the threads, and fills the processor's caches again
        self._meter.settle()
        before = waited()
        one, whole = self._meter.turn(self._step, seconds)
        after = waited()
        threads = self._case.threads if self._contestant.hardware == CPU else 1  # the thread that launches kernels
        return one, None if before is None or after is None else (after - before) / threads / whole

    def loaded(self, seconds: float) -> float:
        """Return the mean seconds of a step; a median would leave out the steps that waited for a core."""
        self._step()
        self._meter.settle()
        count, start = 0, time.perf_counter()
        while not count or time.perf_counter() < start + seconds:
            self._step()
            count += 1
        self._meter.settle()
        return (time.perf_counter() - start) / count

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
    """Run the worker described by the argument of the process, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of a library must not be read as an answer
    contestant, case = json.loads(sys.argv[1])
    contestant, case = Contestant(**contestant), Case(**case)
    with contestant.opened(case) as step:
        work = _Work(contestant, case, step)
        for line in sys.stdin:
            request, arguments = json.loads(line)
            print(json.dumps(getattr(work, request)(**arguments)), file=answers, flush=True)

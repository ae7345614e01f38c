"""A contestant in a process of its own, so that its threads, its allocator and its peak of memory are its own.

The parent asks, one JSON line on stdin, and blocks until the answer comes, one JSON line on stdout; the worker does
nothing in between. It ends when stdin does.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from xcnn.compare.case import Case
from xcnn.compare.contestants import ENVIRONMENT, Contestant, Step
from xcnn.compare.gpu import CPU
from xcnn.compare.launches import launches
from xcnn.compare.meter import Meter, meter
from xcnn.compare.profile import profile
from xcnn.compare.speed import SpeedError
from xcnn.machine import waited

__all__ = ["COMMAND", "PATIENCE", "REQUESTS", "THREADS", "Worker", "main"]

COMMAND = "from xcnn.compare.worker import main; main()"
"""What the process runs."""

PATIENCE = 300.0
"""Seconds without an answer after which a worker counts as stuck. Compiling a network is not to take that long."""

THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NPROC",  # XLA's
)
"""The environment variables that libraries take their number of threads from when they load."""


class Worker:
    """A process that is started; a context that ends it.

    Parameters
    ----------
    contestant : who runs in it.
    case : what it runs.
    """

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
            start_new_session=True,  # Ctrl-C is for the parent, which ends the workers
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.questions, self.answers = self.process.stdin, self.process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):  # of a question that a dead process did not read
            self.questions.close()
        with self.process, self.errors:  # closes the pipes and waits
            pass

    def ask(self, request: str, **arguments: Any) -> Any:
        """Wait for the answer to one of `REQUESTS`.

        Raises
        ------
        SpeedError
            Where the process ends or is silent for too long; it quotes the exception, or the last line that it wrote.
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
        why = f"no answer in {PATIENCE:g} seconds" if late else self._last_words()
        raise SpeedError(f"bench: {self.contestant} fails at {self.case}: {why}")

    def _last_words(self) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        return _gist(self.errors.read()) or f"the process ended with exit code {code}"


def _gist(errors: str) -> str:
    """Give what an uncaught exception says, without what it adds in further lines; else the last line."""
    lines = errors.strip().splitlines()
    traced = [number for number, line in enumerate(lines) if line.startswith("Traceback (")]
    said = [line for line in lines[traced[-1] + 1 :] if line[:1].strip()] if traced else lines[-1:]
    whole = next((number for number, line in enumerate(said) if not line.endswith(":")), 0)  # "it raised:" goes on
    return " ".join(said[: whole + 1])


@dataclasses.dataclass(frozen=True)
class _Ready:
    """What a worker works with."""

    contestant: Contestant
    case: Case
    step: Step
    meter: Meter
    grown: Callable[[], int | None]


def _ready(worker: _Ready) -> None:
    """Answer once the contestant is ready."""


def _first(worker: _Ready) -> float:
    """Time the first step, in seconds, which compiles and fills caches."""
    start = time.perf_counter()
    worker.step()
    worker.meter.settle()
    return time.perf_counter() - start


def _burst(worker: _Ready, seconds: float) -> tuple[float, float | None]:
    """Do steps for about so many seconds; give the time of one, in seconds, and the share spent waiting."""
    worker.step()  # wakes threads and fills the processor's caches after the others had them
    worker.meter.settle()
    before = waited()
    one, whole = worker.meter.turn(worker.step, seconds)
    after = waited()
    threads = worker.case.threads if worker.contestant.hardware == CPU else 1  # the one that launches
    return one, None if before is None or after is None else (after - before) / threads / whole


def _memory(worker: _Ready) -> int | None:
    """Tell how many bytes the steps took at the peak, over what was held when the contestant was ready."""
    return worker.grown()


def _profile(worker: _Ready, seconds: float) -> list[dict[str, Any]]:
    """Profile xcnn layer by layer for about so many seconds."""
    return [dataclasses.asdict(row) for row in profile(worker.case, worker.contestant.device, seconds)]


def _launches(worker: _Ready) -> dict[str, Any]:
    """Count what a step calls a GPU for. It loads PyTorch, so that nothing is to be measured afterwards."""
    return dataclasses.asdict(launches(worker.step))


REQUESTS: dict[str, Callable[..., Any]] = {
    "ready": _ready,
    "first": _first,
    "burst": _burst,
    "memory": _memory,
    "profile": _profile,
    "launches": _launches,
}
"""What a worker can be asked for."""


def main() -> None:
    """Be the worker that the process's one argument describes, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    contestant, case = json.loads(sys.argv[1])
    contestant, case = Contestant(**contestant), Case(**case)
    with contestant.opened(case) as step:
        measures = meter(contestant.device)
        worker = _Ready(contestant, case, step, measures, measures.growth())
        for line in sys.stdin:
            request, arguments = json.loads(line)
            print(json.dumps(REQUESTS[request](worker, **arguments)), file=answers, flush=True)

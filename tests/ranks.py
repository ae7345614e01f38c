"""Programs of several processes for tests, started by the `mpiexec` that is found. Skips if there is none."""

import functools
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from xcnn.parallel import launch_command, mpi_status
from xcnn.parallel.launch import mpiexec

__all__ = ["Ended", "missing", "needs_mpi", "run", "start", "wait"]

LONGEST = 120.0
"""Seconds after which a program counts as hung, on a busy machine too."""


@functools.cache
def missing() -> str:
    """Return why no program of several processes can be started here; "" if they can.

    With `$XCNN_REQUIRE_MPI` this is a failure, so that no test is skipped for that.
    """
    reason = _missing()
    assert not (reason and os.environ.get("XCNN_REQUIRE_MPI")), reason
    return reason


def _missing() -> str:
    if not mpi_status()["usable"]:
        return mpi_status()["detail"]
    if mpiexec() is None:
        return "there is no mpiexec"
    program = "from mpi4py import MPI; print(MPI.COMM_WORLD.Get_size())"
    command = launch_command(2, sys.executable, "-c", program)
    found = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    if sorted(found.stdout.replace("\n", "")) != ["2", "2"]:
        return f"mpiexec does not start two processes that find each other: {found.stdout} {found.stderr}"
    return ""


needs_mpi = pytest.mark.skipif(bool(missing()), reason=missing() or "-")
"""Skips a test if no program of several processes can be started."""


@dataclass
class Ended:
    """How a program has ended, and what it has printed."""

    code: int
    out: str
    err: str
    seconds: float


def start(count: int, *argv: str, **options) -> subprocess.Popen[str]:
    """Start processes of `python *argv`."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen(launch_command(count, sys.executable, *argv), start_new_session=True, **options)


def wait(program: subprocess.Popen[str], seconds: float = LONGEST) -> Ended:
    """Wait for the end of a program; fail if it hangs."""
    begin = time.monotonic()
    try:
        out, err = program.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)  # mpiexec's own processes end the others
        out, err = program.communicate(timeout=LONGEST)
        pytest.fail(f"the program hangs after {seconds} s; it had printed {out!r} and {err!r}")
    return Ended(program.returncode, out, err, time.monotonic() - begin)


def run(count: int, *argv: str, **options) -> Ended:
    """Run processes of `python *argv` to their end."""
    return wait(start(count, *argv, **options))

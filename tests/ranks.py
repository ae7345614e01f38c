"""Programs of several processes for tests, started by the `mpiexec` that is found. Skips if there is none."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from xcnn.errors import DeviceError
from xcnn.parallel import launch_command, mpi_status

__all__ = ["Ended", "missing", "needs_mpi", "run", "start", "wait"]

LONGEST = 120.0
"""Seconds after which a program counts as hung, on a busy machine too."""


@functools.cache
def missing() -> str:
    """Return why no program of several processes can be started here; "" if they can."""
    if not mpi_status()["usable"]:
        return mpi_status()["detail"]
    with contextlib.suppress(DeviceError):
        program = "from mpi4py import MPI; print(MPI.COMM_WORLD.Get_size())"
        command = launch_command(2, sys.executable, "-c", program)
        found = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
        return "" if found.stdout.split() == ["2", "2"] else "the mpiexec that was found is of another MPI library"
    return "there is no mpiexec"


def needs_mpi() -> None:
    """Skip a test, or the tests of a file, if no program of several processes can be started."""
    if missing():
        pytest.skip(missing(), allow_module_level=True)


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

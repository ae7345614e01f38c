"""How this process was started: alone, or by a launcher of MPI as one of several. And whether MPI can be used here."""

import atexit
import contextlib
import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcnn.errors import DeviceError

__all__ = [
    "INSTALL",
    "Launch",
    "abort",
    "initialised",
    "launch",
    "launch_command",
    "let_read",
    "library_name",
    "loaded",
    "mpi_status",
    "mpiexec",
    "wait_for_reader",
]

_PAUSE = 5e-3
"""Seconds between two looks at a pipe."""

INSTALL = "pip install mpi4py mpich"
"""Installs what a computer without MPI lacks; on a cluster, its own MPI takes the place of `mpich`."""

_LAUNCHERS = (
    ("mpiexec of Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("mpiexec of MPICH", "PMI_RANK", "PMI_SIZE"),  # also of Intel MPI and MVAPICH
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("PMIx", "PMIX_RANK", ""),
)
"""Launchers, and the environment variables in which they tell a process its number and how many there are."""

_OF_MPICH = re.compile("MPICH|MVAPICH|Intel")
"""What libraries of MPICH's family say of themselves. Under the launcher of Open MPI they end the process."""


@dataclass(frozen=True)
class Launch:
    """How a launcher has started this process.

    Attributes
    ----------
    launcher : which one, as it is called in messages.
    rank : the number of this process, from 0.
    size : how many processes it has started; 0 if only MPI can tell.
    """

    launcher: str
    rank: int
    size: int


def launch(environment: Mapping[str, str] | None = None) -> Launch | None:
    """Return how a launcher of MPI has started this process as one of several, or None if it is alone."""
    given = os.environ if environment is None else environment
    for launcher, rank, size in _LAUNCHERS:
        if rank in given and (not size or size in given):
            try:
                found = Launch(launcher, int(given[rank]), int(given[size]) if size else 0)
            except ValueError:  # set by something else
                continue
            return None if found.size == 1 else found
    return None


def mpiexec() -> str | None:
    """Return the `mpiexec` beside this Python, or the one in the PATH; None if there is none."""
    return shutil.which("mpiexec", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))


def launch_command(count: int, *command: str) -> list[str]:
    """Return the command that starts that many processes of another one on this host, however few cores it has.

    Raises
    ------
    DeviceError
        If there is no `mpiexec`.
    """
    program = mpiexec()
    if program is None:
        raise DeviceError(f"MPI: there is no mpiexec, which starts several processes; {INSTALL}")
    told = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    flags = [] if "HYDRA" in told else ["--oversubscribe", "--bind-to", "none"]  # as that of MPICH does by itself
    if flags and getattr(os, "geteuid", lambda: 1)() == 0:
        flags.append("--allow-run-as-root")
    return [program, *flags, "-n", str(count), *command]


def wait_for_reader(file: int, patience: float = 1.0) -> None:
    """Wait until what was written into a pipe has been read: when a job is aborted, its launcher drops the rest."""
    try:
        import fcntl
        import termios
    except ImportError:  # Windows
        return
    deadline = time.monotonic() + patience
    while stat.S_ISFIFO(os.fstat(file).st_mode) and any(fcntl.ioctl(file, termios.FIONREAD, bytes(4))):
        if time.monotonic() > deadline:
            return
        time.sleep(_PAUSE)
    time.sleep(4 * _PAUSE)  # what has been read is still on its way


def let_read() -> None:
    """Wait until the launcher has read what this process has printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
            wait_for_reader(stream.fileno())


def abort(code: int) -> None:
    """End all processes that MPICH's `mpiexec` has started, without MPI; other launchers may wait for an exit code.

    For a process that cannot initialise MPI: the others would wait for it in their initialisation for ever.
    """
    let_read()
    with contextlib.suppress(KeyError, ValueError, OSError):
        os.write(int(os.environ["PMI_FD"]), b"cmd=abort exitcode=%d\n" % code)  # as MPI_Abort does


def loaded() -> Any:
    """Return the module `mpi4py.MPI` without initialising MPI; raise a DeviceError if it cannot be loaded."""
    try:
        import mpi4py

        # Without effect if the program has imported mpi4py.MPI itself, which then has initialised it.
        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI
    except ImportError as error:
        missing = "mpi4py is not installed" if error.name == "mpi4py" else f"mpi4py cannot be used ({_line(error)})"
        raise DeviceError(f"MPI: {missing}; {INSTALL}") from None
    except (RuntimeError, OSError) as error:
        _, *tried = str(error).splitlines() or [""]  # a line for each name under which the library may be
        absent = bool(tried) and all("No such file" in line for line in tried)
        what = "finds no MPI library" if absent else f"cannot load an MPI library ({_line(error)})"
        raise DeviceError(f"MPI: mpi4py {what}; {INSTALL}") from None
    return MPI


def initialised() -> Any:
    """Return the module `mpi4py.MPI` with MPI initialised; raise a DeviceError if that is not that of the launcher."""
    here, api = launch(), loaded()
    name = library_name(api.Get_library_version())
    other = here is not None and here.launcher == "mpiexec of Open MPI" and _OF_MPICH.search(name)
    if not other:
        if not api.Is_initialized():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about what is looked at here
                api.Init_thread()
            atexit.register(_finalize, api, os.getpid())
        size = api.COMM_WORLD.Get_size()
        other = here is not None and here.size != size and size == 1
    if other and here is not None:
        fix = "start them with the mpiexec of that library, or install the library of the launcher"
        if here.launcher == "srun":
            fix = "let srun connect them, with the --mpi that this library knows (srun --mpi=list)"
        raise DeviceError(
            f"MPI: {here.launcher} has started {here.size or 'several'} processes, but mpi4py uses {name}, in which "
            f"each is alone; {fix}"
        )
    return api


def _finalize(api: Any, process: int) -> None:
    """End MPI, but not in a fork of the process that has initialised it."""
    if os.getpid() == process and not api.Is_finalized():
        api.Finalize()


def library_name(version: str) -> str:
    """Return name and version of an MPI library from what it says of itself, which may take many lines.

    >>> library_name("MPICH Version:      5.0.2")
    'MPICH 5.0.2'
    >>> library_name("Open MPI v5.0.11, package: Open MPI user@localhost Distribution")
    'Open MPI 5.0.11'
    """
    line = version.strip("\0\n ").split("\n")[0].split(",")[0]
    return " ".join(re.sub(r"\b(Version|Library)\b|:", " ", line).replace(" v", " ").split())


def mpi_status() -> dict[str, Any]:
    """Return what is known of MPI here, without initialising it.

    Returns
    -------
    A dict with `usable`; `detail`, the library, or what is missing; the versions `mpi4py` and `library`; `mpiexec`, the
    program; `launcher`, `rank` and `size`, of the launch that this process is part of. What there is not is None.
    """
    here = launch()
    try:
        library, fault = library_name(loaded().Get_library_version()), ""
    except DeviceError as error:
        library, fault = None, str(error).removeprefix("MPI: ")
    try:
        version = importlib.metadata.version("mpi4py")
    except importlib.metadata.PackageNotFoundError:
        version = None
    return {
        "usable": not fault,
        "detail": fault or f"{library}, mpi4py {version}",
        "mpi4py": version,
        "library": library,
        "mpiexec": mpiexec(),
        "launcher": here and here.launcher,
        "rank": here and here.rank,
        "size": (here and here.size) or None,
    }


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

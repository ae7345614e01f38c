"""Kill a random process of training runs on several, go on with another number of them, and compare the results.

    python tests/kill_ranks.py --kills 100

Half of the kills (SIGKILL) come at a random time, the others right before or after a call of the first process that
writes a file. All processes must end within ten seconds, no checkpoint may be lost, and the results must be those of an
undisturbed run on two processes, bit for bit. Needs Linux, mpi4py and `mpiexec`.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from kill_runs import result, watch_writes

from xcnn import nn
from xcnn.parallel import launch_command
from xcnn.runs import Checkpoints

__all__ = ["AT_WRITE", "MARK", "MODEL", "SETTINGS", "kill", "network", "ranks"]

AT_WRITE, MARK = "KILL_RANKS_AT_WRITE", "KILL_RANKS_MARK"
"""Environment variables: the number of the moment before or after a write, and a file for the time of the kill."""

MOST = 10.0
"""Seconds within which all processes must end after a kill."""

HUNG = 120.0
"""Seconds after which a run that nobody has killed counts as hung."""

MODEL = ["--model", "kill_ranks:network"]

SETTINGS = [
    *MODEL,
    *("--epochs", "6", "--accumulate", "4", "--augment", "shift,rotate", "--validation", "0.2", "--ema", "0.9"),
    *("--opt", "sgd", "--lr", "0.05", "--momentum", "0.9", "--checkpoint-every", "10steps"),
]


def network(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a network with batch norm and dropout."""
    channels, height, width = shape
    return nn.Sequential(
        *(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3)),
        *(nn.Flatten(), nn.Linear(8 * (height // 2) * (width // 2), classes)),
    )


def _watch() -> None:
    """In the first process of a run, die at the given write, or count the writes if that is 0."""
    count, number, mark = 0, int(os.environ[AT_WRITE]), Path(os.environ[MARK])

    def on_write() -> None:
        nonlocal count
        count += 1
        if number == 0:
            mark.with_suffix(".count").write_text(str(count))
        elif count == number:
            mark.write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    watch_writes(on_write)


def _rank(process: Path) -> int | None:
    """Return the number of a process in its job, or None if it has none or has ended."""
    try:
        variables = dict(line.partition("=")[::2] for line in (process / "environ").read_text().split("\0"))
        ended = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, UnicodeDecodeError):
        return None
    found = variables.get("PMI_RANK", variables.get("OMPI_COMM_WORLD_RANK"))
    return None if ended or found is None else int(found)


def ranks(folder: Path) -> dict[int, int]:
    """Return the processes of a run in a folder: their numbers and ids."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(folder) in words and (rank := _rank(process)) is not None:
            found[rank] = int(process.name)
    return found


class Life:
    """One start of a run on several processes.

    Parameters
    ----------
    folder : that of the run, which it begins, or goes on with if it holds one.
    size : the number of processes.
    write : the moment before or after a write at which the first process dies; 0 to count them, None to do neither.
    """

    def __init__(self, folder: Path, size: int, write: int | None = None) -> None:
        self.folder, self.said, self.mark = folder, folder.with_suffix(".txt"), folder.with_suffix(".mark")
        self.mark.unlink(missing_ok=True)
        here = Path(__file__).parent
        paths = [str(here.parent), str(here), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        if write is not None:
            environment |= {AT_WRITE: str(write), MARK: str(self.mark)}
        begun = (folder / "config.json").exists()
        arguments = ["--resume", str(folder), *MODEL] if begun else ["--out", str(folder), *SETTINGS]
        command = launch_command(size, sys.executable, "-m", "xcnn", "train", *arguments)
        with self.said.open("w") as said:
            self.program = subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)
        self.start = time.time()
        self.killed, self.seconds = 0.0, 0.0

    def kill_one(self, after: float, rng: random.Random) -> None:
        """Kill a random process after some seconds, unless the run ends first."""
        while time.time() < self.start + after and self.program.poll() is None:
            time.sleep(0.005)
        found: dict[int, int] = {}
        while self.program.poll() is None and not found:
            found = ranks(self.folder)
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(found[rng.choice(sorted(found))], signal.SIGKILL)
                self.killed = time.time()

    def end(self) -> int:
        """Wait until all processes have ended, and return the exit code.

        `killed` is then the time of the kill, or 0, and `seconds` the time from it to the end of the last process.
        """
        while self._running():
            late = time.time() - (self.killed or self.start)
            if late > (MOST if self.killed else HUNG):
                left = ranks(self.folder)
                os.killpg(self.program.pid, signal.SIGKILL)
                raise AssertionError(f"after {late:.1f} s {left} still run: {self.said.read_text()}")
            time.sleep(0.01)
        self.seconds = time.time() - self.killed
        return self.program.wait()

    def _running(self) -> bool:
        if not self.killed and self.mark.exists() and (text := self.mark.read_text()):
            self.killed = float(text)
        return self.program.poll() is None or bool(ranks(self.folder))


def _newest(folder: Path) -> int:
    """Return the number of steps of the newest checkpoint, which must be undamaged; -1 if there is none."""
    if not (folder / "checkpoints").exists():
        return -1
    notes: list[str] = []
    found = Checkpoints(folder / "checkpoints").find(notes.append)
    assert not notes, f"{folder}: {notes}"
    return -1 if found is None or found.training is None else int(found.training["steps"])


def kill(least: int, rng: random.Random, root: Path) -> Iterator[str]:
    """Kill runs until the number of kills is reached; yield what was done."""
    start = time.time()
    alone, counted = Life(root / "alone", 2), root / "counted"
    assert alone.end() == 0, alone.said.read_text()
    seconds, expected = time.time() - start, result(alone.folder)
    assert Life(counted, 2, 0).end() == 0
    writes = int(counted.with_suffix(".count").read_text())
    kills = at_writes = runs = 0
    longest = 0.0
    while kills < least:
        folder, reached, size, done = root / f"run-{runs}", -1, 0, False
        while not done:
            size = rng.choice([n for n in (2, 3, 4) if n != size])
            write = rng.randint(1, writes) if rng.random() < 0.5 else None
            life = Life(folder, size, write)
            if write is None:
                life.kill_one(rng.uniform(0, seconds), rng)
            code = life.end()
            said = life.said.read_text()
            assert code == 0 or life.killed, f"exit code {code}: {said}"
            begun_anew = "damaged" in said or "starting from the beginning" in said
            newest = _newest(folder)
            assert newest >= reached, f"the checkpoint of step {reached} is lost, the newest is of step {newest}"
            assert reached < 0 or not begun_anew, said
            reached, done = newest, code == 0
            if not done:
                kills, at_writes, longest = kills + 1, at_writes + (write is not None), max(longest, life.seconds)
        assert result(folder) == expected, f"{folder} differs from the undisturbed run"
        left = [path for place in (folder, folder / "checkpoints") for path in place.glob(".*.tmp")]
        assert not left, f"{folder} left {left}"
        shutil.rmtree(folder)
        runs += 1
        yield f"{kills} kills, {at_writes} of them around a write, of {runs} runs: all ended within {longest:.1f} s"


def main() -> int:
    """Kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="at least")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        for line in kill(options.kills, random.Random(options.seed), Path(root)):
            print(line, flush=True)
    print("the results are those of the undisturbed run, bit for bit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
elif AT_WRITE in os.environ and not Path(os.environ[MARK]).exists() and _rank(Path("/proc/self")) == 0:
    _watch()

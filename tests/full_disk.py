"""Fill the disk while xcnn writes, and check what is left.

    python tests/full_disk.py limit                                limit the length of files (RLIMIT_FSIZE)
    unshare -Urm python tests/full_disk.py tmpfs MOUNT_POINT       limit the free pages of a file system

An interrupted run is resumed. It succeeds, or ends with exit code 1 and one sentence; then its newest checkpoint is
complete and no older than before, and no temporary file is left. Resumed with enough room, it ends bit for bit as a run
that always had room. Other commands leave existing files as they were.
"""

import argparse
import contextlib
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sketches
from kill_runs import ended, fork, result

from xcnn import optim
from xcnn.cli import main as xcnn
from xcnn.runs import Checkpoints
from xcnn.threads import set_num_threads

FLAGS = "--model report --epochs 3 --validation 0.2 --checkpoint-every 5steps"
OTHERS = {
    "prediction-digits-3.png": "predict run/best.safetensors --index 3 --pictures .",
    "table.md": "compare --op relu --devices cpu --markdown table.md",
    "net.onnx": "export run/best.safetensors --onnx net.onnx",
    "compared.png": "compare --op relu --devices cpu --plot compared.png",
    "new-run": f"train {FLAGS} -o new-run",
}
"""The other commands that write, by the file or folder that they write."""

LIMITS = (0, 1, 100, 240, 300, 450, 600, 1000, 2000, 2450, 3000, 7000, 8000, 20_000, 40_000, 60_000, 100_000)
PAGES = range(0, 60, 2)
PAGE = 4096


@dataclass
class Disk:
    """A folder to work in, and the maximum length of a file; -1 for none."""

    folder: Path
    limit: int = resource.RLIM_INFINITY


Filled = Callable[[Path], contextlib.AbstractContextManager[Disk]]
"""Function that yields a copy of a folder on a disk with little room."""


def limited(limit: int) -> Filled:
    """Limit the length of every file, in bytes."""

    @contextlib.contextmanager
    def filled(source: Path) -> Iterator[Disk]:
        root = Path(tempfile.mkdtemp())
        shutil.copytree(source, root / source.name)
        try:
            yield Disk(root / source.name, limit)
        finally:
            shutil.rmtree(root)

    return filled


def mounted(point: Path, free: int) -> Filled:
    """Mount a file system with a number of free pages."""

    @contextlib.contextmanager
    def filled(source: Path) -> Iterator[Disk]:
        pages = free + sum(-(-path.stat().st_size // PAGE) for path in source.rglob("*") if path.is_file())
        mount = ["mount", "-t", "tmpfs", "-o", f"size={max(pages, 1) * PAGE}", "tmpfs", str(point)]
        subprocess.run(mount, check=True)
        try:
            shutil.copytree(source, point / source.name)
            yield Disk(point / source.name)
        finally:
            subprocess.run(["umount", str(point)], check=True)

    return filled


def command(line: str, folder: Path, limit: int = resource.RLIM_INFINITY, press: int = 0) -> tuple[int, list[str]]:
    """Run a command in a child process, with Ctrl-C in step `press`; return its exit code and the lines of stderr."""
    reader, writer = os.pipe()

    def task() -> None:
        os.chdir(folder)
        os.dup2(writer, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        if press:
            press_in(press)
        code = xcnn(line.split())
        sys.stderr.flush()
        os._exit(code)

    child = fork(task)
    os.close(writer)
    with open(reader, encoding="utf-8") as errors:
        lines = errors.read().splitlines()
    return ended(child), lines


def press_in(step: int) -> None:
    """Press Ctrl-C in this process in one step of training."""
    update, count = optim.Adam.step, 0

    def counted(self: optim.Adam) -> None:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGINT)
        update(self)

    optim.Adam.step = counted  # type: ignore[method-assign]


def check(where: str, good: bool, message: object) -> None:
    if not good:
        sys.exit(f"{where}: {message}")


def ends_well_or_with_a_sentence(where: str, code: int, lines: list[str]) -> None:
    errors = [line for line in lines if line.startswith(("error:", "Traceback", "Exception"))]
    check(where, code in (0, 1), f"exit code {code}: {lines}")
    if code == 0:
        check(where, not errors, lines)
    else:
        check(where, errors == lines[-1:] and "cannot" in errors[0], lines)


def nothing_unfinished(where: str, folder: Path) -> None:
    left = list(folder.rglob(".*.tmp"))
    check(where, not left, f"left {left}")


def newest(where: str, run: Path) -> int:
    """Return the number of steps of a run's newest checkpoint; fail if there is none or one is damaged."""
    found = Checkpoints(run / "checkpoints").find(lambda message: check(where, False, message))
    check(where, found is not None and found.training is not None, "there is no checkpoint")
    return int(found.training["steps"])  # type: ignore[union-attr, index]


def go_on(where: str, stopped: Path, filled: Filled, expected: dict[str, object]) -> bool:
    """Resume a run on a disk that fills; return whether it failed."""
    with filled(stopped) as disk, tempfile.TemporaryDirectory() as room:
        before = newest(where, disk.folder)
        code, lines = command("train --resume run", disk.folder.parent, disk.limit)
        ends_well_or_with_a_sentence(where, code, lines)
        nothing_unfinished(where, disk.folder)
        check(where, newest(where, disk.folder) >= before, "the newest checkpoint is older than before")
        shutil.copytree(disk.folder, Path(room) / "run")
        again, lines = command("train --resume run", Path(room))
        check(where, again == 0, f"with room again: {lines}")
        check(where, result(Path(room) / "run") == expected, "its results differ from those of the run with room")
    return code == 1


def write_others(where: str, made: Path, filled: Filled) -> int:
    """Run every other command on a disk that fills; return how many failed."""
    failures = 0
    for name, line in OTHERS.items():
        with filled(made) as disk:
            path = disk.folder / name
            before = path.read_bytes() if path.exists() else None
            code, lines = command(line, disk.folder, disk.limit)
            ends_well_or_with_a_sentence(f"{where}: {line}", code, lines)
            nothing_unfinished(f"{where}: {line}", disk.folder)
            if code == 1 and before is not None:
                check(where, path.read_bytes() == before, f"{line} has changed {name}")
            failures += code == 1
    return failures


def main() -> int:
    """Prepare a whole run, an interrupted run and the files of other commands, then fill the disk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("how", choices=["limit", "tmpfs"])
    parser.add_argument("mount_point", nargs="?", type=Path)
    parser.add_argument("--every", type=int, default=1, help="try every n-th size only")
    options = parser.parse_args()
    set_num_threads(1)  # threads do not survive a fork
    sketches.use(pytest.MonkeyPatch())
    if options.how == "limit":
        sizes = {size: limited(size) for size in LIMITS[:: options.every]}
    else:
        sizes = {size: mounted(options.mount_point, size) for size in PAGES[:: options.every]}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        made = root / "made"
        made.mkdir()
        null = io.StringIO()
        with contextlib.chdir(root), contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
            for line in (f"train {FLAGS} -o run", *OTHERS.values()):  # loads what the children inherit
                check("prepare", xcnn(line.split()) == 0, f"{line} failed")
        check("prepare", command(f"train {FLAGS} -o alone", root)[0] == 0, "the run with room failed")
        check("prepare", command(f"train {FLAGS} -o made/run", root, press=25)[0] == 130, "it was not interrupted")
        for file, line in OTHERS.items():
            if file != "new-run":
                code, lines = command(line, made)
                check("prepare", code == 0 and (made / file).exists(), lines)
        expected = result(root / "alone")
        stops = sum(go_on(f"{options.how} {size}", made / "run", filled, expected) for size, filled in sizes.items())
        failures = sum(write_others(f"{options.how} {size}", made, filled) for size, filled in sizes.items())
    check(options.how, 0 < stops < len(sizes), f"{stops} of {len(sizes)} runs ran out of room: choose other sizes")
    check(options.how, failures > 0, "no other command ran out of room: choose other sizes")
    print(
        f"{options.how}, {len(sizes)} sizes: {stops} runs and {failures} other commands ran out of room; all is whole"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

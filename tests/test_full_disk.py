"""Disks that are full or read-only: existing files stay complete, and no partial file is left."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xcnn.cli import main
from xcnn.runs import Checkpoints

pytestmark = pytest.mark.usefixtures("sketches")
SCRIPT = Path(__file__).with_name("full_disk.py")


def run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all is whole\n")


def test_files_that_may_not_grow():
    run(sys.executable, SCRIPT, "limit", "--every", 4)


def test_a_full_file_system(tmp_path):
    namespace = ["unshare", "-Urm"]
    mount = ["mount", "-t", "tmpfs", "-o", "size=4096", "tmpfs", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run([*namespace, *mount], capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here (unshare -Urm mount -t tmpfs)")
    run(*namespace, sys.executable, SCRIPT, "tmpfs", tmp_path, "--every", 6)


@pytest.mark.parametrize("writes", range(7))
def test_a_disk_that_becomes_read_only(tmp_path, monkeypatch, capsys, writes):
    """After a resumed run has written some files."""
    monkeypatch.chdir(tmp_path)
    flags = ["--model", "report", "--checkpoint-every", "5steps", "-o", "run"]
    assert main(["train", "--epochs", "1", *flags]) == 0
    make, count = os.open, 0

    def refused(path, flags, *arguments, **options):
        nonlocal count
        if flags & os.O_EXCL:  # a temporary file, which is renamed when it is complete
            count += 1
            if count > writes:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return make(path, flags, *arguments, **options)

    before = Checkpoints("run/checkpoints").find().training["steps"]
    capsys.readouterr()
    monkeypatch.setattr(os, "open", refused)
    assert main(["train", "--resume", "run", "--epochs", "2"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: cannot write run/")
    assert last.endswith(": Read-only file system")
    assert Checkpoints("run/checkpoints").find(pytest.fail).training["steps"] >= before
    assert not list(tmp_path.rglob(".*.tmp"))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "run"]) == 0

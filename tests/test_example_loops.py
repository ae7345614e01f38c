"""The shell scripts of `examples/`, which start runs again until they are complete, with stand-ins for Slurm."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import kill_ranks
import pytest
import ranks
from commands import PORTABLE
from ranks import needs_mpi

from xcnn.parallel import launch_command

EXAMPLES, HERE = Path(__file__).parents[1] / "examples", Path(__file__).parent

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


def program(folder: Path, name: str, text: str) -> None:
    """Write a shell script into `folder/bin`."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\ncd {folder}\n{text}\n")
    path.chmod(0o755)


def run(folder: Path, script: str, *argv: str, **variables: str) -> tuple[int, str]:
    """Run an example; return its exit code and what it prints."""
    environment = PORTABLE | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", **variables}
    command = ["bash", str(EXAMPLES / script), *argv]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=ranks.LONGEST, cwd=folder)
    return found.returncode, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("code", "restarts", "queued"),
    [(0, 0, False), (1, 0, False), (2, 0, False), (130, 0, False), (143, 0, True), (137, 7, True), (143, 20, False)],
)
def test_slurm_queues_a_job_again_that_was_stopped(code: int, restarts: int, queued: bool, tmp_path: Path) -> None:
    program(tmp_path, "srun", f'echo "$@" > started; exit {code}')
    program(tmp_path, "scontrol", 'echo "$@" > queued')
    variables = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": str(restarts), "SLURM_CPUS_PER_TASK": "4"}
    assert run(tmp_path, "slurm_train.sh", "out", "--lr", "1", **variables) == (code, "")
    assert (tmp_path / "started").read_text().split("--cpus-per-task=4 ")[1] == "xcnn train --out out --lr 1\n"
    assert (tmp_path / "queued").exists() == queued
    assert not queued or (tmp_path / "queued").read_text() == "requeue 17\n"


def test_an_array_of_slurm_has_a_run_for_each_seed(tmp_path: Path) -> None:
    program(tmp_path, "srun", 'echo "$@" > started')
    assert run(tmp_path, "slurm_train.sh", "out", "--lr", "1", SLURM_ARRAY_TASK_ID="3") == (0, "")
    assert (tmp_path / "started").read_text().endswith(" xcnn train --out out/seed-3 --lr 1 --seed 3\n")
    (tmp_path / "out" / "seed-3").mkdir(parents=True)
    (tmp_path / "out" / "seed-3" / "config.json").touch()
    assert run(tmp_path, "slurm_train.sh", "out", "--lr", "1", SLURM_ARRAY_TASK_ID="3") == (0, "")
    assert (tmp_path / "started").read_text().endswith(" xcnn train --resume out/seed-3\n")


@pytest.mark.parametrize(
    ("codes", "started"),
    [([0], 1), ([1], 1), ([2], 1), ([130], 1), ([143], 1), ([9, 0], 2), ([137, 1], 2)],
)
def test_the_loop_starts_again_after_a_loss(codes: list[int], started: int, tmp_path: Path) -> None:
    texts = "\n".join(f"[ $(wc -l < started) = {k} ] && exit {code}" for k, code in enumerate(codes, 1))
    program(tmp_path, "mpiexec", f'mkdir -p out; touch out/config.json; printf "%s\\n" "$*" >> started\n{texts}')
    program(tmp_path, "sleep", "")
    code, said = run(tmp_path, "until_done.sh", "4", "out", "--lr", "1")
    assert code == codes[-1]
    lines = (tmp_path / "started").read_text().splitlines()
    assert lines == ["-n 4 xcnn train --out out --lr 1", *["-n 4 xcnn train --resume out"] * (started - 1)]
    assert said.count("a process was lost (exit code ") == started - 1


@needs_mpi
def test_the_loop_trains_until_the_run_is_complete(tmp_path: Path) -> None:
    """The first process is killed at its 150th write, in the first start alone."""
    program(tmp_path, "xcnn", f'exec {sys.executable} -m xcnn "$@" {" ".join(kill_ranks.MODEL)}')
    settings = kill_ranks.SETTINGS[len(kill_ranks.MODEL) :]
    variables = {
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
        "XCNN_MPIEXEC": " ".join(launch_command(2, "xcnn")[:-3]),
        kill_ranks.AT_WRITE: "150",
        kill_ranks.MARK: str(tmp_path / "mark"),
    }
    code, said = run(tmp_path, "until_done.sh", "2", "out", *settings, **variables)
    assert code == 0, said
    assert (tmp_path / "mark").exists()
    assert "resuming from " in said
    history = (tmp_path / "out" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in history] == [1, 2, 3, 4, 5, 6]

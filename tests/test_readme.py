"""The README is right: its script runs, its commands parse, and its second command is what CI runs."""

import contextlib
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from torch_files import zipped

from xcnn import models
from xcnn.cli import app
from xcnn.errors import UsageError

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="runs away from the source tree, without the README")


def blocks() -> list[str]:
    """Return every indented block of the README."""
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", README.read_text(), flags=re.MULTILINE)
    return [textwrap.dedent(block).strip() for block in found]


def test_the_script_runs(tmp_path):
    (script,) = (block for block in blocks() if block.startswith("import numpy"))
    assert len(script.splitlines()) <= 16
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    accuracy = float(re.search(r"accuracy=([\d.]+)", result.stdout).group(1))
    assert accuracy > 0.9
    assert "[" in result.stdout  # the probabilities


def test_weights_are_read(tmp_path):
    (script,) = (block for block in blocks() if "load_checkpoint" in block)
    (tmp_path / "lenet5.pth").write_bytes(zipped(models.build("lenet5").state_dict()))
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=tmp_path, check=True, timeout=300)


def test_the_commands_parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks() for line in block.splitlines() if line.startswith("xcnn ")]
    assert len(commands) >= 5
    for command in commands:
        tokens = shlex.split(command)[1:]
        # A run that is resumed is asked for its settings, and there is none here.
        missing = (
            pytest.raises(UsageError, match="there is no run") if "--resume" in tokens else contextlib.nullcontext()
        )
        with missing:
            app.parse_args(tokens, exit_on_error=False, print_error=False)


def test_ci_runs_the_second_command():
    ci = ROOT / ".ci" / "run"
    if not ci.exists():
        pytest.skip("runs away from the source tree, without .ci/run")
    (command,) = (block for block in blocks() if "pytest" in block)
    _, install, test = command.split(" && ")
    packages = install.split("install ")[1]
    assert f"install --quiet {packages}" in ci.read_text()
    assert test.endswith("python -m pytest -n 2")
    assert "-m pytest -n 2 -q" in ci.read_text()

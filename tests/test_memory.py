"""Memory over thousands of steps: what `soak.py` does for 20,000 in `nox -s endurance`, in short."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_thousands_of_steps_do_not_grow_memory() -> None:
    script = Path(__file__).with_name("soak.py")
    done = subprocess.run([sys.executable, script, "--steps", "3000"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "grown by" in done.stdout

"""The suite itself: tests have the same ids in every process, so that several processes can share them."""

import os
import subprocess
import sys

import pytest

COLLECT = "import sys, time; now = time.time; time.time = lambda: now() + 1e6; import pytest; sys.exit(pytest.main())"
"""A plugin that collects the tests as if 12 days later."""


def test_every_process_gives_tests_the_same_ids(request: pytest.FixtureRequest) -> None:
    """At another time, with other hashes and addresses of objects."""
    ours = {item.nodeid for item in request.session.items if item.nodeid.startswith("tests/")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "XCNN_ONLY"))}
    environment["PYTHONHASHSEED"] = "1" if environment.get("PYTHONHASHSEED") != "1" else "2"
    environment["PYTEST_ADDOPTS"] = "--collect-only --quiet -p no:cacheprovider"
    files = sorted({nodeid.partition("::")[0] for nodeid in ours})
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, *files],
        cwd=request.config.rootpath, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(ours - set(done.stdout.splitlines())) == []

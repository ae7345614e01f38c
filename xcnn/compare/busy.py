"""Other programs at work: processes that keep cores busy while a contestant has its turn."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

__all__ = ["busy"]

_CODE = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(sys.argv[1])})
parent = os.getppid()
print("ready", flush=True)
while os.getppid() == parent:  # nobody else ends this process if its parent is killed
    for _ in range(100_000):
        pass
"""

_SECONDS_TO_SETTLE = 0.05
"""The system moves threads away from a core that has become busy."""


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep `count` of the cores that this process may use busy inside a `with`, each by a process that stays on it."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = sorted(affinity(0)) if affinity is not None else range(os.cpu_count() or 1)
    with contextlib.ExitStack() as stack:
        for number in range(count):
            command = [sys.executable, "-S", "-E", "-c", _CODE, str(cores[number % len(cores)])]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)  # before its context waits for it
            assert process.stdout is not None
            process.stdout.readline()
        if count:
            time.sleep(_SECONDS_TO_SETTLE)
        yield

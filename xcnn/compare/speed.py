"""The speed of a training step, and its memory, measured for each device in a process of its own.

A step is `Trainer.step` on a batch on the host: transfer, forward, backward, update, and reading the loss, which waits
for the device. The first step is cold: it compiles kernels and fills caches.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np

from xcnn import models
from xcnn._dispatch import kernels
from xcnn.compare.meter import growth
from xcnn.compare.steps import trainer
from xcnn.devices import device as open_device
from xcnn.errors import XcnnError
from xcnn.threads import get_num_threads, one_blas_thread, set_num_threads

__all__ = ["Speed", "SpeedError", "main", "measure", "speed"]


class SpeedError(XcnnError):
    """Raised when a measurement fails."""


@dataclass(frozen=True)
class Speed:
    """The speed of one device.

    Attributes
    ----------
    cold : seconds of the first step.
    warm : median seconds of the later steps.
    images_per_second : batch size / warm.
    memory : bytes of the process at the peak, over those held before the first step, which include the library, the
        weights and the batch. Not a GPU's memory. None outside Linux.
    """

    cold: float
    warm: float
    images_per_second: float
    memory: int | None


def speed(device: str, model: str, shape: tuple[int, ...], classes: int, batch: int, steps: int, dtype: str) -> Speed:
    """Measure a device in a fresh process.

    Parameters
    ----------
    device : device string.
    model : name; `shape` and `classes` as in `models.build`.
    batch : random images per step.
    steps : number of warm steps; at least 1.
    dtype : `"float32"` or `"float64"`.

    Raises
    ------
    SpeedError
        If that process fails; quotes its last line.
    """
    arguments = json.dumps([get_num_threads(), [device, model, shape, classes, batch, steps, dtype]])
    command = [sys.executable, "-c", "from xcnn.compare.speed import main; main()", arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SpeedError(f"compare: measuring the speed of {device} failed: {last}")
    return Speed(**json.loads(done.stdout.splitlines()[-1]))


def measure(device: str, model: str, shape: tuple[int, ...], classes: int, batch: int, steps: int, dtype: str) -> Speed:
    """Measure a device in this process; the arguments are those of `speed`."""
    rng = np.random.default_rng(0)
    x, y = rng.random((batch, *shape)).astype(dtype), rng.integers(0, classes, batch)
    training = trainer(models.build(model, shape, classes), open_device(device), dtype)
    kernels(training.device.xp)  # so that the first step does not import them
    grown, seconds = growth(), []
    with one_blas_thread():
        for _ in range(1 + steps):
            start = time.perf_counter()
            training.step(x, y)
            seconds.append(time.perf_counter() - start)
    cold, warm = seconds[0], statistics.median(seconds[1:])
    return Speed(cold, warm, batch / warm, grown())


def main() -> None:
    """Run the process: read [threads, arguments of `measure`] as JSON from its argument; print JSON."""
    threads, arguments = json.loads(sys.argv[1])
    set_num_threads(threads)
    print(json.dumps(dataclasses.asdict(measure(*arguments))))

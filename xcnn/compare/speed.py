"""The speed of a training step, each device in a process of its own: the first step, the later ones, and memory.

What is timed is `Trainer.step` on a batch that lies on the host: transfer, forward, backward, update, and reading the
loss, which waits for the device. The first step is cold: it compiles kernels and fills caches.

Memory is the resident memory of the process at its peak, over what it held just before the first step: the library
itself, the weights and the batch are not in it, nor is a GPU's memory. Linux alone tells; elsewhere it is None.
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
from xcnn.compare import memory
from xcnn.compare.steps import trainer
from xcnn.devices import device as open_device
from xcnn.errors import XcnnError
from xcnn.threads import get_num_threads, one_blas_thread, set_num_threads

__all__ = ["Speed", "SpeedError", "main", "measure", "speed"]


class SpeedError(XcnnError):
    """A measurement that failed."""


@dataclass(frozen=True)
class Speed:
    """What was measured on one device.

    Attributes
    ----------
    cold : seconds of the first step.
    warm : seconds of the later steps, the median.
    images_per_second : batch size / warm.
    memory : bytes, at the peak and over what was held before the first step; None where the system does not tell.
    """

    cold: float
    warm: float
    images_per_second: float
    memory: int | None


def speed(device: str, model: str, shape: tuple[int, ...], classes: int, batch: int, steps: int, dtype: str) -> Speed:
    """Measure a device in a fresh process.

    Parameters
    ----------
    device : by its string.
    model : by name; `shape` and `classes` as in `models.build`.
    batch : random images per step.
    steps : warm ones; at least 1.
    dtype : `"float32"` or `"float64"`.

    Raises
    ------
    SpeedError
        Where that process fails; it quotes its last line.
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
    kernels(training.device.xp)  # imported with the library, not by the first step
    grown, seconds = memory.growth(), []
    with one_blas_thread():
        for _ in range(1 + steps):
            start = time.perf_counter()
            training.step(x, y)
            seconds.append(time.perf_counter() - start)
    cold, warm = seconds[0], statistics.median(seconds[1:])
    return Speed(cold, warm, batch / warm, grown())


def main() -> None:
    """Measure what the process's one argument, the number of threads and a list in JSON, says; print one JSON line."""
    threads, arguments = json.loads(sys.argv[1])
    set_num_threads(threads)
    print(json.dumps(dataclasses.asdict(measure(*arguments))))

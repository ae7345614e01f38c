"""Train on a folder of many JPEGs, and check the memory, the share of time that the network waits, and the bits.

    python tests/large_folder.py [--images 50000] [--image-size 36] [--files FOLDER]

Generates JPEGs of 96x96 pixels and trains `resnet20` for an epoch with 0, 1, 2 and 4 workers, as `xcnn train` does. A
run with 4 workers is killed inside the epoch and resumed with 1. All must end with the same bits, and the peak of the
memory may be at most 400 MB above that of the same command with 1,000 images, which is that of the network. The share
of the time of training in which the network waited for batches is printed; it is measured, not checked, as it depends
on what else the machine does. From 36 pixels on, 50,000 images take more than what is kept in memory, so that files are
decoded when they are needed; at 96 pixels the network takes eight times as long.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from kill_runs import result
from PIL import Image

from xcnn.runs import Checkpoints

MOST = 400
"""MB of memory that many images may take more than few."""

CLASSES, SIDE, FEW = 10, 96, 1000


def generate(folder: Path, count: int) -> None:
    """Write JPEGs whose classes differ in the frequency of waves on a random background."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    small = rng.integers(0, 256, (200, 12, 12, 3), np.uint8)
    backgrounds = [np.asarray(Image.fromarray(one).resize((2 * SIDE, 2 * SIDE))) for one in small]
    for number in range(count):
        label = number % CLASSES
        top, left = rng.integers(0, SIDE, 2)
        background = backgrounds[rng.integers(len(backgrounds))][top : top + SIDE, left : left + SIDE]
        angle, phase = rng.uniform(0.0, np.pi), rng.uniform(0.0, 2.0 * np.pi)
        turned = columns * np.cos(angle) + rows * np.sin(angle)
        wave = 60.0 * np.sin(2.0 * np.pi * (2 + 2 * label) * turned + phase)
        pixels = np.clip(0.6 * background + 50.0 + wave[..., None], 0, 255).astype(np.uint8)
        path = folder / f"class{label}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=85)


def begin(*flags: object) -> "subprocess.Popen[str]":
    """Start `xcnn train`."""
    command = [sys.executable, "-m", "xcnn", "train", *map(str, flags), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finish(process: "subprocess.Popen[str]") -> tuple[dict[str, float], float]:
    """Return the record of the epoch, and the peak of the memory in MB, of a run once it has ended."""
    assert process.stdout is not None
    record = json.loads(process.stdout.readline())
    process.stdout.read()
    _, code, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    assert process.returncode == 0, f"xcnn train ended with {process.returncode}"
    return record, usage.ru_maxrss / 1e3


def kill(process: "subprocess.Popen[str]", folder: Path) -> int:
    """Kill a run once it has checkpoints from inside its epoch, and return the step of its newest one."""
    while len(list((folder / "checkpoints").glob("step-*.safetensors"))) < 2:  # the first is from before the epoch
        assert process.poll() is None, "the run ended before it had written a checkpoint"
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    newest = Checkpoints(folder / "checkpoints").find()
    assert newest is not None
    assert newest.training is not None
    assert newest.training["epoch"] is not None, "the run was killed after its epoch"
    return int(newest.training["steps"])


def main() -> int:
    """Run the test and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--image-size", type=int, default=36, help="pixels to which the images are resized")
    parser.add_argument("--files", type=Path, help="folder of such images that exists, or to generate")
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        files, few = options.files or Path(scratch, "many"), Path(scratch, "few")
        if not files.exists():
            generate(files, options.images)
        generate(few, FEW)
        flags = ["--dataset", "folder", "--image-size", options.image_size, "--model", "resnet20", "--epochs", 1]
        flags += ["--augment", "flip", "--checkpoint-every", f"{max(1, options.images // 300)}steps"]
        own = finish(begin(*flags, "--data-dir", few, "-o", Path(scratch, "own")))[1]
        print(f"{FEW:,} images: {own:.0f} MB of memory at the peak", flush=True)
        flags += ["--data-dir", files]
        first = None
        for workers in (0, 1, 2, 4):
            folder, start = Path(scratch, f"workers-{workers}"), time.perf_counter()
            record, memory = finish(begin(*flags, "--workers", workers, "-o", folder))
            ended = result(folder)
            first = first or ended
            same, bounded = ended == first, memory <= own + MOST
            print(
                f"{options.images:,} images, {workers} workers: {time.perf_counter() - start:.0f} s, "
                f"{record['samples_per_second']:.0f} images/s, {record['data_seconds'] / record['seconds']:.1%} of the "
                f"time waiting for batches; {memory:.0f} MB of memory at the peak, {memory - own:+.0f} MB"
                f"{'' if bounded else ', TOO MUCH'}{'' if same else ', OTHER BITS'}",
                flush=True,
            )
            good = good and same and bounded
        folder = Path(scratch, "killed")
        step = kill(begin(*flags, "--workers", 4, "-o", folder), folder)
        finish(begin("--resume", folder, "--workers", 1))
        same = result(folder) == first
        good = good and same
        print(f"killed after step {step} with 4 workers, resumed with 1: {'the same' if same else 'OTHER'} bits")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

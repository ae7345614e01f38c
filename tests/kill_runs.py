"""Kill training runs at random moments, resume them, and compare their results with those of an uninterrupted run.

    python tests/kill_runs.py --kills 100

Half of the kills (SIGKILL) come at a random time, the others right before or after a call that writes a file. The
results must be identical bit for bit, and no kill may leave a damaged checkpoint.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from xcnn.runs import Checkpoints, Config, Reporter, load_checkpoint, recorded_settings, train
from xcnn.threads import set_num_threads

CONFIG = Config(
    model="report", epochs=4, augment=("shift", "rotate"), validation=0.2, patience=4, warmup=5,
    schedule="cosine", checkpoint_every="6steps",
)  # fmt: skip
WRITES = ("open", "fsync", "replace", "unlink", "mkdir")


class Notes(Reporter):
    """Fails at any note about a file that a kill has damaged."""

    def on_note(self, message: str) -> None:
        good = ("resuming from ", "nothing is left to train")
        assert message.startswith(good) or message.endswith("starting from the beginning"), message


def result(folder: Path) -> dict[str, object]:
    """Return everything of a run that must be identical, bit for bit."""
    newest = Checkpoints(folder / "checkpoints").find()
    assert newest is not None
    record = {
        f"{name}:{tensor}": array.tobytes()
        for name, checkpoint in (("last", newest), ("best", load_checkpoint(folder / "best.safetensors")))
        for tensor, array in checkpoint.state.items()
    }
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    times = ("seconds", "data_seconds", "samples_per_second")
    rows = (folder / "history.csv").read_text().splitlines()
    return record | {
        "history": [{name: value for name, value in line.items() if name not in times} for line in lines],
        "rows": [row.split(",")[:5] for row in rows],
    }


def fork(task: Callable[[], object]) -> int:
    """Run a task in a child process and return its id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            task()
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def live(folder: Path) -> None:
    if not (folder / "config.json").exists():
        train(CONFIG, folder, [Notes()])
        return
    settings = recorded_settings(folder)
    train(Config(**{**settings, "augment": tuple(settings["augment"])}), folder, [Notes()], resume=True)


def watch_writes(on_write: Callable[[], object]) -> None:
    """Call `on_write` before and after every call that may change a file or folder."""

    def watched(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            on_write()
            try:
                return function(*arguments, **options)
            finally:
                on_write()

        return call

    for name in WRITES:
        setattr(os, name, watched(getattr(os, name)))


def live_until_write(folder: Path, number: int) -> None:
    """Train until the `number`-th moment before or after a write, then be killed."""
    count = 0

    def on_write() -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    watch_writes(on_write)
    live(folder)


def count_writes(folder: Path) -> int:
    """Train once and return the number of moments before and after writes."""
    count = 0

    def on_write() -> None:
        nonlocal count
        count += 1

    def task() -> None:
        watch_writes(on_write)
        live(folder)
        (folder / "count").write_text(str(count))

    assert ended(fork(task)) == 0
    return int((folder / "count").read_text())


def ended(child: int) -> int:
    """Wait for a child and return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> int:
    """Kill, resume and compare until the number of kills is reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_num_threads(1)  # threads do not survive a fork
    rng, root = random.Random(options.seed), Path(tempfile.mkdtemp())
    try:
        live(root / "warm")  # compiles and loads what the children inherit
        start = time.perf_counter()
        assert ended(fork(lambda: live(root / "alone"))) == 0
        seconds, expected = time.perf_counter() - start, result(root / "alone")
        writes = count_writes(root / "counted")
        kills = runs = at_writes = 0
        while kills < options.kills:
            folder = root / f"run-{runs}"
            while True:
                if rng.random() < 0.5:
                    number = rng.randint(1, writes)
                    code = ended(fork(lambda folder=folder, number=number: live_until_write(folder, number)))
                    at_writes += code == -signal.SIGKILL
                else:
                    child = fork(lambda folder=folder: live(folder))
                    time.sleep(rng.uniform(0, seconds))
                    os.kill(child, signal.SIGKILL)
                    code = ended(child)
                if code != -signal.SIGKILL:
                    break
                kills += 1
            which = f"run {runs} (seed {options.seed})"
            assert code == 0, f"{which} ended with exit code {code}"
            assert result(folder) == expected, f"{which} differs from the uninterrupted one"
            left = [path for place in (folder, folder / "checkpoints") for path in place.glob(".*.tmp")]
            assert not left, f"{which} left {left}"
            shutil.rmtree(folder)
            runs += 1
        print(f"{kills} kills, {at_writes} of them around a write, of {runs} runs: all ended as the uninterrupted one")
    finally:
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())

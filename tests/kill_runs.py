"""Kill training runs at random moments, resume them, and compare their results with those of an uninterrupted run.

    python tests/kill_runs.py --kills 100                       # of each kind of run
    python tests/kill_runs.py --kills 100 --kinds segmentation

Half of the kills (SIGKILL) come at a random time, the others right before or after a call that writes a file. Each life
of a run has a random number of workers. The results must be identical bit for bit, and no kill may leave a damaged
checkpoint. A new kind of run is one entry in `KINDS`.
"""

import argparse
import csv
import dataclasses
import functools
import importlib
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

import numpy as np
from PIL import Image

from xcnn import data, optim
from xcnn.data.folder import load_folder
from xcnn.runs import Checkpoints, Config, Reporter, load_checkpoint, recorded_settings, train
from xcnn.runs.sealed import pack
from xcnn.threads import set_num_threads
from xcnn.training import EMA, HistoryFile, KeepBest, Trainer, mean_iou

DIGITS = Config(
    model="report", epochs=4, augment=("shift", "rotate"), validation=0.2, patience=4, warmup=5,
    schedule="cosine", checkpoint_every="6steps",
)  # fmt: skip
PHOTOS = Config(
    dataset="folder", model="report", image_size=12, augment=("random_resized_crop", "color_jitter"), epochs=3,
    batch_size=4, validation=0.25, checkpoint_every="2steps",
)  # fmt: skip
TIMES = ("seconds", "data_seconds", "samples_per_second")
WRITES = ("open", "fsync", "replace", "unlink", "mkdir")


class Notes(Reporter):
    """Fails at any note about a file that a kill has damaged."""

    def on_note(self, message: str) -> None:
        good = ("resuming from ", "nothing is left to train", "photos: ")
        assert message.startswith(good) or message.endswith("starting from the beginning"), message


def result(folder: Path) -> dict[str, object]:
    """Return everything of a run that must be identical, bit for bit."""
    newest, best = Checkpoints(folder / "checkpoints").find(), folder / "best.safetensors"
    assert newest is not None
    assert newest.training is not None
    callbacks = {name: state for name, state in newest.training["callbacks"].items() if state}
    plain, arrays = pack({**newest.training, "history": [], "callbacks": callbacks}, "last")
    if best.exists():
        arrays |= pack(load_checkpoint(best).state, "best")[1]
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    histories = [[{k: line[k] for k in line if k not in TIMES} for line in history] for history in (lines, rows)]
    return {"state": plain, "histories": histories, **{name: array.tobytes() for name, array in arrays.items()}}


# The kinds of runs: functions that begin a run in a folder with a number of workers, or go on with it


def configured(config: Config, folder: Path, workers: int) -> None:
    """Run as `xcnn train` and `xcnn train --resume` do."""
    begun = (folder / "config.json").exists()
    if begun:
        settings = recorded_settings(folder)
        config = Config(**{**settings, "augment": tuple(settings["augment"])})
    train(dataclasses.replace(config, workers=workers), folder, [Notes()], resume=begun)


def photos(folder: Path, workers: int) -> None:
    """Run on files of JPEG images, which are decoded each time that they are needed."""
    files = folder.parent / "photos"
    if not files.exists():
        rng = np.random.default_rng(0)
        for name in ("cats", "dogs"):
            (files / name).mkdir(parents=True)
            for k in range(20):
                pixels = rng.integers(0, 256, (20, 16 + k, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(files / name / f"{k}.jpg")
    decoding = functools.partial(load_folder, in_memory=0)
    data.DATASETS["folder"] = dataclasses.replace(data.DATASETS["folder"], load=decoding)
    configured(dataclasses.replace(PHOTOS, data_dir=files), folder, workers)


def segmentation(folder: Path, workers: int) -> None:
    """Run a script of one's own: a U-Net on masks that move with their images, with all state that a trainer has."""
    example = importlib.import_module("segmentation")
    augment = [data.flip, data.shift]
    batches = data.Loader(example.shapes(22, 0, 16), 4, seed=1, augment=augment, workers=workers)
    model = example.unet(1, 3, width=2)
    model.reset_parameters(0)
    rule, checkpoints = optim.Adam(model.parameters()), Checkpoints(folder / "checkpoints", every="2steps")
    schedule = optim.OneCycleLR(rule, max_lr=1e-2, total_steps=3 * len(batches))
    files = [HistoryFile(folder / name) for name in ("history.csv", "history.jsonl")]
    callbacks = [EMA(0.9), KeepBest(monitor="val_iou"), *files, checkpoints]
    trainer = Trainer(model, rule, schedule=schedule, metrics={"iou": mean_iou}, accumulate=2, callbacks=callbacks)
    checkpoints.restore(trainer, Notes().on_note)
    trainer.fit(batches, until=3, validation=example.shapes(8, 1, 16))


Live = Callable[[Path, int], None]
KINDS: dict[str, Live] = {
    "digits": functools.partial(configured, DIGITS),
    "photos": photos,
    "segmentation": segmentation,
}


# Killing


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


def until_write(number: int, task: Callable[[], object]) -> None:
    """Do a task until the `number`-th moment before or after a write, then be killed."""
    count = 0

    def on_write() -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    watch_writes(on_write)
    task()


def count_writes(live: Live, folder: Path) -> int:
    """Train once and return the number of moments before and after writes."""
    count = 0

    def on_write() -> None:
        nonlocal count
        count += 1

    def task() -> None:
        watch_writes(on_write)
        live(folder, 2)
        (folder / "count").write_text(str(count))

    assert ended(fork(task)) == 0
    return int((folder / "count").read_text())


def ended(child: int) -> int:
    """Wait for a child and return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(kind: str, least: int, rng: random.Random, root: Path) -> str:
    """Kill, resume and compare runs of a kind until the number of kills is reached; return what was done."""
    live = KINDS[kind]
    live(root / "warm", 2)  # compiles and loads what the children inherit
    start = time.perf_counter()
    assert ended(fork(lambda: live(root / "alone", 2))) == 0
    middle, expected = time.perf_counter(), result(root / "alone")
    writes = count_writes(live, root / "counted")
    seconds = min(middle - start, time.perf_counter() - middle)  # the shorter one, as the machine may be busy
    kills = runs = at_writes = 0
    while kills < least:
        folder = root / f"run-{runs}"
        while True:
            life = functools.partial(live, folder, rng.randint(0, 3))
            if rng.random() < 0.5:
                code = ended(fork(functools.partial(until_write, rng.randint(1, writes), life)))
                at_writes += code == -signal.SIGKILL
            else:
                child = fork(life)
                time.sleep(rng.uniform(0, seconds))
                os.kill(child, signal.SIGKILL)
                code = ended(child)
            if code != -signal.SIGKILL:
                break
            kills += 1
        which = f"run {runs} of {kind}"
        assert code == 0, f"{which} ended with exit code {code}"
        assert result(folder) == expected, f"{which} differs from the uninterrupted one"
        left = [path for place in (folder, folder / "checkpoints") for path in place.glob(".*.tmp")]
        assert not left, f"{which} left {left}"
        shutil.rmtree(folder)
        runs += 1
    return (
        f"{kind}: {kills} kills, {at_writes} of them around a write, of {runs} runs: all ended as the uninterrupted one"
    )


def main() -> int:
    """Kill runs of every kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each kind, at least")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.path.append(str(Path(__file__).parents[1] / "examples"))
    set_num_threads(1)  # threads do not survive a fork
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as root:
            print(kill(kind, options.kills, random.Random(options.seed), Path(root)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

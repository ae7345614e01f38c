"""Checkpoints of a hostile writer: with a valid seal, and one entry of the state that makes no sense.

Resuming from any of them succeeds or raises one of xcnn's own errors. XCNN_HOSTILE_STATES sets the number of trials.
"""

import copy
import dataclasses
import os
import random
import shutil
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from xcnn import plots
from xcnn.errors import XcnnError
from xcnn.runs import Config, train
from xcnn.runs.checkpoint import read_checkpoint, write_checkpoint
from xcnn.training import Callback

COUNT = int(os.environ.get("XCNN_HOSTILE_STATES", "60"))

VALUES = [
    None, True, -1, 0, 3, 10**30, 10**400, -(10**400), 0.5, -2.5, np.nan, np.inf, -np.inf, 1e308, "", "x", "5",
    "\ud800", "\x1b[2J", [], [1], [[]], {}, {"a": 1}, np.zeros(3), np.zeros((), np.float32), np.arange(2),
    np.zeros(1, np.uint8),
]  # fmt: skip
"""Replacements for an entry; an entry may also be removed."""


class Press(Callback):
    """Presses Ctrl-C in the second epoch, of two batches each."""

    def on_batch_end(self, trainer, epoch, batch, metrics):
        if trainer.steps == 3:
            os.kill(os.getpid(), signal.SIGINT)


def paths(node: object, path: tuple = ()) -> Iterator[tuple]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*path, key)
        yield from paths(value, (*path, key))


def spoil(tree: dict, rng: random.Random) -> str:
    """Change or remove one entry, with the same probability for each part of the state; return its path."""
    parts: dict[tuple, list[tuple]] = {}
    for path in paths(tree):
        if len(path) > 1:
            parts.setdefault(path[:2], []).append(path)
    *above, last = rng.choice(parts[rng.choice(sorted(parts, key=str))])
    node = tree
    for key in above:
        node = node[key]
    if rng.random() < 0.15:
        del node[last]
        return f"{(*above, last)} removed"
    node[last] = rng.choice(VALUES)
    return f"{(*above, last)} = {node[last]!r}"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of values out of range
@pytest.mark.parametrize(
    ("opt", "schedule"), [("adam", "one-cycle"), ("sgd", "plateau"), ("rmsprop", "step"), ("adamw", "cosine")]
)
def test_a_state_that_makes_no_sense_gives_a_result_or_one_of_our_errors(tmp_path, opt, schedule):
    config = Config(
        model="report", epochs=2, validation=0.4, batch_size=500, patience=1, opt=opt, schedule=schedule,
        warmup=1 if schedule in ("step", "cosine") else 0,
    )  # fmt: skip
    assert train(config, tmp_path / "good", [Press()]).interrupted
    newest = max((tmp_path / "good" / "checkpoints").glob("step-*"))
    good, rng, run, refused = read_checkpoint(newest), random.Random(f"{opt} {COUNT}"), tmp_path / "run", 0
    for _ in range(COUNT // 4):
        tree = {name: copy.deepcopy(getattr(good, name)) for name in ("training", "origin", "config")}
        what = spoil(tree, rng)
        shutil.copytree(tmp_path / "good", run)
        message = ""
        try:
            write_checkpoint(run / "checkpoints" / newest.name, dataclasses.replace(good, **tree))
        except TypeError:  # no file holds an array there
            shutil.rmtree(run)
            continue
        try:
            result = train(config, run, resume=True)
            plots.curves(result.history, run / "curves.png", "a run")
        except XcnnError as error:
            refused, message = refused + 1, str(error)
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")
        assert len(message.splitlines()) <= 1
        shutil.rmtree(run)
    assert refused

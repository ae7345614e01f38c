"""The files of a run that `hostile.py` damages: checkpoints and settings.

The checksum (seal) of a file reveals every change, so damage would never reach the code behind it. So `mend` renews the
seal of a damaged file, and `checkpoint-entry` is the JSON of a checkpoint, which is sealed before it is read.
"""

import copy
import hashlib
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import cyclopts
import numpy as np
from resumable import make_trainer
from safetensors.numpy import load, save

import xcnn
from xcnn import models, nn, runs
from xcnn.cli import app
from xcnn.errors import CheckpointError, UsageError
from xcnn.runs import Checkpoint, Checkpoints, Config, load_checkpoint, save_checkpoint
from xcnn.runs.settings import check

__all__ = [
    "edit",
    "make_entry",
    "make_network",
    "make_network_entry",
    "make_run",
    "make_settings",
    "make_weights",
    "mend_seal",
    "read_entry",
    "read_network",
    "read_network_entry",
    "read_planted",
    "read_run",
    "read_settings",
    "read_torch",
    "read_weights",
]

ABOUT = Checkpoint("report", (1, 4, 4), ("cat", "dog"), "folder", {"lr": 0.1}, {"epoch": 3})


def make_weights(folder: Path) -> Path:
    return save_checkpoint(folder / "best.safetensors", models.build("report", (1, 4, 4), 2), ABOUT)


def read_weights(path: Path) -> object:
    return load_checkpoint(path).build()


def make_run(folder: Path) -> Path:
    """Write a checkpoint in the middle of an epoch, with every kind of state."""
    trainer = make_trainer("adam", "one-cycle")
    trainer.fit([(np.ones((4, 1, 8, 8), np.float32), np.arange(4))] * 2)
    return Checkpoints(folder, about=ABOUT).save(trainer)


def read_run(path: Path) -> object:
    trainer = make_trainer("adam", "one-cycle")
    assert Checkpoints(path.parent).restore(trainer) is not None
    return trainer.state_dict()


def metadata(content: bytes) -> dict[str, str]:
    header: dict[str, dict[str, str]] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header["__metadata__"]


def seal(tensors: dict[str, np.ndarray], texts: dict[str, str]) -> bytes:
    """Seal a file as a hostile writer would: all its checksums are right."""
    sums = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in tensors.items()}
    content = save(tensors, texts | {"tensors": json.dumps(sums), "sha256": "0" * 64})
    header = content[: 8 + int.from_bytes(content[:8], "little")]
    return content.replace(b"0" * 64, hashlib.sha256(header).hexdigest().encode(), 1)


def mend_seal(content: bytes) -> bytes:
    """Renew the seal of a file, if it can still be parsed as safetensors."""
    try:
        return seal(load(content), metadata(content))
    except Exception:
        return content


def make_entry(folder: Path, make: Callable[[Path], Path] = make_run) -> Path:
    path = folder / "entry.json"
    path.write_text(metadata(make(folder).read_bytes())["xcnn"])
    return path


def read_entry(path: Path, read: Callable[[Path], object] = read_run) -> object:
    (checkpoint,) = path.parent.glob("*.safetensors")
    before = checkpoint.read_bytes()
    checkpoint.write_bytes(seal(load(before), {"xcnn": path.read_bytes().decode("utf-8", "replace")}))
    try:
        return read(checkpoint)
    finally:
        checkpoint.write_bytes(before)


def read_torch(path: Path) -> object:
    """Read weights of PyTorch, and every byte of them."""
    return [array.tobytes() for array in load_checkpoint(path, "own").state.values()]


def read_planted(path: Path) -> object:
    """Read weights with a payload, whose refusal is no finding."""
    try:
        return read_torch(path)
    except CheckpointError as error:
        if "names 'os.mkdir'" not in str(error):
            raise
        return None


def make_network(folder: Path) -> Path:
    """Write a network with every kind of container, a shared layer and a random generator."""
    shared = nn.Conv2d(2, 2, 3, padding="same")
    nodes = [("a", shared, "x"), ("b", nn.BatchNorm2d(2), "a"), ("c", nn.Concat(), ("a", "b"))]
    branches = nn.Branches(nn.GroupNorm(2, 4), nn.Dropout(0.1), merge="add")
    parts = [nn.Residual(shared), nn.Graph(nodes, "c"), branches, nn.Pad((1, 1)), nn.GlobalAvgPool()]
    model = nn.Sequential(*parts, nn.LayerNorm(4), nn.Linear(4, 2))
    return xcnn.save(model, folder / "network.safetensors", shape=(2, 6, 6), classes=["a", "b"])


def read_network(path: Path) -> object:
    """Load a network; it may take the memory of its file twice, and some for the code."""
    traced = tracemalloc.is_tracing()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    try:
        return xcnn.load(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1] - before
        assert not traced or peak < 2 * path.stat().st_size + (1 << 20), f"took {peak} bytes"


def make_network_entry(folder: Path) -> Path:
    return make_entry(folder, make_network)


def read_network_entry(path: Path) -> object:
    return read_entry(path, read_network)


VALUES = [
    None, True, False, -1, 0, 1, 2, 3, 4, 64, 10**5, 2**31 - 1, 2**31, 2**40, 2**63, 10**30, 10**400, 0.5, -2.5,
    float("nan"), float("inf"), 1e308, "", "x", "same", "add", "\ud800", "Conv2d", "Sequential", "Linear", "Module",
    [], [1], [[]], [2**31 - 1] * 3, [2] * 70, {}, {"a": 1}, {"list": [1]}, {"dict": {"a": 1}}, {"module": -1},
    *({"module": place} for place in range(6)),
]  # fmt: skip


def edit(file: bytearray, rng: random.Random, other: bytes) -> None:
    """Change the value of JSON at one place: a hostile writer knows the format."""
    tree = json.loads(file)
    places = [
        (node, key) for node in _nodes(tree) for key in (list(node) if isinstance(node, dict) else range(len(node)))
    ]
    node, key = rng.choice(places)
    donor, there = rng.choice(places)
    kind = rng.random()
    if kind < 0.1:
        del node[key]
    elif kind < 0.2 and isinstance(node, list):
        node.insert(rng.randrange(len(node) + 1), copy.deepcopy(node[key]))
    elif kind < 0.3 and isinstance(node, dict):
        node[str(there)] = node.pop(key)
    elif kind < 0.5:
        node[key], donor[there] = copy.deepcopy(donor[there]), copy.deepcopy(node[key])
    elif kind < 0.6 and "class" in node:
        node["class"] = rng.choice(nn.__all__)
    else:
        node[key] = copy.deepcopy(rng.choice(VALUES))
    file[:] = json.dumps(tree).encode()


def _nodes(tree: object) -> Iterator[dict[str, object] | list[object]]:
    if isinstance(tree, dict | list):
        yield tree
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from _nodes(inner)


SETTINGS = {
    ".json": '{"model": "report", "epochs": 3, "lr": 0.01, "augment": ["shift"], "wd": null}',
    ".toml": 'model = "report"\nepochs = 3\nlr = 0.01\naugment = ["shift"]\ncheckpoint_every = "5steps"\n',
}


def make_settings(suffix: str, folder: Path) -> Path:
    path = folder / f"settings{suffix}"
    path.write_text(SETTINGS[suffix])
    return path


def read_settings(path: Path) -> object:
    """Read settings as `xcnn train --config` does, up to loading the data."""
    runs.read_settings(path)  # the command does the same, but later
    try:
        _, bound, _ = app.parse_args(["train", "--config", str(path)], exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        raise UsageError(" ".join(str(error).split())) from None
    settings = bound.arguments.get("flags", Config())
    check(settings)
    return settings

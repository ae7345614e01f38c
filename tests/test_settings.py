"""The settings of a run: every value has the type and the range that its row of the table says, or is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from xcnn.errors import UsageError
from xcnn.runs import SETTINGS, Config, train
from xcnn.runs.settings import check, plain

WRONG = {
    "dataset": ["digit", None, 3, ["digits"]],
    "data_dir": ["", 3],
    "image_size": [0, 20_000, 8.0, "8", True],
    "model": ["lenet", None, {}],
    "epochs": [2.7, 0, -1, "3", None, True, 10**10, float("nan")],
    "batch_size": [0, 2.5, None, 10**10],
    "opt": ["adm", None],
    "lr": [0, -1.0, float("nan"), float("inf"), "0.1", None, True],
    "momentum": [-0.1, "x"],
    "wd": [-1.0, float("inf")],
    "schedule": ["cosin", 1],
    "warmup": [-1, 0.5],
    "label_smoothing": [1.0, -0.1, None],
    "clip_norm": [0, -1, "x"],
    "augment": ["flip", ["shft"], [3], None],
    "validation": [1, -0.1, None],
    "patience": [0, 1.5],
    "seed": [2.5, -1, None, "0"],
    "device": [None, 3],
    "checkpoint_every": ["often", None, 5, ""],
    "keep_checkpoints": [0, 1.5],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(UsageError) as caught:
        check(Config(**{name: value}))
    assert caught.value.setting == name
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)


def test_every_setting_is_looked_at():
    assert WRONG.keys() == SETTINGS.keys()
    for name, row in SETTINGS.items():
        assert row.help.endswith((".", ")."))
        assert f"{name} : {row.help}" in Config.__doc__


def test_settings_are_converted_to_their_types():
    config = check(Config(epochs=np.int64(3), lr=1, augment=["flip"], data_dir="x", clip_norm=np.float32(0.5)))
    assert (type(config.epochs), type(config.lr), type(config.clip_norm)) == (int, float, float)
    assert (config.augment, config.data_dir) == (("flip",), Path("x"))
    assert json.loads(json.dumps(plain(config)))["data_dir"] == str(Path("x").resolve())
    assert check(Config()) == Config()


def test_patience_wants_validation():
    with pytest.raises(UsageError, match="patience needs validation images; set validation above 0"):
        check(Config(patience=2, validation=0))


def test_a_folder_without_a_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="the folder must have a name, got an empty string") as caught:
        train(Config(model="report"), "")
    assert caught.value.setting == "out"
    assert not list(tmp_path.iterdir())

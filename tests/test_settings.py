"""The settings of a run: every value has the type and the range that its row of the table says, or is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from xcnn.errors import UsageError
from xcnn.runs import SETTINGS, Config, train
from xcnn.runs.settings import check, plain
from xcnn.training import Callback

WRONG = {
    "dataset": ["digit", None, 3, ["digits"]],
    "data_dir": ["", 3],
    "image_size": [0, 20_000, 8.0, "8", True],
    "resize": ["squeeze", None, 3, ["crop"]],
    "background": ["", "#12345", "#12345g", "gold", None, 0],
    "skip_broken": [1, None, "yes"],
    "normalize": [1, None, "yes"],
    "model": ["lenet", {}],
    "model_options": [3, "filters=8", ["filters"], {3: 4}],
    "init": ["", 3],
    "freeze": ["0.*", [""], [3], None],
    "epochs": [2.7, 0, -1, "3", None, True, 10**10, float("nan")],
    "batch_size": [0, 2.5, None, 10**10],
    "opt": ["adm", None],
    "lr": [0, -1.0, float("nan"), float("inf"), "0.1", None, True],
    "momentum": [-0.1, "x"],
    "wd": [-1.0, float("inf")],
    "opt_options": [3, "nesterov=true", ["nesterov"], {3: 4}, {"eps": float("nan")}, {"eps": object()}],
    "schedule": ["cosin", 1],
    "warmup": [-1, 0.5],
    "label_smoothing": [1.0, -0.1, None],
    "class_weight": ["balance", 3, ["balanced"]],
    "ema": [1, -0.1, "x"],
    "accumulate": [0, 1.5, "2"],
    "sync_batch_norm": [1, None, "yes"],
    "clip_norm": [0, -1, "x"],
    "augment": ["flip", ["shft"], [3], None],
    "validation": [1, -0.1, None],
    "monitor": ["val_los", "train_loss", None, 3],
    "patience": [0, 1.5],
    "seed": [2.5, -1, None, "0"],
    "workers": [-1, 1.5, "2", True],
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


def test_wrong_names_are_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"^Config: no argument 'epoch'; did you mean 'epochs'\?"):
        Config(epoch=3)
    with pytest.raises(UsageError, match=r"^train: no argument 'resum'; did you mean 'resume'\?"):
        train(Config(), resum=True)
    with pytest.raises(UsageError, match=r"^config must be a Config, got {'epochs': 3}$"):
        train({"epochs": 3})


MINE = """
from xcnn import optim
class Mine(optim.SGD):
    def __init__(self, params, lr, beta):
        super().__init__(params, lr, momentum=beta)
class Own(optim.Adam):
    def __init__(self, params, **options):
        super().__init__(params, **options)
def unnamed(params, **options):
    return optim.SGD(params, **options)
"""


def trained(tmp_path, **settings):
    """The optimizer of a short run."""
    seen = []

    class Look(Callback):
        def on_fit_start(self, trainer, batches, epochs):
            seen.append(trainer.optimizer)

    train(Config(model="report", epochs=1, validation=0.9, schedule="constant", **settings), tmp_path / "run", [Look()])
    return seen[0]


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"opt": "sgd", "opt_options": {"nesterov": True}}, {"nesterov": True, "momentum": 0.9, "weight_decay": 0.0}),
        ({"opt": "adam", "wd": 0.1, "opt_options": {"betas": (0.8, 0.9)}}, {"betas": (0.8, 0.9), "weight_decay": 0.1}),
        ({"opt": "mine_rules:Mine", "opt_options": {"beta": 0.5}}, {"momentum": 0.5, "lr": 0.003}),
        ({"opt": "mine_rules:unnamed", "opt_options": {"nesterov": False}}, {"lr": 0.001}),
        ({"opt": "mine_rules:unnamed", "lr": 0.25, "opt_options": {}}, {"lr": 0.25}),
        ({"opt": "mine_rules:Own", "lr": 0.25, "opt_options": {"eps": 0.5}}, {"lr": 0.25, "eps": 0.5}),
    ],
)
def test_a_rule_gets_the_options_that_it_takes(tmp_path, monkeypatch, settings, options):
    (tmp_path / "mine_rules.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    (group,) = trained(tmp_path, **settings).param_groups
    assert {name: group[name] for name in options} == options
    assert json.loads((tmp_path / "run" / "config.json").read_text())["opt_options"] == json.loads(
        json.dumps(settings["opt_options"])
    )


@pytest.mark.parametrize(
    ("settings", "named", "says"),
    [
        ({"momentum": 0.8}, "momentum", "momentum is not for the optimizer adam, which has no momentum"),
        ({"opt": "mine_rules:Mine", "wd": 0.1}, "wd", "wd is not for the optimizer mine_rules:Mine, which has no weig"),
        ({"opt": "mine_rules:Mine"}, "opt_options", "mine_rules:Mine: missing a required argument: 'beta'"),
        ({"opt_options": {"momentum": 3}}, "opt_options", "adam: no argument 'momentum'"),
        ({"opt_options": {"beta": 3}}, "opt_options", "adam: no argument 'beta'; did you mean 'betas'?"),
        ({"opt_options": {"weight_decay": 3}}, "opt_options", "set wd instead of the option weight_decay"),
        ({"opt_options": {"betas": 3}}, "", "Adam: betas must be 2 numbers, got 3"),
    ],
)
def test_options_that_a_rule_does_not_take_are_refused(tmp_path, monkeypatch, settings, named, says):
    (tmp_path / "mine_rules.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        trained(tmp_path, **settings)
    assert str(caught.value).startswith(says)
    assert caught.value.setting == named


@pytest.mark.parametrize(
    ("name", "value"), [("image_size", 8), ("resize", "pad"), ("background", "black"), ("skip_broken", True)]
)
def test_settings_of_a_folder_are_refused_for_data_sets_of_the_table(name, value):
    with pytest.raises(UsageError, match=f"^{name} is for the data set 'folder'; the data set 'mnist' has") as caught:
        check(Config(dataset="mnist", **{name: value}))
    assert caught.value.setting == name
    for dataset in ("folder", "mine:load"):
        assert getattr(check(Config(dataset=dataset, **{name: value})), name) == value


@pytest.mark.parametrize(("name", "value"), [("patience", 2), ("monitor", "val_accuracy")])
def test_what_watches_the_validation_wants_some(tmp_path, name, value):
    with pytest.raises(UsageError, match=f"^{name} needs validation images; set validation above 0") as caught:
        train(Config(**{name: value}, validation=0), tmp_path / "run")
    assert caught.value.setting == name
    assert not (tmp_path / "run").exists()


def test_a_data_set_without_classes_is_refused(tmp_path, monkeypatch):
    (tmp_path / "mine_numbers.py").write_text(
        "import numpy as np\nfrom xcnn.data import Dataset\n"
        "def load(folder):\n    return (Dataset(np.zeros((9, 1, 8, 8), np.float32), np.zeros(9)),) * 2\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^mine_numbers:load has no names of classes, and runs train") as caught:
        train(Config(dataset="mine_numbers:load"), tmp_path / "run")
    assert caught.value.setting == "dataset"


def test_a_folder_without_a_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="the folder must have a name, got an empty string") as caught:
        train(Config(model="report"), "")
    assert caught.value.setting == "out"
    assert not list(tmp_path.iterdir())

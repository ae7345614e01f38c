"""Runs whose network is that of the file they begin with."""

import dataclasses

import numpy as np
import pytest
from kill_runs import result
from test_resume_run import Press
from test_runs_beginning import bits, photos

import xcnn
from xcnn import models, nn, runs
from xcnn.errors import UsageError
from xcnn.runs import Checkpoints, Config, load_checkpoint, recorded_settings, train

CONFIG = Config(epochs=2, validation=0.8, batch_size=128, checkpoint_every="2steps")


def graph(classes, scores=True):
    """A network that no builder makes, with dropout, running statistics and a parameter as a node."""
    nodes = [
        ("stem", nn.Conv2d(1, 4, 3, padding=1), "image"),
        ("norm", nn.BatchNorm2d(4), "stem"),
        ("scale", nn.Parameter(np.full((4, 1, 1), 2, np.float32)), ()),
        ("scaled", nn.Multiply(), ("norm", "scale")),
        ("drop", nn.Dropout(0.25), "scaled"),
        ("pool", nn.GlobalAvgPool(), "drop"),
        ("head", nn.Linear(4, classes), "pool"),
    ]
    return nn.Graph(nodes if scores else nodes[:-2], inputs="image")


@pytest.fixture
def file(tmp_path):
    network = graph(7)
    network.reset_parameters(3)
    return xcnn.save(network, tmp_path / "given.safetensors", shape=(1, 8, 8), classes=list("abcdefg"))


def test_a_run_begins_with_the_network_of_a_file_and_a_new_head(tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    press = Press()
    frozen = ("stem", "norm", "scale", "head.bias")
    ended = train(dataclasses.replace(CONFIG, init=file, freeze=frozen), None, [press])
    assert ended.folder.name.startswith("digits-given-")
    assert "the last layer of the network is new, as it gave 7 scores, and there are 10 classes" in press.told
    assert any(note.startswith("begins with 8 of 10 arrays from") and "; new: head.weight, head.bias;" in note
               for note in press.told)  # fmt: skip
    found = load_checkpoint(ended.folder)
    assert (found.model, found.shape, len(found.classes)) == ("", (1, 8, 8), 10)
    loaded, given = runs.load(ended.folder), runs.load(file)
    assert isinstance(loaded, nn.Graph)
    for name, array in loaded.state_dict().items():
        assert name in ("head.weight", "head.bias") or np.array_equal(array, given.state_dict()[name]), name
    assert loaded.state_dict()["head.weight"].shape == (10, 4)
    tested = runs.restore(ended.folder).evaluate()
    assert tested.loss == pytest.approx(ended.test_loss, rel=1e-6)


@pytest.mark.parametrize("settings", [{}, {"normalize": True, "ema": 0.8, "freeze": ("stem",)}])
def test_it_resumes_to_the_same_bits_without_the_file(tmp_path, file, settings):
    config = dataclasses.replace(CONFIG, init=file, **settings)
    train(config, tmp_path / "whole")
    assert train(config, tmp_path / "stopped", [Press(2)]).interrupted == 130
    file.unlink()
    train(config, tmp_path / "stopped", resume=True)
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")
    newest, expected = (Checkpoints(tmp_path / name / "checkpoints").find() for name in ("stopped", "whole"))
    assert bits(newest.state) == bits(expected.state)
    assert recorded_settings(tmp_path / "whole").get("model") is None


def test_the_command_needs_no_model(xcnn, tmp_path, file):
    flags = ["train", "--epochs", "1", "--validation", "0.8", "--init", "given.safetensors", "-o", "out"]
    code, out, err = xcnn(*flags)
    assert code == 0, err
    assert "given on digits" in out
    code, out, err = xcnn("predict", "out", "--index", "0")
    assert code == 0, err
    code, out, err = xcnn("train", "--resume", "out", "--epochs", "2")
    assert code == 0, err
    code, out, err = xcnn("train", "--resume", "out", "--epochs", "3", "--model", "lenet5")
    assert code == 2
    assert "--model cannot change in a resumed run" in err
    assert "it was not set, now lenet5; start a new run" in err
    code, out, err = xcnn("evaluate", "out", "--data-dir", "x")
    assert (code, err) == (2, "error: digits is part of the package; omit --data-dir (x)\n")


def test_a_named_model_is_that_of_the_file(tmp_path):
    config = Config(model="report", epochs=1, validation=0.8)
    train(config, tmp_path / "first")
    second = train(dataclasses.replace(config, model=None, init=tmp_path / "first"), tmp_path / "second")
    assert load_checkpoint(second.folder).model == "report"


def test_images_get_the_size_of_the_network(tmp_path):
    """Those of the file, or those for which the model is meant, if they are larger than 32."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 2))
    path = xcnn.save(network, tmp_path / "x.safetensors", shape=(3, 12, 12), classes=["a", "b"])
    config = dataclasses.replace(CONFIG, epochs=1, validation=0.0, dataset="folder", data_dir=photos(tmp_path))
    assert load_checkpoint(train(dataclasses.replace(config, init=path), tmp_path / "out").folder).shape == (3, 12, 12)
    large = dataclasses.replace(models.MODELS["report"], shape=(3, 40, 40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "large", large)
        assert (
            load_checkpoint(train(dataclasses.replace(config, model="large"), tmp_path / "large").folder).shape[-1]
            == 40
        )
    ended = train(dataclasses.replace(config, model="report"), tmp_path / "small")
    assert load_checkpoint(ended.folder).shape[-1] == 32


class Mine(nn.Module):
    """A class that is not in xcnn.nn."""

    def forward(self, x, train):
        return x, lambda dy, needs=None: dy


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (graph(7, scores=False), r"it gives \(1, 4, 8, 8\) for one input, not a score per class"),
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 7)), "linear"),
        (nn.Sequential(nn.Flatten(), nn.Pad((0, 3))), "Pad|no linear layer or convolution"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.BatchNorm1d(7)), "batch_norm"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.Linear(7, 7), nn.Linear(7, 7, bias=False)), ""),
        (nn.Sequential(nn.Flatten()), "it gives 64 scores, and no linear layer or convolution"),
        (nn.Sequential(nn.Flatten(), Mine(), nn.Linear(64, 7)), "its classes Mine are not in xcnn.nn; name the model"),
    ],
)
def test_networks_that_cannot_be_trained_are_refused(tmp_path, network, says):
    path = xcnn.save(network, tmp_path / "x.safetensors")
    config = dataclasses.replace(CONFIG, epochs=1, init=path)
    if not says:
        train(config, tmp_path / "out")
        return
    with pytest.raises(UsageError, match=says) as caught:
        train(config, tmp_path / "out")
    assert str(caught.value).startswith("init: the network of")
    assert caught.value.setting == "init"
    assert not (tmp_path / "out").exists()

"""Runs that begin with other weights, frozen or normalised, through the command."""

import dataclasses

import numpy as np
import pytest
from kill_runs import result
from safetensors.numpy import save_file
from test_resume_run import Press

from xcnn import models, runs
from xcnn.runs import Config, load_checkpoint, recorded_settings, train

CONFIG = Config(model="report", epochs=1, validation=0.8)
QUICK = ["train", "--model", "report", "--epochs", "1", "--validation", "0.8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(CONFIG, folder)
    return folder


def weights(folder):
    return load_checkpoint(folder).state


def bits(state):
    return {name: array.tobytes() for name, array in state.items()}


@pytest.mark.parametrize("kind", ["run", "checkpoint", "step", "saved", "plain"])
def test_a_run_begins_with_the_weights_of_a_file(tmp_path, trained, kind):
    source = {
        "run": trained,
        "checkpoint": trained / "best.safetensors",
        "step": max((trained / "checkpoints").glob("step-*")),
        "saved": tmp_path / "saved.safetensors",
        "plain": tmp_path / "plain.safetensors",
    }[kind]
    if kind == "saved":
        runs.save(runs.load(trained), source)
    if kind == "plain":
        save_file(weights(trained), source)
    press = Press()
    train(dataclasses.replace(CONFIG, init=source, opt="sgd", lr=1e-30), tmp_path / "out", [press])
    assert press.told[0].startswith("begins with 3 of 3 arrays from")
    expected = load_checkpoint(source, "report").state
    assert bits(weights(tmp_path / "out")) == bits(expected)  # steps of 1e-30 change no bit
    assert recorded_settings(tmp_path / "out")["init"] == str(source.resolve())


def test_a_new_head_is_told_and_a_frozen_trunk_keeps_its_bits(xcnn, tmp_path):
    """The trunk is a ResNet for three classes, with running statistics."""
    trunk = models.build("resnet20", (1, 8, 8), 3, seed=5)
    state = {name: np.asarray(array * 0.75, array.dtype) for name, array in trunk.state_dict().items()}
    head = [name for name, array in state.items() if 3 in array.shape[:1] and array.size < 300]
    save_file(state, tmp_path / "trunk.safetensors")
    patterns = sorted({name.split(".")[0] + ".*" for name in state} - {head[0].split(".")[0] + ".*"})
    flags = ["--model", "resnet20", "--epochs", "1", "--validation", "0.8", "-b", "96"]
    code, _, err = xcnn(
        "train", *flags, "--init", "trunk.safetensors", "--freeze", ",".join(patterns), "--json", "-o", "out"
    )
    assert code == 0, err
    assert f"; new: {', '.join(head)}; not used: {', '.join(sorted(head))}" in err
    ended = weights(tmp_path / "out")
    fresh = models.build("resnet20", (1, 8, 8), 10, seed=0).state_dict()
    trained = sum(fresh[name].size for name in head)
    assert f" {trained:,} of " in err
    for name in state:
        same = state[name] if name not in head else fresh[name]
        assert np.array_equal(ended[name], same) == (name not in head), name


def test_a_file_that_does_not_fit_is_refused(xcnn, tmp_path):
    save_file({"other.weight": np.zeros((2, 2), np.float32)}, tmp_path / "other.safetensors")
    code, _, err = xcnn(*QUICK, "--init", "other.safetensors", "-o", "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "--init: no weights of other.safetensors have a name and a shape of this network; the file has" in err
    code, _, err = xcnn(*QUICK, "--init", "missing.safetensors", "-o", "out")
    assert (code, err.count("\n")) == (1, 1)
    assert "missing.safetensors" in err
    assert not (tmp_path / "out").exists()


def test_a_pattern_that_matches_nothing_or_everything_is_refused(xcnn, tmp_path):
    first = next(iter(models.build("report", (1, 8, 8), 10).state_dict()))
    code, _, err = xcnn(*QUICK, "--freeze", first.replace("weight", "wieght"))
    assert code == 2
    assert f"--freeze: no parameter matches '{first.replace('weight', 'wieght')}'; the names most like it" in err
    assert first in err
    code, _, err = xcnn(*QUICK, "--freeze", "*")
    assert code == 2
    assert "--freeze: the patterns * leave no weight to train" in err
    assert not (tmp_path / "runs").exists()


SETTINGS = {
    "init and freeze": {"freeze": ("0.*",)},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_ends_as_the_whole_one(tmp_path, trained, name):
    given = dict(SETTINGS[name])
    source = tmp_path / "source.safetensors"
    source.write_bytes((trained / "best.safetensors").read_bytes())
    config = dataclasses.replace(CONFIG, epochs=2, checkpoint_every="3steps", init=source, **given)
    train(config, tmp_path / "whole")
    press = Press(2)
    assert train(config, tmp_path / "stopped", [press]).interrupted == 130
    source.unlink()  # it is not read again
    train(config, tmp_path / "stopped", [Press(7)], resume=True)
    train(config, tmp_path / "stopped", resume=True)
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")


def test_what_was_frozen_may_be_trained_in_a_resumed_run(xcnn, tmp_path):
    train(dataclasses.replace(CONFIG, freeze=("0.*",)), tmp_path / "out")
    before = weights(tmp_path / "out")
    assert bits(before)["0.weight"] == bits(models.build("report", (1, 8, 8), 10).state_dict())["0.weight"]
    code, _, err = xcnn("train", "--resume", "out", "--epochs", "2")  # with the patterns of the run
    assert code == 0, err
    assert "weights are trained" in err
    assert bits(weights(tmp_path / "out"))["0.weight"] == bits(before)["0.weight"]
    press = Press()
    train(dataclasses.replace(CONFIG, epochs=3, freeze=("*.bias",)), tmp_path / "out", [press], resume=True)
    assert "freeze was ['0.*'] and is ['*.bias']: it applies from here on" in press.told
    newest = max((tmp_path / "out" / "checkpoints").glob("step-*"))
    assert bits(weights(newest))["0.weight"] != bits(before)["0.weight"]

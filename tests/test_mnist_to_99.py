"""The example that trains on MNIST with either library: both learn the same, and it stops and reports as documented."""

import json

import numpy as np
import pytest

from xcnn import data

RECORD = ["epoch", "train_loss", "seconds", "batch_seconds", "test_accuracy"]


@pytest.fixture
def example(load_example):
    return load_example("mnist_to_99")


@pytest.fixture
def digits():
    """Return the package's digits in the size of MNIST's."""

    def enlarged(part):
        images = part.x.repeat(4, axis=2).repeat(4, axis=3)[:, :, 2:30, 2:30]
        return data.from_arrays(images, part.y, classes=part.classes)

    return tuple(enlarged(part) for part in data.load("digits"))


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
def test_both_libraries_learn_the_same(example, digits, layout):
    pytest.importorskip("torch")
    train, test = digits
    found = [list(example.run(library, train[:700], test, layout=layout, epochs=1)) for library in ("xcnn", "torch")]
    for ours, theirs in zip(*(records[:-1] for records in found), strict=True):
        assert list(ours) == list(theirs) == RECORD
        assert 0 < ours["batch_seconds"] < ours["seconds"]
        assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=1e-2)  # rounding
        assert theirs["test_accuracy"] == pytest.approx(ours["test_accuracy"], abs=0.01)
    assert [records[-1]["layout"] for records in found] == [None, layout]


def test_it_ends_where_the_target_is_reached(example, digits):
    train, test = digits
    *epochs, last = example.run("xcnn", train, test, epochs=8, target=0.5)
    assert [record["test_accuracy"] >= 0.5 for record in epochs] == [*(False,) * (len(epochs) - 1), True]
    assert 1 < len(epochs) == last["epochs"] < 8
    assert last["seconds"] == pytest.approx(sum(record["seconds"] for record in epochs))
    assert last["batch_seconds"] == pytest.approx(sum(record["batch_seconds"] for record in epochs))
    assert last["test_accuracy"] == epochs[-1]["test_accuracy"]


def test_the_commands_output(example, shared_data, capsys):
    command = ["--data-dir", str(shared_data), "--limit", "300"]
    assert example.main([*command, "--json"]) == 0
    epoch, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert list(epoch) == RECORD
    assert (last["library"], last["epochs"]) == ("xcnn", 1)
    assert example.main(command) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith(f"epoch 1: loss {epoch['train_loss']:.4f}, test accuracy")


def test_a_target_that_is_missed_is_an_error(example, digits, capsys, monkeypatch):
    monkeypatch.setattr(data, "load", lambda name, folder: tuple(part[:20] for part in digits))
    assert example.main(["--json"]) == 1
    captured = capsys.readouterr()
    accuracy = json.loads(captured.out.splitlines()[-1])["test_accuracy"]
    assert captured.err == f"error: {accuracy:.2%} after 20 epochs\n"
    assert np.isfinite(accuracy)


def test_data_that_are_missing_are_one_sentence(example, tmp_path, capsys):
    assert example.main(["--data-dir", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--library", "keras"], "argument --library: invalid choice: 'keras'"),
        (["--seed=-1"], "--seed must be 0 or more, got -1"),
        (["--limit=1"], "--limit must be at least 2, got 1"),
    ],
)
def test_invalid_requests_are_refused(example, arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        example.main(arguments)
    assert ended.value.code == 2
    assert f"error: {message}" in capsys.readouterr().err


def test_a_library_that_is_missing(example, monkeypatch, capsys):
    monkeypatch.setattr(example.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        example.main(["--library", "torch"])
    assert capsys.readouterr().err.endswith("error: torch is not installed; pip install torch\n")

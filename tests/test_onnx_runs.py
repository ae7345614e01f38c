"""ONNX files where networks are read: load, predict, evaluate, and runs that begin with them."""

import json

import numpy as np
import pytest
from kill_runs import result
from PIL import Image
from test_resume_run import Press

import xcnn as library
from xcnn import models, nn, onnx, runs
from xcnn.errors import CheckpointError
from xcnn.runs import Config, load_checkpoint, train

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def network():
    trunk = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)
    model = nn.Sequential(*trunk, nn.Flatten(), nn.Dropout(0.2), nn.Linear(96, 7))
    model.reset_parameters(3)
    model.load_state_dict({"1.running_mean": np.arange(6) / 20, "1.running_var": np.arange(6) + 0.5}, strict=False)
    return nn.Sequential(nn.Normalize([0.3], [0.4]), model)


@pytest.fixture
def image(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def probabilities(network, image):
    scores = network(np.asarray(Image.open(image), np.float32)[None, None] / 255)[0].astype(float)
    return np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("name", ["x.onnx", "by-its-content"])
def test_a_file_is_loaded_and_classifies_images(xcnn, tmp_path, network, image, softmax, name):
    onnx.save(network, tmp_path / "x.onnx", SHAPE, classes=list("abcdefg"), softmax=softmax)
    (tmp_path / "x.onnx").rename(tmp_path / name)
    code, out, err = xcnn("predict", name, "a.png", "--json")
    assert code == 0, err
    found = json.loads(out)["probabilities"]
    assert list(found) == list("abcdefg")
    assert np.allclose(list(found.values()), probabilities(network, image), atol=1e-6)
    x = np.random.default_rng(1).random((3, *SHAPE), np.float32)
    assert np.allclose(library.load(tmp_path / name)(x), network(x), atol=1e-5)


def test_a_file_without_a_word_of_ours(xcnn, tmp_path, network, image):
    """What PyTorch's exporter does not write either."""
    model = onnx.to_model(network, SHAPE)
    del model.metadata_props[:]
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    code, out, err = xcnn("predict", "x.onnx", "a.png", "--json")
    assert code == 0, err
    found = json.loads(out)["probabilities"]
    assert list(found) == [f"class {k}" for k in range(7)]
    assert np.allclose(list(found.values()), probabilities(network, image), atol=1e-6)
    bare = onnx.to_model(network[1], SHAPE)
    (tmp_path / "bare.onnx").write_bytes(bare.SerializeToString())
    code, out, err = xcnn("predict", "bare.onnx", "a.png", "--json", "--mean", "0.3", "--std", "0.4")
    assert code == 0, err
    assert np.allclose(list(json.loads(out)["probabilities"].values()), probabilities(network, image), atol=1e-6)


def test_a_run_begins_with_it_and_resumes_without_it(tmp_path, network):
    path = onnx.save(network, tmp_path / "given.onnx", SHAPE, softmax=True)
    config = Config(init=path, epochs=2, validation=0.8, batch_size=128, checkpoint_every="2steps", lr=1e-3)
    press = Press()
    train(config, tmp_path / "whole", [press])
    assert "the last layer of the network is new, as it gave 7 scores, and there are 10 classes" in press.told
    (note,) = (note for note in press.told if note.startswith("begins with "))
    assert "; new: 1.6.weight, 1.6.bias; not used: 1.6.weight, 1.6.bias" in note
    assert train(config, tmp_path / "stopped", [Press(2)]).interrupted == 130
    path.unlink()
    train(config, tmp_path / "stopped", resume=True)
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")
    assert load_checkpoint(tmp_path / "whole").model == ""


def test_its_weights_are_those_of_a_named_model(tmp_path):
    bare = models.build("report", SHAPE, 10, seed=3)
    path = onnx.save(bare, tmp_path / "given.onnx", SHAPE)
    config = Config(init=path, model="report", epochs=1, validation=0.8, opt="sgd", lr=1e-30)
    found = load_checkpoint(train(config, tmp_path / "out").folder)
    assert found.model == "report"
    assert {name: array.tobytes() for name, array in found.state.items()} == {
        name: array.tobytes() for name, array in bare.state_dict().items()
    }


def test_what_cannot_be_an_image_is_refused(tmp_path, network):
    path = onnx.save(network, tmp_path / "x.onnx", SHAPE, preprocessing={"range": [0, 255]})
    with pytest.raises(CheckpointError, match=r"takes images as .*255.*; here they are RGB or grey"):
        runs.restore(path)
    (tmp_path / "y.onnx").write_bytes(b"\x08\x09\x3a" + bytes(20))
    with pytest.raises(CheckpointError, match=r"y\.onnx"):
        library.load(tmp_path / "y.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"empty\.onnx"):
        library.load(tmp_path / "empty.onnx")

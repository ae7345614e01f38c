"""Networks in files: every composition comes back from the file alone, for runs and the command too.

XCNN_COMPOSITIONS sets the number of random compositions.
"""

import os
import re

import numpy as np
import pytest
from compositions import ARGUMENTS, composition, returned, train
from PIL import Image
from test_nn_layers import LAYERS
from zoo import SMALL

import xcnn
from xcnn import models, nn, optim, runs
from xcnn.cli import main
from xcnn.errors import CheckpointError, UsageError
from xcnn.runs import Checkpoint, restore
from xcnn.runs.structure import LAYERS as KNOWN
from xcnn.training import Trainer

COMPOSITIONS = int(os.environ.get("XCNN_COMPOSITIONS", "15"))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # some networks diverge
@pytest.mark.parametrize("seed", range(COMPOSITIONS))
def test_any_composition_comes_back_and_trains_on_to_the_same_bits(tmp_path, seed):
    model, x = composition(seed)
    model.forward(x)  # the running statistics and the generators are no longer those of the beginning
    back = returned(model, tmp_path)
    assert back(x).tobytes() == model(x).tobytes()
    ours, theirs = (list(map(id, dict(one.modules()).values())) for one in (model, back))
    assert [ours.index(one) for one in ours] == [theirs.index(one) for one in theirs]  # shared alike
    assert train(back, x) == train(model, x)


@pytest.mark.parametrize("name", SMALL)
def test_every_named_network_comes_back(tmp_path, name):
    shape = models.MODELS[name].shape[0], 14, 15
    model = models.build(name, shape, 4, seed=3)
    back, x = returned(model, tmp_path), np.random.default_rng(0).random((2, *shape), np.float32)
    assert train(back, x, 1) == train(model, x, 1)


@pytest.mark.parametrize(("name", "arguments", "options", "shape"), LAYERS)
def test_every_layer_comes_back_with_its_options(tmp_path, name, arguments, options, shape):
    layer = getattr(nn, name)(*arguments, **options).to("cpu", "float64")
    x = np.random.default_rng(0).random(shape)
    assert train(returned(layer, tmp_path), x, 1) == train(layer, x, 1)


@pytest.mark.parametrize("name", sorted(KNOWN.keys() - {name for name, *_ in LAYERS}))
def test_every_other_class_comes_back_with_its_options(tmp_path, name):
    layer = KNOWN[name](*ARGUMENTS.get(name, ()))
    assert returned(layer, tmp_path).options().keys() == layer.options().keys()


def test_a_module_that_is_used_twice_stays_one(tmp_path):
    shared = nn.Linear(3, 3)
    back = returned(nn.Sequential(shared, nn.Residual(shared), shared), tmp_path)
    assert back[0] is back[2] is dict(back.children())["1"].options()["body"]
    assert len(back.parameters()) == 2


def frozen(model):
    return [name for name, slot in [*model.named_parameters(), *model.named_buffers()] if not slot.trainable]


def test_what_is_frozen_stays_frozen(tmp_path):
    """Alone: weights, one parameter of a layer, running statistics, and a shared layer under both of its names."""
    shared, x = nn.Linear(3, 3), np.random.default_rng(0).random((4, 3), np.float32)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), shared, nn.Residual(shared), nn.Linear(3, 2))
    assert frozen(returned(model, tmp_path)) == []
    for part in (model[0], model[1], shared):
        part.freeze()
    model[4].bias.trainable = False
    back, whole = returned(model, tmp_path), frozen(model)
    assert frozen(back) == whole != []
    before = {name: array.copy() for name, array in back.state_dict().items()}
    assert train(back, x) == train(model, x)
    assert [name for name, array in back.state_dict().items() if (array != before[name]).any()] == ["4.weight"]
    back.unfreeze()
    assert frozen(returned(back, tmp_path)) == []


class Still(nn.Sequential):
    """Freezes its layer when it is made."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 2))
        self.freeze()


def test_what_a_class_froze_when_it_was_made_may_be_trained_in_the_file(tmp_path):
    model = Still()
    assert frozen(returned(model, tmp_path, Still=Still)) == ["0.weight", "0.bias"]
    model[0].bias.trainable = True
    assert frozen(returned(model, tmp_path, Still=Still)) == ["0.weight"]


def test_checkpoints_say_what_is_frozen(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].freeze()
    trainer = Trainer(model, optim.SGD(model.parameters(), 0.1), callbacks=[runs.Checkpoints(tmp_path / "checkpoints")])
    trainer.fit([(np.ones((2, 2), np.float32), np.array([0, 1]))], 1)
    assert frozen(xcnn.load(tmp_path)) == ["0.weight", "0.bias"]
    assert frozen(xcnn.load(runs.save_checkpoint(tmp_path / "best.safetensors", model, Checkpoint()))) == frozen(model)


def test_what_is_said_about_a_network_is_in_its_file(tmp_path):
    path = tmp_path / "network.safetensors"
    xcnn.save(
        nn.Linear(2, 2),
        path,
        shape=[2],
        classes=["cat", "dog"],
        resize="pad",
        background=(255, 0.5),
        best=np.float32(1),
    )
    found = runs.load_checkpoint(path)
    assert (found.model, found.shape, found.classes) == ("", (2,), ("cat", "dog"))
    assert found.config == {"resize": "pad", "background": [255, 0.5], "best": 1.0}


def test_checkpoints_of_runs_are_networks_too(tmp_path):
    model = models.build("lenet5", (1, 12, 12), 2).to("cpu", "float64")
    about = Checkpoint("lenet5", (1, 12, 12), ("a", "b"), "digits")
    path = runs.save_checkpoint(tmp_path / "best.safetensors", model, about)
    x = np.random.default_rng(0).random((2, 1, 12, 12))
    assert xcnn.load(tmp_path)(x).tobytes() == model(x).tobytes()  # by the structure: by its name it is float32
    assert runs.load_checkpoint(path).build()(x).tobytes() == model(x).tobytes()


def test_the_command_takes_networks_of_ones_own(tmp_path, capsys):
    path, picture = tmp_path / "network.safetensors", tmp_path / "some.png"
    Image.new("L", (8, 8), 200).save(picture)
    model, known = models.build("lenet5", (1, 12, 12), 10), {"shape": (1, 8, 8), "classes": list("0123456789")}
    model = nn.Sequential(nn.Pad((2, 2, 2, 2)), *model)
    xcnn.save(model, path, **known)
    (prediction,) = restore(path).predict([picture])
    np.testing.assert_allclose(prediction.probabilities.sum(), 1, atol=1e-6)
    with pytest.raises(UsageError, match="safetensors does not say on which data set to test; name it"):
        restore(path).evaluate()
    assert main(["evaluate", str(path), "--dataset", "digits"]) == 0
    assert "network.safetensors on digits" in capsys.readouterr().out
    xcnn.save(model, path, **known, dataset="digits")
    assert main(["evaluate", str(path)]) == 0
    xcnn.save(model, path)
    with pytest.raises(UsageError, match="holds a network without its input shape and classes; name the data set"):
        restore(path)
    assert restore(path, dataset="digits").evaluate().accuracy is not None
    xcnn.save(nn.Linear(2, 2), path, shape=(2,), classes=["a", "b"])
    with pytest.raises(UsageError, match=r"the network takes inputs of shape \(2,\), not images \(c, h, w\)"):
        restore(path).predict([picture])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shape": (3, 0)}, "save: shape takes integers of at least 1"),
        ({"shape": 3}, "save: shape must be the sizes of an input, got 3"),
        ({"classes": "cat"}, "save: classes must be the names of the classes, got 'cat'"),
        ({"classes": [1]}, "save: classes must be the names of the classes"),
        ({"mean": np.zeros(3)}, "save: mean is an array; pass a list"),
        ({"where": object()}, "where cannot be saved in a checkpoint: it is object"),
        ({"shape": (1,) * 9}, "its inputs have 9 axes, expected at most 8"),
        ({"shap": 3, "model": "x", "options": object()}, "options cannot be saved in a checkpoint: it is object"),
    ],
)
def test_what_is_said_about_a_network_is_checked(tmp_path, options, says):
    with pytest.raises(UsageError, match=says):
        xcnn.save(nn.ReLU(), tmp_path / "network.safetensors", **options)


def test_large_inputs_are_kept_where_nothing_is_made_for_them(tmp_path):
    volume, path = (4, 512, 512, 512), tmp_path / "network.safetensors"
    xcnn.save(nn.ReLU(), path, shape=volume, classes=["a"], dataset=None)
    assert (runs.load_checkpoint(path).shape, runs.load_checkpoint(path).dataset) == (volume, "")
    assert isinstance(xcnn.load(path), nn.ReLU)
    for refused in (lambda: restore(path), lambda: runs.load_checkpoint(path).build("lenet5")):
        with pytest.raises(CheckpointError, match=r"its inputs have the shape \(4, 512, 512, 512\); at most 8,388,608"):
            refused()


@pytest.mark.parametrize(
    "function", [xcnn.load, restore, runs.load_checkpoint, lambda path: xcnn.save(nn.ReLU(), path)]
)
@pytest.mark.parametrize("path", [5, None])
def test_paths_are_checked(function, path):
    with pytest.raises(UsageError, match=f"path must be a path, got {path}"):
        function(path)
    with pytest.raises(UsageError, match="save: missing a required argument: 'path'"):
        xcnn.save(nn.ReLU())


@pytest.mark.parametrize(("count", "shape"), [(3, "(1, 3)"), (2, "(1, 2, 6, 6)")])
def test_predictions_are_a_score_per_class(tmp_path, count, shape):
    picture = tmp_path / "some.png"
    Image.new("L", (8, 8), 200).save(picture)
    model = nn.Conv2d(1, 2, 3) if count == 2 else nn.Sequential(nn.Flatten(), nn.Linear(64, count))
    path = xcnn.save(model, tmp_path / "network.safetensors", shape=(1, 8, 8), classes=["a", "b"])
    says = f"predict: the network must give (n, 2), a score per class, got {shape}"
    with pytest.raises(UsageError, match=re.escape(says)):
        restore(path).predict([picture])


def test_a_model_that_is_named_goes_before_the_structure(tmp_path):
    model = models.build("lenet5", (1, 12, 12), 2)
    known = {"shape": (1, 12, 12), "classes": ["a", "b"]}
    path = xcnn.save(nn.Sequential(*model, nn.Tanh()), tmp_path / "network.safetensors", **known)
    assert isinstance(restore(path).model[-1], nn.Tanh)
    assert isinstance(restore(path, model="lenet5").model[-1], nn.Linear)
    with pytest.raises(CheckpointError, match=r"network.safetensors: load_state_dict: the state does not match"):
        restore(path, model="report")


def test_a_folder_of_checkpoints_is_its_newest(tmp_path):
    trainer = Trainer(own := nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), optim.SGD(own.parameters(), 0.1))
    runs.Checkpoints(tmp_path).save(trainer)
    assert train(xcnn.load(tmp_path), x := np.ones((1, 4), np.float32)) == train(own, x)

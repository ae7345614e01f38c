"""Networks in files: every composition comes back from the file alone, and no structure does harm.

XCNN_COMPOSITIONS sets the number of random compositions.
"""

import enum
import functools
import os
import re
import tracemalloc

import numpy as np
import pytest
from compositions import composition, train
from PIL import Image
from safetensors.numpy import save_file
from test_nn_layers import LAYERS

import xcnn
from xcnn import models, nn, optim, runs
from xcnn.cli import main
from xcnn.errors import CheckpointError, UsageError
from xcnn.runs import Checkpoint, restore
from xcnn.runs.checkpoint import read_checkpoint, write_checkpoint
from xcnn.runs.structure import LAYERS as KNOWN
from xcnn.runs.structure import build, describe
from xcnn.training import Trainer

COMPOSITIONS = int(os.environ.get("XCNN_COMPOSITIONS", "15"))


def returned(model, tmp_path, **modules):
    """Save and load a network, and check what does not depend on an input."""
    back = xcnn.load(xcnn.save(model, tmp_path / "network.safetensors"), modules)
    # An initialiser that is a function is not saved.
    assert repr(back) == re.sub(r", init=<function.*?>(?=[,)])", "", repr(model))
    for (name, ours), (key, theirs) in zip(model.state_dict().items(), back.state_dict().items(), strict=True):
        assert (name, ours.dtype, ours.shape, ours.tobytes()) == (key, theirs.dtype, theirs.shape, theirs.tobytes())
    assert all(slot.data.flags.writeable and slot.data.flags.c_contiguous for slot in back.parameters())
    return back


ARGUMENTS = {
    "Branches": (nn.ReLU(), nn.Linear(2, 2)),
    "Concat": (2,),
    "Dropout": (0.3,),
    "Graph": ([("a", nn.ReLU(), "x"), ("b", nn.ReLU(), "a")], "a"),
    "Normalize": ((0.5, 0.25), (0.5, 1.0)),
    "Pad": ((1, 2), "reflect"),
    "Residual": (nn.Linear(2, 2), nn.Linear(2, 2)),
}
"""Arguments of classes that `LAYERS` lacks; the others are made without any."""


# What comes back


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


@pytest.mark.parametrize("name", models.MODELS)
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


# Classes of one's own


class Block(nn.Module):
    """Keeps its arguments, one of them a list of modules."""

    def __init__(self, parts: list[nn.Module], /, *more: nn.Module, scale: float = 1.0, **named: nn.Module) -> None:
        self.parts, self.more, self.scale, self.named = parts, more, scale, named
        self.last = nn.Linear(2, 2)

    def forward(self, x, train):
        ways = [*self.parts, *self.more, *self.named.values(), self.last]
        y, backward = nn.Sequential(*ways).forward(x, train)
        return y * self.scale, lambda dy, need_dx: backward(dy * self.scale, need_dx)


class Twins(nn.Sequential):
    """Makes its modules itself, from an argument that it keeps."""

    def __init__(self, features: int, bias: bool = True) -> None:
        super().__init__(nn.Linear(features, features, bias), nn.ReLU())
        self.features, self.bias = features, np.bool_(bias)


class Doubled(nn.Module):
    """Keeps its argument under another name, and says so."""

    def __init__(self, factor: float) -> None:
        self.twice = 2 * factor

    def options(self):
        return {"factor": self.twice / 2}

    def forward(self, x, train):
        return x * self.twice, lambda dy, need_dx: dy * self.twice


OWN = {"Block": Block, "Twins": Twins, "Doubled": Doubled}


def own_network():
    return nn.Sequential(
        Block([nn.Linear(2, 2), Doubled(0.5)], nn.Tanh(), scale=0.5, end=Twins(2, bias=False)), Doubled(3.0)
    )


def test_own_classes_come_back_if_they_are_passed(tmp_path):
    model, x = own_network(), np.ones((3, 2), np.float32)
    back = returned(model, tmp_path, **OWN)
    assert isinstance(back[0].parts, list)
    assert train(back, x) == train(model, x)
    with pytest.raises(
        CheckpointError, match=r"safetensors: .* not in xcnn.nn; pass them: modules=\{'Doubled': Doubled, 'Tw"
    ):
        xcnn.load(tmp_path / "network.safetensors", {"Block": Block})
    assert isinstance(restore(tmp_path / "network.safetensors", dataset="digits", modules=OWN).model[0], Block)
    with pytest.raises(UsageError, match="load: modules must be a dict of classes by their names, got 3"):
        xcnn.load(tmp_path / "network.safetensors", 3)
    with pytest.raises(CheckpointError, match=r"module . \(Doubled\) must be a module, got dict"):
        xcnn.load(tmp_path / "network.safetensors", OWN | {"Doubled": lambda factor: {}})
    with pytest.raises(CheckpointError, match=r"module . \(Doubled\) cannot be made: ZeroDivisionError"):
        xcnn.load(tmp_path / "network.safetensors", OWN | {"Doubled": lambda factor: 1 / 0})


class Forgetful(nn.Module):
    def __init__(self, factor: float) -> None:
        self.twice = 2 * factor


class Changed(nn.Module):
    def __init__(self, features: int) -> None:
        self.features = 2 * features
        self.layer = nn.Linear(features, 1)


class Kept(nn.Module):
    def __init__(self, value: object) -> None:
        self.value = value


class Sizes(nn.Module):
    def __init__(self) -> None:
        self.sizes = 3, 1


class Written(nn.Module):
    def __init__(self) -> None:
        self.norm = nn.BatchNorm2d(2)
        self.norm.weight.data[...] = 0.5


def activated():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].activation = "relu"
    return model


def renumbered():
    model = Sizes()
    model.sizes = 3, True
    return model


def reshaped():
    model = nn.Sequential(nn.Linear(2, 1))
    model[0].weight = nn.Parameter(np.zeros((1, 4)))
    return model


def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def extended():
    model = nn.Sequential(nn.Linear(3, 3))
    model.extra = nn.ReLU()
    return model


def circular():
    model = Kept(None)
    model.value = nn.Sequential(model)
    return model


class Vague(nn.Module):
    def options(self):
        return [1]


def levels(count):
    return functools.reduce(lambda inner, _: nn.Sequential(inner), range(count), nn.ReLU())


def namesake():
    return nn.Sequential(type("Linear", (Kept,), {})(3))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: Forgetful(1.0),
            "Forgetful: the argument 'factor' of __init__ is not kept; assign it to self.factor, or",
        ),
        (
            lambda: Kept(np.zeros(3)),
            "save: Kept: the argument 'value' is of the type ndarray; files hold numbers, text",
        ),
        (lambda: Kept([{1: 2}]), "save: Kept: the argument 'value' is of the type dict"),
        (lambda: Kept(np.tanh), "save: Kept: the argument 'value' is of the type ufunc"),
        (lambda: Changed(2), "save: features is 4, but 8 in the network made again"),
        (lambda: nn.Sequential(Changed(2)), "save: 0.features is 4, but 8 in the network made again"),
        (activated, "save: 0.activation is 'relu', but nothing in the network made again"),
        (renumbered, r"save: sizes is \(3, True\), but \(3, 1\) in the network made again"),
        (reshaped, r"0.weight is a Parameter \(1, 4\), but a Parameter \(1, 2\) in the network made again"),
        (lambda: Written(), r"save: .*Written\): weights cannot be written into while a network is made; assign a new"),
        (tied, r"1.weight is the same as 0.weight, but a Parameter \(3, 3\) in the network made again"),
        (extended, "extra is a ReLU, but nothing in the network made again"),
        (circular, "save: Kept contains itself"),
        (namesake, "save: two classes are named 'Linear', and files know classes by name; rename yours"),
        (lambda: Kept(np.random.Generator(np.random.MT19937(0))), "the argument 'value' is of the type Generator"),
        (Vague, r"save: Vague: options\(\) must return a dict of arguments, got list"),
        (
            lambda: levels(110),
            "cannot be made again from its options: the structure: it has too many modules; at most 100",
        ),
        (lambda: levels(300), "save: modules are nested too deep; at most 100 may be"),
        (lambda: 3, "save: model must be an nn.Module, got int"),
    ],
)
def test_what_would_not_come_back_is_not_saved(tmp_path, make, says):
    with pytest.raises(UsageError, match=says):
        xcnn.save(make(), tmp_path / "network.safetensors")
    assert not list(tmp_path.iterdir())


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


class Mode(enum.StrEnum):
    FAST = "fast"


class Optional(nn.Module):
    """Its arguments have the name of a method, and are of subclasses of plain types."""

    def __init__(self, options: tuple[str, ...], mode: str, factor: float) -> None:
        self.options, self.mode, self.factor = options, mode, factor

    def forward(self, x, train):
        return x, lambda dy, need_dx: dy


def test_arguments_of_any_name_and_plain_type_come_back(tmp_path):
    path = xcnn.save(Optional(("a", "b"), Mode.FAST, np.float32(0.1)), tmp_path / "network.safetensors")
    back = xcnn.load(path, {"Optional": Optional})
    assert (back.options, back.mode, back.factor) == (("a", "b"), "fast", float(np.float32(0.1)))


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


def test_checkpoints_hold_no_structure_that_would_differ(tmp_path):
    """It is compared once in a fit, and otherwise each time."""
    data = np.zeros((2, 2), np.float32), np.zeros(2, np.int64)
    for number, (model, known) in enumerate([(activated(), False), (nn.Sequential(nn.Linear(2, 2)), True)]):
        checkpoints = runs.Checkpoints(tmp_path / str(number), "1step")
        trainer = Trainer(model, optim.SGD(model.parameters(), 0.1), callbacks=[checkpoints])
        checkpoints.save(trainer)
        assert (read_checkpoint(checkpoints.newest).structure is not None) is known
        trainer.fit(data, epochs=2)
        assert (read_checkpoint(checkpoints.newest).structure is not None) is known
        assert (checkpoints.find().structure is not None) is known


def test_training_goes_on_with_classes_that_keep_nothing(tmp_path):
    """Its checkpoints resume as before; they are files without a structure."""
    path = runs.save_checkpoint(tmp_path / "own.safetensors", Forgetful(1.0), Checkpoint())
    assert read_checkpoint(path).structure is None
    with pytest.raises(CheckpointError, match="holds weights but does not name its model; name the model, or build"):
        xcnn.load(path)
    save_file({"weight": np.zeros(3)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="holds weights but does not name its model; name the model, or build"):
        xcnn.load(tmp_path / "plain.safetensors")


# Structures of a hostile writer


def entry(name, **options):
    return {"class": name, "options": options}


def wrapped(*entries):
    return {"modules": list(entries), "streams": {}}


def chain(length):
    layers = [entry("Sequential", modules=[{"module": place - 1}] if place else []) for place in range(length)]
    return wrapped(*layers)


def doubling(length):
    layers = [entry("Sequential", modules=[{"module": place}] * 2) for place in range(length)]
    return wrapped(entry("ReLU"), *layers)


def nested(depth):
    return functools.reduce(lambda inner, _: [inner], range(depth), 1)


HUGE = 2**31 - 1
HOSTILE = {
    "features": (wrapped(entry("BatchNorm2d", num_features=2**40)), "missing weight, bias, running_mean, running_var"),
    "instance": (
        wrapped(entry("InstanceNorm1d", num_features=2**50, track_running_stats=True)),
        "missing running_mean",
    ),
    "group": (wrapped(entry("GroupNorm", num_groups=1, num_channels=2**41)), "missing weight, bias"),
    "layer": (wrapped(entry("LayerNorm", normalized_shape=[HUGE, 2**20])), "missing weight, bias"),
    "axes": (wrapped(entry("LayerNorm", normalized_shape=[2] * 100)), "LayerNorm. cannot be made: ValueError"),
    "kernel": (
        wrapped(entry("Conv3d", in_channels=1, out_channels=1, kernel_size=[HUGE] * 3)),
        "Conv3d. cannot be made",
    ),
    "channels": (
        wrapped(entry("Conv2d", in_channels=2**30, out_channels=2**25, kernel_size=3)),
        "missing weight, bias",
    ),
    "linear": (wrapped(entry("Linear", in_features=2**30, out_features=2**30)), "missing weight, bias"),
    "digits": (wrapped(entry("Linear", in_features=10**400, out_features=3)), "Linear. cannot be made"),
    "deep": (chain(1000), "too many modules; at most 100 may be nested"),
    "doubled": (doubling(60), "and 10,000 repeated"),
    "wide": (
        wrapped(*doubling(13)["modules"], entry("Sequential", modules=[{"module": 13}] * 5000)),
        "10,000 repeated",
    ),
    "looks": (
        wrapped(*doubling(11)["modules"], *[entry("Sequential", modules=[{"module": 11}])] * 100),
        "too many modules",
    ),
    "values": (wrapped(entry("Pad", pad=nested(600))), "its values are nested too deep"),
    "itself": (wrapped(entry("Sequential", modules=[{"module": 0}])), "module 0: there is no module 0 before it"),
    "later": (wrapped(entry("Sequential", modules=[{"module": 1}]), entry("ReLU")), "there is no module 1 before it"),
    "negative": (wrapped(entry("ReLU"), entry("Sequential", modules=[{"module": -1}])), "there is no module -1"),
    "true": (wrapped(entry("ReLU"), entry("Sequential", modules=[{"module": True}])), "there is no module True"),
    "none": (wrapped(), "the state is invalid: IndexError"),
    "number": ({"modules": 3, "streams": {}}, "the state is invalid: TypeError"),
    "missing": ({}, "the state is invalid: KeyError"),
    "list": (wrapped([]), "the state is invalid: TypeError"),
    "class": (wrapped(entry("os.system", command="x")), r"not in xcnn.nn; pass them: modules=\{'os.system'"),
    "abstract": (wrapped(entry("Module")), "not in xcnn.nn"),
    "unhashable": (wrapped({"class": [], "options": {}}), "not in xcnn.nn"),
    "unknown": (wrapped(entry("ReLU", slope=1)), "ReLU: no argument 'slope'"),
    "incomplete": (wrapped(entry("Linear", in_features=1)), "Linear: missing a required argument: 'out_features'"),
    "positional": (wrapped(entry("Branches", merge="add")), r"Branches\) cannot be made: KeyError: 'modules'"),
    "text": (
        wrapped(entry("Sequential", modules="ab")),
        "module 0 .Sequential.: Sequential: node '0' must be a module",
    ),
    "kind": (wrapped(entry("Pad", pad={"evil": 1})), "there are no values of the kind 'evil'"),
    "pair": (wrapped(entry("Pad", pad={"list": [], "dict": {}})), "the state is invalid: ValueError"),
    "frozen": (wrapped(entry("ReLU")) | {"frozen": ["weight"]}, "what is frozen must be a list of names of its parame"),
    "frozen text": (wrapped(entry("ReLU")) | {"frozen": ""}, "what is frozen must be a list of names"),
    "frozen lists": (wrapped(entry("ReLU")) | {"frozen": [[]]}, "the state is invalid: TypeError"),
    "frozen number": (wrapped(entry("ReLU")) | {"frozen": 3}, "the state is invalid: TypeError"),
    "streams": ({"modules": [entry("Dropout")], "streams": {}}, "its random streams are not those of its modules"),
    "stream": (
        {"modules": [entry("Dropout")], "streams": {"rng": {"state": -1}}},
        "the structure: the state is invalid",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_structures_are_refused_without_memory(tmp_path, name):
    structure, says = HOSTILE[name]
    path = tmp_path / "hostile.safetensors"
    write_checkpoint(path, Checkpoint(structure=structure))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=says) as caught:
            xcnn.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * path.stat().st_size + (2 << 20)  # parsed JSON takes several times its length
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", KNOWN)
def test_no_layer_takes_memory_for_its_options(name):
    """Whatever the file claims: arrays are made when their shapes have been compared with those in the file."""
    arguments, options = next((row[1:3] for row in LAYERS if row[0] == name), (ARGUMENTS.get(name, ()), {}))
    structure = describe(KNOWN[name](*arguments, **options))
    *inside, layer = structure["modules"]
    for key in [key for key, value in layer["options"].items() if type(value) is int and value > 0]:
        claims = layer["options"] | {key: 2**41} | ({"groups": 1} if "groups" in layer["options"] else {})
        said = ""
        tracemalloc.start()
        try:
            build({**structure, "modules": [*inside, {"class": name, "options": claims}]}, {})
        except CheckpointError as error:
            said = str(error)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20
        assert "MemoryError" not in said


def test_weights_are_not_widened(tmp_path):
    """A byte for each number would otherwise become four or eight."""
    path = tmp_path / "hostile.safetensors"
    model = nn.Linear(100, 100, bias=False)
    write_checkpoint(path, Checkpoint(structure=describe(model), state={"weight": np.ones((100, 100), bool)}))
    with pytest.raises(CheckpointError, match="weight is of the dtype bool, expected one like float32"):
        xcnn.load(path)


def test_loading_takes_twice_the_memory_of_the_file(tmp_path):
    path = xcnn.save(nn.Sequential(*(nn.Linear(512, 512) for _ in range(8))), tmp_path / "large.safetensors")
    tracemalloc.start()
    model = xcnn.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * path.stat().st_size + (1 << 20)
    assert model[7].weight.data.any()


def test_a_thousand_layers_and_a_hundred_levels_are_built():
    wide = nn.Sequential(*[levels(98)] * 5, *(nn.ReLU() for _ in range(1000)))
    assert len(build(describe(wide), {})) == 1005

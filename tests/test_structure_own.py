"""Networks of one's own classes in files: what comes back, and what would not is not saved."""

import enum

import numpy as np
import pytest
from compositions import levels, returned, train
from safetensors.numpy import save_file

import xcnn
from xcnn import nn, optim, runs
from xcnn.errors import CheckpointError, UsageError
from xcnn.runs import Checkpoint, restore
from xcnn.runs.checkpoint import read_checkpoint
from xcnn.training import Trainer


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
    model = Kept(nn.Linear(3, 3))
    model.extra = nn.ReLU()
    return model


def circular():
    model = Kept(None)
    model.value = nn.Sequential(model)
    return model


class Vague(nn.Module):
    def options(self):
        return [1]


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

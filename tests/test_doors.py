"""Extensions outside the package, and their rules; `test_extending.py` runs the documented examples."""

import copy
import functools
import pickle
import subprocess
import sys

import numpy as np
import pytest

import xcnn
from xcnn import data, kernels, models, nn, optim
from xcnn._plugins import find, refuse_foreign
from xcnn.cli import main
from xcnn.errors import CheckpointError, DeviceError, DtypeError, ShapeError, UsageError, wrong_call
from xcnn.parameter import Parameter
from xcnn.training import LOSSES, Loss, loss_named

# Names.

PACKAGE = """
from xcnn import nn
constant = 3
def tiny(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))
def no_module(shape, classes):
    return 3
def no_classes(shape):
    return nn.Flatten()
def no_pair(data_dir):
    return 3
class Nested:
    tiny = staticmethod(tiny)
class Own(nn.Sequential):
    pass
def own(shape, classes):
    return Own(*tiny(shape, classes))
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a user's code in the current folder, which is not on the path."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "nets.py").write_text(PACKAGE)
    (folder / "broken.py").write_text("import json\njson.nonsense\n")
    (folder / "lacking.py").write_text("import no_such_library_anywhere\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget()


def test_a_function_is_named_by_module_and_name(package):
    before = list(sys.path)
    model = models.build("mine.nets:tiny", (1, 4, 4), classes=3, seed=5)
    assert model(np.zeros((2, 1, 4, 4), np.float32)).shape == (2, 3)
    assert models.build("mine.nets:Nested.tiny", (1, 2, 2)).state_dict()["1.weight"].shape == (10, 4)
    same = models.build("mine.nets:tiny", (1, 4, 4), classes=3, seed=5)
    assert np.array_equal(model.state_dict()["1.weight"], same.state_dict()["1.weight"])
    assert models.entry("mine.nets:tiny").smallest == 1
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mine.nets:tinny",
            "unknown model 'mine.nets:tinny': no such name in mine.nets: 'tinny'; did you mean 'tiny'",
        ),
        ("mine.nests:tiny", "model 'mine.nests:tiny': there is no module 'mine.nests' here or in an installed package"),
        (
            "nowhere.nets:tiny",
            "model 'nowhere.nets:tiny': there is no module 'nowhere' here or in an installed ",
        ),
        ("mine.nets:", "unknown model 'mine.nets:': no such name in mine.nets: ''"),
        (":tiny", "model ':tiny': expected package.module:function, such as nets:small for a file nets.py"),
        ("./mine/nets.py:tiny", "model './mine/nets.py:tiny': expected package.module:function, such as nets:small"),
        ("mine.nets:constant", "model 'mine.nets:constant': expected a function or a class, got int"),
        (
            "mine.broken:f",
            "model 'mine.broken:f': importing mine.broken failed: AttributeError: module 'json' has no ",
        ),
        (
            "mine.lacking:f",
            "model 'mine.lacking:f': importing mine.lacking failed: No module named 'no_such_library_anywhere'",
        ),
        ("mine.nets:no_module", "mine.nets:no_module: the function must return an nn.Module, got int"),
        (
            "mine.nets:no_classes",
            "mine.nets:no_classes: too many positional arguments; it is called with (shape, classes)",
        ),
    ],
)
def test_a_name_that_does_not_work_is_one_sentence(package, name, message):
    before = list(sys.path)
    with pytest.raises(UsageError) as caught:
        models.build(name)
    assert str(caught.value).startswith(message)
    assert sys.path == before


def test_a_data_set_must_be_a_pair_of_data_sets(package):
    with pytest.raises(UsageError, match=r"^mine\.nets:no_pair: the function must return \(train, test\), two xcnn"):
        data.load("mine.nets:no_pair")
    with pytest.raises(UsageError, match=r"^mine\.nets:tiny: missing a required argument: 'classes'$"):
        data.load("mine.nets:tiny")


@pytest.mark.parametrize("name", [3, None, ["lenet5"]])
def test_a_name_that_is_no_string_is_unknown(name):
    with pytest.raises(UsageError, match=r"^unknown model"):
        find("model", name, models.MODELS)


def test_tables_take_entries_from_outside(monkeypatch):
    digits = data.load("digits")
    monkeypatch.setitem(data.DATASETS, "mine", data.Entry("mine", lambda data_dir: digits))
    monkeypatch.setitem(
        models.MODELS, "mine", models.Entry("mine", lambda shape, classes: nn.Sequential(nn.Flatten()), 2)
    )
    monkeypatch.setitem(LOSSES, "mine", Loss(lambda output, target: (output.sum(), lambda: (np.ones_like(output),))))
    assert data.load("mine") == digits
    with pytest.raises(ShapeError, match="mine: images must have at least 2 x 2 pixels"):
        models.build("mine", (1, 1, 1))
    parameter = nn.Linear(2, 2)
    assert xcnn.Trainer(parameter, optim.SGD(parameter.parameters()), "mine").loss is LOSSES["mine"]


# What a file names is not imported.


def forget():
    """Forget the modules of the package, so that naming one imports it."""
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def test_no_file_brings_code(package, capsys):
    train = "train --dataset digits --validation 0 --epochs 1 --model mine.nets:own --out run"
    assert main(train.split()) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith("next: xcnn predict run/best.safetensors --model mine.nets:own --index 0") or (
        "next: xcnn predict run/checkpoints/" in said and said.endswith("--model mine.nets:own --index 0")
    )
    (package / "settings.toml").write_text('model = "mine.nets:own"\n')
    (package / "mine" / "nets.py").write_text(PACKAGE + "\nopen('imported', 'w').close()\n")
    for line in [
        "evaluate run",
        "predict run --index 0",
        "train --resume run --epochs 2",
        "train --config settings.toml --epochs 1 --out other",
    ]:
        forget()
        capsys.readouterr()
        assert main(line.split()) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "names the model 'mine.nets:own'; code is never imported because a file names it" in said
        assert not (package / "imported").exists()
        assert main([*line.split(), "--model", "mine.nets:own"]) == 0
        (package / "imported").unlink()
    refuse_foreign("file", model="lenet5", dataset=None)
    with pytest.raises(UsageError, match=r"^file names the model 'a:b' and the opt 'c:d'; code is never imported"):
        refuse_foreign("file", model="a:b", opt="c:d", dataset=None)


def test_a_network_of_our_layers_needs_no_code(package, capsys):
    train = "train --dataset digits --validation 0 --epochs 1 --model mine.nets:tiny --out run"
    assert main(train.split()) == 0
    (package / "mine" / "nets.py").write_text("open('imported', 'w').close()\n")
    forget()
    assert main(["evaluate", "run"]) == main(["predict", "run", "--index", "0"]) == 0
    assert not (package / "imported").exists()


# Optimizers.


class Factored(optim.Optimizer):
    """An optimizer with new options whose state is a row, a column, a count and a Python number."""

    intervals = {"beta": "[0, 1)", "scales": "(0, 2]"}  # noqa: RUF012 as a user writes it

    def __init__(self, params, lr=0.1, beta=0.5, scales=(1.0, 2.0), every=2, centered=False, name="", gain=1.0):
        super().__init__(params, lr=lr, beta=beta, scales=scales, every=every, centered=centered, name=name, gain=gain)

    def update(self, data, grads, states, group):
        for w, grad, state in zip(data, grads, states, strict=True):
            beta = group["beta"]
            state["row"] = beta * state.get("row", 0) + (1 - beta) * np.mean(grad**2, axis=1, dtype=grad.dtype)
            state["count"] = state.get("count", 0) + 1
            state["power"] = state.get("power", 1.0) * 0.7
            state["odd"] = state["count"] % 2 == 1
            if state["count"] % group["every"] == 0:
                yield w - group["lr"] * state["power"] * grad / (np.sqrt(state["row"])[:, None] + 1e-3)
            else:
                yield w

    def state_shape(self, name, shape):
        return shape[:1] if name == "row" else None


def trained(optimizer, steps):
    (parameter,) = optimizer.param_groups[0]["params"]
    for step in steps:
        parameter.grad = np.random.default_rng(step).standard_normal((3, 2)).astype(np.float32)
        optimizer.step()
    return parameter.data


def test_own_options_and_own_state_are_saved_and_loaded_exactly():
    start = np.random.default_rng(9).standard_normal((3, 2)).astype(np.float32)
    whole = Factored([Parameter(start)], beta=0.25, scales=(0.5, 1.5), every=3, name="f")
    expected = trained(whole, range(12)).copy()
    first = Factored([Parameter(start)], beta=0.25, scales=(0.5, 1.5), every=3, name="f")
    halfway = trained(first, range(5)).copy()
    state = pickle.loads(pickle.dumps(first.state_dict()))
    second = Factored([Parameter(halfway)])
    second.load_state_dict(state)
    assert second.param_groups[0] | {"params": 0} == first.param_groups[0] | {"params": 0}
    (entry,) = second.state.values()
    assert {name: type(value) for name, value in entry.items()} == {
        "row": np.ndarray, "count": int, "power": float, "odd": bool,
    }  # fmt: skip
    assert np.array_equal(trained(second, range(5, 12)), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1}, "Factored: beta must be a number in [0, 1), got 1"),
        ({"lr": -1}, "Factored: lr must be a number in [0, inf), got -1"),
        ({"scales": (1, 3)}, "Factored: scales[1] must be a number in (0, 2], got 3"),
        ({"scales": 1}, "Factored: scales must be 2 numbers, got 1"),
        ({"every": 1.5}, "Factored: every must be an integer of at least 0, got 1.5"),
        ({"centered": 0}, "Factored: centered must be True or False, got 0"),
        ({"gain": "1"}, "Factored: gain must be a number in (-inf, inf), got '1'"),
        (
            {"beeta": 0.5},
            "Factored: no argument 'beeta'; did you mean 'beta'? (known: params, lr, beta, scales, every, ",
        ),
    ],
)
def test_own_options_are_checked(options, message):
    with pytest.raises(UsageError) as caught:
        Factored([Parameter(np.zeros((3, 2)))], **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": np.zeros((3, 2))}, "Factored: row of parameter 0 has shape (3, 2), expected (3,)"),
        ({"row": 3.0}, "Factored: row of parameter 0 has shape (), expected (3,)"),
        ({"row": ["a", "b", "c"]}, "Factored: row of parameter 0 has shape (3,), expected (3,)"),
        ({"count": np.zeros(1)}, "Factored: count of parameter 0 is array([0.]), expected a number"),
        ({"power": None}, "Factored: power of parameter 0 is None, expected a number"),
    ],
)
def test_a_state_that_the_rule_does_not_keep_is_refused(change, message):
    optimizer = Factored([Parameter(np.zeros((3, 2), np.float32))])
    trained(optimizer, range(2))
    state, before = optimizer.state_dict(), str(optimizer.state_dict())
    state["state"][0].update(change)
    with pytest.raises(CheckpointError) as caught:
        optimizer.load_state_dict(state)
    assert str(caught.value) == message
    assert str(optimizer.state_dict()) == before


class Careless(optim.Optimizer):
    """An optimizer with an undeclared shape of its state, or with wrong results."""

    def __init__(self, params, results=()):
        super().__init__(params, lr=1.0)
        self.results = results

    def update(self, data, grads, states, group):
        states[0]["row"] = data[0][0]
        return self.results


def test_a_rule_with_wrong_results_raises_a_clear_error():
    parameter = Parameter(np.zeros((3, 2), np.float32))
    parameter.grad = np.ones((3, 2), np.float32)
    good = parameter.data
    for results, error, message in [
        ([], UsageError, "Careless: update must return 1 arrays, got 0"),
        ([good, good], UsageError, "Careless: update must return 1 arrays, got more"),
        ([good.astype(float)], DtypeError, r"update must return float32 for Parameter\(3, 2\), got float64 of shape"),
        ([good[0]], ShapeError, r"update must return float32 for Parameter\(3, 2\), got float32 of shape \(2,\)"),
    ]:
        with pytest.raises(error, match=message):
            Careless([parameter], results).step()
    optimizer = Careless([parameter], [good])
    optimizer.step()
    with pytest.raises(
        UsageError, match=r"row of parameter 0 has shape \(2,\), expected \(3, 2\); override state_shape"
    ):
        optimizer.state_dict()


def test_intervals_are_inherited():
    class Finer(Factored):
        intervals = {"gain": "(0, 1)"}  # noqa: RUF012

    assert Finer.intervals == {**Factored.intervals, "gain": "(0, 1)"}
    assert "beta" in Finer.intervals
    assert "beta" not in optim.SGD.intervals


# Schedules.


class Noisy(optim.Schedule):
    """A schedule with state."""

    saved = ("last_epoch", "level", "seen")

    def __init__(self, optimizer, decay):
        self.decay, self.level, self.seen = decay, 1.0, 0
        super().__init__(optimizer)

    def step(self, metrics=None):
        self.seen += 1
        self.level *= self.decay if self.seen % 2 else 1.0
        super().step(metrics)

    def at(self, step, group):
        return {"lr": group["initial_lr"] * self.level}


def test_a_schedule_with_state_goes_on_exactly():
    def make():
        return Noisy(optim.SGD([Parameter(np.zeros(2))], lr=0.3), 0.7)

    whole, first, second = make(), make(), make()
    rates = [(whole.step(), whole.get_last_lr())[1] for _ in range(9)]
    for _ in range(4):
        first.step()
    second.load_state_dict(first.state_dict())
    assert first.state_dict() == {"last_epoch": 4, "level": 0.7 * 0.7, "seen": 4}
    assert [(second.step(), second.get_last_lr())[1] for _ in range(5)] == rates[4:]
    for change in ({"level": 1}, {"seen": -1}, {"seen": 2.0}, {"level": None}):
        before = second.state_dict()
        with pytest.raises(CheckpointError, match="Noisy: "):
            second.load_state_dict(first.state_dict() | change)
        assert second.state_dict() == before
    with pytest.raises(NotImplementedError, match=r"^Schedule must define at\(step, group\)$"):
        optim.Schedule(second.optimizer)


# Calls.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p, o: optim.SGD(p, momentun=0.9),
            "SGD: no argument 'momentun'; did you mean 'momentum'? (known: params,",
        ),
        (lambda p, o: optim.Adam(), "Adam: missing a required argument: 'params'"),
        (lambda p, o: optim.AdamW(p, 1, (0.9, 0.9), 1, 1, 1), "AdamW: too many positional arguments"),
        (lambda p, o: optim.RMSprop(p, params=p), "RMSprop: multiple values for argument 'params'"),
        (lambda p, o: optim.StepLR(o), "StepLR: missing a required argument: 'step_size'"),
        (
            lambda p, o: optim.CosineAnnealingLR(o, t_max=3),
            "CosineAnnealingLR: no argument 't_max'; did you mean 'T_",
        ),
        (lambda p, o: optim.OneCycleLR(o, 1, steps=3), "OneCycleLR: no argument 'steps'"),
    ],
)
def test_a_wrong_argument_names_the_class_and_the_nearest(make, message):
    parameters = [Parameter(np.zeros(2))]
    with pytest.raises(UsageError) as caught:
        make(parameters, optim.SGD(parameters))
    assert str(caught.value).startswith(message)


def test_type_errors_from_inside_stay_what_they_are():
    class Inner(optim.SGD):
        def __init__(self, params):
            super().__init__(params)
            raise TypeError("from inside")

    with pytest.raises(TypeError, match=r"^from inside$"):
        Inner([Parameter(np.zeros(2))])
    assert wrong_call("f", lambda a, *, b=1: 0, (1,), {"b": 2}) is None
    assert wrong_call("f", lambda a, **more: 0, (1,), {"c": 2}) is None
    assert str(wrong_call("f", lambda a, **more: 0, (), {"c": 2})) == "f: missing a required argument: 'a'"
    assert wrong_call("dict", dict, (1, 2, 3), {}) is None  # has no signature


# Devices, losses, kernels.


@pytest.mark.parametrize("spec", ["cpu", "strict:device1", "torch", "jax"])
def test_a_device_can_be_pickled_and_copied(spec):
    try:
        opened = xcnn.device(spec)
    except DeviceError as error:
        pytest.skip(str(error))
    for other in (pickle.loads(pickle.dumps(opened)), copy.deepcopy(opened), copy.copy(opened)):
        assert other == opened
        assert hash(other) == hash(opened)
        assert other.to_numpy(other.asarray(np.ones(2, np.float32))).tolist() == [1, 1]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_can_be_pickled(name):
    loss = pickle.loads(pickle.dumps(loss_named(name)))
    assert loss == LOSSES[name]
    assert loss.classifies == (name in ("cross_entropy", "nll_loss"))


def test_a_kernel_of_a_body_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match=r"^unknown body 'liner'; did you mean 'linear'"):

        @kernels.kernel(np)
        def liner(x):
            return NotImplemented


def test_a_kernel_from_outside_is_asked_first():
    """Even if it is registered before the first op loads the package's kernels; so in a separate process."""
    code = """
import numpy as np
from xcnn import nn, ops
from xcnn.kernels import kernel
asked = []
@kernel(np)
def elementwise(x, activation):
    assert activation == ("relu",)
    asked.append(x.dtype.name)
    return (x + 7, lambda dy, needs: (dy,)) if x.dtype == np.float32 else NotImplemented
assert ops.relu(np.zeros(2, np.float32))[0].tolist() == [7, 7]
assert ops.relu(np.full(2, -1.0))[0].tolist() == [0, 0]
assert asked == ["float32", "float64"]
model = nn.Sequential(nn.Flatten(), nn.ReLU())  # whose calls are prepared
assert [model(np.zeros((1, 2), np.float32)).tolist() for _ in range(3)] == [[[7, 7]]] * 3
assert asked[2:] == ["float32"] * 3
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_name_inside_something_without_names():
    with pytest.raises(UsageError, match=r"^unknown model 'math:pi.x': no such name in math: 'x'"):
        find("model", "math:pi.x", {})


@pytest.mark.parametrize("xp", ["numpy", None, 3])
def test_a_kernel_for_what_is_no_namespace(xp):
    with pytest.raises(UsageError, match=r"^kernel: xp must be the namespace of an array library"):
        kernels.kernel(xp)


def test_a_kernel_whose_bind_is_no_function():
    with pytest.raises(UsageError, match=r"^kernel: bind must be a function of the kernel's arguments or None, got 3"):
        kernels.kernel(np, 3)


def test_a_kernel_without_a_name():
    with pytest.raises(UsageError, match=r"^unknown body functools.partial"):
        kernels.kernel(np)(functools.partial(print))

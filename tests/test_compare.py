"""`xcnn compare` and its room: budgets hold, and planted faults are found.

A small network of two layers is used where the network does not matter.
"""

import functools
import json
import math

import numpy as np
import pytest
from conftest import LIBRARIES, Backend, apart
from PIL import Image

from xcnn import compare, models, nn, plots
from xcnn._dispatch import BODIES, kernels
from xcnn.cli import main
from xcnn.compare.budget import errors, reference
from xcnn.compare.scales import each
from xcnn.compare.steps import PARTING
from xcnn.devices import device
from xcnn.errors import UsageError
from xcnn.ops._op import OPS

every_library = pytest.mark.parametrize("backend", LIBRARIES, indirect=True)
needs_strict = pytest.mark.usefixtures("strict")


@pytest.fixture
def strict():
    pytest.importorskip("array_api_strict")


@pytest.fixture
def xcnn(xcnn):
    """Run `xcnn compare` in an empty folder: (exit code, stdout, stderr)."""
    return functools.partial(xcnn, "compare")


@pytest.fixture
def tiny(monkeypatch):
    """Add a network of one convolution and one linear layer to the table of models."""

    def build(shape, classes):
        return nn.Sequential(nn.Conv2d(shape[0], 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 6 * 6, classes))

    monkeypatch.setitem(models.MODELS, "tiny", models.Entry("for tests", build, 4))
    return "tiny"


@pytest.fixture
def broken(monkeypatch):
    """Make the weight gradient of every linear layer wrong by a thousandth on array-api-strict."""
    right = nn.Linear._op

    @functools.wraps(right)
    def wrong(*arrays, **options):
        y, backward = right(*arrays, **options)

        def faulty(dy, needs=None):
            dx, dweight, dbias = backward(dy, needs)
            return dx, dweight if isinstance(dweight, np.ndarray) else dweight * 1.001, dbias

        return y, faulty

    monkeypatch.setattr(nn.Linear, "_op", staticmethod(wrong))


def test_every_op_has_a_budget():
    assert set(compare.BUDGETS) == set(OPS)


@pytest.mark.parametrize("name", OPS)
@every_library
def test_ops_stay_within_their_budgets(name: str, backend: Backend, dtype: str) -> None:
    found = list(compare.op_errors(name, backend.device, dtype))
    assert {one.what for one in found} == {f"sample {number}" for number in range(len(OPS[name].samples))}
    assert [str(one) for one in found if not one.error.within] == []


@pytest.mark.parametrize("name", OPS)
def test_no_budget_hides_a_relative_error_of_a_thousandth(name: str) -> None:
    """An error of 1e-3 of the largest element is out of budget, for each tensor of each sample."""
    for number, sample in enumerate(OPS[name].samples):
        rng = np.random.default_rng(number)
        arrays = sample.draw(rng)

        def normal(shape, rng=rng):
            return np.asarray(rng.standard_normal(shape))

        wanted = reference(name, arrays, sample.options, normal, "float32")
        nonzero = {tensor: want for tensor, want in wanted.tensors.items() if np.any(want.value)}
        got = {tensor: (want.value * 1.001).astype(np.float32) for tensor, want in nonzero.items()}
        found = {error.tensor: error for error in errors(wanted, got)}
        assert [f"{number}: {found[tensor]}" for tensor in nonzero if found[tensor].within] == []


def one_error(value, got, dtype="float32"):
    def function(arrays):
        return arrays["x"], lambda dy: (dy,)

    wanted = reference("flatten", {"x": np.asarray(value)}, {}, np.ones, dtype, function)
    return next(e for e in errors(wanted, {"y": got, "dx": np.ones_like(got)}) if e.tensor == "y")


def test_units_and_ulp_by_hand() -> None:
    eps = np.finfo(np.float32).eps
    error = one_error([1.0, 1.5], np.asarray([1.0, 1.5 + 3 * eps], np.float32))
    assert error.units == pytest.approx(2)  # 3 eps / (eps * 1.5)
    assert error.ulp == 3
    assert error.bound == 4  # 2 + 2 sqrt(1)
    assert error.within
    assert error.share == pytest.approx(0.5)


@pytest.mark.parametrize(
    "got",
    [
        np.asarray([1.0, np.nan], np.float32),
        np.asarray([1.0, np.inf], np.float32),
        np.asarray([1.0], np.float32),
        np.asarray([1.0, 1.5]),
    ],
    ids=["nan", "infinite", "shape", "dtype"],
)
def test_results_that_cannot_be_compared_have_an_infinite_error(got) -> None:
    error = one_error([1.0, 1.5], got)
    assert error.units == math.inf
    assert not error.within


def test_equal_infinities_and_underflow_are_no_error() -> None:
    tiny = float(np.finfo(np.float32).tiny)
    assert one_error([np.inf, -np.inf], np.asarray([np.inf, -np.inf], np.float32)).units == 0
    assert one_error([tiny / 2], np.zeros(1, np.float32)).within


def test_the_scale_of_a_convolution_is_the_sum_of_magnitudes() -> None:
    rng = np.random.default_rng(0)
    arrays = {"x": rng.standard_normal((2, 3, 5, 5)), "weight": rng.standard_normal((4, 3, 3, 3))}
    wanted = reference("conv2d", arrays, {}, np.ones, "float64").tensors
    x, weight = np.abs(arrays["x"]), np.abs(arrays["weight"])
    assert float(wanted["y"].scale.size[1, 2, 0, 1]) == pytest.approx(np.sum(x[1, :, :3, 1:4] * weight[2]))
    assert wanted["y"].scale.terms == 27  # channels x kernel
    assert wanted["dx"].scale.terms == 36  # output channels x kernel
    assert wanted["dweight"].scale.terms == 18  # images x output pixels
    assert "dbias" not in wanted


def network() -> nn.Module:
    body = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU())
    model = nn.Sequential(
        nn.Residual(body), nn.MaxPool2d(2), nn.Branches(nn.AvgPool2d(2), nn.MaxPool2d(2)),
        nn.Dropout(0.3), nn.Flatten(), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3),
    )  # fmt: skip
    model.reset_parameters(0)
    return model


@every_library
def test_every_layer_of_a_network_is_measured(backend: Backend, dtype: str) -> None:
    rng, model = np.random.default_rng(0), network()
    before = model.state_dict()
    x, target = rng.random((4, 2, 8, 8)).astype(np.float32), rng.integers(0, 3, 4)
    found = list(compare.layer_errors(model, x, target, [backend.device], dtype))
    tensors: dict[str, list[str]] = {}
    for one in found:
        tensors.setdefault(f"{one.place} {one.what}", []).append(one.error.tensor)
    assert tensors == {
        "0.body.0 Conv2d": ["y", "dx", "dweight", "dbias"],
        "0.body.1 BatchNorm2d": ["y", "running_mean", "running_var", "dx", "dweight", "dbias"],
        "0.body.2 ReLU": ["y", "dx"],
        "0.add Add": ["y", "dx[0]", "dx[1]"],
        "1 MaxPool2d": ["y", "dx"],
        "2.0 AvgPool2d": ["y", "dx"],
        "2.1 MaxPool2d": ["y", "dx"],
        "2.concat Concat": ["y", "dx[0]", "dx[1]"],
        "3 Dropout": ["y", "dx"],
        "4 Flatten": ["y", "dx"],
        "5 LayerNorm": ["y", "dx", "dweight", "dbias"],
        "6 GELU": ["y", "dx"],
        "7 Linear": ["y", "dx", "dweight", "dbias"],
        "loss cross_entropy": ["y", "dx"],
    }
    assert [one for one in found if not one.error.within] == []
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())
    assert model.forward(x)[0].dtype == np.float32  # not left traced or converted


class Renamed(nn.Linear):
    """A subclass that computes the same."""


class Doubled(nn.Linear):
    def forward(self, x, train=True):
        y, backward = super().forward(2 * x, train)
        return y, lambda dy, need_dx=True: None if (dx := backward(dy, need_dx)) is None else 2 * dx


class Shifted(nn.Linear):
    def forward(self, x, train=True):
        y, backward = super().forward(x, train)
        return y + 1, backward


class Together(nn.Add):
    """A subclass that computes the same."""


def test_a_subclass_is_measured_if_it_is_its_op_alone() -> None:
    way = nn.Graph([("left", nn.ReLU(), "x"), ("sum", Together(), ("left", "x"))])
    model = nn.Sequential(way, Renamed(4, 4), Doubled(4, 4), Shifted(4, 3))
    model.reset_parameters(0)
    x, target = np.random.default_rng(0).random((5, 4)), np.zeros(5, int)
    found = list(compare.layer_errors(model, x, target, [device("cpu")]))
    assert list(dict.fromkeys(one.what for one in found)) == ["ReLU", "Together", "Renamed", "cross_entropy"]
    assert [str(one) for one in found if not one.error.within] == []


@needs_strict
def test_a_broken_gradient_is_found_where_it_is(broken) -> None:
    rng, model = np.random.default_rng(0), network()
    x, target = rng.random((4, 2, 8, 8)).astype(np.float32), rng.integers(0, 3, 4)
    found = compare.layer_errors(model, x, target, [device("cpu"), device("strict")])
    assert [(e.place, e.device, e.error.tensor) for e in found if not e.error.within] == [("7", "strict", "dweight")]


@needs_strict
def test_the_command_names_the_place_of_a_broken_gradient(xcnn, tiny, broken) -> None:
    code, out, err = xcnn("--devices", "cpu,strict", "--model", tiny, "--steps", 0)
    assert code == 1
    assert "error: over budget: 3 (Linear) dweight on strict in float32: " in err.splitlines()[-1]
    assert out.count("OVER") == 1
    code, out, _ = xcnn("--devices", "cpu,strict", "--model", tiny, "--steps", 0, "--json")
    assert code == 1
    *lines, verdict = map(json.loads, out.splitlines())
    assert verdict["within"] is False
    assert verdict["exceeded"][0].startswith("3 (Linear) dweight on strict in float32: ")
    assert [(line["layer"], line["tensor"]) for line in lines if not line["within"]] == [("3", "dweight")]


def test_json_lines_of_a_network(xcnn) -> None:
    code, out, err = xcnn("--devices", "cpu", "--model", "report", "--steps", 2, "--json")
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    layers, steps, speeds, verdicts = (
        [line for line in lines if line["kind"] == kind] for kind in ("layer", "steps", "speed", "verdict")
    )
    assert len(lines) == len(layers) + len(steps) + len(speeds) + len(verdicts)
    keys = ["kind", "layer", "what", "device", "dtype", "tensor", "units", "bound", "ulp", "within"]
    assert {tuple(line) for line in layers} == {tuple(keys)}
    assert [line["tensor"] for line in layers if line["what"] == "Linear"] == ["y", "dx", "dweight", "dbias"]
    assert [(line["step"], line["distance"]) for line in steps] == [(1, 0.0), (2, 0.0)]
    assert list(speeds[0]) == ["kind", "device", "dtype", "cold", "warm", "images_per_second", "memory"]
    assert speeds[0]["images_per_second"] == pytest.approx(8 / speeds[0]["warm"])
    assert verdicts == [{"kind": "verdict", "within": True, "exceeded": []}]
    assert "2 steps of training on cpu" in err
    assert "errors are within their budgets" in err.splitlines()[-1]


@needs_strict
def test_tables_of_ops(xcnn) -> None:
    code, out, err = xcnn("--devices", "cpu,strict", "--op", "conv2d")
    assert code == 0
    header, *rows = out.splitlines()[1:]
    assert header.split() == ["op", "which", "cpu", "strict"]
    assert len(rows) == len(OPS["conv2d"].samples)
    assert "conv2d in float32 on cpu, strict" in err
    code, out, _ = xcnn("--devices", "cpu", "--op", "all", "--dtype", "float64")
    assert code == 0
    assert len(out.splitlines()[2:]) == len(OPS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--devices", "cpu,cdua"], "unknown device 'cdua'; did you mean 'cuda'?"),
        (["--devices", "cpu,torch:nonsense"], "torch"),
        (["--devices", ","], "--devices takes names separated by commas"),
        (["--devices", "cpu", "--op", "conv2"], "unknown op 'conv2'; did you mean 'conv"),
        (["--devices", "cpu", "--model", "resnet2"], "unknown model 'resnet2'; did you mean 'resnet20'?"),
        (["--devices", "cpu", "--dataset", "digit"], "unknown data set 'digit'; did you mean 'digits'?"),
        (["--devices", "cpu", "--dtype", "float16"], "unknown dtype 'float16'; did you mean 'float"),
        (["--devices", "cpu", "--dtype", "float32,float46"], "unknown dtype 'float46'; did you mean 'float64'?"),
        (["--devices", "cpu", "--steps", "-1"], "--steps must be at least 0, got -1"),
        (["--devices", "cpu", "--plot", "nowhere/x.png"], "cannot write nowhere/x.png: there is no folder nowhere"),
        (["--devices", "cpu", "-b", "0"], "--batch-size must be at least 1, got 0"),
    ],
)
def test_invalid_requests_are_refused(xcnn, argv, message) -> None:
    code, out, err = xcnn(*argv)
    assert (code, out) == (2, "")
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1


@needs_strict
def test_a_device_without_the_dtype_is_one_sentence(xcnn) -> None:
    code, out, err = xcnn("--devices", "strict:no_float64", "--op", "relu", "--dtype", "float64")
    assert (code, out) == (2, "")
    assert "float64" in err


@every_library
def test_weights_stay_together_on_every_library(backend: Backend, dtype: str) -> None:
    batches, classes = compare.batches("digits", "lenet5", 16, 3)  # as in test_portability.py, for JAX to compile once
    assert batches[0][0].shape == (16, 1, 16, 16)  # digits, enlarged to what LeNet-5 takes
    model = models.build("lenet5", batches[0][0].shape[1:], classes)
    parted = compare.distances(model, batches, backend.device, dtype)
    assert len(parted) == 3
    assert max(parted) <= apart(3, dtype, backend.name) < PARTING[dtype]
    assert max(parted) == 0 or not backend.name.startswith("numpy")


def test_batches_go_round_and_name_what_they_do_not_know() -> None:
    batches, classes = compare.batches("digits", "report", 1000, 3)
    assert [len(y) for _, y in batches] == [1000, 437, 1000]
    assert classes == 10
    with pytest.raises(UsageError, match="did you mean 'lenet5'"):
        compare.batches("digits", "lenet", 8, 1)


def test_speed_is_measured_in_a_process_of_its_own() -> None:
    case = compare.Case("vgg_small", 32, "train", 1, images=(1, 16, 16), classes=7, dtype="float64")
    assert case.arrays()[0].shape == (32, 1, 16, 16)
    assert case.arrays()[0].dtype == case.network().parameters()[0].data.dtype == "float64"
    assert case.arrays()[1].max() == 6
    speed = compare.speed(case, "cpu", 2)
    assert speed.first > 0
    assert len(speed.rounds) == 2
    assert speed.memory is None or speed.memory >= 0
    assert speed.images_per_second == pytest.approx(32 / speed.seconds)
    with pytest.raises(compare.SpeedError, match=r"xcnn cdua fails at vgg_small, batch 32, train: .*unknown device"):
        compare.speed(case, "cdua", 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: list(compare.op_errors("relu", device("cpu"), "float16")), "dtype 'float16'; did you mean 'float"),
        (lambda: list(compare.op_errors("rleu", device("cpu"))), "unknown op 'rleu'; did you mean 'relu'"),
        (lambda: list(layer_errors(dtype="float16")), "dtype 'float16'; did you mean 'float"),
        (lambda: list(layer_errors(loss="cross_entropi")), "unknown op 'cross_entropi'; did you mean 'cross_entropy'"),
        (
            lambda: compare.speed(compare.Case("report", 1, "train", 1), "cpu", 0),
            "steps must be an integer of at least",
        ),
        (lambda: compare.contestants(["cpu"], ["troch"]), "unknown peer 'troch'; did you mean 'torch'"),
    ],
)
def test_arguments_that_cannot_be_meant(call, message) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_a_number_in_place_of_an_array_has_no_gradient():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Apply("divide", other=3.0), nn.GlobalAvgPool())
    x = np.random.default_rng(0).standard_normal((2, 1, 5, 5))
    found = list(compare.layer_errors(model, x, np.arange(2), [device("cpu")]))
    assert {one.error.tensor for one in found if one.what == "Apply"} == {"y", "dx"}
    assert all(one.error.within for one in found)


def layer_errors(**options):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    return compare.layer_errors(model, np.ones((1, 1, 2, 2)), np.zeros(1, int), [device("cpu")], **options)


def test_the_picture_shows_every_device(tmp_path) -> None:
    shares = {"cpu": {"0 Conv2d": 0.1, "1 ReLU": 0.0}, "torch:cpu": {"0 Conv2d": math.inf, "1 ReLU": 0.2}}
    for distances in ({}, {"cpu": [0.0, 0.0], "torch:cpu": [1e-8, 3e-8]}):
        path = plots.comparison(shares, distances, tmp_path / "compare.png", "lenet5 at $5 in float32")
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 5  # not blank


def test_each_reaches_into_lists_and_leaves_none() -> None:
    assert each(lambda a: a + 1, {"xs": [1, 2], "bias": None, "x": 3}) == {"xs": [2, 3], "bias": None, "x": 4}


def test_the_reference_does_not_use_kernels(monkeypatch) -> None:
    """The reference is the portable code, even if there is a kernel for its dtype."""

    def wrong(*arguments):
        y, backward = BODIES["conv"](np, *arguments)
        return y * 1.001, backward

    monkeypatch.setitem(kernels(np), "conv", [wrong])
    assert "y" in [one.error.tensor for one in compare.op_errors("conv2d", device("cpu")) if not one.error.within]


OWN_OP = """
from xcnn.ops._op import op, sample

@op("x other", saves="x other", samples=[sample({"x": (40, 3), "other": (40, 3)})])
def own_dot(x, other):
    xp = x.__array_namespace__()
    y = xp.sum(x * other, axis=0)

    def backward(dy, needs):
        return dy * other * FACTOR if needs[0] else None, dy * x if needs[1] else None

    return y, backward

def plain(x):
    return x
"""


@pytest.mark.parametrize(("factor", "code"), [("1.0", 0), ("(1.0 if x.dtype == 'float64' else 1.001)", 1)])
def test_an_op_from_outside_is_compared(tmp_path, monkeypatch, capsys, factor: str, code: int) -> None:
    module = f"own_ops_{code}"
    (tmp_path / f"{module}.py").write_text(OWN_OP.replace("FACTOR", factor), "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("xcnn.ops._op.OPS", OPS)
    try:
        assert main(["compare", "--op", f"{module}:own_dot", "--devices", "cpu"]) == code
        assert main(["compare", "--op", f"{module}:plain", "--devices", "cpu"]) == 2
    finally:
        OPS.pop("own_dot", None)
    assert "expected a function made an op by @ops.op, got function" in capsys.readouterr().err

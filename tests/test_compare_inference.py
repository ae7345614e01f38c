"""Inference in ONNX Runtime beside devices: errors of layers and of whole networks, and planted faults in both."""

import functools
import json

import numpy as np
import pytest

from xcnn import compare, models, nn
from xcnn.devices import device
from xcnn.onnx import EXPORTS

pytest.importorskip("onnxruntime")

BOTH = "float32,float64"
RUNTIME = compare.Runtime()


@pytest.fixture
def xcnn(xcnn):
    """Run `xcnn compare` in an empty folder: (exit code, stdout, stderr)."""
    return functools.partial(xcnn, "compare")


@pytest.fixture
def tiny(monkeypatch):
    """Add a network of one convolution and one linear layer, for large images, to the table of models."""

    def build(shape, classes):
        layers = (nn.Conv2d(shape[0], 2, 3, stride=8), nn.ReLU(), nn.GlobalAvgPool(), nn.Linear(2, classes))
        return nn.Sequential(*layers)

    monkeypatch.setitem(models.MODELS, "tiny", models.Entry("for tests", build, 4, (3, 72, 80)))
    return "tiny"


class Own(nn.Module):
    """A module that ONNX does not know."""

    def forward(self, x, train=True):
        return x + 1, lambda dy, need_dx: dy


def network() -> nn.Module:
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1), nn.Hardsigmoid())
    squeeze = nn.Graph([("gate", gate, "x"), ("scaled", nn.Multiply(), ("gate", "x"))])
    shifted = nn.Graph([("bias", nn.Parameter(np.ones((2, 1, 8), np.float32)), ()),
                        ("less", nn.Apply("subtract"), ("x", "bias"))])  # fmt: skip
    body = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.SiLU())
    model = nn.Sequential(
        nn.Normalize((0.4, 0.5), (0.2, 0.3)), nn.Residual(body), squeeze, shifted,
        nn.Branches(nn.AvgPool2d(2), nn.MaxPool2d(2)), nn.Dropout(0.3), nn.Flatten(),
        nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 3),
    )  # fmt: skip
    model.reset_parameters(0)
    return model


def batch() -> np.ndarray:
    return np.random.default_rng(0).random((3, 2, 8, 8)).astype(np.float32)


def test_every_layer_and_the_network_are_measured() -> None:
    model, told = network(), []
    before = model.state_dict()
    found = list(compare.inference_errors(model, batch(), RUNTIME, told.append))
    assert [f"{one.place} {one.what}" for one in found] == [
        "1.body.0 Conv2d", "1.body.1 BatchNorm2d", "1.body.2 SiLU", "1.add Add",
        "2.gate.0 AdaptiveAvgPool2d", "2.gate.1 Conv2d", "2.gate.2 Hardsigmoid", "2.scaled Multiply", "3.less Apply",
        "4.0 AvgPool2d", "4.1 MaxPool2d", "4.concat Concat", "5 Dropout", "6 Flatten", "7 LayerNorm", "8 GELU",
        "9 Linear",
    ]  # fmt: skip
    whole = list(compare.network_errors(model, batch(), [device("cpu"), RUNTIME]))
    assert [(one.place, one.device) for one in whole] == [("network", "cpu"), ("network", "onnxruntime")]
    assert [str(one) for one in found + whole if not one.error.within] == []
    assert {(one.error.tensor, one.dtype) for one in found + whole} == {("y", "float32")}
    assert told == []
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())


def test_gates_and_applied_ops_are_measured_in_training_too() -> None:
    found = list(compare.layer_errors(network(), batch(), np.arange(3), [device("cpu")]))
    tensors: dict[str, list[str]] = {}
    for one in found:
        tensors.setdefault(one.place, []).append(one.error.tensor)
    assert tensors["2.scaled"] == ["y", "dx[0]", "dx[1]"]
    assert tensors["3.less"] == ["y", "dx", "dother"]
    assert [str(one) for one in found if not one.error.within] == []


def test_a_network_of_several_outputs_is_measured_in_float64() -> None:
    model = nn.Graph([("a", nn.ReLU(), "x"), ("b", nn.Sigmoid(), "x")], output=("a", "b"))
    found = list(compare.network_errors(model, batch() - 0.5, [device("cpu")], "float64"))
    assert [one.error.tensor for one in found] == ["y", "y1"]
    assert all(one.error.within for one in found)


def test_a_wrong_export_is_found_where_it_is(monkeypatch) -> None:
    monkeypatch.setitem(EXPORTS, "gelu", lambda graph, x, approximate: graph.node("Tanh", [x]))
    found = [*compare.inference_errors(network(), batch(), RUNTIME)]
    found += compare.network_errors(network(), batch(), [device("cpu"), RUNTIME])
    over = [(one.place, one.what, one.device) for one in found if not one.error.within]
    assert over == [("8", "GELU", "onnxruntime"), ("network", "Sequential", "onnxruntime")]


def test_a_layer_that_cannot_be_exported_is_told() -> None:
    told: list[str] = []
    model = nn.Graph([("act", nn.ReLU(), "x"), ("loss", nn.Apply("mse_loss"), ("act", "x"))])
    found = list(compare.inference_errors(model, batch(), RUNTIME, told.append))
    assert [one.place for one in found] == ["act"]
    assert len(told) == 1
    assert told[0].startswith("loss is left out on onnxruntime: ")


def test_a_network_that_cannot_be_exported_is_compared_layer_by_layer(xcnn, monkeypatch) -> None:
    def build(shape, classes):
        return nn.Sequential(Own(), nn.Flatten(), nn.Linear(2, classes))

    monkeypatch.setitem(models.MODELS, "own", models.Entry("for tests", build, 1, (2, 1, 1), 3))
    argv = ("--model", "own", "--dataset", "random", "--steps", 0, "--json", "--devices")
    code, out, err = xcnn(*argv, "cpu,onnxruntime")
    assert code == 0
    assert "the network is left out on onnxruntime: 0 (Own) cannot be written as ONNX" in err
    lines = [json.loads(line) for line in out.splitlines()[:-1]]
    assert {line["device"] for line in lines if line["layer"] == "2"} == {"cpu", "onnxruntime"}
    assert [line["device"] for line in lines if line["layer"] == "network"] == ["cpu"]

    monkeypatch.setitem(
        models.MODELS, "own", models.Entry("for tests", lambda shape, classes: nn.Sequential(Own()), 1, (2, 1, 1), 2)
    )
    code, _, err = xcnn(*argv, "onnxruntime")
    assert code == 2
    assert "--devices: onnxruntime runs no layer of it; name another device, too" in err


def test_the_command_compares_large_networks_on_random_images(xcnn, tiny) -> None:
    code, out, err = xcnn("--devices", "cpu,onnxruntime", "--model", tiny, "--steps", 0)
    assert code == 0
    assert "tiny on random: images (2, 3, 72, 80), float32, on cpu, onnxruntime" in err
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["loss"][-1] == "-"
    assert rows["network"][1:3] == ["Sequential", "y"]
    code, out, _ = xcnn("--devices", "onnxruntime", "--model", tiny, "--dataset", "digits", "--json")
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line.get("layer") for line in lines] == ["0", "1", "2", "3", "network", None]
    assert lines[-1] == {"kind": "verdict", "within": True, "exceeded": []}


def test_onnx_runtime_is_left_out_of_training_and_of_wider_numbers(xcnn) -> None:
    code, out, err = xcnn(
        "--devices", "cpu,onnxruntime", "--model", "report", "--steps", 1, "--dtype", "float32,float64"
    )
    assert code == 0
    assert err.count("onnxruntime is left out of the steps of training, as it only infers") == 2
    assert err.count("onnxruntime is left out, as it computes in float32 only") == 1
    assert [line.split()[0] for line in out.splitlines() if line.startswith(("steps", "cpu"))] == ["steps", "cpu"] * 2


def test_a_network_of_maps_has_a_label_per_pixel(xcnn, monkeypatch) -> None:
    def build(shape, classes):
        return nn.Sequential(nn.Conv2d(shape[0], classes, 3, padding=1))

    monkeypatch.setitem(models.MODELS, "maps", models.Entry("for tests", build, 1, (2, 5, 6), 3))
    code, out, _ = xcnn("--devices", "cpu,onnxruntime", "--model", "maps", "--dataset", "random", "--steps", 0)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["0", "loss", "network"]


def test_the_document_has_a_column_for_onnx_runtime(xcnn, tiny, tmp_path) -> None:
    code, _, _ = xcnn("--devices", "cpu,onnxruntime", "--model", tiny, "--steps", 0, "--markdown", tmp_path / "x.md")
    assert code == 0
    text = (tmp_path / "x.md").read_text("utf-8")
    assert "- `onnxruntime`: ONNX Runtime " in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert rows[0][-1] == "onnxruntime |"
    assert [row[2] for row in rows[1:] if row[-1] != "- |"] == ["`y`"] * 5


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--op", "relu"], "--devices: onnxruntime compares networks only; name another device, too"),
        (["--dtype", "float64"], "--devices: onnxruntime computes in float32 only; name another device, too"),
    ],
)
def test_what_onnx_runtime_cannot_do_alone_is_refused(xcnn, argv, message) -> None:
    code, out, err = xcnn("--devices", "onnxruntime", *argv)
    assert (code, out) == (2, "")
    assert message in err

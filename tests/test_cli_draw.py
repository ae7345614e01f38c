"""`xcnn draw`: networks by name and from files, and what is refused."""

import json

import pytest
from svg_texts import joined, texts

from xcnn import models, nn, runs

pytest.importorskip("matplotlib")


def net(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(shape[0], 4, 3), nn.GlobalAvgPool(), nn.Linear(4, classes))


def test_a_network_by_its_name(xcnn, tmp_path):
    code, out, _ = xcnn("draw", "lenet5", "--shape", 3, 32, 32, "--classes", 7, "--json")
    assert code == 0
    parameters = sum(slot.data.size for slot in models.build("lenet5", (3, 32, 32), 7).parameters())
    assert json.loads(out) == {"picture": "lenet5.svg", "shape": [3, 32, 32], "parameters": parameters}
    assert texts(tmp_path / "lenet5.svg")["lenet5"] == 1
    assert f"with {parameters:,} parameters" in joined(tmp_path / "lenet5.svg")
    code, out, _ = xcnn("draw", f"{__name__}:net", "--shape", 1, 8, 8, "-o", "own.PNG")
    assert (code, out) == (0, "own.PNG\n")
    assert (tmp_path / "own.PNG").read_bytes()[:4] == b"\x89PNG"


def test_a_network_of_a_file(xcnn, tmp_path):
    runs.save(net((3, 16, 16), 2), tmp_path / "own.safetensors")
    code, _, err = xcnn("draw", "own.safetensors")
    assert (code, err) == (
        2,
        "error: --shape: own.safetensors does not say of which shape its images are; name it\n",
    )
    assert xcnn("draw", "own.safetensors", "--shape", 3, 16, 16)[0] == 0
    assert {"own.safetensors", "input 3x16x16", "2 · 10 parameters"} <= set(texts(tmp_path / "own.svg"))


def test_a_file_with_several_outputs_and_odd_names(xcnn, tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import helper

    image, *outputs = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 1, 8, 8])
        for name in ("in put:0", "<b>&\u202e", "a/../b.c")
    )
    nodes = [
        helper.make_node("Relu", [image.name], [outputs[0].name], name="same"),
        helper.make_node("Sigmoid", [outputs[0].name], [outputs[1].name], name="same"),
    ]
    graph = helper.make_graph(nodes, "two", [image], outputs)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, tmp_path / "two.onnx")
    code, _, err = xcnn("draw", "two.onnx", "--shape", 1, 8, 8)
    assert code == 0, err
    assert {"input 1x8x8", "ReLU", "+ Sigmoid"} <= set(texts(tmp_path / "two.svg"))


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["lenet"], 2, "unknown model 'lenet'; did you mean 'lenet5'?"),
        (["runs/none"], 1, "no checkpoint at runs/none"),
        (["lenet5", "--out", "a.jpg"], 2, "--out must be a file that ends in .png or .svg, got a.jpg"),
        (["lenet5", "--out", "no/a.svg"], 2, "cannot write no/a.svg: there is no folder no"),
        (["lenet5", "--depth", "0"], 2, "--depth must be at least 1, got 0"),
        (["lenet5", "--shape", "1", "4", "4"], 2, "images must have at least 12 x 12 pixels"),
    ],
)
def test_mistakes(xcnn, tmp_path, argv, code, message):
    came, out, err = xcnn("draw", *argv)
    assert (came, out) == (code, "")
    assert message in err
    assert not list(tmp_path.iterdir())

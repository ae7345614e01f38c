"""Networks of 8 bits: what the quantised file computes, its size, and what is refused."""

import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest

import xcnn
from xcnn import data, nn, onnx, optim
from xcnn.errors import UsageError, WriteError

pytest.importorskip("onnxruntime")
proto = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def trained():
    """A network with batch norm that knows some digits, and the test images."""
    train, test = data.load("digits")
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.GlobalAvgPool(), nn.Linear(32, 10)),
    )
    model.reset_parameters(0)
    xcnn.Trainer(model, optim.Adam(model.parameters(), lr=0.01), "cross_entropy").fit(train, epochs=3, progress=False)
    return model, data.to_float(train.x[:200]), data.to_float(test.x[:]), test.y[:]


def test_a_quantised_network_computes_with_8_bits_and_is_as_good(trained, tmp_path):
    model, some, x, y = trained
    made = onnx.to_model(model, (1, 8, 8), classes=tuple("0123456789"), preprocessing={"resize": "pad"})
    path = onnx.quantize(made, tmp_path / "int8.onnx", [some[:100], some[100:]])
    assert list(tmp_path.iterdir()) == [path]
    session = onnx.Session(path)
    found, scores = session(x), model(x)
    assert 0 < np.abs(found - scores).max() < 0.2 * np.abs(scores).max()
    assert abs((found.argmax(1) == y).mean() - (scores.argmax(1) == y).mean()) < 0.03
    assert (scores.argmax(1) == y).mean() > 0.7
    assert session(x[:1]).shape == (1, 10)
    assert session.metadata == onnx.Metadata((1, 8, 8), tuple("0123456789"), {"resize": "pad"})
    assert session.shapes == ({"x": ("N", 1, 8, 8)}, {"y": ("N", 10)})
    read = proto.load(path)
    proto.checker.check_model(read, full_check=True)
    assert [operators.domain for operators in read.opset_import] == [""]
    kinds = {node.op_type for node in read.graph.node}
    assert {"Conv", "QuantizeLinear", "DequantizeLinear"} <= kinds
    assert "BatchNormalization" not in kinds
    large = [held for held in read.graph.initializer if np.prod(held.dims) > 100]
    assert len(large) == 3
    assert all(np.abs(proto.numpy_helper.to_array(held).astype(int)).max() <= 64 for held in large)
    assert {held.data_type for held in large} == {proto.TensorProto.INT8}


def test_the_same_network_and_images_give_the_same_bytes(trained, tmp_path):
    model, some, *_ = trained
    made = onnx.to_model(model, (1, 8, 8)).SerializeToString()
    (tmp_path / "float32.onnx").write_bytes(made)
    a, b = (onnx.quantize(source, tmp_path / "a", [some]).read_bytes() for source in (made, tmp_path / "float32.onnx"))
    assert a == b


def test_a_network_of_several_inputs_is_quantised(tmp_path):
    nodes = [("fc", nn.Linear(32, 32), "a"), ("both", nn.Add(), ("fc", "b")), ("y", nn.ReLU(), "both")]
    model = nn.Graph(nodes, inputs=("a", "b"))
    x = tuple(np.random.default_rng(0).random((2, 50, 32), np.float32))
    session = onnx.Session(onnx.quantize(onnx.to_model(model, ((32,), (32,))), tmp_path / "a.onnx", [x]))
    assert 0 < np.abs(session(*x) - model(x)).max() < 0.05


def test_layers_that_stay_in_float32_are_not_warned_of(tmp_path, caplog, capfd):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 8, 3))
    x = np.random.default_rng(0).random((9, 3, 8, 8), np.float32)
    root = logging.getLogger()
    before = (list(root.handlers), list(root.filters))
    path = onnx.quantize(onnx.to_model(model, (3, 8, 8)), tmp_path / "a.onnx", [x])
    assert "BatchNormalization" in {node.op_type for node in proto.load(path).graph.node}
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert (list(root.handlers), list(root.filters)) == before


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_cannot_be_quantised_is_refused_and_leaves_the_file(trained, tmp_path, monkeypatch):
    made = onnx.to_model(trained[0], (1, 8, 8))
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")
    x = np.ones((2, 1, 8, 8), np.float32)
    for batches, message in (
        ([], r"^quantize: batches must have at least one batch of inputs, got none"),
        ([x[:0]], r"^quantize: batches must have at least one batch of inputs, got none"),
        (3, r"^quantize: batches must be a list or iterator of inputs, got 3"),
        ([(x, x)], r"^quantize: the network takes 1 inputs, a batch has 2"),
        ([x[:, :, :5]], r"^ONNX Runtime: .*invalid dimensions"),
        ([x, x[:, :, :5]], r"^quantize: ONNX Runtime cannot quantise the network: .*invalid dimensions"),
        ([x, (x, x)], r"^quantize: the network takes 1 inputs, a batch has 2"),
    ):
        with pytest.raises(UsageError, match=message):
            onnx.quantize(made, path, batches)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(WriteError, match=r"^cannot write .*float32\.onnx: No space left on device"):
            onnx.quantize(made, path, [x])
    with pytest.raises(UsageError, match=r"^Session: source must be a path, bytes or an onnx\.ModelProto, got Sequent"):
        onnx.quantize(trained[0], path, [x])
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"old"]

"""ONNX files that were made to do harm are refused in one sentence, quickly and with little memory."""

import contextlib
import os
import pickle

import numpy as np
import pytest
from hostile import Kind, survives
from hostile_onnx import make_onnx, read_onnx
from onnx import TensorProto, helper, numpy_helper, parser

from xcnn.errors import CheckpointError
from xcnn.onnx import read

KIND = Kind(make_onnx, read_onnx)


def refused(tmp_path, model, says):
    """Check that a model is refused, with little time and memory."""
    path = tmp_path / "x.onnx"
    outcome = survives(KIND, path, model if isinstance(model, bytes) else model.SerializeToString())
    assert says in outcome.refusal
    assert outcome.peak < 16 << 20


def network(body, tensors=None, opset=17):
    """Return a model from ONNX's text form with integers as tensors."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[N, 4] x) => (float[N, K] y) {{ {body} }}'
    model = parser.parse_model(text)
    for name, numbers in (tensors or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(numbers), name))
    return model


MUCH = [2**20, 2**20]


@pytest.mark.parametrize(
    ("body", "tensors"),
    [
        ("a = ConstantOfShape (m) y = Add (x, a)", {"m": MUCH}),
        ("a = Expand (one, m) y = Add (x, a)", {"m": MUCH, "one": np.float32([1])}),
        ("a = Tile (one, m) y = Add (x, a)", {"m": MUCH, "one": np.float32([[1]])}),
        ("a = Range (zero, much, one) b = Cast <to = 1> (a) y = Add (x, b)", {"zero": 0, "much": 2**40, "one": 1}),
        ("y = Expand (x, m)", {"m": [1, 2**40, 4]}),
        ("y = Tile (x, m)", {"m": MUCH}),
        ("a = Reshape (one, m) y = Add (x, a)", {"m": MUCH, "one": np.float32([1])}),
        (
            "a = Expand (one, m) b = Add (a, a) c = Concat <axis = 0> (a, b) d = Concat <axis = 0> (c, c) "
            "e = Concat <axis = 0> (d, d) f = Concat <axis = 0> (e, e) h = Concat <axis = 0> (f, f) y = Add (x, h)",
            {"m": [2**18, 1], "one": np.float32([1])},
        ),
        ("y = Resize (x, , s)", {"s": np.float32([1, 1e9])}),
        ("y = Gemm (x, w)", {"w": np.zeros((0, 2**40), np.float32)}),
    ],
)
def test_small_files_that_stand_for_large_arrays(tmp_path, body, tensors):
    refused(tmp_path, network(body, tensors), "x.onnx: ")


def tensor(**fields):
    """Return a model that adds a tensor with these fields."""
    model = network("y = Add (x, w)")
    model.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.FLOAT, **fields))
    return model


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"dims": [2**20, 2**20], "raw_data": bytes(4)},
            "'w' of shape (1048576, 1048576) needs 4,398,046,511,104 bytes",
        ),
        ({"dims": [2**32, 2**32], "raw_data": bytes(4)}, "bytes, got 4"),
        ({"dims": [2**20], "float_data": [1.0]}, "needs 1,048,576 numbers, got 1"),
        ({"dims": [-1], "raw_data": bytes(4)}, "has the shape (-1,)"),
        ({"dims": [1] * 40, "raw_data": bytes(4)}, "has the shape"),
    ],
)
def test_tensors_that_say_more_than_they_hold(tmp_path, fields, says):
    refused(tmp_path, tensor(**fields), says)


@pytest.mark.parametrize(
    "where", ["../secret", "/etc/passwd", "link", "folder", "", "missing", "a\0b", "x" * 5000, "pipe"]
)
def test_tensors_in_files_that_are_not_in_the_folder(tmp_path, where):
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(16))
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    model = tensor(dims=[4], data_location=TensorProto.EXTERNAL)
    model.graph.initializer[0].external_data.add(key="location", value=where)
    refused(folder, model, "is missing" if where == "missing" else "which is not a file in the folder of the model")


@pytest.mark.parametrize(
    ("offset", "length", "says"),
    [(0, 64, "needs 16 bytes"), (8, 16, "needs 16 bytes"), (-8, 16, "needs 16 bytes"), ("x", 16, "is not a file")],
)
def test_tensors_outside_the_file_that_they_name(tmp_path, offset, length, says):
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    model = tensor(dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.bin"), ("offset", offset), ("length", length)):
        model.graph.initializer[0].external_data.add(key=key, value=str(value))
    refused(tmp_path, model, says)


def test_a_small_file_is_not_read_once_per_tensor(tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(1 << 20))
    model = network("y = Identity (x)")
    for k in range(1000):
        one = TensorProto(name=f"w{k}", data_type=1, dims=[1 << 18], data_location=TensorProto.EXTERNAL)
        one.external_data.add(key="location", value="weights.bin")
        model.graph.initializer.append(one)
    refused(tmp_path, model, "its tensors need 2,097,152 bytes of 'weights.bin', which has 1,048,576")


def test_functions_that_call_each_other_many_times(tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[N] x) => (float[N] y) { y = own.f40 (x) }'
    for k in range(1, 41):
        text += f'<domain: "own", opset_import: ["" : 17, "own" : 1]> f{k} (x) => (y) '
        text += f"{{ a = own.f{k - 1} (x) y = own.f{k - 1} (a) }}"
    text += '<domain: "own", opset_import: ["" : 17]> f0 (x) => (y) { y = Relu (x) }'
    refused(tmp_path, parser.parse_model(text), "it has too many nodes")
    circle = text.replace("{ y = Relu (x) }", "{ y = own.f1 (x) }").replace('["" : 17]> f0', '["" : 17, "own" : 1]> f0')
    refused(tmp_path, parser.parse_model(circle), "calls itself")


def test_graphs_inside_nodes_are_refused_by_name(tmp_path):
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [])
    for _ in range(15):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=graph)], "g", [], [])
    model = network("y = Relu (x)")
    del model.graph.node[:]
    model.graph.node.extend(graph.node)
    refused(tmp_path, model, "1 of 1 nodes are not supported: If (y)")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('y = Gelu <approximate = "tanhTEXT"> (x)', "unknown GELU approximate 'tanhaaa"),
        ("y = MaxPool <kernel_shape = [1], pads = [NUMBERS]> (x)", "its pads must be 2 numbers, got [1, 1"),
    ],
)
def test_refusals_are_short_whatever_the_file_says(tmp_path, body, says):
    model = network(body.replace("TEXT", "a" * 9999).replace("NUMBERS", "1, " * 9999 + "1"), opset=20)
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 1000


class Payload:
    """What runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_executed(tmp_path):
    ran, payload = tmp_path / "ran", pickle.dumps(Payload(tmp_path / "ran"))
    path = tmp_path / "x.onnx"
    for content in (payload, b"\x80\x04" + payload):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is not an ONNX file"):
            read(path)
    model = tensor(dims=[len(payload) // 4], raw_data=payload[: len(payload) // 4 * 4])
    model.metadata_props.add(key="xcnn", value=f"__import__('os').mkdir({str(ran)!r})")
    model.graph.node.append(helper.make_node("PyOp", ["x"], ["z"], domain="ai.onnx.contrib", code=payload))
    (tmp_path / "weights.bin").write_bytes(payload)
    path.write_bytes(model.SerializeToString())
    with contextlib.suppress(CheckpointError):
        read(path)
    assert not ran.exists()
    pickle.loads(payload)
    assert ran.is_dir()  # it does run where it is unpickled

"""Networks from ONNX files: what they compute and how they train, how they are called, and what is refused."""

import numpy as np
import onnx
import onnx_nodes
import onnx_torch
import pytest
from onnx import helper, numpy_helper, parser

import xcnn
from xcnn import nn
from xcnn.errors import CheckpointError, ShapeError, UsageError
from xcnn.onnx import Session, load, read, save

SMALL = ("report", "lenet5", "mnist_cnn", "vgg_small", "resnet20")


def drawn(model, seed=0):
    """Give a network running statistics that matter."""
    rng = np.random.default_rng(seed)
    for name, slot in model.named_buffers():
        if name.endswith("running_mean"):
            slot.data = rng.standard_normal(slot.data.shape).astype(np.float32)
        elif name.endswith("running_var"):
            slot.data = rng.uniform(0.5, 1.5, slot.data.shape).astype(np.float32)
    return model


def written(folder, text, tensors=None, opset=17):
    """Write a model in ONNX's text form, with tensors of the file."""
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
    model = parser.parse_model(head + text)
    for name, array in (tensors or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def agrees(path, *shape, tolerance=1e-5):
    """Compare what a file gives here with what it gives in ONNX Runtime, and return the graph."""
    graph, session = load(path), Session(path)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    y, expected = graph(x), session(x)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
    return graph


@pytest.mark.parametrize("name", SMALL)
def test_a_network_comes_back_bit_for_bit_with_its_names(tmp_path, name):
    entry = xcnn.models.MODELS[name]
    model = drawn(xcnn.models.build(name, entry.shape, 10, seed=0))
    path = save(model, tmp_path / "model.onnx", entry.shape)
    graph = load(path)
    state, found = model.state_dict(), graph.state_dict()
    assert list(found) == list(state)
    assert all(np.array_equal(found[key], state[key]) for key in state)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, *entry.shape)).astype(np.float32)
    assert np.array_equal(graph(x), model(x))
    if any(isinstance(module, nn.Dropout) for _, module in model.modules()):  # which the file does not have
        return
    (y, backward), (expected, expected_backward) = graph.forward(x), model.forward(x)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    assert np.array_equal(y, expected)
    assert np.array_equal(backward(dy), expected_backward(dy))
    for (key, one), (_, other) in zip(graph.named_parameters(), model.named_parameters(), strict=True):
        assert np.array_equal(one.grad, other.grad), key
    again = tmp_path / "again.xcnn"
    xcnn.save(graph, again)
    assert np.array_equal(xcnn.load(again)(x), graph(x))


def test_layers_written_as_several_nodes_come_back(tmp_path):
    body = [nn.Normalize((0.485, 0.5, 0.4), (0.2, 0.3, 0.25)), nn.SiLU(), nn.Mish(), nn.Hardswish()]
    model = nn.Sequential(*body, nn.GlobalAvgPool(), nn.Linear(3, 2))
    graph = load(save(model, tmp_path / "model.onnx", (3, 4, 4)))
    kinds = [type(module).__name__ for _, module in graph.children()]
    assert kinds == ["Normalize", "SiLU", "Mish", "Hardswish", "GlobalAvgPool", "Linear"]
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    assert np.array_equal(graph(x), model(x))
    assert list(graph.state_dict()) == ["5.weight", "5.bias"]


def test_a_linear_layer_over_pixels_comes_back(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.Flatten())  # two reshapes to (-1, sizes), of which one joins pixels
    graph = load(save(model, tmp_path / "model.onnx", (2, 5, 4)))
    x = np.random.default_rng(0).standard_normal((3, 2, 5, 4)).astype(np.float32)
    assert np.array_equal(graph(x), model(x))


def test_names_of_pytorch_become_names_of_modules(tmp_path):
    text = """
        small (float[N, 2, 5, 5] x) => (float[N, 2, 5, 5] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, onnx_1, onnx_2)
            b = Relu (a)
            c = Conv <pads = [1, 1, 1, 1]> (b, "layer1.0.conv2.weight")
            y = Add (c, x)
        }"""
    text = text.replace('"layer1.0.conv2.weight"', "w")
    rng = np.random.default_rng(0)
    tensors = {"onnx_1": rng.standard_normal((2, 2, 3, 3)), "onnx_2": [0.5, 1], "w": rng.standard_normal((2, 2, 3, 3))}
    path = written(tmp_path, text, tensors)
    model = onnx.load(path)
    for node, name in zip(model.graph.node, ("conv1/Conv", "relu/Relu", "conv2/Conv", "Add"), strict=True):
        node.name = f"/layer1/layer1.0/{name}"
    model.graph.initializer[2].name = model.graph.node[2].input[1] = "layer1.0.conv2.weight"
    onnx.save(model, path)
    graph = agrees(path, 3, 2, 5, 5)
    assert [name for name, _ in graph.children()] == [
        "layer1.0.conv1",
        "layer1.0.relu",
        "layer1.0.conv2",
        "layer1.0.add",
    ]
    assert list(graph.state_dict()) == ["layer1.0.conv1.weight", "layer1.0.conv1.bias", "layer1.0.conv2.weight"]


def test_gradients_are_those_of_pytorch_for_a_file_of_its_exporter(tmp_path):
    torch = pytest.importorskip("torch")

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 6, 3, padding=1, groups=3)
            self.bn = torch.nn.BatchNorm2d(6)
            self.norm, self.fc = torch.nn.LayerNorm(6), torch.nn.Linear(6, 6)
            self.scale, self.head = torch.nn.Parameter(torch.ones(6, 1, 1)), torch.nn.Linear(12, 4)

        def forward(self, x):
            x = torch.nn.functional.hardswish(self.bn(self.conv(x)))
            inner = torch.nn.functional.gelu(self.fc(self.norm(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
            a, b = (x + self.scale * inner).chunk(2, dim=1)
            both = torch.cat([a * torch.sigmoid(b), torch.exp(-a.abs()), 1 - b / 2, x[:, ::2]], 1)
            return self.head(torch.nn.functional.adaptive_avg_pool2d(both, 1).flatten(1))

    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = onnx_torch.calibrated(Block(), x)
    graph = load(onnx_torch.export(model, x, tmp_path / "model.onnx", dynamo=False))
    found = onnx_torch.Errors(model, graph, x.numpy())
    assert max(found.y, found.dx, found.weights) < 1e-6  # the exporter writes 1 / sqrt(2) in float32
    names = {"conv.weight", "bn.bias", "norm.weight", "fc.bias", "scale", "head.weight"}
    assert names <= graph.state_dict().keys()
    assert found.compared >= found.parameters - 1  # of fc, whose matrix is written the other way


def test_constants_of_one_number_are_options_and_leave_no_keys(tmp_path):
    text = """
        numbers (float[N, 3, 2, 2] x) => (float[N, 3, 2, 2] y) {
            half = Constant <value = float {0.5}> ()
            one = Constant <value = float[1, 1] {1.0}> ()
            a = Mul (half, x)
            b = Add (a, one)
            c = Div (b, three)
            d = Sub (c, half)
            e = Mul (d, scale)
            y = Mul (e, row)
        }"""
    path = written(tmp_path, text, {"three": 3, "scale": [2.0], "row": [2.0, 3.0]})
    graph = agrees(path, 2, 3, 2, 2)
    assert list(graph.state_dict()) == ["scale", "row"]  # of tensors in the file
    xcnn.save(graph, tmp_path / "again.xcnn")
    save(graph, tmp_path / "again.onnx", (3, 2, 2))
    for again in (xcnn.load(tmp_path / "again.xcnn"), load(tmp_path / "again.onnx")):
        x = np.random.default_rng(1).standard_normal((2, 3, 2, 2)).astype(np.float32)
        assert np.array_equal(again(x), graph(x))
        assert list(again.state_dict()) == ["scale", "row"]


def test_nodes_around_a_layer_do_not_take_its_name(tmp_path):
    text = """
        moved (float[N, 3, 2, 2] x) => (float[N, 3, 2, 2] y) {
            a = Transpose <perm = [0, 2, 3, 1]> (x)
            b = LayerNormalization (a, w, v)
            y = Transpose <perm = [0, 3, 1, 2]> (b)
        }"""
    path = written(tmp_path, text, {"w": [1, 2, 3], "v": [0, 1, 0]})
    model = onnx.load(path)
    for node, name in zip(model.graph.node, ("Transpose", "LayerNormalization", "Transpose_1"), strict=True):
        node.name = f"/stem/stem.0/{name}"
    for i, name in enumerate(("weight", "bias")):
        model.graph.initializer[i].name = model.graph.node[1].input[1 + i] = f"stem.0.{name}"
    onnx.save(model, path)
    assert list(agrees(path, 2, 3, 2, 2).state_dict()) == ["stem.0.weight", "stem.0.bias"]


def test_a_weight_of_two_layers_is_one_parameter(tmp_path):
    text = """
        shared (float[N, 3] x) => (float[N, 3] y, float[N, 3] z) {
            a = Gemm <transB = 1> (x, w)
            y = Gemm <transB = 1> (a, w)
            b = Gemm (y, w)
            z = Tanh (b)
        }"""
    path = written(tmp_path, text, {"w": np.random.default_rng(0).standard_normal((3, 3))})
    graph = load(path)
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    for y, expected in zip(graph(x), Session(path)(x), strict=True):
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    nodes = dict(graph.children())
    assert nodes["a"] is nodes["y"]  # the same layer twice; in the third, the matrix lies the other way
    assert len(graph.parameters()) == 2


def test_equal_vectors_that_exporters_merge_are_each_layers_own(tmp_path):
    text = """
        merged (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y) {
            a = Conv (x, v, zeros)
            b = BatchNormalization (a, ones, zeros, zeros, ones)
            c = Conv (b, w, zeros)
            d = BatchNormalization (c, ones, zeros, zeros, ones)
            e = Conv (d, w, zeros)
            y = Conv (e, v, trained)
        }"""
    rng = np.random.default_rng(0)
    tensors = {"v": rng.standard_normal((2, 2, 1, 1)), "w": rng.standard_normal((2, 2, 1, 1)), "trained": [1, 2]}
    graph = agrees(written(tmp_path, text, tensors | {"zeros": [0, 0], "ones": [1, 1]}), 2, 2, 4, 4)
    nodes = dict(graph.children())
    assert nodes["c"] is nodes["e"]
    assert nodes["a"].weight is nodes["y"].weight
    assert len(graph.parameters()) == 2 + 3 + 2 * 2  # matrices, biases, and the vectors of both norms
    assert len({id(slot) for _, slot in graph.named_buffers()}) == 6


def test_a_file_for_one_size_of_the_batch_takes_any(tmp_path):
    text = """
        fixed (float[1, 2, 4, 4] x) => (float[1, 4] y) {
            shape = Constant <value = int64[2] {1, 32}> ()
            a = Reshape (x, shape)
            b = MatMul (a, w)
            y = Add (b, c)
        }"""
    rng = np.random.default_rng(0)
    path = written(tmp_path, text, {"w": rng.standard_normal((32, 4)), "c": rng.standard_normal(4)})
    graph = agrees(path, 1, 2, 4, 4)
    assert [type(module).__name__ for _, module in graph.children()] == ["Flatten", "Linear"]
    x = rng.standard_normal((5, 2, 4, 4)).astype(np.float32)
    assert np.allclose(graph(x)[3:4], graph(x[3:4]))
    assert read(path).shape == (2, 4, 4)


def test_networks_of_16_bits_become_float32(tmp_path):
    text = """
        half (float16[N, 3, 4, 4] x) => (float16[N, 4] y) {
            two = Constant <value = float16[4] {2, 2, 2, 2}> ()
            a = Conv (x, w)
            b = PRelu (a, slope)
            c = Cast <to = 1> (b)
            d = ReduceMean <axes = [2, 3], keepdims = 0> (c)
            e = Cast <to = 10> (d)
            y = Add (e, two)
        }"""
    rng = np.random.default_rng(0)
    path = written(tmp_path, text)
    proto = onnx.load(path)
    for name, shape in (("w", (4, 3, 1, 1)), ("slope", (4, 1, 1))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float16), name))
    onnx.save(proto, path)
    graph = load(path)
    assert [type(module).__name__ for _, module in graph.children()] == ["Conv2d", "PReLU", "GlobalAvgPool", "Add"]
    x = rng.standard_normal((2, 3, 4, 4)).astype(np.float16)
    y, expected = graph(x.astype(np.float32)), Session(path)(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected, rtol=1e-2, atol=1e-2)


def test_constants_may_take_the_type_of_an_array(tmp_path):
    text = """
        like (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y) {
            zero = Constant <value = int64[1] {1}> ()
            two = Constant <value = int64[1] {2}> ()
            b = CastLike (zero, x)
            c = Expand (b, two)
            y = Conv (x, w, c)
        }"""
    agrees(written(tmp_path, text, {"w": np.random.default_rng(0).standard_normal((2, 3, 1, 1))}), 2, 3, 4, 4)


def test_images_are_not_mixed_where_a_file_for_one_image_has_another_axis_first(tmp_path):
    text = """
        heads (float[1, 6, 4] x) => (float[1, 6, 4] y) {
            a = Transpose <perm = [1, 0, 2]> (x)
            split = Constant <value = int64[3] {6, 2, 2}> ()
            b = Reshape (a, split)
            c = Softmax <axis = 0> (b)
            joined = Constant <value = int64[3] {6, 1, 4}> ()
            d = Reshape (c, joined)
            y = Transpose <perm = [1, 0, 2]> (d)
        }"""
    graph = agrees(written(tmp_path, text), 1, 6, 4)
    with pytest.raises(ShapeError, match="reshape: shape must hold the 72 numbers"):
        graph(np.ones((3, 6, 4), np.float32))


def test_a_maximum_in_a_file_for_one_size_of_the_batch_takes_any(tmp_path):
    text = "largest (float[2, 3, 4, 5] x) => (float[2, 3, 5] y) { y = ReduceMax <axes = [2], keepdims = 0> (x) }"
    graph = agrees(written(tmp_path, text), 2, 3, 4, 5)
    x = np.random.default_rng(0).standard_normal((3, 3, 4, 5)).astype(np.float32)
    assert np.array_equal(graph(x), x.max(2))


def test_a_column_added_to_a_product_is_no_bias(tmp_path):
    text = """
        columns (float[N, 5, 4] x, float[5, 5] z) => (float[N, 5, 5] y, float[5, 5] u) {
            a = MatMul (x, w)
            y = Add (a, column)
            u = Gemm (z, v, column)
        }"""
    rng = np.random.default_rng(0)
    tensors = {"w": rng.standard_normal((4, 5)), "v": rng.standard_normal((5, 5)), "column": np.arange(5)[:, None]}
    path = written(tmp_path, text, tensors)
    x, z = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 5, 4), (5, 5)))
    for y, expected in zip(load(path)((x, z)), Session(path)(x, z), strict=True):
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_a_weight_is_repeated_for_each_image_of_the_batch(tmp_path):
    text = """
        token (float[N, 3, 4] x) => (float[N, 4, 4] y, float[N, 8] z) {
            s = Shape (x)
            zero = Constant <value = int64[1] {0}> ()
            n = Gather (s, zero)
            rest = Constant <value = int64[2] {1, 4}> ()
            shape = Concat <axis = 0> (n, rest)
            token = Expand (cls, shape)
            y = Concat <axis = 1> (token, x)
            flat = Flatten (y)
            z = Gather <axis = 1> (flat, some)
        }"""
    path = written(tmp_path, text, {"cls": [[[1, 2, 3, 4]]]})
    proto, some = onnx.load(path), np.int64([0, 15, 15, 3, 1, 2, -1, 7])
    proto.graph.initializer.append(numpy_helper.from_array(np.tile(some, 10), "some"))
    proto.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 80
    onnx.save(proto, path)
    graph, session = load(path), Session(path)
    assert [name for name, _ in graph.named_parameters()] == ["cls"]
    for n in (1, 3):
        x = np.random.default_rng(n).standard_normal((n, 3, 4)).astype(np.float32)
        results, backward = graph.forward(x)
        for y, expected in zip(results, session(x), strict=True):
            assert np.array_equal(y, expected)
        graph.zero_grad()
        dx = backward(tuple(np.ones_like(y) for y in results))
        counts = np.bincount(np.tile(some % 16, 10), minlength=16).reshape(4, 4) + 1  # how often each number is used
        assert np.array_equal(dx, np.broadcast_to(counts[1:], dx.shape))
        assert np.array_equal(dict(graph.named_parameters())["cls"].grad, n * counts[None, :1])


def test_files_of_old_versions_broadcast_as_they_say(tmp_path):
    text = """
        old (float[2, 3, 4, 5] x) => (float[2, 3, 4, 5] y) {
            a = Add <broadcast = 1, axis = 1> (x, channel)
            b = Mul <broadcast = 1, axis = 1> (a, plane)
            c = Sub <broadcast = 1> (b, row)
            d = Clip <min = -1.0, max = 2.0> (c)
            e = Pad <pads = [0, 0, 1, 0, 0, 0, 0, 0]> (d)
            f = Slice <axes = [2], starts = [0], ends = [4]> (e)
            y = Dropout (f)
        }"""
    rng = np.random.default_rng(0)
    channel, plane, row, x = (rng.standard_normal(s).astype(np.float32) for s in (3, (3, 4), 5, (2, 3, 4, 5)))
    path = written(tmp_path, text, {"channel": channel, "plane": plane, "row": row}, opset=6)
    y = load(path)(x)
    d = np.clip((x + channel[:, None, None]) * plane[:, :, None] - row, -1, 2)
    assert np.allclose(y[:, :, 1:], d[:, :, :3], atol=1e-6)
    assert not y[:, :, 0].any()
    assert load(path)(np.concatenate([x, x])).shape == (4, 3, 4, 5)  # of another batch


def test_arithmetic_of_shapes_is_computed_once(tmp_path):
    text = """
        shapes (float[N, 6, 4, 4] x) => (float[N, C] y) {
            s = Shape (x)
            zero = Constant <value = int64 {0}> ()
            n = Gather (s, zero)
            axis = Constant <value = int64[1] {0}> ()
            first = Unsqueeze (n, axis)
            rest = Constant <value = int64[1] {-1}> ()
            shape = Concat <axis = 0> (first, rest)
            a = Reshape (x, shape)
            y = Relu (a)
        }"""
    graph = agrees(written(tmp_path, text), 3, 6, 4, 4)
    assert [type(module).__name__ for _, module in graph.children()] == ["Flatten", "ReLU"]


def test_maps_of_any_size_need_no_shape_where_the_file_needs_none(tmp_path):
    text = """
        maps (float[N, 3, H, W] x) => (float[N, C] y) {
            a = Conv (x, w)
            b = Relu (a)
            c = GlobalAveragePool (b)
            y = Flatten (c)
        }"""
    path = written(tmp_path, text, {"w": np.random.default_rng(0).standard_normal((4, 3, 3, 3))})
    for size in (5, 8):
        agrees(path, 2, 3, size, size)
    assert read(path).shape == ()
    assert read(path, (3, 8, 8)).shape == (3, 8, 8)
    with pytest.raises(CheckpointError, match=r"cannot have the shape \(4, 8, 8\)"):
        read(path, (4, 8, 8))


NODES = """
    abs batch_normalization celu clip concat conv convtranspose depthtospace div dropout elu erf exp expand
    flatten gather gelu gemm globalaveragepool globalmaxpool groupnormalization hardsigmoid instance_normalization
    layernormalization leakyrelu log lpnormalization lrn matmul max mean mish mul neg pad pow prelu reciprocal
    reduce_log_sum_exp reducel2 reducemax reducemean reducesum reshape resize selu slice softmax spacetodepth split
    squeeze sub sum tile transpose unsqueeze
"""


def test_onnx_s_own_tests_of_operators_pass():
    found = [case for case in onnx_nodes.cases(NODES.split()) if len(case.model.graph.node) == 1]
    found += [case for case in onnx_nodes.converted("pytorch-converted") if "Pool" in case.name]
    reasons = {case.name: onnx_nodes.outcome(case) for case in found if case.operators <= onnx_nodes.OPERATORS.keys()}
    assert list(reasons.values()).count("") > 250
    assert {onnx_nodes.grouped(reason) for reason in reasons.values()} <= {"", *onnx_nodes.GROUPS.values()}


def test_one_of_the_well_known_networks_of_onnx(tmp_path):
    ((name, error),) = onnx_nodes.networks(tmp_path, ["squeezenet"])
    assert name == "squeezenet"
    assert error < 1e-5


@pytest.mark.parametrize("form", ["constants", "inputs", "external", "old"])
def test_weights_are_found_wherever_exporters_put_them(tmp_path, form):
    model = drawn(xcnn.models.build("lenet5", (1, 28, 28), 10, seed=0))
    path = save(model, tmp_path / "model.onnx", (1, 28, 28))
    proto = onnx.load(path)
    if form == "constants":
        nodes = [helper.make_node("Constant", [], [one.name], value=one) for one in proto.graph.initializer]
        nodes += proto.graph.node
        del proto.graph.initializer[:], proto.graph.node[:]
        proto.graph.node.extend(nodes)
    elif form == "inputs":
        proto.ir_version = 3
        for one in proto.graph.initializer:
            proto.graph.input.append(helper.make_tensor_value_info(one.name, one.data_type, one.dims))
    elif form == "old":  # numbers in fields, not as bytes
        for one in proto.graph.initializer:
            numbers = numpy_helper.to_array(one).ravel().tolist()
            one.ClearField("raw_data")
            one.float_data.extend(numbers)
    onnx.save(proto, path, save_as_external_data=form == "external", location="weights.bin", size_threshold=0)
    graph = load(path)
    x = np.random.default_rng(0).standard_normal((2, 1, 28, 28)).astype(np.float32)
    assert np.array_equal(graph(x), model(x))
    assert list(graph.state_dict()) == list(model.state_dict())


def test_what_is_not_supported_is_named_all_at_once(tmp_path):
    text = """
        odd (float[N, 3, 4, 4] x) => (float[N, 3, 4, 4] y) {
            a = Sin (x)
            b = Relu (a)
            c = LRN <size = 2> (b)
            d = Sin (c)
            y = Add (d, x)
        }"""
    with pytest.raises(
        CheckpointError,
        match=r"model.onnx: 3 of 5 nodes are not supported: Sin \(a, d\); LRN: its size must be odd, got 2 \(c\)$",
    ):
        load(written(tmp_path, text))


def test_arithmetic_of_open_sizes_is_named_where_its_result_is_needed(tmp_path):
    text = """
        resized (float[N, 3, H, W] x) => (float[N, 3, K, L] y) {
            s = Shape (x)
            two = Constant <value = int64[2] {2, 3}> ()
            maps = Gather (s, two)
            again = Cast <to = 7> (maps)
            first = Constant <value = int64[2] {0, 1}> ()
            n = Gather (s, first)
            sizes = Concat <axis = 0> (n, again)
            y = Resize <mode = "cubic"> (x, , , sizes)
        }"""
    path = written(tmp_path, text)
    with pytest.raises(CheckpointError, match=r"1 of 8 nodes are not supported: Resize: .*give the shape of the input"):
        load(path)
    x = np.ones((2, 3, 4, 4), np.float32)
    assert np.allclose(read(path, (3, 4, 4)).graph(x), x)


@pytest.mark.parametrize(
    ("text", "tensors", "says"),
    [
        ("g (float[N, 2] x) => (float[N, 2] y) { y = Relu (z) }", {}, "Relu takes 'z', which is not given before it"),
        ("g (float[N, 2] x) => (float[N, 2] y) { y = CastLike (x, ) }", {}, r"CastLike: .* \(y\)$"),
        ("g (float[N, 2] x) => (float[N, 2] y) { z = Relu (x) }", {}, "no node gives the output 'y'"),
        ("g (float[N, 2] x) => (float[N, 2] y) { y = Relu (x) y = Tanh (x) }", {}, "'y' is the name of 2 values"),
        ("g (float[N, 2] x) => (float[N, 2] y) { y = Add (y, x) }", {}, "Add takes 'y', which is not given before it"),
        (
            "g (int64[N, 2] x) => (int64[N, 2] y) { y = Add (x, x) }",
            {},
            "'x' is not a tensor of floating-point numbers",
        ),
        (
            "g (float[N, 2] x) => (float[N, 2] y) { y = MaxPool <kernel_shape = [2, 2, 2, 2]> (x) }",
            {},
            "4 spatial axes",
        ),
        ("g () => (float[2] y) { y = Relu (w) }", {"w": [1.0, 2.0]}, "the network has no input"),
    ],
)
def test_files_that_make_no_sense_are_refused_in_one_sentence(tmp_path, text, tensors, says):
    path = written(tmp_path, text, tensors)
    with pytest.raises(CheckpointError, match=says) as caught:
        load(path)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_no_onnx_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no such file$"):
        load(tmp_path / "missing.onnx")
    for content in (b"", b"\x00" * 9, b"not onnx at all", np.arange(99).tobytes()):
        (tmp_path / "x.onnx").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x.onnx: it is not an ONNX file, or it is damaged"):
            load(tmp_path / "x.onnx")
    with pytest.raises(UsageError, match=r"^read: path must be a path, got 3$"):
        load(3)

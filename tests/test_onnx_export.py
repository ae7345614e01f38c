"""Networks written as ONNX, against ONNX Runtime: every op, every container, whole networks, and the file itself."""

import copy
import json

import numpy as np
import pytest

from xcnn import models, nn, onnx, ops
from xcnn.errors import ShapeError, UsageError

runtime = pytest.importorskip("onnxruntime")
proto = pytest.importorskip("onnx")

LOSSES = {
    "binary_cross_entropy_with_logits", "cross_entropy", "huber_loss", "l1_loss", "mse_loss", "nll_loss",
}  # fmt: skip
"""The ops that no network has."""

EVERY = [name for name in ops.OPS if name in ops.__all__ and name not in LOSSES]

EPS = float(np.finfo(np.float32).eps)


def wide(model, x):
    """Return the output of the network in float64."""
    several = isinstance(x, tuple)
    with np.errstate(all="ignore"):
        return copy.deepcopy(model).to("cpu", "float64")(
            tuple(a.astype("f8") for a in x) if several else x.astype("f8")
        )


def units(y, wanted):
    """Return the largest error in units of eps times the largest number."""
    assert y.dtype == np.float32
    assert y.shape == wanted.shape
    same = (y == wanted) | (np.isnan(y) & np.isnan(wanted))
    with np.errstate(invalid="ignore"):
        return float(
            np.max(
                np.where(same, 0, np.abs(y - wanted)) / (EPS * np.max(np.abs(wanted), where=~same, initial=1e-30)),
                initial=0,
            )
        )


def compared(model, shape, batch=3, low=0.0, **options):
    """Export a network, run it in ONNX Runtime, and return the error of its only output and the model."""
    made = onnx.to_model(model, shape, **options)
    x = np.random.default_rng(1).uniform(low, 2, (batch, *shape)).astype(np.float32)
    return units(onnx.Session(made, threads=1)(x), wide(model, x)), made


def layers(name):
    """Return a layer of the op for each of its samples, and the shape of its input without the batch."""
    op, rng = ops.OPS[name], np.random.default_rng(0)
    for sample in op.samples:
        arrays = sample.draw(rng)
        x = arrays.pop(op.arrays[0])
        if isinstance(x, list):  # a sequence of arrays: the same one several times
            continue
        kind = type("Sample", (nn.Layer,), {}, op=op.function)
        layer = kind()
        for key, value in sample.options.items():
            setattr(layer, key, value if key != "rng" else np.random.default_rng(0))
        for key, array in arrays.items():
            slot = nn.Buffer if key in op.constants else nn.Parameter
            setattr(layer, key, None if array is None else slot(array.astype(np.float32)))
        if name[-2:] not in ("1d", "2d", "3d") or x.ndim == int(name[-2]) + 2:  # not one image without a batch axis
            yield layer, x.shape[1:]


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("concat", "batch_norm", "instance_norm")])
def test_every_op_of_a_network_is_written(name):
    found = []
    for layer, shape in layers(name):
        try:
            for batch in (3, 2):
                wide(layer, np.ones((batch, *shape)))
        except ShapeError:  # an array of the sample has a batch axis
            continue
        low = 0.0 if name in ("log", "sqrt", "power") else -2.0
        if name.startswith("avg_pool") and getattr(layer, "dilation", 1) != 1:
            with pytest.raises(UsageError, match=r"average pools with dilation need opset 19, got 17"):
                onnx.to_model(layer, shape)
            found.append(compared(layer, shape, low=low, opset=19)[0])
        else:
            found.append(compared(layer, shape, low=low)[0])
    assert found
    assert max(found) < 40


def test_every_op_but_the_losses_has_an_exporter():
    assert sorted(set(EVERY) - set(onnx.EXPORTS)) == []


LAYERS = {
    "batch norm": (nn.BatchNorm2d(3), (3, 4, 5)),
    "batch norm without weights": (nn.BatchNorm1d(3, affine=False), (3,)),
    "batch norm without bias": (nn.BatchNorm3d(2, bias=False), (2, 3, 2, 2)),
    "batch norm of the batch": (nn.BatchNorm2d(3, track_running_stats=False), (3, 4, 5)),
    "instance norm": (nn.InstanceNorm2d(3, affine=True), (3, 4, 5)),
    "instance norm without weights": (nn.InstanceNorm1d(3), (3, 4)),
    "instance norm by running statistics": (nn.InstanceNorm3d(2, track_running_stats=True), (2, 3, 2, 2)),
    "group norm of vectors": (nn.GroupNorm(2, 6), (6,)),
    "layer norm of two axes": (nn.LayerNorm((4, 5), bias=False), (3, 4, 5)),
    "LRN": (nn.LocalResponseNorm(3, 0.5, 0.7, 2.0), (5, 4, 4)),
    "LRN of an even size": (nn.LocalResponseNorm(4, 0.5), (5, 4, 4)),
    "same padding": (nn.Conv2d(2, 3, (2, 4), (2, 3), "same"), (2, 7, 8)),
    "padding on one side": (nn.Conv2d(2, 3, 3, padding=((0, 2), (1, 0))), (2, 5, 6)),
    "transposed padding on one side": (nn.ConvTranspose2d(2, 3, 3, 2, ((0, 1), (1, 0)), 1), (2, 5, 6)),
    "linear of maps": (nn.Linear(4, 3), (2, 5, 4)),
    "max pool, rounded up": (nn.MaxPool2d(3, 2, ceil_mode=True), (2, 6, 8)),
    "max pool with much padding": (nn.MaxPool2d(2, 3, ((2, 0), (0, 2)), dilation=2), (2, 6, 8)),
    "mean pool, rounded up": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (2, 6, 8)),
    "mean pool of the map": (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (2, 6, 8)),
    "sum pool": (nn.AvgPool2d(2, divisor_override=1), (2, 6, 8)),
    "adaptive mean": (nn.AdaptiveAvgPool2d((2, 4)), (3, 4, 8)),
    "adaptive mean, uneven": (nn.AdaptiveAvgPool3d((2, 3, 5)), (3, 3, 8, 4)),
    "adaptive mean to one": (nn.AdaptiveAvgPool2d(1), (3, 5, 8)),
    "adaptive mean of rows": (nn.AdaptiveAvgPool2d((None, 1)), (3, 5, 8)),
    "adaptive maximum": (nn.AdaptiveMaxPool1d(2), (3, 6)),
    "adaptive maximum, uneven": (nn.AdaptiveMaxPool2d((3, 7)), (3, 5, 8)),
    "nearest pixels": (nn.Upsample(scale_factor=2), (2, 3, 4)),
    "nearest pixels, uneven": (nn.Upsample(size=(5, 3)), (2, 3, 4)),
    "nearest pixels, moved": (nn.Upsample(scale_factor=1.3), (2, 4)),
    "exactly nearest pixels": (nn.Upsample(scale_factor=(3, 0.5), mode="nearest-exact"), (2, 3, 4)),
    "linear": (nn.Upsample(scale_factor=1.7, mode="linear"), (2, 4)),
    "bilinear": (nn.Upsample(size=(7, 9), mode="bilinear"), (2, 3, 4)),
    "bilinear, smaller": (nn.Upsample(size=(2, 1), mode="bilinear"), (2, 5, 4)),
    "bilinear, as many rows": (nn.Upsample(scale_factor=1.3, mode="bilinear"), (2, 3, 4)),
    "bilinear between corners": (nn.Upsample(size=(7, 9), mode="bilinear", align_corners=True), (2, 3, 4)),
    "trilinear": (nn.Upsample(scale_factor=(2, 1, 1.5), mode="trilinear"), (2, 3, 2, 4)),
    "cropping": (nn.Pad((-1, 2, 3, -2), value=0.5), (2, 4, 5)),
    "reflection": (nn.Pad((1, 2, 3, 0), "reflect"), (2, 4, 5)),
    "repetition": (nn.Pad((1, 2, 3, -1), "replicate"), (2, 4, 5)),
    "the opposite side": (nn.Pad((1, 2, 3, -1), "circular"), (2, 4, 5)),
    "sum and leaky ReLU": (nn.Apply("add", other=-0.5, activation=("leaky_relu", 0.2)), (3, 4, 5)),
    "sum and interval": (nn.Apply("add", other=0.1, activation=("hardtanh", -0.5)), (3, 4, 5)),
    "slopes": (nn.PReLU(3), (3, 4, 5)),
    "one slope": (nn.PReLU(), (3, 4)),
    "GELU": (nn.GELU(), (7,)),
    "GELU by tanh": (nn.GELU("tanh"), (7,)),
    "mish": (nn.Mish(), (7,)),
    "softplus with a corner": (nn.Softplus(2.0, 0.5), (7,)),
    "softmax of channels": (nn.Softmax(1), (3, 4)),
    "flatten two axes": (nn.Flatten(2, 3), (3, 4, 5, 2)),
    "unflatten": (nn.Unflatten(1, (2, 3)), (6, 4)),
    "normalize": (nn.Normalize((0.5, 0.4), (0.2, 0.3)), (2, 3, 3)),
    "identity": (nn.Identity(), (2, 3)),
    "numbers": (nn.Tanh(), ()),
    "dropout": (nn.Dropout2d(0.5), (2, 3, 3)),
}
"""Layers whose options make a difference, and the shape of an input without the batch."""


def filled(model):
    """Draw all parameters and buffers of a network, variances above 0."""
    rng = np.random.default_rng(3)
    model.reset_parameters(0)
    for name, slot in model._attributes(nn.Parameter, nn.Buffer):
        if slot.data.dtype.kind == "f" and not name.endswith(("0.weight", "3.weight")):
            slot.data = rng.uniform(0.3, 1.7, slot.data.shape).astype(np.float32)
    return model


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("opset", [19, proto.defs.onnx_opset_version()])
def test_a_layer_with_its_options_is_written(layer, opset):
    module, shape = LAYERS[layer]
    found, made = compared(filled(module), shape, low=-2.0, opset=opset)
    assert found < 40
    state = module.state_dict()
    for held in made.graph.initializer:
        assert "constant" in held.name or np.array_equal(
            proto.numpy_helper.to_array(held).reshape(state[held.name].shape), state[held.name]
        )


def test_pixels_between_corners_are_where_the_standard_says():
    reference = pytest.importorskip("onnx.reference")
    model = nn.Sequential(nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=True))
    x = np.random.default_rng(0).random((2, 2, 3, 5), np.float32)
    (y,) = reference.ReferenceEvaluator(onnx.to_model(model, (2, 3, 5))).run(None, {"x": x})
    assert units(y.astype(np.float32), wide(model, x)) < 40


def test_the_batch_is_free_and_the_sizes_are_not():
    made = onnx.to_model(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), (2, 5, 6))
    sizes = [dim.dim_param or dim.dim_value for dim in made.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["N", 2, 5, 6]
    session = onnx.Session(made)
    for batch in (1, 2, 7):
        assert session(np.zeros((batch, 2, 5, 6), np.float32)).shape == (batch, 3, 3, 4)
    with pytest.raises(UsageError, match=r"^ONNX Runtime: .*invalid dimensions"):
        session(np.zeros((1, 2, 5, 7), np.float32))


class Rows(nn.Module):
    """A module that writes a Reshape to the shape that it sees."""

    def forward(self, x, train):
        return x.reshape(x.shape[0], -1), lambda dy, need_dx: None

    def onnx(self, graph, x):
        n, *sizes = graph.shape(x)
        return graph.node("Reshape", [x, np.asarray([n, np.prod(sizes)])])


class Columns(Rows):
    def onnx(self, graph, x):
        return graph.node("Concat", [x] * graph.shape(x)[0], axis=1)


@pytest.mark.parametrize("module", [Rows(), Columns()])
def test_a_graph_for_one_batch_only_is_refused(module):
    with pytest.raises(
        UsageError, match=rf"^1 \({type(module).__name__}\) cannot be written as ONNX: its nodes depend"
    ):
        onnx.to_model(nn.Sequential(nn.ReLU(), module), (2, 3))


def test_no_size_is_given_that_is_the_batch():
    flat = nn.Apply("flatten", start_dim=0, end_dim=1)
    steps = [nn.Apply("permute", dims=(1, 0, 2)), nn.ReLU(), flat, nn.Tanh(), nn.Apply("mean", dim=0)]
    made = onnx.to_model(nn.Sequential(*steps), (2, 3))
    told = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*made.graph.value_info, *made.graph.output)
    }
    assert told == {"0": [2, "N", 3], "1": [2, "N", 3], "2": [0, 3], "3": [0, 3], "y": [3]}


@pytest.mark.parametrize("name", models.MODELS)
def test_networks_by_name_are_written_with_the_keys_of_their_state(name):
    shape = models.entry(name).shape
    if max(shape) > 32:
        pytest.skip("larger networks are the zoo's")
    model = models.build(name, shape)
    found, made = compared(model, shape, batch=2)
    assert found < 100
    held = {one.name: proto.numpy_helper.to_array(one) for one in made.graph.initializer}
    state = {key: array for key, array in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert held.keys() == state.keys()
    assert all(np.array_equal(held[key], array) for key, array in state.items())
    paths = {path for path, _ in model.modules()}
    assert {node.name for node in made.graph.node} - paths <= {"y", *(f"{path}/GlobalAveragePool" for path in paths)}


def test_containers_are_written():
    shared = nn.Conv2d(2, 2, 3, padding=1)
    graph = nn.Graph(
        [
            *(("a", shared, "x"), ("b", shared, "a"), ("unused", nn.Tanh(), "a"), ("c", nn.Concat(2), ("a", "b", "x"))),
            *(("gate", nn.AdaptiveAvgPool2d(1), "c"), ("out", nn.Multiply(), ("c", "gate", "gate"))),
        ]
    )
    inner = nn.Residual(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)), nn.Conv2d(2, 2, 1))
    model = nn.Sequential(graph, inner, nn.Branches(nn.ReLU(), nn.Tanh(), merge="add"), nn.Sequential(), nn.Dropout())
    found, made = compared(filled(model), (2, 4, 5), low=-1.0)
    assert found < 60
    assert "Tanh" in {node.op_type for node in made.graph.node}
    assert sum(node.op_type == "Tanh" for node in made.graph.node) == 1
    assert len({node.name for node in made.graph.node}) == len(made.graph.node)


def test_graphs_of_several_inputs_and_outputs_are_written():
    nodes = [
        ("stem.conv", nn.Conv2d(2, 3, 1), "image"),
        ("scale", nn.Parameter(np.asarray([[[0.5]], [[2.0]], [[1.0]]], np.float32)), ()),
        ("offset", nn.Buffer(np.float32([3.0])), ()),
        ("scaled", nn.Apply("multiply"), ("stem.conv", "scale")),
        ("third", nn.Apply("divide", other=3), "scaled"),
        ("both", nn.Concat(), ("third", "mask")),
        ("turned", nn.Apply("flatten", start_dim=-2), "both"),
        ("moved", nn.Add(), ("turned", "offset", "turned")),
        ("head", nn.Sequential({"act": nn.ReLU(), "fc": nn.Linear(12, 2)}), "moved"),
    ]
    model = nn.Graph(nodes, output=("head", "scaled"), inputs=("image", "mask"))
    made = onnx.to_model(model, ((2, 3, 4), (1, 3, 4)), classes=["a", "b"])
    session = onnx.Session(made)
    assert (session.inputs, session.outputs) == (("image", "mask"), ("head", "scaled"))
    assert session.metadata.shape == ((2, 3, 4), (1, 3, 4))
    x = tuple(np.random.default_rng(0).random((3, c, 3, 4), np.float32) for c in (2, 1))
    for y, wanted in zip(session(*x), wide(model, x), strict=True):
        assert units(y, wanted) < 40
    held = {one.name for one in made.graph.initializer}
    assert {"stem.conv.weight", "scale", "offset", "head.fc.weight", "head.fc.bias"} <= held
    assert set(session.run({"mask": x[1], "image": x[0]})) == {"head", "scaled"}
    with pytest.raises(UsageError, match=r"^Session: the network takes 2 inputs, got 1"):
        session(x[0])


def test_a_layer_takes_the_outputs_of_a_graph():
    nodes = [("a", nn.Conv2d(2, 3, 1), "x"), ("b", nn.Tanh(), "a")]
    model = nn.Sequential(nn.Graph(nodes, output=("a", "b", "a")), nn.Concat(), nn.ReLU())
    assert compared(filled(model), (2, 4, 5), low=-2.0)[0] < 40
    with pytest.raises(UsageError, match=r"^Graph cannot be written as ONNX: it must return an array or a tuple of "):
        onnx.to_model(nn.Graph([("g", model[0], "x"), ("y", nn.ReLU(), "x")], output=("g", "y")), (2, 4, 5))
    with pytest.raises(UsageError, match=r"^Named cannot be written as ONNX: it must return an array or a tuple of "):
        onnx.to_model(type("Named", (Strange,), {"forward": lambda self, x, train: ({"y": x}, repr)})(), (3,))


def test_inputs_that_no_layer_takes_are_inputs():
    model = nn.Graph([("a", nn.ReLU(), "x")], inputs=("x", "z"))
    x = tuple(np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32))
    session = onnx.Session(onnx.to_model(model, ((3,), (3,))))
    assert session.inputs == ("x", "z")
    assert np.array_equal(session(*x), model(x))


def test_a_container_of_one_input_takes_a_tuple(tmp_path):
    both = nn.Sequential(nn.Concat(), nn.Conv2d(6, 2, 1))
    model = nn.Graph([("a", nn.ReLU(), "x"), ("joined", both, ("x", "a"))])
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4), np.float32)
    y = onnx.Session(onnx.save(model, tmp_path / "both.onnx", (3, 4, 4)))(x)
    np.testing.assert_allclose(y, model(x), rtol=1e-5, atol=1e-5)


def test_the_same_value_can_be_several_outputs():
    model = nn.Graph([("a", nn.ReLU(), "x")], output=("a", "x", "a"))
    session = onnx.Session(onnx.to_model(model, (3,)))
    assert session.outputs == ("a", "x_2", "a_2")
    assert [y.tolist() for y in session(np.float32([[-1, 0, 1]]))] == [[[0, 0, 1]], [[-1, 0, 1]], [[0, 0, 1]]]


def test_the_same_network_gives_the_same_bytes(tmp_path):
    model = models.build("lenet5")
    first, second = (onnx.save(model, tmp_path / name, (1, 28, 28), classes=tuple("0123456789")) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


class Twice(nn.Module):
    """A module of another one, with its own forward."""

    def __init__(self):
        self.body, self.scale = nn.Linear(3, 3), nn.Parameter(np.full((3,), 0.5, np.float32))

    def forward(self, x, train):
        y = self.body(x) * self.scale.data
        return y + 1, lambda dy, need_dx: None

    def onnx(self, graph, x):
        y = graph.node("Mul", [graph.call(self.body, x), graph.slot(self.scale)])
        return graph.node("Add", [y, 1.0])


def test_an_own_module_is_written_by_its_method():
    found, made = compared(nn.Sequential(nn.ReLU(), Twice(), nn.ReLU()), (3,))
    assert found < 40
    assert {held.name for held in made.graph.initializer} == {"1.body.weight", "1.body.bias", "1.scale"}
    assert [node.name for node in made.graph.node] == ["1/constant", "0", "1.body", "1/Mul", "1/Add", "y"]


class Strange(nn.Module):
    def forward(self, x, train):
        return x * 2, lambda dy, need_dx: None


class Louder(nn.ReLU):
    def forward(self, x, train=True):
        return x * 2, lambda dy, need_dx: None


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (lambda self, graph, x: graph.node("Multiply", [x, 2.0]), "to_model: onnx refuses the graph: No Op registered"),
        (lambda self, graph, x: graph.node("Mul", ["z", 2.0]), "to_model: onnx refuses the graph: .*input 'z'"),
        (lambda self, graph, x: graph.node("Mul", [x, 2]), "to_model: onnx refuses the graph: .*inconsistent type"),
        (lambda self, graph, x: graph.node("Mul", [x, self.scale]), r"Wrong .*: a node takes names .*, got Parameter"),
        (lambda self, graph, x: (x, x), r"Wrong cannot be written as ONNX: it has 1 outputs, of which 2 are written"),
    ],
)
def test_a_mistake_in_a_method_is_one_sentence(written, message):
    module = type("Wrong", (Twice,), {"onnx": written})()
    with pytest.raises(UsageError, match=rf"^{message}") as caught:
        onnx.to_model(module, (3,))
    assert "\n" not in str(caught.value)


def test_an_own_op_is_written_by_its_exporter(monkeypatch):
    monkeypatch.delitem(onnx.EXPORTS, "relu")
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(
        UsageError, match=r"^0 \(ReLU\) cannot be written as ONNX: the op relu has no exporter; add one: "
    ):
        onnx.to_model(model, (3,))
    monkeypatch.setitem(onnx.EXPORTS, "relu", lambda graph, x: graph.node("Max", [x, 0.0]))
    found, made = compared(model, (3,), low=-2.0)
    assert found == 0
    assert made.graph.node[-1].op_type == "Max"


@pytest.mark.parametrize("module", [Strange(), Louder()])
def test_a_module_that_cannot_be_written_is_named(module):
    kind = type(module).__name__
    with pytest.raises(UsageError, match=rf"^1\.0 \({kind}\) cannot be written as ONNX: give it a method onnx"):
        onnx.to_model(nn.Sequential(nn.ReLU(), nn.Sequential(module)), (3,))


def test_what_the_runtime_refuses_is_only_raised(tmp_path, capfd):
    far = nn.ConvTranspose1d(1, 1, 2, output_padding=1, dilation=2)
    with pytest.raises(UsageError, match=r"^ONNX Runtime: .*output_padding"):
        onnx.save(nn.Sequential(far), tmp_path / "a.onnx", (1, 4))
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_sentence(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2))
    for shape in (3, "3", (0,), (2.5,), None):
        with pytest.raises(UsageError, match=r"^to_model: shape "):
            onnx.to_model(model, shape)
    with pytest.raises(ShapeError, match="0"):
        onnx.to_model(model, (4,))
    with pytest.raises(UsageError, match=r"^to_model: opset must be an integer from 17 to "):
        onnx.to_model(model, (3,), opset=11)
    with pytest.raises(UsageError, match=r"^to_model: model must be an nn\.Module, got 3"):
        onnx.to_model(3, (3,))
    with pytest.raises(UsageError, match=r"^to_model: no argument 'clases'; did you mean 'classes'"):
        onnx.to_model(model, (3,), clases=())
    with pytest.raises(UsageError, match=r"^onnx: classes must be a list of names"):
        onnx.to_model(model, (3,), classes="ab")
    with pytest.raises(UsageError, match=r"^unknown onnx resize 'bend' \(known: crop, "):
        onnx.to_model(model, (3,), preprocessing={"resize": "bend"})
    for preprocessing in ("crop", ["crop"], 3):
        with pytest.raises(UsageError, match=r"^onnx: preprocessing must be a dict, such as "):
            onnx.to_model(model, (3,), preprocessing=preprocessing)
    for limits in (1, "01", [0, 2]):
        with pytest.raises(UsageError, match=r"^onnx: range must be \[0, 1\] or \[0, 255\], got "):
            onnx.to_model(model, (3,), preprocessing={"range": limits})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setitem(onnx.EXPORTS, "relu", lambda graph, x: graph.node("Abs", [x]))
    model = models.build("lenet5")
    (tmp_path / "lenet5.onnx").write_bytes(b"old")
    with pytest.raises(UsageError, match=r"^save: ONNX Runtime computes something else than the network; the differ"):
        onnx.save(model, tmp_path / "lenet5.onnx", (1, 28, 28))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize(("layer", "wrong"), [(nn.ReLU(), "Identity"), (nn.ReLU6(), "Relu")])
def test_a_fault_that_only_negative_or_large_inputs_show_is_found(tmp_path, monkeypatch, layer, wrong):
    monkeypatch.setitem(onnx.EXPORTS, type(layer).__name__.lower(), lambda graph, x: graph.node(wrong, [x]))
    with pytest.raises(UsageError, match=r"^save: ONNX Runtime computes something else than the network"):
        onnx.save(nn.Sequential(layer), tmp_path / "a.onnx", (64,))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", ["log", "divide"])  # infinity, and not a number
def test_outputs_that_are_no_numbers_hide_no_fault(tmp_path, monkeypatch, end):
    nodes = [("zero", nn.Apply("subtract"), ("x", "x")), ("end", nn.Apply(end), ("zero", "zero")[: 1 + (end != "log")])]
    model = nn.Graph([*nodes, ("tanh", nn.Tanh(), "x"), ("y", nn.Concat(), ("end", "tanh"))])
    onnx.save(model, tmp_path / "a.onnx", (3,))
    monkeypatch.setitem(onnx.EXPORTS, "tanh", lambda graph, x: graph.node("Sigmoid", [x]))
    with pytest.raises(UsageError, match=r"^save: ONNX Runtime computes something else than the network"):
        onnx.save(model, tmp_path / "a.onnx", (3,))


def test_the_file_says_what_it_takes_and_what_its_classes_are(tmp_path):
    about = {"resize": "pad", "background": "#ff0000", "range": [0, 1], "channels": "RGB"}
    model = nn.Sequential(nn.GlobalAvgPool(), nn.Linear(3, 2))
    path = onnx.save(model, tmp_path / "a.onnx", (3, 4, 4), classes=("cät", "dog"), preprocessing=about, softmax=True)
    session = onnx.Session(path)
    assert session.metadata == onnx.Metadata((3, 4, 4), ("cät", "dog"), about, True)
    made = proto.load(path)
    assert {entry.key: entry.value for entry in made.metadata_props}["classes"] == "cät\ndog"
    assert session(np.ones((2, 3, 4, 4), np.float32)).sum(axis=1) == pytest.approx([1, 1])


@pytest.mark.parametrize(
    "said", ["[", "3", '{"shape": 3}', '{"shape": [0]}', '{"classes": [1]}', '{"resize": "x"}', "[" * 9999]
)
def test_metadata_that_makes_no_sense_is_refused(said):
    from xcnn.errors import CheckpointError
    from xcnn.onnx.metadata import read

    with pytest.raises(CheckpointError, match=r"^the property 'xcnn' of the ONNX file makes no sense: "):
        read({"xcnn": said})


def test_metadata_of_other_programs_are_empty():
    from xcnn.onnx.metadata import read

    assert read({"classes": "a\nb"}) == onnx.Metadata()
    assert read({"xcnn": json.dumps({"classes": ["a"], "new": 3})}) == onnx.Metadata(classes=("a",))

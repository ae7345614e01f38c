"""Mistakes in networks: each is one sentence that names the layer."""

import numpy as np
import pytest

from xcnn import devices, models, nn
from xcnn.errors import DtypeError, ShapeError, UsageError, XcnnError


@pytest.mark.parametrize("dtype", ["int32", "bool", "float", 32])
def test_a_module_goes_to_no_other_dtype_than_the_two(dtype):
    model = nn.Linear(2, 2)
    before = model.state_dict()
    with pytest.raises(UsageError, match=rf"^to: dtype must be 'float32' or 'float64', got {dtype!r}$"):
        model.to("cpu", dtype)
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize("dtype", ["float64", np.float32])
def test_a_dtype_is_no_place_to_go_to(dtype):
    name = dtype if isinstance(dtype, str) else dtype.__name__
    message = rf"^to: where must be a device, got the dtype {name}; pass both: to\('cpu', dtype='{name}'\)$"
    with pytest.raises(UsageError, match=message):
        nn.Linear(2, 2).to(dtype)


@pytest.mark.parametrize("slot", [nn.Parameter, nn.Buffer])
def test_only_arrays_take_the_place_of_an_array(slot):
    one = slot(np.ones(2))
    with pytest.raises(DtypeError, match=rf"^{slot.__name__}: data must be an array, got list$"):
        one.data = [1, 2]
    np.testing.assert_array_equal(one.data, np.ones(2))


@pytest.mark.parametrize("make", [nn.ReLU, lambda: nn.Sequential(nn.ReLU())])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model(), "{}: missing a required argument: 'x'"),
        (
            lambda model: model(np.ones(2), np.ones(2)),
            "{}: x is the only argument, got 2; pass several inputs as one tuple",
        ),
        (lambda model: model(input=np.ones(2)), "{}: no argument 'input' (known: x)"),
        (lambda model: model.forward(), "{}.forward: missing a required argument: 'x'"),
        (lambda model: model.forward(train=False), "{}.forward: missing a required argument: 'x'"),
        (lambda model: model.forward(np.ones(2), True, 3), "{}.forward: too many positional arguments"),
        (
            lambda model: model.forward(np.ones(2), training=True),
            "{}.forward: no argument 'training'; did you mean 'train'? (known: x, train)",
        ),
    ],
)
def test_a_module_takes_its_input_and_nothing_else(make, call, message):
    model = make()
    with pytest.raises(UsageError) as error:
        call(model)
    assert str(error.value) == message.format(type(model).__name__)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.summary(nn.ReLU()), "summary: missing a required argument: 'shape'"),
        (lambda: nn.ReLU().load_state_dict(), "load_state_dict: missing a required argument: 'state'"),
        (lambda: models.build(), "build: missing a required argument: 'name'"),
        (lambda: devices.device(), "device: missing a required argument: 'spec'"),
        (lambda: nn.ReLU().forward(np.ones(2))[1](), "ReLU: dy must be the gradient with respect to y, got None"),
    ],
)
def test_what_a_call_lacks_is_named(call, message):
    with pytest.raises(UsageError) as error:
        call()
    assert str(error.value) == message


@pytest.mark.parametrize("index", [2, -3, "0", 0.5, True])
def test_a_module_of_a_sequential_is_found_by_its_place_alone(index):
    with pytest.raises(UsageError, match=r"^Sequential: index must be an integer from -2 to 1, got "):
        nn.Sequential(nn.ReLU(), nn.ReLU())[index]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nn.Sequential([nn.ReLU()]),
            "node '0' must be a module, got [ReLU()]; unpack it: Sequential(*layers)",
        ),
        (lambda: nn.Sequential(nn.ReLU), "Sequential: node '0' must be a module, got <class"),
        (lambda: nn.Graph([("a", nn.ReLU(), "x"), ("a", nn.ReLU(), "x")]), "Graph: 'a' cannot name a node"),
        (lambda: nn.Graph([("x", nn.ReLU(), "x")]), "Graph: 'x' cannot name a node"),
        (
            lambda: nn.Graph([("a.b.c", nn.ReLU(), "x"), ("a", nn.ReLU(), "x")]),
            "Graph: 'a.b.c' cannot name a node beside 'a'",
        ),
        (lambda: nn.Graph([("a..b", nn.ReLU(), "x")]), "Graph: 'a..b' cannot name a node"),
        (lambda: nn.Graph([("", nn.ReLU(), "x")]), "Graph: '' cannot name a node"),
        (lambda: nn.Graph([("a", nn.ReLU(), "x")], inputs=()), "Graph: inputs must be a name or several, got ()"),
        (lambda: nn.Graph([("a", nn.ReLU(), "x")], inputs=("y",)), "Graph: node 'a': unknown input 'x'"),
        (lambda: nn.Graph([("a", nn.ReLU(), "x")], inputs=("x", "x")), "Graph: each input must have a name of its own"),
        (lambda: nn.Graph([("a", nn.ReLU(), "x")], output=("a", "b")), "Graph: unknown output 'b'"),
        (
            lambda: nn.Graph([("w", nn.Parameter(np.ones(2)), "x")]),
            "Graph: node 'w' is a Parameter and takes no inputs, only (), got 'x'",
        ),
        (lambda: nn.Sequential({"a": nn.ReLU(), "b": 2}), "Sequential: node 'b' must be a module, got 2"),
        (lambda: nn.Apply("addd"), "unknown op 'addd'; did you mean 'add'?"),
        (lambda: nn.Apply("flatten", start=1), "unknown option of flatten 'start'; did you mean 'start_dim'?"),
        (lambda: nn.Apply(print), "Apply: op must be an op, got <built-in function print>"),
        (lambda: nn.Apply("add", other="1"), "Apply: add: other must be a number in (-inf, inf), got '1'"),
        (lambda: nn.Apply("add", other=1.0)((np.ones(2), np.ones(2))), "add: x must be at most 1 arrays, got 2"),
        (
            lambda: nn.Apply("dropout", p=0.5, rng=0, training=False),
            "Apply: dropout: training is the argument train of",
        ),
        (lambda: nn.Apply("pad"), "pad: missing a required argument: 'pad'"),
        (lambda: nn.Graph([("aa", nn.ReLU(), "x"), ("b", nn.Add(), ("aa", "ab"))]), "input 'ab'; did you mean 'aa'?"),
        (lambda: nn.Graph([("a", nn.ReLU(), "b"), ("b", nn.ReLU(), "x")]), "Graph: node 'a': unknown input 'b'"),
        (lambda: nn.Graph([("a", nn.ReLU(), ())]), "Graph: node 'a' needs an input"),
        (lambda: nn.Graph([("a", nn.ReLU(), 5)]), "Graph: node 'a' needs an input"),
        (
            lambda: nn.Graph([("a", nn.ReLU())]),
            "Graph: a node must be a tuple (name, module, inputs), got ('a', ReLU())",
        ),
        (lambda: nn.Graph([nn.ReLU()]), "Graph: a node must be a tuple (name, module, inputs), got ReLU()"),
        (lambda: nn.Graph([(1, nn.ReLU(), "x")]), "Graph: 1 cannot name a node"),
        (lambda: nn.Graph([("a", nn.ReLU(), [["x"]])]), "Graph: node 'a': unknown input ['x']"),
        (lambda: nn.Graph([("a", nn.ReLU(), "x")], output={}), "Graph: unknown output {}"),
        (lambda: nn.Graph([("body", nn.ReLU(), "x")], output="bod"), "unknown output 'bod'; did you mean 'body'?"),
        (lambda: nn.Graph(None), "Graph: nodes must be tuples (name, module, inputs), got None"),
        (lambda: nn.Branches(nn.ReLU(), merge=["add"]), "unknown Branches merge ['add']"),
        (lambda: nn.Branches(), "Branches: at least one module is needed"),
        (lambda: nn.Branches(nn.ReLU(), merge="sum"), "unknown Branches merge 'sum'"),
        (lambda: nn.Residual(None), "Residual: node 'body' must be a module, got None"),
    ],
)
def test_graphs_without_meaning_are_refused_at_construction(make, message):
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize("layer", [nn.Add(), nn.Concat()])
def test_a_layer_of_many_inputs_refuses_one(layer):
    with pytest.raises(
        UsageError, match=rf"^all \({type(layer).__name__}\): \w+: x must be a tuple of arrays, got ndarray$"
    ):
        nn.Graph([("all", layer, "x")])(np.ones((2, 2), np.float32))


@pytest.mark.parametrize("call", [lambda model, x: model.forward(x), lambda model, x: model(x)])
def test_an_error_says_in_which_layer_it_arose(call):
    inner = nn.Residual(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3)))
    model = nn.Sequential(nn.Conv2d(1, 3, 3), inner)
    with pytest.raises(ShapeError) as error:
        call(model, np.ones((1, 1, 8, 8), np.float32))
    assert str(error.value).startswith("1.body.1 (Conv2d): conv2d: weight takes 4 input channels, x has 3 (")
    with pytest.raises(ShapeError) as error:
        call(nn.Sequential(nn.ReLU(), inner), np.ones((1, 4, 8, 8), np.float32))
    assert str(error.value).startswith("1.add (Add): ")
    assert "(1, 4, 6, 6)" in str(error.value)
    assert "(1, 4, 8, 8)" in str(error.value)


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match=r"Module: forward is not defined; define forward\(x, train\)"):
        nn.Module()(1)


class Holder(nn.Module):
    def __init__(self, *entries):
        self.entries = list(entries)


def cycles():
    direct, parent, child, inside = Holder(), Holder(), Holder(), Holder()
    direct.me = direct
    parent.child, child.parent = child, parent
    inside.entries.append({"a": (inside,)})
    return {"me": direct, "child.parent": parent, "entries.0.a.0": inside}


@pytest.mark.parametrize("place", cycles())
def test_a_module_that_contains_itself_is_refused(place):
    module = cycles()[place]
    for call in (module.parameters, module.state_dict, module.zero_grad, lambda: module.reset_parameters(0)):
        with pytest.raises(UsageError, match=f"^Holder: '{place}' is a module that contains itself"):
            call()
    with pytest.raises(UsageError, match="is a module that contains itself"):
        nn.Sequential(module)
    assert "..." in repr(module)


def test_a_list_that_contains_itself_is_refused():
    module = Holder()
    module.entries.append(module.entries)
    with pytest.raises(UsageError, match=r"^entries\.0: a list among a module's attributes contains itself$"):
        module.parameters()


def test_a_module_used_at_two_places_does_not_contain_itself():
    shared = nn.Linear(2, 2)
    assert [name for name, _ in Holder(shared, Holder(shared)).modules()] == [
        *("", "entries.0", "entries.1", "entries.1.entries.0")
    ]


@pytest.mark.parametrize("base", [nn.Graph, nn.Sequential])
def test_a_graph_that_does_not_call_super_says_so(base):
    class Net(base):
        def __init__(self):
            self.act = nn.ReLU()

    net = Net()
    for call in (net.parameters, net.state_dict, lambda: net(np.ones(2)), lambda: net.forward(np.ones(2))):
        with pytest.raises(UsageError, match=r"^Net: __init__ must call super\(\).__init__$"):
            call()


@pytest.mark.parametrize("rng", ["a", -1, 2.5, True])
def test_a_seed_that_is_none_is_refused(rng):
    with pytest.raises(UsageError, match=r"^reset_parameters: rng must be a numpy.random.Generator or a seed"):
        nn.Linear(2, 2).reset_parameters(rng)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "load_state_dict: state must map names to arrays, got NoneType"),
        ({1: 2}, "load_state_dict: the state does not match this model: missing weight, bias; unknown 1"),
        ({"weight": [[1, 2], [3]], "bias": np.ones(2)}, "load_state_dict: weight must be a host array, got list"),
    ],
)
def test_a_state_of_another_kind_is_one_sentence(state, message):
    with pytest.raises(XcnnError) as error:
        nn.Linear(2, 2).load_state_dict(state)
    assert str(error.value) == message


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(2), nn.InstanceNorm2d(2)])
def test_a_norm_of_no_array_is_one_sentence(norm):
    with pytest.raises(DtypeError, match=r"_norm: x must be an array, got None$"):
        norm(None)


def test_a_buffer_must_be_an_array():
    with pytest.raises(DtypeError, match=r"^Buffer: data must be an array, got list$"):
        nn.Buffer([1.0])


def test_a_layer_without_an_op_says_so():
    class Bare(nn.Layer):
        pass

    with pytest.raises(UsageError, match=r"^Bare: a layer needs an op: class Bare\(nn\.Layer, op=\.\.\.\)$"):
        Bare()(np.ones(2))


def test_one_image_instead_of_a_batch_is_refused_in_one_sentence():
    message = r"^Sequential: x must be a batch \(n, c, h, w\), got one image of shape \(1, 28, 28\); pass x\[None\]$"
    with pytest.raises(ShapeError, match=message):
        models.build("lenet5")(np.zeros((1, 28, 28), np.float32))
    with pytest.raises(ShapeError, match=r"must be a batch \(n, c, h, w\), got one image of shape \(3, 32, 32\)"):
        models.build("resnet20")(np.zeros((3, 32, 32), np.float32))
    with pytest.raises(
        ShapeError, match=r"Linear\): linear: weight takes 400 features, x has 16 "
    ):  # the layer's own words for a batch of another size
        models.build("lenet5")(np.zeros((2, 1, 12, 12), np.float32))


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        (
            [nn.Linear(10, 32), nn.ReLU(), nn.Unflatten(1, (4, 8)), nn.Conv1d(4, 4, 3)],
            (5, 9),
            "weight takes 10 features, x has 9",
        ),
        ([nn.Conv2d(1, 4, 3)], (32, 28, 28), "weight takes 1 input channel, x has 32"),
        ([nn.Conv2d(3, 4, 3)], (8, 8, 3), "weight takes 3 input channels, x has 8"),
    ],
)
def test_an_array_that_is_not_one_image_is_refused_in_the_words_of_the_layer(layers, shape, message):
    with pytest.raises(ShapeError, match=f"^0 .*{message}"):
        nn.Sequential(*layers)(np.zeros(shape, np.float32))

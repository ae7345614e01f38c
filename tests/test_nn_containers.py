"""Modules and containers: composed gradients, state by name, backward called once, and what is kept in memory."""

import gc
import tracemalloc

import numpy as np
import pytest

from xcnn import nn
from xcnn._dispatch import portable
from xcnn.errors import CheckpointError, UsageError

RNG = np.random.default_rng


def mixed() -> nn.Module:
    """Make a small network with every container, batch norm and strides."""
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1)
    )
    skip = nn.Conv2d(3, 4, 1, stride=2)
    graph = nn.Graph(
        [
            ("a", nn.Conv2d(4, 2, 1), "x"),
            ("unused", nn.Conv2d(4, 1, 1), "x"),
            ("b", nn.Tanh(), "a"),
            ("c", nn.Conv2d(2, 2, 3, padding=1), "b"),
            ("sum", nn.Add(), ("a", "c", "b")),
            ("all", nn.Concat(), ["sum", "x", "a"]),
            ("late", nn.ReLU(), "all"),
        ],
        output="all",
    )
    scale = nn.Parameter(RNG(5).standard_normal((8, 1, 1), np.float32))
    several = nn.Graph(  # of two inputs and two results, with a parameter that is used twice
        [
            ("scale", scale, ()),
            ("offset", nn.Buffer(np.full((1, 1, 1), 0.5, np.float32)), ()),
            ("scaled", nn.Multiply(), ("a", "scale")),
            ("moved", nn.Apply("add"), ("scaled", "offset")),
            ("layer.conv", nn.Conv2d(8, 8, 1), "b"),
            ("halved", nn.Apply("divide", other=2.0), "moved"),
            ("both", nn.Add(), ("layer.conv", "halved", "scale")),
        ],
        output=("both", "moved"),
        inputs=("a", "b"),
    )
    ends = nn.Graph([("pair", several, ("x", "x")), ("sum", nn.Add(), "pair"), ("y", nn.Tanh(), "sum")])
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Branches(nn.Conv2d(3, 2, 1), nn.Sequential(nn.Tanh(), nn.Conv2d(3, 1, 3, padding=1))),
        nn.Residual(nn.Conv2d(3, 3, 3, padding=1)),
        nn.Branches(nn.Tanh(), nn.Conv2d(3, 3, 1), merge="add"),
        nn.Residual(body, skip),
        graph,
        ends,
        nn.Flatten(),
        nn.Linear(72, 3),
    )


def numeric(f, array):
    """Central differences of the scalar `f()` for every element of `array`, which is changed in place."""
    grad, h = np.zeros_like(array), 1e-6
    for i in np.ndindex(array.shape):
        kept = array[i]
        array[i] = kept + h
        high = f()
        array[i] = kept - h
        grad[i] = (high - f()) / (2 * h)
        array[i] = kept
    return grad


@pytest.fixture(scope="module")
def differences():
    """The mixed network with its input, its dy and the central differences of x and of every parameter."""
    model = mixed().to("cpu", "float64")
    x, dy = RNG(1).standard_normal((2, 2, 5, 6)), RNG(2).standard_normal((2, 3))

    def loss():
        return float((model.forward(x)[0] * dy).sum())

    grads = {name: numeric(loss, p.data) for name, p in model.named_parameters() if "unused" not in name}
    return model, x, dy, numeric(loss, x), grads


@pytest.mark.parametrize("need_dx", [True, False])
def test_every_gradient_of_a_mixed_network_is_the_central_difference(differences, need_dx):
    model, x, dy, dx, grads = differences
    model.zero_grad()
    _, backward = model.forward(x)
    result = backward(dy, need_dx)
    if need_dx:
        np.testing.assert_allclose(result, dx, atol=1e-7)
    else:
        assert result is None
    parameters = dict(model.named_parameters())
    for name, grad in grads.items():
        np.testing.assert_allclose(parameters[name].grad, grad, atol=1e-7, err_msg=name)
    assert parameters["5.unused.weight"].grad is None


def test_gradients_add_up_until_zero_grad():
    layer, x = nn.Linear(3, 2), np.ones((1, 3), np.float32)
    for _ in range(2):
        y, backward = layer.forward(x)
        backward(np.ones_like(y))
    np.testing.assert_array_equal(layer.weight.grad, 2 * np.ones((2, 3)))
    layer.zero_grad()
    assert layer.weight.grad is None


def test_backward_works_once():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    y, backward = model.forward(np.ones((1, 3), np.float32))
    backward(y)
    with pytest.raises(UsageError, match="Sequential: backward was called already; call forward again first"):
        backward(y)


@pytest.mark.parametrize("inside", [False, True])
def test_a_backward_without_need_dx_says_what_it_must_take(inside):
    class Short(nn.Module):
        def forward(self, x, train):
            return x, lambda dy: dy

    class Fails(nn.Module):
        def forward(self, x, train):
            return x, lambda dy, need_dx: dy + None

    y, backward = (nn.Sequential(Short()) if inside else Short()).forward(np.ones((1, 3)))
    with pytest.raises(UsageError, match=r"^Short: the backward .* must take two arguments, \(dy, need_dx\)$"):
        backward(y)
    y, backward = Fails().forward(np.ones((1, 3)))
    with pytest.raises(TypeError, match="unsupported operand"):
        backward(y)


def recorded(monkeypatch, layers):
    """Return a list to which every layer appends its index and `need_dx` when its backward runs."""
    calls = []
    for i, layer in enumerate(layers):

        def observed(x, train, i=i, forward=layer.forward):
            y, backward = forward(x, train)
            return y, lambda dy, need_dx=True: (calls.append((i, need_dx)), backward(dy, need_dx))[1]

        monkeypatch.setattr(layer, "forward", observed)
    return calls


def test_without_dx_nothing_is_computed_up_to_the_first_parameters(monkeypatch):
    layers = [nn.Tanh(), nn.ReLU(), nn.Conv2d(1, 1, 3), nn.Tanh(), nn.Sequential(nn.Conv2d(1, 1, 1), nn.Tanh())]
    calls = recorded(monkeypatch, layers)
    computed = []
    import xcnn.ops.conv as conv

    plain = conv._input_gradient
    monkeypatch.setattr(conv, "_input_gradient", lambda *arguments: (computed.append(1), plain(*arguments))[1])
    with portable(np):
        y, backward = nn.Sequential(*layers).forward(np.ones((1, 1, 5, 5), np.float32))
        assert backward(y, need_dx=False) is None
    assert calls == [(4, True), (3, True), (2, False)]
    assert len(computed) == 1  # of the last convolution alone


def test_a_branch_without_parameters_is_skipped_where_nothing_before_it_learns(monkeypatch):
    layers = [nn.Tanh(), nn.Conv2d(1, 1, 1)]
    calls = recorded(monkeypatch, layers)
    y, backward = nn.Branches(*layers).forward(np.ones((1, 1, 5, 5), np.float32))
    assert backward(y, need_dx=False) is None
    assert calls == [(1, False)]


def test_a_layer_used_twice_gets_both_gradients_and_counts_once():
    layer = nn.Linear(3, 3, bias=False).to("cpu", "float64")
    model = nn.Sequential(layer, nn.Tanh(), layer)
    x, dy = RNG(0).standard_normal((2, 3)), RNG(1).standard_normal((2, 3))
    _, backward = model.forward(x)
    backward(dy)
    expected = numeric(lambda: float((model(x) * dy).sum()), layer.weight.data)
    np.testing.assert_allclose(layer.weight.grad, expected, atol=1e-8)
    assert len(model.parameters()) == 1
    assert list(model.state_dict()) == ["0.weight", "2.weight"]


def test_keys_of_containers():
    model = nn.Sequential(
        nn.Residual(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2, bias=False)),
        nn.Branches(nn.Linear(2, 1, bias=False), nn.Identity()),
        nn.Graph([("head", nn.BatchNorm1d(3, affine=False), "x")]),
    )
    assert list(model.state_dict()) == [
        *("0.body.0.weight", "0.body.0.bias", "0.shortcut.weight", "1.0.weight"),
        *("2.head.running_mean", "2.head.running_var", "2.head.num_batches_tracked"),
    ]


def test_sequential_is_a_sequence():
    a, b, c = nn.ReLU(), nn.Linear(2, 2), nn.Tanh()
    model = nn.Sequential(a, b, c)
    assert len(model) == 3
    assert model[0] is a
    assert model[-1] is c
    assert list(model) == [a, b, c]
    assert list(model[1:]) == [b, c]
    assert model[1:].parameters() == b.parameters()
    x = np.ones((1, 2), np.float32)
    assert nn.Sequential()(x) is x


def test_a_module_of_a_sequential_is_replaced_as_in_pytorch():
    torch = pytest.importorskip("torch")
    t = torch.nn
    theirs = t.Sequential(t.Linear(3, 4), t.ReLU(), t.Linear(4, 2))
    ours = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    theirs[0], ours[0] = t.Linear(5, 4), nn.Linear(5, 4)  # a layer that runs as one with its ReLU
    theirs[-1], ours[-1] = t.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    ours.load_state_dict({name: weight.numpy() for name, weight in theirs.state_dict().items()})
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    y, backward = ours.forward(x.numpy())
    backward(np.ones_like(y))
    expected = theirs(x)
    expected.sum().backward()
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-6)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(one.grad, other.grad.numpy(), atol=1e-5)


def test_a_replaced_module_is_no_longer_an_attribute():
    class Net(nn.Sequential):
        def __init__(self, head):
            self.head = head
            super().__init__(nn.ReLU(), head)

    net, head = Net(nn.Linear(2, 3)), nn.Linear(2, 5)
    net[1] = head
    assert net.head is net[1] is head
    assert list(net.state_dict()) == ["1.weight", "1.bias"]


@pytest.mark.parametrize("value", [None, "fc", np.zeros(2, np.float32)])
def test_a_node_cannot_become_what_would_not_run(value):
    model = nn.Graph([("fc", nn.Linear(2, 2), "x"), ("w", nn.Parameter(np.ones(2)), ()), ("y", nn.Add(), ("fc", "w"))])
    before = model.fc, model.w
    for name, kind in (("fc", "module"), ("w", "Parameter")):
        with pytest.raises(UsageError, match=f"^Graph: '{name}' must be a {kind}, got "):
            setattr(model, name, value)
    assert (model.fc, model.w) == before


def test_an_argument_may_have_the_name_of_a_node():
    class Net(nn.Sequential):
        def __init__(self, head):
            super().__init__({"act": nn.ReLU(), "head": nn.Linear(2, head)})
            self.head = head

    assert Net(3).options() == {"head": 3}


@pytest.mark.parametrize(
    ("index", "module", "says"),
    [
        (2, nn.ReLU(), r"^Sequential: index must be an integer from -2 to 1, got 2$"),
        (slice(1), nn.ReLU(), r"^Sequential: index must be an integer from -2 to 1, got "),
        (0, None, r"^Sequential: \[0\] must be a module, got None$"),
        (0, "itself", r"^Sequential: 0 cannot be a module that contains this one$"),
    ],
)
def test_what_cannot_be_put_into_a_sequential_is_refused(index, module, says):
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    before = list(model)
    with pytest.raises(UsageError, match=says):
        model[index] = nn.Residual(model) if module == "itself" else module
    assert list(model) == before


def test_state_moves_to_and_from_pytorch_by_the_same_keys():
    torch = pytest.importorskip("torch")
    t = torch.nn
    ours = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)))
    theirs = t.Sequential(t.Conv2d(1, 2, 3), t.BatchNorm2d(2), t.Sequential(t.ReLU(), t.Flatten(), t.Linear(8, 3)))
    x = RNG(0).random((4, 1, 4, 4), np.float32)
    theirs(torch.from_numpy(x))  # moves the running statistics
    theirs.eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).detach().numpy(), atol=1e-6)
    ours.reset_parameters(3)
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in ours.state_dict().items()}, strict=True)
    np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).detach().numpy(), atol=1e-6)


def test_a_failed_load_changes_nothing():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    before, good = model.state_dict(), model.state_dict()
    good["0.weight"] = good["0.weight"] + 1
    for change, message in [
        ({"1.bias": None}, "missing 1.bias"),
        ({"2.bias": np.zeros(1)}, "unknown 2.bias"),
        ({"1.weight": np.zeros((2, 1))}, r"1.weight has shape \(1, 2\) in this model, \(2, 1\) in the state"),
        ({"1.weight": np.array([["a", "b"]])}, "1.weight must hold numbers, got dtype <U1"),
    ]:
        state = {key: value for key, value in {**good, **change}.items() if value is not None}
        with pytest.raises(CheckpointError, match=f"^load_state_dict: .*{message}"):
            model.load_state_dict(state)
        for key, value in model.state_dict().items():
            np.testing.assert_array_equal(value, before[key])


def test_loading_that_is_not_strict_takes_what_fits_by_name():
    model = nn.Linear(3, 2)
    bias = model.bias.data.copy()
    keys = model.load_state_dict({"weight": np.ones((2, 3), np.float64), "other": np.ones(1)}, strict=False)
    assert keys == nn.IncompatibleKeys(missing_keys=["bias"], unexpected_keys=["other"])
    assert model.weight.data.dtype == np.float32
    np.testing.assert_array_equal(model.weight.data, np.ones((2, 3)))
    np.testing.assert_array_equal(model.bias.data, bias)


def test_all_weights_but_the_head_are_taken_as_pytorch_takes_them():
    torch = pytest.importorskip("torch")
    t = torch.nn

    def networks(classes):
        theirs = t.Sequential(t.Conv2d(2, 3, 3), t.BatchNorm2d(3), t.ReLU(), t.Flatten(), t.Linear(12, classes))
        return theirs, nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, classes)
        )

    state = {key: value.numpy() for key, value in networks(10)[0].state_dict().items()}
    theirs, ours = networks(3)
    head = ours[4].state_dict()
    with pytest.raises(CheckpointError, match=r"4\.weight has shape \(3, 12\) in this model, \(10, 12\) in the state"):
        ours.load_state_dict(state, strict=False)  # the shape of a name that is there must fit, as in PyTorch
    trunk = {key: value for key, value in state.items() if not key.startswith("4.")} | {"fc.weight": np.ones(1)}
    keys = ours.load_state_dict(trunk, strict=False)
    expected = theirs.load_state_dict({key: torch.from_numpy(value) for key, value in trunk.items()}, strict=False)
    assert keys == (expected.missing_keys, expected.unexpected_keys) == (["4.weight", "4.bias"], ["fc.weight"])
    for key, value in ours.state_dict().items():
        np.testing.assert_array_equal(value, head[key[2:]] if key.startswith("4.") else state[key], key)
    assert ours.load_state_dict(ours.state_dict()) == ([], [])
    with pytest.raises(UsageError, match=r"^load_state_dict: strict must be True or False, got 'head'$"):
        ours.load_state_dict(trunk, strict="head")


def test_the_state_is_a_copy_both_ways():
    model, x = nn.Linear(3, 2), np.ones((1, 3), np.float32)
    y, state = model(x), model.state_dict()
    state["weight"][:] = 0
    np.testing.assert_array_equal(model(x), y)
    model.load_state_dict(state)
    state["weight"][:] = 1
    assert not model.weight.data.any()


def test_reset_parameters_without_a_seed_draws_other_weights_each_time():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    first = model.state_dict()
    model[1].weight.data += 5
    model.reset_parameters()
    second = model.state_dict()
    assert not np.any(first["0.weight"] == second["0.weight"])
    np.testing.assert_array_equal(second["1.weight"], [1, 1])


def test_reset_parameters_repeats_in_module_order_and_keeps_dtype():
    make = lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(2, 2))  # noqa: E731
    a, b = make(), make()
    assert not np.array_equal(a[0].weight.data, b[0].weight.data)
    a.reset_parameters(1)
    b.to("cpu", "float64").reset_parameters(RNG(1))
    for key, value in a.state_dict().items():
        np.testing.assert_array_equal(value, b.state_dict()[key].astype(value.dtype))
    assert b[0].weight.data.dtype == np.float64
    assert b[1].num_batches_tracked.data.dtype == np.int64
    a.forward(RNG(0).random((4, 1, 3, 3), np.float32))
    assert a[1].num_batches_tracked.data == 1
    a.reset_parameters(1)
    for key, value in a.state_dict().items():
        np.testing.assert_array_equal(value, b.state_dict()[key].astype(value.dtype))


@pytest.mark.parametrize("where", ["strict", "strict:device1", "torch"])
def test_networks_train_on_other_devices(where):
    pytest.importorskip("torch" if where == "torch" else "array_api_strict")
    from xcnn.devices import device, to_numpy

    host, other = mixed(), mixed().to(where)
    host.reset_parameters(4)
    other.reset_parameters(4)
    x, dy = RNG(0).standard_normal((2, 2, 5, 6)).astype(np.float32), RNG(1).standard_normal((2, 3)).astype(np.float32)
    place = device(where).asarray
    (y, backward), (z, other_backward) = host.forward(x), other.forward(place(x))
    np.testing.assert_allclose(to_numpy(z), y, atol=1e-5)
    np.testing.assert_allclose(to_numpy(other_backward(place(dy))), backward(dy), atol=1e-4)
    for mine, theirs in zip(host.parameters(), other.parameters(), strict=True):
        if mine.grad is not None:
            np.testing.assert_allclose(to_numpy(theirs.grad), mine.grad, atol=1e-4)
    for key, value in other.state_dict().items():
        np.testing.assert_allclose(value, host.state_dict()[key], atol=1e-5)
    np.testing.assert_allclose(to_numpy(other.to("cpu")(x)), host(x), atol=1e-5)


def test_twelve_layers_keep_their_activations_once():
    model = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())))
    activation = 4 * 64 * 64 * 4  # bytes
    total = nn.summary(model, (4, 64, 64)).total
    assert total.kept == 12 * activation
    # The same, as the allocator saw it: what forward leaves behind is the twelve results of ReLU.
    x = np.ones((1, 4, 64, 64), np.float32)
    model.forward(x)  # prepares what is prepared once
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    y, backward = model.forward(x)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    backward(y)
    tracemalloc.stop()
    assert 12 * activation <= held < 12.5 * activation


def test_backward_lets_go_of_activations_as_it_goes():
    class Probe(nn.Module):
        def forward(self, x, train):
            def backward(dy, need_dx):
                seen.append(tracemalloc.get_traced_memory()[0] - before)
                return dy

            return x, backward

    blocks = [nn.Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())) for _ in range(6)]
    model, seen = nn.Sequential(Probe(), *blocks, Probe()), []
    x = np.ones((1, 4, 64, 64), np.float32)
    before = 0
    model.forward(x)[1](x)  # loads what is loaded once
    seen.clear()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    y, backward = model.forward(x)
    backward(y)
    tracemalloc.stop()
    assert seen[0] > 11 * x.nbytes
    assert seen[1] < 4 * x.nbytes  # y, dx and what is being worked on


def test_inference_keeps_no_activations():
    model = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())))
    x = np.ones((1, 4, 64, 64), np.float32)
    activation = x.nbytes

    def peak(run):
        run()  # loads what is loaded once
        tracemalloc.start()
        kept = run()
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        del kept
        return top

    assert peak(lambda: model.forward(x)) - peak(lambda: model(x)) > 9 * activation


def test_a_users_own_module_works():
    class Scale(nn.Module):
        def __init__(self):
            self.weight = nn.Parameter(np.full((), 3.0, np.float32))

        def forward(self, x, train):
            weight = self.weight.data

            def backward(dy, need_dx):
                self.weight.accumulate((dy * x).sum())
                return dy * weight if need_dx else None

            return x * weight, backward

    class Net(nn.Module):
        def __init__(self):
            self.scale, self.act = Scale(), nn.ReLU()

        def forward(self, x, train):
            y, first = self.scale.forward(x, train)
            y, second = self.act.forward(y, train)
            return y, lambda dy, need_dx: first(second(dy), need_dx)

    net, x = nn.Sequential(Net()), np.array([[1.0, -2.0]], np.float32)
    y, backward = net.forward(x)
    np.testing.assert_array_equal(y, [[3, 0]])
    np.testing.assert_array_equal(backward(np.ones_like(y)), [[3, 0]])
    assert list(net.state_dict()) == ["0.scale.weight"]
    assert float(net.parameters()[0].grad) == 1.0
    assert repr(net) == "Sequential(\n  (0): Net(\n    (scale): Scale()\n    (act): ReLU()\n  )\n)"

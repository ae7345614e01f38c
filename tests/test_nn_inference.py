"""Inference of graphs: the same numbers as layer by layer, whatever is joined, prepared or cut into pieces."""

import copy
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from xcnn import nn, ops, threads
from xcnn._dispatch import kernel, kernels, portable
from xcnn.devices import device, to_numpy
from xcnn.errors import ShapeError, UsageError, XcnnError
from xcnn.nn import _inference, _program
from xcnn.nn._observe import observing
from xcnn.nn._plan import Fused


def conv_norm(c, o, kernel, *after, **options):
    return [nn.Conv2d(c, o, kernel, padding=kernel // 2, bias=False, **options), nn.BatchNorm2d(o), *after]


def gate(c):
    ways = [("pool", nn.AdaptiveAvgPool2d(1), "x"), ("fc", nn.Conv2d(c, c, 1), "pool"), ("gate", nn.Sigmoid(), "fc")]
    return nn.Graph([*ways, ("scale", nn.Multiply(), ("gate", "x"))])


NETWORKS = {
    "plain": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3), nn.Flatten(),
                                   nn.Linear(36, 5), nn.SiLU(), nn.Linear(5, 3)),
    "residual": lambda: nn.Sequential(
        *conv_norm(2, 4, 3, nn.ReLU6(), stride=2),
        nn.Residual(nn.Sequential(*conv_norm(4, 4, 3, nn.ReLU()), *conv_norm(4, 4, 3))),
        nn.ReLU(),
        nn.Residual(nn.Sequential(*conv_norm(4, 6, 3)), nn.Sequential(*conv_norm(4, 6, 1))),
        nn.GELU(),
        nn.GlobalAvgPool(),
        nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Hardswish(),
    ),
    "mobile": lambda: nn.Sequential(
        *conv_norm(2, 8, 1, nn.Hardswish()), *conv_norm(8, 8, 5, nn.SiLU(), groups=8), gate(8),
        nn.Residual(nn.Sequential(*conv_norm(8, 8, 1), nn.Dropout2d(0.2))),
    ),
    "dense": lambda: nn.Sequential(
        nn.Graph([("a", nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 3, padding=1)), "x"),
                  ("cat", nn.Concat(), ("x", "a")), ("b", nn.BatchNorm2d(5), "cat")]),
        nn.AvgPool2d(2), nn.InstanceNorm2d(5), nn.LeakyReLU(0.2), nn.Branches(nn.Conv2d(5, 2, 1), nn.Tanh()),
    ),
    "next": lambda: nn.Sequential(
        nn.Residual(nn.Sequential(
            nn.Conv2d(2, 2, 7, padding=3, groups=2), nn.Apply("permute", dims=[0, 2, 3, 1]), nn.LayerNorm(2),
            nn.Linear(2, 8), nn.GELU(), nn.Linear(8, 2), nn.Apply("permute", dims=(0, 3, 1, 2)),
            nn.Graph([("scale", nn.Parameter(np.full((2, 1, 1), 0.5, np.float32)), ()),
                      ("y", nn.Multiply(), ("scale", "x"))]),
        )),
        nn.GroupNorm(1, 2), nn.ReLU(),
    ),
    "whole": lambda: nn.Sequential(  # images are not computed apart
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Softmax(0), nn.Apply("subtract", other=0.5),
        nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(),
    ),
    "moved": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 2), nn.InstanceNorm2d(4, affine=True), nn.SiLU(), nn.ChannelShuffle(2),
        nn.Branches(nn.InstanceNorm2d(4), nn.ReLU6()), nn.AdaptiveAvgPool2d((4, 3)), nn.Flatten(),
    ),
    "outputs": lambda: nn.Graph(
        [("a", nn.Conv2d(2, 3, 3), "x"), ("relu", nn.ReLU(), "a"), ("b", nn.Conv2d(3, 2, 3), "relu")], ("b", "relu")
    ),
    "nothing": lambda: nn.Sequential(nn.Sequential(), nn.Residual(nn.Sequential(), nn.Sequential())),
}  # fmt: skip


def made(name, seed=0):
    """Return a network with running statistics as after some training."""
    model, rng = NETWORKS[name](), np.random.default_rng(seed)
    model.reset_parameters(seed)
    for key, buffer in model.named_buffers():
        if buffer.data.ndim:
            buffer.data = (rng.random(buffer.data.shape) + ("var" in key)).astype(np.float32)
    return model


def images(n, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((n, 2, 8, 8)).astype(dtype)


def singly(model, x):
    with observing(model, lambda name, layer: layer.forward):
        y = model(x)
    return [to_numpy(one) for one in (y if isinstance(y, tuple) else (y,))]


def together(model, x):
    y = model(x)
    return [to_numpy(one) for one in (y if isinstance(y, tuple) else (y,))]


def same(model, x, tolerance=2e-5):
    for one, other in zip(together(model, x), singly(model, x), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def cut(monkeypatch, count=3):
    monkeypatch.setattr(_inference, "_count", lambda n, costs: min(n, count))


@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_are_those_of_the_layers(name, monkeypatch):
    model = made(name)
    for n in (1, 4):
        same(model, images(n))
        same(model, images(n, 1)[:, :, ::-1])
    with portable(np):
        same(model, images(4))
    cut(monkeypatch)
    model = made(name)
    x = images(7)
    x.flags.writeable = False
    same(model, x)
    same(model, x)
    model(x)
    kinds = {type(program).__name__ for key, program in model._plan._joined.programs.items() if key[0] != "image"}
    assert kinds == ({"Program"} if name == "whole" else {"_Cut"})
    model.to("cpu", "float64")
    same(model, images(5, 2, np.float64), 1e-11)


@pytest.mark.parametrize("where", ["strict", "torch"])
@pytest.mark.parametrize("name", ["plain", "residual", "mobile", "dense", "next"])
def test_other_libraries_give_the_same(name, where):
    pytest.importorskip({"strict": "array_api_strict"}.get(where, where))
    model = made(name)
    wanted = singly(model, images(3))
    there = device(where)
    model.to(where)
    for _ in range(2):
        for one, other in zip(together(model, there.asarray(images(3))), wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_what_follows_a_convolution_is_one_step():
    model = made("residual")
    kinds = [type(step[1]).__name__ for step in model._plan.joined().inference]
    assert kinds == ["Fused"] * 5 + ["GlobalAvgPool", "Fused"]
    assert all(isinstance(step[1], Fused) for step in made("mobile")._plan.joined().inference[:2])


def test_any_activation_is_joined_with_a_norm_or_an_addition():
    norms = [nn.GroupNorm(2, 4), nn.GELU(), nn.LayerNorm(8), nn.SiLU(), nn.InstanceNorm2d(4), nn.Mish(), nn.Softplus(2)]
    added = nn.Graph([("a", nn.ReLU6(), "x"), ("sum", nn.Add(), ("x", "a")), ("act", nn.Hardswish(), "sum")])
    model = nn.Sequential(nn.Conv2d(2, 4, 1), *norms, added)
    kinds = [type(step[1]).__name__ for step in model._plan.joined().inference]
    assert kinds == [*["Fused"] * 4, "Softplus", "ReLU6", "Fused"]
    for x in (images(1), images(3)):
        same(model, x)
        same(model, x[:, :, ::-1])
    with portable(np):
        same(model, images(2, 1))


def test_a_graph_of_several_inputs_has_a_program_too():
    def graph(inputs):
        ways = [
            ("a", nn.Conv2d(2, 3, 1), inputs[0]),
            ("norm", nn.BatchNorm2d(3), "a"),
            ("sum", nn.Add(), ("norm", inputs[1])),
        ]
        return nn.Graph([*ways, ("act", nn.GELU(), "sum")], inputs=inputs)

    model, u, v = graph(("u", "v")), images(4), np.ones((4, 3, 8, 8), np.float32)
    given = [(u, v), (u[:2], v[:2]), (u, v[:1])]
    wanted = [singly(model, x) for x in given]
    for _ in range(2):
        for x, (one,) in zip(given, wanted, strict=True):
            np.testing.assert_allclose(model(x), one, rtol=2e-5, atol=2e-5)
    assert [type(one).__name__ for one in model._plan._joined.programs.values()] == ["Program"] * 3
    same(model, [u, v])
    outer = nn.Graph([("v", nn.Conv2d(2, 3, 1), "x"), ("both", graph(("u", "v")), ("x", "v"))])
    assert [type(step[1]).__name__ for step in outer._plan.joined().inference] == ["Fused"] * 2
    same(outer, u)
    with pytest.raises(UsageError, match=r"x must be a tuple of 2 arrays, u, v, got 3 of them"):
        model((u, v, v))
    with pytest.raises(ShapeError, match=r"^a \(Conv2d\): conv2d: weight takes 2 input channels, x has 3"):
        model((v, v))


def test_bits_do_not_depend_on_threads(monkeypatch):
    cut(monkeypatch, 5)
    x, found = images(9), []
    before = threads.get_num_threads()
    try:
        for n in (1, 2, 4):
            threads.set_num_threads(n)
            model = made("residual")
            found += [model(x), model(x)]
    finally:
        threads.set_num_threads(before)
    assert len({y.tobytes() for y in found}) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_no_change_of_the_network_is_missed(count, monkeypatch):
    cut(monkeypatch, count)
    model, x = made("residual"), images(4)
    changes = [
        lambda: model[0].weight.data.__imul__(2),
        lambda: setattr(model[0].weight, "data", model[0].weight.data[::-1].copy()),
        lambda: setattr(model[1].running_var, "data", model[1].running_var.data * 3),
        lambda: setattr(model[1], "eps", 0.5),
        lambda: setattr(model[0], "bias", nn.Parameter(np.ones(4, np.float32))),
        lambda: setattr(model[0], "dilation", 2),
        lambda: setattr(model[0], "padding", [1, 2]),
        lambda: model[0].padding.__setitem__(0, 2),
        lambda: model.__setitem__(2, nn.Hardtanh(-20.0, 20.0)),
        lambda: setattr(model[2], "max_val", 0.7),
        lambda: setattr(model[3].body, "2", nn.SiLU()),
        lambda: model.load_state_dict({key: value + 0.1 for key, value in model.state_dict().items()}),
        lambda: setattr(model[1], "bias", None),
        lambda: model.reset_parameters(3),
    ]
    seen = [model(x)]
    for change in changes:
        change()
        same(model, x)
        seen.append(model(x))
        assert np.any(seen[-1] != seen[-2]), len(seen)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    np.testing.assert_array_equal(twin(x), seen[-1])
    twin[0].weight.data *= 2
    np.testing.assert_array_equal(model(x), seen[-1])
    assert np.any(twin(x) != seen[-1])
    y, backward = model.forward(x)  # training moves the running statistics
    backward(y)
    same(model, x)


def test_watched_layers_and_ones_own_modules_are_called_with_the_whole_batch(monkeypatch):
    cut(monkeypatch)
    seen = []

    class Own(nn.Module):
        def forward(self, x, train):
            seen.append((x.shape, train))
            return x * 2, lambda dy, need_dx: dy * 2

    inner = nn.Sequential(nn.ReLU(), nn.Sequential(Own()))
    model = nn.Sequential(nn.Conv2d(2, 3, 3), inner, nn.Flatten())
    x = images(5)
    y = model(x)
    same(model, x)
    assert seen == [((5, 3, 6, 6), False)] * 3
    del seen[:]
    conv = model[0]
    plain = conv.forward
    conv.forward = lambda x, train=True: (seen.append(x.shape), plain(x, train))[1]
    np.testing.assert_allclose(model(x), y, rtol=1e-6)
    assert seen[0] == (5, 2, 8, 8)
    del conv.forward
    del seen[:]
    model(x)
    assert len(seen) == 1


def test_errors_name_the_layer_as_before():
    model = made("residual")
    model(images(2))
    message = r"^0 \(Conv2d\): conv2d: weight takes 2 input channels, x has 3"
    with pytest.raises(ShapeError, match=message):
        model(np.ones((1, 3, 8, 8), np.float32))
    model[3].body[1].running_mean.data = np.ones(5, np.float32)
    where = re.escape("3.body.1 (BatchNorm2d): batch_norm: ")
    for _ in range(2):
        with pytest.raises(ShapeError, match=f"^{where}"):
            model(images(2))
        with pytest.raises(ShapeError, match=f"^{where}"):
            model.forward(images(2))


def test_an_op_of_ones_own_takes_part_by_its_declaration(monkeypatch):
    cut(monkeypatch)
    shapes = []

    def double(x):
        shapes.append(x.shape)
        return x * 2, lambda dy, needs: (dy * 2,)

    apart = {}
    for declared in (True, False):
        double.__name__ = f"double_{declared}".lower()
        op = ops.op("x", apart=declared)(double)
        try:
            layer = type("Double", (nn.Layer,), {}, op=op)
            model = nn.Sequential(nn.Conv2d(2, 2, 3), layer())
            x = images(6)
            model(x)
            del shapes[:]
            same(model, x)
            apart[declared] = shapes[0]
        finally:
            del ops.OPS[double.__name__]
    assert apart == {True: (2, 2, 6, 6), False: (6, 2, 6, 6)}


def test_the_number_of_pieces_follows_from_bytes_and_flops():
    large = [_inference.Cost(3_000_000, 200_000_000, 3000, 100_000)] * 10
    small = [_inference.Cost(3_000, 20_000, 100, 1000)] * 5
    counts = [_inference._count(n, large) for n in (2, 8, 16, 64, 256)]
    assert counts == sorted(counts)
    assert counts[2] >= 4
    assert [_inference._count(n, small) for n in (2, 8, 32)] == [1, 1, 1]
    assert _inference._count(100_000, small) > 1


def test_dozens_of_shapes_in_turns_are_prepared_once_each(monkeypatch):
    shapes, prepare = [], _inference.prepared
    monkeypatch.setattr(
        _inference, "prepared", lambda joined, x, held: shapes.append(x.shape) or prepare(joined, x, held)
    )
    model = nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU())
    signals = [np.ones((1, 2, length), np.float32) for length in range(3, 43)]
    wanted = [copy.deepcopy(model).forward(x, train=False)[0] for x in signals]
    for _ in range(40):
        for x, y in zip(signals, wanted, strict=True):
            np.testing.assert_array_equal(model(x), y)
    assert shapes == [x.shape for x in signals]
    programs = model._plan.joined().programs
    assert sum(getattr(program, "record", None) is not None for program in programs.values()) <= 16
    for length in range(43, 80):  # the oldest ones are forgotten
        model(np.ones((1, 2, length), np.float32))
    assert len(programs) <= 64


def test_another_thread_may_forget_programs_at_any_time():
    class Forgetful(dict):
        def __setitem__(self, key, value):
            pass

    model, x = made("plain"), images(4)
    y = model(x)
    model._plan.joined().programs = Forgetful()
    np.testing.assert_array_equal(model(x), y)


LAYOUTS = {
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "unaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
    "reversed": lambda a: a[::-1].copy()[::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["residual", "mobile", "dense", "next", "moved"])
def test_prepared_calls_take_arrays_of_any_layout(name, layout):
    model, x, change = made(name), images(1), LAYOUTS[layout]
    y, slots = model(x), [*model.named_parameters(), *model.named_buffers()]
    model(x)
    np.testing.assert_array_equal(model(change(x)), y)
    for _, slot in slots:
        slot.data = change(slot.data) if slot.data.ndim else slot.data
    np.testing.assert_array_equal(model(x), y)
    np.testing.assert_array_equal(model(change(x)), y)


@pytest.mark.parametrize("name", ["plain", "moved"])
def test_every_step_of_a_program_is_bound(name):
    pytest.importorskip("llvmlite")
    model, x = made(name), images(1)
    model(x), model(x)
    program = next(one for one in model._plan.joined().programs.values() if isinstance(one, _program.Program))
    assert all(step[0] is not step[1] for step in program.steps)


@pytest.mark.parametrize("name", ["conv_inference", "reshape"])
def test_a_kernel_that_binds_nothing_is_asked_at_each_call(name):
    model, x, asked = made("plain"), images(1), []

    def late(*arguments):
        asked.append(len(arguments))
        return NotImplemented

    late.__name__ = name
    wanted, count = model(x), len(kernels(np).get(name, ()))
    kernel(np)(late)
    try:
        for _ in range(3):
            before = len(asked)
            np.testing.assert_array_equal(model(x), wanted)
            assert len(asked) > before
    finally:
        del kernels(np)[name][: len(kernels(np)[name]) - count]
        if not count:
            del kernels(np)[name]


def test_prepared_calls_are_not_made_for_other_weights_or_kernels():
    model, x = made("residual"), images(1)
    weight = model[0].weight.data
    y = [model(x), model(x)][1]
    with portable(np):
        portably = model(x)
        np.testing.assert_allclose(portably, y, rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(model(x), portably)
    np.testing.assert_array_equal(model(x), y)
    model[0].weight.data = weight[..., :2]
    same(model, x)
    for other in (weight[:3], weight.astype(np.float64)):
        model[0].weight.data = other
        with pytest.raises(XcnnError) as wanted:
            singly(model, x)
        with pytest.raises(XcnnError, match=re.escape(str(wanted.value))):
            model(x)
    model[0].weight.data = weight
    np.testing.assert_array_equal(model(x), y)


def test_threads_share_prepared_calls():
    model, xs = made("mobile"), [images(1, seed) for seed in range(16)]
    wanted = [model(x) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for y, expected in zip(pool.map(model, xs), wanted, strict=True):
                np.testing.assert_array_equal(y, expected)


class Scale(nn.Module):
    """Returns x, and sets the weight of a layer to a multiple of an array."""

    def __init__(self, layer):
        self.given, self.layers = layer.weight.data, {"other": [layer.weight]}

    def forward(self, x, train=True):
        self.layers["other"][0].data = self.given * x[0, 0]
        return x, lambda dy, need_dx: dy


def test_a_module_may_replace_the_weights_of_the_next_one():
    linear, x = nn.Linear(3, 2, bias=False), images(1)[0, 0, :3, :3].copy()
    linear.reset_parameters(0)
    weight, model = linear.weight.data, nn.Sequential(Scale(linear), linear)
    for k in range(1, 4):
        np.testing.assert_allclose(model(k * x), k * x @ (k * x[0, 0] * weight).T, rtol=1e-5)

"""What a graph prepares once holds later: whatever numbers come, and whatever computes the options of a layer."""

import numpy as np
import pytest

from xcnn import nn, ops
from xcnn.errors import ShapeError, UsageError
from xcnn.nn import _repeat


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def singly(model, x):
    """Run each layer by itself, as a graph inside which nothing is prepared."""
    plan = model._plan
    return model._run(x, plan.singly, plan.output, lambda name, module, value, inputs: module.forward(value, False)[0])


def same(model, x):
    wanted = singly(model, x)
    for y in (model(x), model(x), model.forward(x)[0], model.forward(x)[0]):
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


def test_every_layer_of_a_network_is_checked_once():
    ways = [("pool", nn.AdaptiveAvgPool2d(1), "x"), ("gate", nn.Sigmoid(), "pool"), ("y", nn.Multiply(), ("x", "gate"))]
    norms = nn.BatchNorm2d(2), nn.InstanceNorm2d(2, track_running_stats=True)
    body = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, bias=False), *norms, nn.Linear(4, 4), nn.Graph(ways))
    model = nn.Sequential(body, nn.ReLU(), nn.Residual(body), nn.Tanh(), nn.MaxPool2d(2), nn.Dropout(0.2), nn.Flatten())
    for train in (True, False):
        y, backward = model.forward(images(3, 2, 4, 4), train)
        backward(y)
    for key, program in model._plan._joined.programs.items():
        assert key[0] == "training"
        steps = zip(program.joined.training, program.steps, strict=True)
        plain = {name for (name, *_), step in steps if step.wanted is None}
        assert plain == (set() if key[1] else {"5"})  # dropout, which then returns x itself


def test_arrays_that_are_one_at_first_need_not_be_so_later():
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    model.reset_parameters(0)
    model.forward(model[0].weight.data)
    same(model, images(4, 4))
    model = nn.Sequential(nn.GroupNorm(2, 4))
    model[0].weight.data = model[0].bias.data = np.ones(4, np.float32)
    same(model, images(3, 4, 5))
    model[0].bias.data = np.zeros(4, np.float32)
    same(model, images(3, 4, 5))


def test_instance_norm_takes_images_with_and_without_a_batch_axis_in_turns():
    model, x = nn.Sequential(nn.InstanceNorm2d(2)), images(1, 2, 4, 4)
    for _ in range(3):
        np.testing.assert_array_equal(model.forward(x[0])[0], model.forward(x)[0][0])


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")
def test_a_parameter_whose_shape_is_set_in_place_is_refused(train):
    model, x = nn.Sequential(nn.Linear(4, 6)), images(3, 4)
    for _ in range(2):
        model.forward(x, train)
    model[0].weight.data.shape = 24, 1
    with pytest.raises(ShapeError, match="weight takes 1 features, x has 4"):
        model.forward(x, train)


@pytest.mark.parametrize("train", [False, True])
def test_a_module_may_return_its_input_or_another_array(train):
    class Clip(nn.Module):
        def forward(self, x, train):
            return x if x.max() < 10 else np.minimum(x, 10), lambda dy, need_dx: dy

    ways = [("clip", Clip(), "x"), ("product", nn.Multiply(), ("x", "clip"))]
    model, x = nn.Graph(ways), np.full((2, 3), 2, np.float32)
    run = (lambda x: model.forward(x)[0]) if train else model
    for factor, product in ((1, 4), (1, 4), (20, 400), (1, 4)):
        np.testing.assert_array_equal(run(x * factor), np.full((2, 3), product))


def slope():
    return 0.1 * slope.factor


class Computed(nn.LeakyReLU):
    def __init__(self):
        pass

    negative_slope = property(lambda self: slope())


class OfClass(nn.Layer, op=ops.leaky_relu):
    negative_slope = 0.1


class Doubled(nn.Conv2d):
    """A convolution whose weight is computed from another parameter."""

    def __init__(self):
        super().__init__(2, 2, 1)
        self.half = vars(self).pop("weight")

    def _put(self, weight):
        vars(self)["weight"] = weight

    weight = property(lambda self: vars(self).get("weight") or nn.Parameter(self.half.data * 2), _put)


@pytest.mark.parametrize("kind", [Computed, OfClass, Doubled])
def test_options_and_weights_that_are_no_attributes_of_the_layer_are_read_at_each_call(kind, monkeypatch):
    monkeypatch.setattr(slope, "factor", 1, raising=False)
    monkeypatch.setattr(OfClass, "negative_slope", 0.1)
    model, x = nn.Sequential(nn.Conv2d(2, 2, 1), kind(), nn.BatchNorm2d(2), nn.Tanh()), images(3, 2, 4, 4)
    model.reset_parameters(0)
    before = singly(model, x)
    assert model(x).shape == model.forward(x, train=False)[0].shape
    slope.factor = 7
    OfClass.negative_slope = 0.7
    if kind is Doubled:
        model[1].half.data = model[1].half.data * 3
    for y in (model(x), model.forward(x, train=False)[0]):
        np.testing.assert_allclose(y, singly(model, x), rtol=1e-5, atol=1e-5)
        assert np.any(abs(y - before) > 1e-3)


@pytest.fixture
def own_op():
    """Yield a function that makes a layer of a function, as its op."""
    made = []

    def layer(function, base=nn.Layer, **declared):
        made.append(function.__name__)
        return type("Own", (base,), {}, op=ops.op("x", **declared)(function))()

    yield layer
    for name in made:
        del ops.OPS[name]


def test_an_op_whose_shape_depends_on_numbers(own_op):
    def positive_rows(x):
        kept = x[:, 0] > 0

        def backward(dy, needs):
            dx = np.zeros_like(x)
            dx[kept] = dy
            return (dx,)

        return x[kept], backward

    own = own_op(positive_rows)
    for first in (own, nn.Apply("positive_rows")):
        model = nn.Sequential(first, nn.Linear(3, 4), nn.ReLU(), nn.GroupNorm(1, 4))
        model.reset_parameters(0)
        for seed in range(5):
            x = images(7, 3, seed=seed)
            same(model, x)
            y, backward = model.forward(x)
            assert backward(np.ones_like(y)).shape == x.shape


def test_the_gradient_of_an_unknown_op_is_checked_in_each_step(own_op):
    def narrow(x):
        return x * 1, lambda dy, needs: (dy[:, :1],)

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), own_op(narrow))
    for _ in range(3):
        y, backward = model.forward(images(3, 4))
        with pytest.raises(ShapeError, match=r"dy must have the shape of y \(3, 4\), got \(3, 1\)"):
            backward(y)


def test_only_dropout_is_left_out_of_inference(own_op):
    def doubled(x, p=0.5, training=False, rng=None):
        return x * 2, lambda dy, needs: (dy * 2,)

    model = nn.Sequential(own_op(doubled, nn.Dropout, apart=True), nn.Apply("dropout", rng=0), nn.Dropout())
    np.testing.assert_array_equal(model(images(3, 4)), images(3, 4) * 2)


def test_a_module_that_refuses_numbers_is_named_in_each_call():
    class Finite(nn.Module):
        def forward(self, x, train):
            if not np.isfinite(x).all():
                raise UsageError("x must be finite")
            return x, lambda dy, need_dx: dy

    model, x = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), Finite())), images(2, 3)
    for good in (True, True, False, False, True, False):
        if good:
            np.testing.assert_array_equal(model(x), np.maximum(x, 0))
            continue
        for call in (model, model.forward):
            with pytest.raises(UsageError, match=r"^1\.1 \(Finite\): x must be finite"):
                call(x * np.float32(np.inf))


@pytest.mark.parametrize("cut", [4, 2])
def test_a_module_may_replace_a_parameter_of_a_later_layer(cut):
    last, calls = nn.Linear(4, 3, bias=False), []
    start = images(3, 4)

    class Scaled(nn.Module):
        def forward(self, x, train):
            calls.append(None)
            last.weight.data = len(calls) * start[:, : cut if len(calls) == 4 else 4]
            return x[:, : last.weight.data.shape[1]], lambda dy, need_dx: np.pad(dy, ((0, 0), (0, 4 - dy.shape[1])))

    model, x = nn.Sequential(nn.Linear(4, 4), Scaled(), last), images(5, 4)
    for k in range(1, 6):
        y, backward = model.forward(x)
        width = last.weight.data.shape[1]
        inner = (x @ model[0].weight.data.T + model[0].bias.data)[:, :width]
        np.testing.assert_allclose(y, inner @ (k * start[:, :width]).T, rtol=1e-4, atol=1e-5)
        model.zero_grad()
        dx = backward(y, need_dx=True)
        np.testing.assert_allclose(last.weight.grad, y.T @ inner, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(dx, y @ last.weight.data @ model[0].weight.data[:width], rtol=1e-4, atol=1e-3)


def test_modules_may_change_a_layer_and_restore_it_in_the_first_run():
    between, runs = nn.Linear(4, 4), []

    class Sets(nn.Module):
        def __init__(self, bias):
            super().__init__()
            self.kept = [bias]  # in a list, so that it is not a parameter of this module

        def forward(self, x, train):
            runs.append(None)
            if len(runs) < 3:
                between.bias = self.kept[0]
            return x, lambda dy, need_dx: dy

    layers = nn.Linear(4, 4), Sets(None), between, nn.Tanh(), Sets(between.bias), nn.Linear(4, 4)
    model, x = nn.Sequential(*layers), images(5, 4)
    for _ in range(4):
        model.zero_grad()
        y, backward = model.forward(x)
        assert backward(y, need_dx=True).shape == x.shape
        assert all(parameter.grad is not None for parameter in (layers[0].weight, between.weight, layers[-1].bias))


def test_a_parameter_may_compute_its_array_from_other_numbers():
    class Scaled(nn.Parameter):
        factor = np.float32(1)

        @property
        def data(self):
            return nn.Parameter.data.fget(self) * Scaled.factor

        @data.setter
        def data(self, array):
            nn.Parameter.data.fset(self, array)

    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), images(2, 4)
    model[2].weight = Scaled(model[2].weight.data)
    for call in (model, lambda x: model.forward(x)[0]):
        for k in range(1, 4):
            Scaled.factor = np.float32(k)
            np.testing.assert_allclose(call(x), model[2](model[1](model[0](x))), rtol=1e-5, atol=1e-6)


def test_a_batch_norm_used_twice_sees_its_batches_in_order():
    norm, found = nn.BatchNorm1d(4), []
    ways = [("a", norm, "x"), ("l", nn.Linear(4, 4), "x"), ("b", norm, "l"), ("sum", nn.Add(), ("a", "b"))]
    model = nn.Graph(ways)
    for run in (
        lambda x: model.forward(x)[0],
        lambda x: model._run(x, model._plan.singly, "sum", lambda name, one, value, inputs: one.forward(value)[0]),
    ):
        model.reset_parameters(0)
        for seed in range(3):
            run(images(6, 4, seed=seed))
        found.append(norm.running_mean.data)
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_an_input_may_have_the_name_of_a_node_inside():
    ways = [("a", nn.Sequential({"b": nn.ReLU()}), "a.b"), ("sum", nn.Add(), ("a", "a.b"))]
    x = images(3, 4)
    model = nn.Graph(ways, inputs="a.b")
    for y in (model(x), model(x), model.forward(x)[0]):
        np.testing.assert_array_equal(y, np.maximum(x, 0) + x)


def test_a_forward_that_replaces_that_of_a_graph_is_called():
    inner = nn.Sequential(nn.ReLU())
    model = nn.Sequential(inner, nn.ReLU())
    model(images(2, 3))
    inner.forward = lambda x, train=True: (x * 0 + 5, None)
    for graph in (inner, model):
        np.testing.assert_array_equal(graph(images(2, 3)), np.full((2, 3), 5))


def test_a_result_without_axes_can_be_used_further():
    whole = nn.Apply("mean", dim=None)
    ways = [("loss", whole, "x"), ("y", nn.Tanh(), "loss"), ("p", nn.Parameter(np.ones((), np.float32)), ())]
    same(nn.Graph([*ways, ("z", nn.Multiply(), ("y", "p"))]), images(3, 4))
    same(nn.Sequential(whole, nn.Softmax(-1)), images(3, 4))


def test_a_batch_norm_in_a_graph_does_what_it_does_alone():
    alone = nn.BatchNorm2d(3)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())

    def freeze(layer, frozen):
        layer.running_mean.trainable = layer.running_var.trainable = not frozen

    def momentum(layer, value):
        layer.momentum = value

    changes = {2: (freeze, True), 4: (freeze, False), 6: (momentum, 0.5), 8: (momentum, None), 10: (momentum, 0.1)}
    for step in range(12):
        if step in changes:
            change, value = changes[step]
            change(alone, value)
            change(model[0], value)
        x, train = images(4, 3, 2, 2, seed=step) * (1 + step) + step, step != 5
        (y, backward), (one, back) = model.forward(x, train), alone.forward(x, train)
        np.testing.assert_array_equal(y, np.maximum(one, 0))
        np.testing.assert_allclose(backward(y), back(y * (one > 0)), rtol=1e-5, atol=1e-6)
        for (name, wanted), (_, actual) in zip(alone.named_buffers(), model[0].named_buffers(), strict=True):
            np.testing.assert_array_equal(actual.data, wanted.data, err_msg=f"{name} after step {step}")
    assert int(alone.num_batches_tracked.data) == 9
    with pytest.raises(ShapeError, match="x must have axes"):
        model.forward(images(4, 3))


def test_a_graph_of_several_inputs_is_prepared_once_for_their_shapes(monkeypatch):
    prepared, begin = [], _repeat._Training.begin
    monkeypatch.setattr(_repeat._Training, "begin", lambda self, k, *x: prepared.append(k) or begin(self, k, *x))
    ways = [("a", nn.Linear(2, 3), "u"), ("b", nn.Linear(2, 3), "v"), ("sum", nn.Add(), ("a", "b"))]
    model, w = nn.Graph([*ways, ("relu", nn.ReLU(), "sum")], inputs=("u", "v")), images(3)
    counts = []
    for n in (3, 3, 5, 5, 3):
        x = images(n, 2), images(n, 2, seed=1)
        y, backward = model.forward(x)
        counts.append(len(prepared))
        np.testing.assert_allclose(y, singly(model, x), rtol=1e-5, atol=1e-6)
        dx = backward(np.broadcast_to(w, y.shape).copy())
        np.testing.assert_allclose(dx[0], ((y > 0) * w) @ model.a.weight.data, rtol=1e-5, atol=1e-6)
    assert counts == [3, 3, 6, 6, 6]


@pytest.mark.parametrize("layout", ["strided", "read-only", "unaligned"])
def test_a_prepared_step_takes_arrays_of_any_layout(layout):
    layers = nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)
    model, x = nn.Sequential(*layers), images(5, 2, 8, 8)
    model.reset_parameters(0)

    def step(x, dy):
        model.zero_grad()
        y, backward = model.forward(x)
        return y, backward(dy), *[parameter.grad for parameter in model.parameters()]

    def changed(a):
        if layout == "strided":
            return np.pad(a, [(0, 1)] * a.ndim)[(slice(-1),) * a.ndim]
        if layout == "unaligned":
            return np.frombuffer(b"0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape)
        a = a.copy()
        a.flags.writeable = False
        return a

    dy = images(5, 4, seed=1)
    wanted = step(x, dy)
    for _ in range(2):
        for actual, one in zip(step(changed(x), changed(dy)), wanted, strict=True):
            np.testing.assert_array_equal(actual, one)

"""Modules of one's own, and networks that are changed: mistakes that would leave a part untrained are refused."""

import numpy as np
import pytest

from xcnn import nn
from xcnn.errors import CheckpointError, ShapeError, UsageError


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda dy: None, "a tuple of 2 gradients, got NoneType"),
        (lambda dy: dy, "a tuple of 2 gradients, got ndarray"),
        (lambda dy: (dy,), "a tuple of 2 gradients, got 1 of them"),
        (lambda dy: (dy, dy, dy), "a tuple of 2 gradients, got 3 of them"),
    ],
)
def test_a_backward_that_leaves_layers_below_untrained_is_refused(given, says):
    class Sum(nn.Module):
        def forward(self, x, train):
            return x[0] + x[1], lambda dy, need_dx: given(dy)

    class Last(nn.Module):
        def forward(self, x, train):
            return x * 1.0, lambda dy, need_dx: None

    x = np.ones((1, 3), np.float32)
    model = nn.Graph([("a", nn.Linear(3, 2), "x"), ("b", nn.Linear(3, 2), "x"), ("sum", Sum(), ("a", "b"))])
    y, backward = model.forward(x)
    with pytest.raises(UsageError, match=f"^Sum: backward must return {says}$"):
        backward(np.ones_like(y))
    y, backward = nn.Sequential(nn.Linear(3, 2), Last()).forward(x)
    with pytest.raises(UsageError, match=r"^Last: backward must return the gradient with respect to x, got None$"):
        backward(np.ones_like(y))
    y, backward = nn.Sequential(Last(), nn.Linear(3, 2)).forward(x)
    assert backward(np.ones_like(y), need_dx=False) is None  # nothing below is trained


@pytest.mark.parametrize("grad", [None, 1.0, [1.0, 1.0], np.ones((3, 2)), np.ones(1)])
def test_a_gradient_of_another_shape_is_refused_where_it_is_given(grad):
    parameter = nn.Parameter(np.ones(2))
    with pytest.raises(ShapeError, match=r"^accumulate: grad must be an array of shape \(2,\), like data, got "):
        parameter.accumulate(grad)
    parameter.accumulate(np.ones(2))
    np.testing.assert_array_equal(parameter.grad, [1, 1])


def test_inputs_may_have_no_gradient():
    class Lookup(nn.Module):
        def forward(self, x, train):
            return np.eye(4, dtype=np.float32)[x], lambda dy, need_dx: None

    class Masked(nn.Module):
        def forward(self, x, train):
            return x[0] * x[1], lambda dy, need_dx: (dy * x[1], None)

    y, backward = nn.Sequential(Lookup(), nn.Linear(4, 2)).forward(np.array([1, 3]))
    assert backward(np.ones_like(y)) is None
    y, backward = Masked().forward((np.ones(3), np.array([1.0, 0.0, 1.0])))
    dx, none = backward(np.ones(3))
    np.testing.assert_array_equal(dx, [1, 0, 1])
    assert none is None


def test_backward_needs_dy():
    model = nn.Sequential(nn.Linear(3, 2))
    _, backward = model.forward(np.ones((1, 3), np.float32))
    with pytest.raises(UsageError, match=r"^Sequential: dy must be the gradient with respect to y, got None$"):
        backward(None, need_dx=False)


def test_a_module_is_put_in_the_place_of_a_node_by_its_name():
    class Net(nn.Graph):
        def __init__(self):
            self.last = nn.Linear(3, 2)
            super().__init__([("body", nn.Linear(3, 3), "x"), ("head", self.last, "body")])

    net, x = Net(), np.ones((1, 3), np.float32)
    head, net.head = net.head, nn.Linear(3, 5)
    assert net(x).shape == (1, 5)
    assert net.last is net.head is not head
    net.other = nn.Linear(3, 5)  # a class of one's own may use it
    assert list(net.state_dict()) == [
        *("body.weight", "body.bias", "head.weight", "head.bias", "other.weight", "other.bias")
    ]
    named = nn.Sequential({"conv": nn.Conv2d(1, 2, 3), "pool": nn.GlobalAvgPool(), "fc": nn.Linear(2, 4)})
    named.fc = nn.Linear(2, 7)
    assert named(np.ones((1, 1, 5, 5), np.float32)).shape == (1, 7)
    named[0] = nn.Conv2d(1, 2, 1)
    assert named.conv.kernel_size == (1, 1)
    assert list(named[1:].state_dict()) == ["fc.weight", "fc.bias"]


def test_a_module_that_would_not_run_cannot_be_assigned_to_a_container():
    model = nn.Sequential({"body": nn.Linear(3, 2), "scale": nn.Identity()})
    says = "Sequential: a module that is assigned to 'fc' would not run; the names of its nodes are body, scale"
    with pytest.raises(UsageError, match=f"^{says}$"):
        model.fc = nn.Linear(3, 5)
    with pytest.raises(UsageError, match=r"^Sequential: body cannot be a module that contains this one$"):
        model.body = nn.Sequential(model)
    with pytest.raises(UsageError, match=r"^Sequential: 'body' must be a module, got Parameter\(2,\)$"):
        model.body = nn.Parameter(np.ones(2))
    for value in (None, 5):  # which would only hide the module, which runs all the same
        with pytest.raises(UsageError, match=rf"^Sequential: 'body' must be a module, got {value}$"):
            model.body = value
    assert isinstance(model.body, nn.Linear)
    with pytest.raises(AttributeError, match="'Sequential' object has no attribute 'fc'"):
        _ = model.fc


def test_weights_that_are_no_host_arrays_are_one_sentence():
    torch = pytest.importorskip("torch")
    theirs, ours = torch.nn.Linear(2, 3), nn.Linear(2, 3)
    remedy = r"got (Parameter|Tensor); convert it, as in tensor\.detach\(\)\.cpu\(\)\.float\(\)\.numpy\(\)$"
    for state in (dict(theirs.named_parameters()), theirs.bfloat16().state_dict()):
        with pytest.raises(CheckpointError, match=f"^load_state_dict: weight must be a host array, {remedy}"):
            ours.load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"^load_state_dict: weight must be a host array, got Parameter$"):
        ours.load_state_dict(dict(ours.named_parameters()))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: nn.summary(nn.ReLU(), 8), r"summary: shape must be the sizes .* such as \(1, 28, 28\), got 8"),
        (lambda: nn.summary(nn.Add(), ((3, 8), (3, 8))), r"summary: shape must be .*, got \(\(3, 8\), \(3, 8\)\)"),
        (lambda: nn.summary(nn.ReLU(), (0, 3)), r"summary: shape must be .*, got \(0, 3\)"),
        (lambda: nn.Linear(3, 2, init=lambda shape: np.zeros(shape)), r"Linear: init must take \(rng, shape\)"),
        (lambda: nn.Linear(3, 2).to(dtype="float64"), "to: missing a required argument: 'where'"),
        (lambda: nn.Linear(3, 2).freeze("0.*"), "freeze: too many positional arguments"),
    ],
)
def test_wrong_calls_are_one_sentence(call, says):
    with pytest.raises(UsageError, match=f"^{says}$"):
        call()


def test_an_error_inside_an_initialiser_stays():
    with pytest.raises(TypeError, match="unsupported operand"):
        nn.Linear(3, 2, init=lambda rng, shape: 1 + None)

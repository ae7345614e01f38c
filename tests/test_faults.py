"""Faults in training: numbers that are not finite. Each raises an error that names its cause, and changes nothing."""

import numpy as np
import pytest
from faults import batch, each_library, everything, fails, network, trainer_of

from xcnn import nn, ops, optim
from xcnn.errors import DivergedError, UsageError
from xcnn.nn._observe import observing
from xcnn.training import Trainer, divergence
from xcnn.training.divergence import look

ADVICE = "; lower the learning rate, clip the gradients, or check the data"
overflows = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


def put(name, value, all_of_it=False):
    """Return a function that sets the first element of a parameter, or all of them."""

    def ruin(model):
        slot = dict(model.named_parameters())[name]
        slot.data = np.full_like(slot.data, value) if all_of_it else slot.data.copy()
        slot.data.flat[0] = value

    return ruin


class Times(nn.Module):
    """A layer that multiplies its input in forward and its gradient in backward."""

    def __init__(self, forward=1.0, backward=1.0):
        self.forward_factor, self.backward_factor = forward, backward

    def forward(self, x, train):
        return x * self.forward_factor, lambda dy, need_dx: dy * self.backward_factor if need_dx else None


class Noise(nn.Module):
    """A layer whose random streams are in a list."""

    def __init__(self):
        self.streams = [np.random.default_rng(0), np.random.default_rng(1)]

    def forward(self, x, train):
        return x + sum(stream.standard_normal(x.shape, np.float32) for stream in self.streams), lambda dy, _: dy


@overflows
def test_random_streams_in_a_list_are_restored():
    model = nn.Sequential(Noise(), Times(np.inf), nn.Flatten(), nn.Linear(64, 10))
    fails(trainer_of(model), *batch())


FIRST = "returned the first numbers that are not finite"


@overflows
@each_library
@pytest.mark.parametrize("where", ["0", "2", "7"])
def test_a_loss_that_is_not_finite_names_the_layer_where_that_begins(backend, where):
    """For every kind of layer, and although a container runs it together with its ReLU."""
    kind = {"0": "Conv2d", "2": "BatchNorm2d", "7": "Linear"}[where]
    model = network()
    trainer = trainer_of(model, backend.spec)
    trainer.step(*batch())
    slot = dict(model.named_parameters())[f"{where}.weight"]
    ruined = backend.to_numpy(slot.data).copy()
    ruined.flat[0] = np.nan
    slot.data = backend.device.asarray(ruined)
    assert fails(trainer, *batch(1)) == f"the loss is nan: layer {where} ({kind}) {FIRST}: its weight holds nan{ADVICE}"


@overflows
def test_finite_weights_are_not_blamed():
    model = network()
    put("7.weight", 3e38, all_of_it=True)(model)
    message = fails(trainer_of(model), *batch())
    assert message.endswith(f": layer 7 (Linear) {FIRST}, from finite inputs and weights{ADVICE}")


@overflows
def test_a_layer_inside_another_has_its_dotted_name():
    model = network()
    put("3.body.0.bias", np.inf)(model)
    message = fails(trainer_of(model), *batch())
    assert f": layer 3.body.0 (Conv2d) {FIRST}: its bias holds inf" in message


@overflows
def test_a_layer_without_weights_can_be_the_first():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Times(forward=np.float32(np.inf)))
    assert fails(trainer_of(model), *batch()).startswith(
        f"the loss is nan: layer 2 (Times) {FIRST}, from finite inputs;"
    )


def test_a_network_of_one_layer_is_named_by_its_class():
    model = nn.Linear(3, 1)
    put("bias", np.nan)(model)
    x = np.ones((2, 3), np.float32)
    message = fails(trainer_of(model, loss="mse_loss"), x, np.ones((2, 1), np.float32))
    assert message == f"the loss is nan: the Linear {FIRST}: its bias holds nan{ADVICE}"


@overflows
@each_library
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_data_that_is_not_finite_is_what_to_check(backend, value):
    x, y = batch()
    x[1, 0, 3, 3] = value
    message = fails(trainer_of(network(), backend.spec), x, y)
    assert message == f"the loss is nan: the examples hold {value}; check the data"


def test_targets_that_are_not_finite_are_what_to_check():
    x = np.ones((2, 3), np.float32)
    message = fails(trainer_of(nn.Linear(3, 1), loss="mse_loss"), x, np.array([[1], [np.inf]], np.float32))
    assert message == "the loss is inf: the targets hold inf; check the data"


@overflows
def test_a_loss_may_overflow_by_itself():
    model = nn.Linear(3, 1)
    model.reset_parameters(0)
    x = np.ones((2, 3), np.float32)
    message = fails(trainer_of(model, loss="mse_loss"), x, np.full((2, 1), 1e38, np.float32))
    assert (
        "the loss is inf: every layer's output is finite, so the loss itself is the first number that is not" in message
    )


class Own(nn.Module):
    """A container that also computes something itself."""

    def __init__(self, forward=1.0, backward=1.0):
        self.linear, self.factors = nn.Linear(64, 10), (forward, backward)

    def forward(self, x, train):
        y, back = self.linear.forward(x, train)
        forward, backward = self.factors
        return y * forward, lambda dy, need_dx: back(dy * backward, need_dx)


def test_what_a_container_computes_is_not_blamed_on_its_layers():
    for model, message in (
        (Own(forward=np.float32(np.nan)), "the loss is nan: the model's output is not finite, though every layer's is"),
        (Own(backward=np.float32(np.nan)), ": the first one is that of the output of layer linear (Linear)"),
    ):
        assert message in fails(trainer_of(nn.Sequential(nn.Flatten(), model)), *batch()).replace("1.linear", "linear")


@overflows
@each_library
def test_an_update_that_overflows_is_named_at_the_next_loss(backend):
    model = network()
    trainer = Trainer(model, optim.SGD(model.parameters(), lr=1e39), device=backend.spec)
    trainer.step(*batch())
    message = fails(trainer, *batch(1))
    assert message == f"the loss is nan: layer 0 (Conv2d) {FIRST}: its weight holds inf{ADVICE}"


# Gradients.


@overflows
@each_library
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"clip_value": 1.0}])
def test_a_gradient_that_is_not_finite_names_the_layer_where_that_begins(backend, options):
    model = network()
    model = nn.Sequential(*list(model)[:4], Times(backward=float("inf")), *list(model)[4:])
    trainer = trainer_of(model, backend.spec, **options)
    model[4].backward_factor = 1.0
    trainer.step(*batch())
    model[4].backward_factor = float("inf")
    message = fails(trainer, *batch(1))
    assert message.startswith("a gradient is not finite, the loss is ")
    assert message.endswith(f": the first one is that of the input of layer 4 (Times){ADVICE}")


@overflows
def test_a_weight_whose_gradient_overflows_is_named():
    """Images, weights and loss are finite, but the product of the images with the gradient is not."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False), nn.Linear(1, 1))
    put("1.weight", 1e-38, all_of_it=True)(model)
    put("2.weight", 100.0)(model)
    x, y = np.full((4, 1, 2, 2), 3e38, np.float32), np.zeros((4, 1), np.float32)
    message = fails(trainer_of(model, loss="mse_loss"), x, y)
    assert message.endswith(f": the first one is that of the weight of layer 1 (Linear){ADVICE}")


def test_a_loss_may_give_the_first_gradient_that_is_not_finite():
    def loss(output, target):
        value, backward = ops.cross_entropy(output, target)
        return value, lambda: (backward()[0] * np.float32(np.nan),)

    assert ": the first one is that of the model's output, from the loss;" in fails(
        trainer_of(network(), loss=loss), *batch()
    )


def test_a_hidden_layer_is_named_by_its_parameter():
    class Hidden(Own):
        def forward(self, x, train):
            y, back = self.linear.call_op(x)
            return y, lambda dy, need_dx: back(dy * np.float32(np.nan), need_dx)

    message = fails(trainer_of(nn.Sequential(nn.Flatten(), Hidden())), *batch())
    assert message.endswith(f": the first one is that of 1.linear.bias{ADVICE}")


def test_frozen_parameters_do_not_count():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Times(backward=np.float32(np.nan)), nn.Linear(8, 10))
    model.reset_parameters(0)
    trainer = Trainer(model, optim.SGD(model[3].parameters(), lr=0.1))
    assert np.isfinite(trainer.step(*batch()))


def test_a_bad_batch_does_not_affect_later_training():
    """With the same dropout masks and running statistics as without the bad batch."""
    trainer, twin = trainer_of(network()), trainer_of(network())
    nan = np.full((4, 1, 8, 8), np.nan, np.float32)
    for i in range(4):
        with pytest.raises(DivergedError):
            trainer.step(nan, batch()[1])
        assert trainer.step(*batch(i)) == twin.step(*batch(i))
    assert everything(trainer) == everything(twin)


@each_library
def test_large_gradients_are_no_false_alarm(backend):
    """Their sum and their squares overflow, but each of them is finite."""

    def finite(gradients):
        return look([backend.device.asarray(np.float32(1))], gradients)[1]

    arrays = [backend.device.asarray(np.full(n, 3e38, np.float32)) for n in (3, 5)]
    assert finite([*arrays, None])
    assert finite([])
    for value in (np.nan, np.inf, -np.inf):
        host = np.array([[1, value, 2]], np.float32)
        assert not finite([*arrays, backend.device.asarray(host)])
        assert not finite([backend.device.asarray(host[:, 1:]), *arrays])
    both = np.array([np.inf, -np.inf], np.float32)
    assert not finite([backend.device.asarray(both)])


@each_library
def test_values_that_are_read_together_keep_their_bits(backend, dtype):
    """The loss in its own dtype and the count as an integer, even if it is too large for half precision."""
    loss, right = np.asarray(1 / 3, dtype), np.asarray(2**24 - 1)
    gradients = [backend.device.asarray(np.ones(n, np.float32)) for n in (1, 2)]
    several = np.array([2**24 - 1, 2**24 - 1, 1])  # the sum is too large for single precision
    numbers = [backend.device.asarray(loss), None, backend.device.asarray(right), backend.device.asarray(several), 7]
    seen, finite = look(numbers, gradients)
    assert seen == [float(loss), None, 2**24 - 1, 2**25 - 1, 7]
    assert finite is True
    assert [type(value) for value in seen] == [float, type(None), int, int, int]
    assert look(numbers[:1]) == ([float(loss)], True)
    if backend.name == "torch":
        half = backend.device.xp.astype(backend.device.asarray(loss), backend.device.xp.bfloat16)
        assert look([half, numbers[2]], gradients) == ([float(half), 2**24 - 1], True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_numpy_arrays_of_any_kind_are_checked(dtype):
    most = np.finfo(dtype).max
    arrays = [np.full((4, 4), most, dtype)[::2, ::-1], np.array(1, dtype), dtype(most), np.ones((0, 3), dtype)]
    assert look([0.0], arrays)[1]
    for bad in (np.array(np.nan, dtype), dtype(np.inf), np.full((4, 4), np.inf, dtype)[::2, ::-1]):
        assert not look([0.0], [np.ones(3, dtype), bad])[1]


def test_labels_out_of_range_are_still_named_first():
    x, _ = batch()
    assert "the labels hold 12" in fails(trainer_of(network(), "strict"), x, np.array([1, 2, 3, 12]), UsageError)


def test_labels_that_the_op_itself_refuses_change_nothing():
    x, _ = batch()
    assert "12" in fails(trainer_of(network(), "cpu"), x, np.array([1, 2, 3, 12]), UsageError)


def test_a_loss_that_is_a_python_number_costs_no_more_reads(monkeypatch):
    strict, read = pytest.importorskip("array_api_strict"), []
    for name in ("__float__", "__bool__", "__int__"):
        old = getattr(type(strict.ones(1)), name)
        monkeypatch.setattr(type(strict.ones(1)), name, lambda self, old=old: (read.append(1), old(self))[1])
    moved, to_host = [], divergence.to_numpy
    monkeypatch.setattr(divergence, "to_numpy", lambda array: (moved.append(1), to_host(array))[1])
    gradients = [strict.ones(n, dtype=strict.float32, device=strict.Device("device1")) for n in (1, 2, 3)]
    assert look([0.1, 2], gradients) == ([0.1, 2], True)
    assert look([0.1, 2], [*gradients, gradients[0] * np.inf])[1] is False
    assert moved == [1, 1]
    assert len(read) <= 2  # to find which


def test_observers_can_be_nested():
    model, seen = nn.Sequential(nn.ReLU()), []

    def watcher(mark):
        def observer(name, layer):
            forward = layer.forward
            return lambda x, train=True: (seen.append(mark), forward(x, train))[1]

        return observer

    with observing(model, watcher("outer")):
        with observing(model, watcher("inner")):
            model(np.ones(1))
        model(np.ones(1))
    model(np.ones(1))
    assert seen == ["inner", "outer", "outer"]

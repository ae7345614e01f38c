"""Resuming: a trainer restored from any step ends with the same bits as an uninterrupted one."""

import copy
import functools
import itertools
import json

import numpy as np
import pytest
from resumable import OPTIMIZERS, SCHEDULES, batches, loader, make_trainer, small_digits
from tasks import TASKS, trainer_of

from xcnn import data, nn, optim
from xcnn.errors import CheckpointError, UsageError
from xcnn.runs.sealed import pack, unpack
from xcnn.training import EMA, Callback, EarlyStopping, KeepBest, Trainer, class_weight, loss_named

TIMES = ("seconds", "data_seconds", "samples_per_second")
EPOCHS = 3


@pytest.fixture(scope="module")
def digits():
    return small_digits()


class Spy(Callback):
    """Records the state after every batch and every epoch, as a checkpoint does."""

    def __init__(self):
        self.states = []

    def on_batch_end(self, trainer, epoch, batch, metrics):
        self.keep(trainer)

    def on_epoch_end(self, trainer, record):
        self.keep(trainer)

    def keep(self, trainer):
        plain, arrays = pack(trainer.state_dict(), "state")
        self.states.append((json.dumps(plain), {name: array.copy() for name, array in arrays.items()}))


def without_times(history):
    return [{name: value for name, value in record.items() if name not in TIMES} for record in history]


def outcome(trainer):
    """Return everything that must have the same bits at the end."""
    plain, arrays = pack({**trainer.state_dict(), "history": without_times(trainer.history)}, "state")
    return plain, {name: array.tobytes() for name, array in arrays.items()}


def assert_same_from_every_step(make, made_batches, validation):
    spy = Spy()
    alone = make(callbacks=[EarlyStopping(patience=9), spy])
    alone.fit(made_batches(), EPOCHS, validation)
    expected = outcome(alone)
    assert len(spy.states) == EPOCHS * 5
    for plain, arrays in spy.states:
        stopping = EarlyStopping(patience=9)
        trainer = make(callbacks=[stopping, Spy()])
        trainer.load_state_dict(unpack(json.loads(plain), arrays))
        left = EPOCHS - len(trainer.history)
        if left:
            trainer.fit(made_batches(), left, validation)
            assert stopping.best is not None
            assert outcome(trainer) == expected
        assert trainer.steps == EPOCHS * 4
        assert without_times(trainer.history) == without_times(alone.history)
        assert trainer.history[0]["seconds"] > 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_ends_alike_from_every_step_with_each_schedule(digits, schedule):
    train, test = digits
    make = functools.partial(make_trainer, "sgd", schedule, clip_norm=1.0)
    assert_same_from_every_step(make, lambda: loader(train), test)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_ends_alike_from_every_step_with_each_optimizer(digits, optimizer):
    train, test = digits
    assert_same_from_every_step(functools.partial(make_trainer, optimizer), lambda: loader(train), test)


class Items:
    """A map-style data set."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset.x[index], self.dataset.y[index]


def test_batches_made_ahead_by_workers_go_on_where_they_were(digits):
    """Of a map-style data set, and without workers."""
    train, test = digits

    def made(workers, dataset):
        return data.Loader(dataset, 50, seed=3, augment=[data.shift, data.cutout], workers=workers)

    workers = itertools.cycle([2, 0, 3])
    assert_same_from_every_step(make_trainer, lambda: made(next(workers), Items(train)), Items(test))
    alone, ahead = make_trainer(), make_trainer()
    alone.fit(loader(train), 2)
    ahead.fit(made(2, Items(train)), 2)
    assert outcome(alone) == outcome(ahead)


def test_a_list_of_batches_goes_on_where_it_was(digits):
    train, test = digits
    assert_same_from_every_step(make_trainer, lambda: batches(train), test)


def test_parts_averages_and_the_best_weights_go_on_where_they_were(digits):
    train, test = digits

    def make(callbacks):
        ours = [EMA(0.9), KeepBest(monitor="val_precision", mode="max"), *callbacks]
        return make_trainer("sgd", accumulate=3, metrics={"precision": precision}, callbacks=ours)

    assert_same_from_every_step(make, lambda: loader(train), test)


def test_a_frozen_part_is_the_same_wherever_the_run_goes_on(digits):
    """Weights and running statistics, with momentum and weight decay."""
    train, test = digits
    made = []

    def make(callbacks):
        made.append(make_trainer("sgd", callbacks=callbacks))
        made[-1].model[:2].freeze()
        return made[-1]

    assert_same_from_every_step(make, lambda: loader(train), test)
    start = make_trainer().model[:2].state_dict()
    for trainer in made:
        assert {name: trainer.model.state_dict()[name].tobytes() for name in start} == {
            name: array.tobytes() for name, array in start.items()
        }


def precision(targets, predictions):
    return float((predictions.argmax(axis=1) == targets).mean())


def test_segmentation_goes_on_where_it_was():
    """With class weights, pixels that are ignored, and parts."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 6, 1, 5, 5)).astype(np.float32)
    y = np.where(rng.random((4, 6, 5, 5)) < 0.3, -100, x[:, :, 0] > 0)

    def make(callbacks):
        model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))
        model.reset_parameters(0)
        loss = loss_named("cross_entropy", weight=class_weight("balanced", y, 2))
        return Trainer(model, optim.Adam(model.parameters(), 0.01), loss, accumulate=2, callbacks=callbacks)

    assert_same_from_every_step(make, lambda: list(zip(x, y, strict=True)), [(x[0], y[1])])


@pytest.mark.parametrize("task", TASKS)
def test_every_task_goes_on_where_it_was(task):
    """With batches that workers prepare, and another number of them."""
    model, loss, x, y = TASKS[task]
    workers = itertools.cycle([2, 0, 3])

    def make(callbacks):
        return trainer_of(copy.deepcopy(model), loss, callbacks=[EMA(0.9), KeepBest(), *callbacks])

    assert_same_from_every_step(make, lambda: data.Loader((x, y), 3, seed=1, workers=next(workers)), [(x, y)])


@pytest.mark.parametrize("where", ["strict:device1", "strict"])
def test_another_device_can_go_on(digits, where):
    """Saved on the CPU and resumed elsewhere: the same run within rounding."""
    pytest.importorskip("array_api_strict")
    train, test = digits
    spy = Spy()
    # Adam makes steps of the bias before batch norm, whose gradient is noise.
    alone = make_trainer("sgd", callbacks=[spy])
    alone.fit(loader(train), 2, test)
    plain, arrays = spy.states[2]
    other = make_trainer("sgd", device=where)
    other.load_state_dict(unpack(json.loads(plain), arrays))
    other.fit(loader(train), 2, test)
    for name, value in alone.model.state_dict().items():
        np.testing.assert_allclose(other.model.state_dict()[name], value, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.Philox, np.random.SFC64, np.random.PCG64DXSM])
def test_random_streams_of_every_kind_go_on(digits, kind):
    train, _ = digits
    trainer, other = make_trainer(), make_trainer()
    trainer.model[5].rng = np.random.Generator(kind(5))
    other.model[5].rng = np.random.Generator(kind(6))
    trainer.step(*batches(train)[0])
    plain, arrays = pack(trainer.state_dict(), "state")
    other.load_state_dict(unpack(json.loads(json.dumps(plain)), arrays))
    assert trainer.model[5].rng.random(5).tolist() == other.model[5].rng.random(5).tolist()


def test_an_interrupted_fit_does_not_count_unless_its_state_is_loaded(digits):
    train, _ = digits

    class Stop(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            if trainer.steps == 2:
                raise ValueError("stop")

    trainer, twin = make_trainer(callbacks=[Stop()]), make_trainer()
    with pytest.raises(ValueError, match="stop"):
        trainer.fit(loader(train), 1)
    assert trainer.unfinished == 2
    trainer.fit(loader(train), 1)
    for x, y in [*list(loader(train))[:2], *loader(train)]:
        twin.step(x, y)
    assert outcome(trainer)[1]["state.weights.0.weight"] == outcome(twin)[1]["state.weights.0.weight"]
    assert trainer.unfinished == 0


def test_an_unfinished_epoch_wants_the_same_kind_of_batches(digits):
    for first, second in ((loader, batches), (batches, loader)):
        spy = Spy()
        make_trainer(callbacks=[spy]).fit(first(digits[0]), 1)
        trainer = make_trainer()
        trainer.load_state_dict(unpack(json.loads(spy.states[1][0]), spy.states[1][1]))
        with pytest.raises(CheckpointError, match=r"but the state is inside an epoch of (no|a) Loader"):
            trainer.fit(second(digits[0]), 1)


def put(state, path, value):
    """Change one entry of a state."""
    *above, last = path
    for key in above:
        state = state[key]
    state[last] = value


def state_of(digits):
    spy = Spy()
    trainer = make_trainer("sgd", "cosine", callbacks=[EarlyStopping("train_loss"), spy])
    trainer.fit(loader(digits[0]), 1)
    plain, arrays = spy.states[1]
    return unpack(json.loads(plain), arrays)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("weights",), {}),
        (("weights", "0.weight"), np.zeros(3)),
        (("optimizer",), 3),
        (("optimizer", "state"), {"99": {}}),
        (("optimizer", "state"), {"x": {}}),
        (("optimizer", "state"), [1]),
        (("optimizer", "param_groups"), []),
        (("optimizer", "param_groups"), [1]),
        (("schedule",), None),
        (("schedule",), {"last_epoch": "x"}),
        (("schedule",), 3),
        (("streams",), {}),
        (("streams", "5.rng"), {}),
        (("streams", "5.rng"), "x"),
        (("history",), 3),
        (("history",), [3]),
        (("steps",), "many"),
        (("epoch",), {}),
        (("epoch", "batch"), -1),
        (("epoch", "batch"), None),
        (("epoch", "metrics"), {}),
        (("epoch", "metrics", "samples"), "x"),
        (("epoch", "metrics", "samples"), 10**400),
        (("epoch", "metrics", "counted"), -1),
        (("epoch", "seconds"), [1]),
        (("epoch", "data_seconds"), None),
        (("steps",), 10**400),
        (("steps",), -1),
        (("history",), [{"epoch": 1}]),
        (("optimizer", "state", "0", "step"), -1),
        (("optimizer", "state", "0", "momentum_buffer"), 10**400),
        (("schedule", "last_epoch"), -1),
        (("schedule", "last_epoch"), np.zeros(3)),
        (("optimizer", "param_groups", 0, "lr"), 10**400),
        (("streams",), np.zeros(3)),
        (("epoch",), np.zeros(3)),
        (("callbacks",), 3),
    ],
)
def test_a_state_that_does_not_fit_is_refused(digits, path, value):
    state = state_of(digits)
    put(state, path, value)
    with pytest.raises((CheckpointError, UsageError)):
        make_trainer("sgd", "cosine").load_state_dict(state)


def test_a_state_without_a_part_is_refused(digits):
    for missing in state_of(digits):
        state = state_of(digits)
        del state[missing]
        with pytest.raises(CheckpointError):
            make_trainer("sgd", "cosine").load_state_dict(state)
    with pytest.raises(CheckpointError, match="does it belong to another optimizer"):
        make_trainer("adam", "cosine").load_state_dict(state_of(digits))


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 49), ("shuffle", False), ("seed", 4), ("drop_last", True), ("examples", 171)]
)
def test_an_unfinished_epoch_goes_on_with_the_same_batches_alone(digits, name, value):
    """The settings that determine the batches must not change until the epoch is finished."""
    state = state_of(digits)
    train = data.load("digits")[0][:171] if name == "examples" else digits[0]
    options = {"batch_size": 50, "seed": 3} | ({} if name == "examples" else {name: value})
    other = data.Loader(train, **options)
    trainer = make_trainer("sgd", "cosine", callbacks=[EarlyStopping("train_loss")])
    trainer.load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"fit: train is a Loader with .*, but the state is inside an epoch of a"):
        trainer.fit(other)
    assert trainer.unfinished == 2
    trainer.fit(loader(digits[0]))  # the error has changed nothing
    put(state, ("epoch",), None)
    trainer.load_state_dict(state)
    trainer.fit(other)


def test_a_callback_refuses_the_state_of_another(digits):
    for state in (
        {},
        {"best": "x", "best_epoch": 1},
        {"best": 10**400, "best_epoch": 1},
        {"best": 0.1, "best_epoch": -1},
    ):
        with pytest.raises(CheckpointError, match="EarlyStopping: the state must hold best and best_epoch"):
            EarlyStopping().load_state_dict(state)
    other = EarlyStopping("val_accuracy")
    other.load_state_dict({"monitor": "val_loss", "best": 0.1, "best_epoch": 3})
    assert other.best is None  # it monitors another metric now


def test_looking_at_the_loader_meanwhile_changes_nothing(digits):
    """A callback that plots a batch iterates over the loader itself."""

    class Peek(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            next(iter(batches))

        def on_epoch_end(self, trainer, record):
            list(batches)

    spy, batches = Spy(), loader(digits[0])
    alone = make_trainer(callbacks=[Peek(), spy])
    alone.fit(batches, 2)
    for index in (1, 4):
        plain, arrays = spy.states[index]
        trainer, batches = make_trainer(callbacks=[Peek(), Spy()]), loader(digits[0])
        trainer.load_state_dict(unpack(json.loads(plain), arrays))
        trainer.fit(batches, until=2)
        assert outcome(trainer) == outcome(alone)


def test_a_state_goes_in_when_it_is_loaded(digits):
    """Saving right after loading returns the same state."""
    spy = Spy()
    make_trainer(callbacks=[EarlyStopping("train_loss"), spy]).fit(loader(digits[0]), 1)
    plain, arrays = spy.states[1]
    trainer = make_trainer(callbacks=[EarlyStopping("train_loss"), Spy()])
    trainer.load_state_dict(unpack(json.loads(plain), arrays))
    again, more = pack(trainer.state_dict(), "state")
    assert json.loads(json.dumps(again)) == json.loads(plain)
    assert {name: array.tobytes() for name, array in more.items()} == {n: a.tobytes() for n, a in arrays.items()}


def test_until_trains_what_is_left(digits):
    trainer = make_trainer()
    assert len(trainer.fit(loader(digits[0]), until=2)) == 2
    assert trainer.fit(loader(digits[0]), until=2) == []
    assert len(trainer.fit(loader(digits[0]), until=3)) == 1
    assert len(trainer.history) == 3


def test_a_run_that_was_stopped_early_stays_stopped(digits):
    def stopping():
        return EarlyStopping("train_loss", patience=1, min_delta=99)

    spy = Spy()
    first = make_trainer(callbacks=[stopping(), spy])
    first.fit(loader(digits[0]), until=9)
    assert len(first.history) == 2
    plain, arrays = spy.states[-1]
    second = make_trainer(callbacks=[stopping()])
    second.load_state_dict(unpack(json.loads(plain), arrays))
    assert second.fit(loader(digits[0]), until=9) == []
    assert second.stop_reason == first.stop_reason != ""
    assert len(second.fit(loader(digits[0]), 1)) == 1  # unless it is asked for more


def test_the_time_of_an_epoch_is_that_of_all_its_parts(digits):
    spy = Spy()
    make_trainer(callbacks=[spy]).fit(loader(digits[0]), 1)
    plain, arrays = spy.states[1]
    state = unpack(json.loads(plain), arrays)
    state["epoch"]["seconds"] = 1000.0
    trainer = make_trainer()
    trainer.load_state_dict(state)
    (record,) = trainer.fit(loader(digits[0]), until=1)
    assert 1000 < record["seconds"] < 1100


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("callbacks", "EarlyStopping"), 3),
        (("callbacks", "EarlyStopping"), {"best": "x"}),
        (("epoch", "settings"), 3),
        (("epoch", "settings"), None),
        (("epoch", "settings"), {}),
        (("epoch", "settings", "batch_size"), 1),
        (("epoch", "batch"), 5),
    ],
)
def test_callbacks_and_the_place_in_the_epoch_are_checked(digits, path, value):
    state = state_of(digits)
    put(state, path, value)
    trainer = make_trainer("sgd", "cosine", callbacks=[EarlyStopping("train_loss")])
    with pytest.raises(CheckpointError):
        load_and_fit(trainer, state, digits)


def load_and_fit(trainer, state, digits):
    trainer.load_state_dict(state)
    trainer.fit(loader(digits[0]), 1)


def test_a_list_that_has_become_too_short_is_refused(digits):
    spy = Spy()
    make_trainer(callbacks=[spy]).fit(batches(digits[0]), 1)
    trainer = make_trainer()
    trainer.load_state_dict(unpack(json.loads(spy.states[2][0]), spy.states[2][1]))
    with pytest.raises(CheckpointError, match="train has 2 batches, but the state is after 3 of the epoch"):
        trainer.fit(batches(digits[0])[:2], 1)

"""The trainer and its callbacks: against a plain loop, against PyTorch, and after interrupted or failed runs."""

import copy
import csv
import json
import os
import signal
import threading

import numpy as np
import pytest
from conftest import LIBRARIES

from xcnn import data, models, nn, ops, optim
from xcnn._dispatch import COMPILATION
from xcnn.devices import Device
from xcnn.errors import DataError, DivergedError, DtypeError, ShapeError, UsageError
from xcnn.training import Callback, EarlyStopping, HistoryFile, KeepBest, Trainer, confusion_matrix, feed, loss_named
from xcnn.training.losses import Loss


def small_network(seed=0):
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.25), nn.Linear(48, 10)
    )
    network.reset_parameters(seed)
    return network


def make_trainer(seed=0, **options):
    network = small_network(seed)
    return Trainer(network, optim.SGD(network.parameters(), lr=0.1, momentum=0.9), **options)


@pytest.fixture(scope="module")
def digits():
    train, test = data.load("digits")
    return train[:200], test[:100]


def test_step_is_forward_loss_backward_update(digits):
    train, _ = digits
    x, y = data.to_float(train.x[:16]), train.y[:16]
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    network.reset_parameters(1)
    weight, bias = (p.data.astype(np.float64) for p in network.parameters())
    loss = Trainer(network, optim.SGD(network.parameters(), lr=0.5)).step(x, y)
    flat = x.reshape(16, 64).astype(np.float64)
    logits = flat @ weight.T + bias
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(p[range(16), y]).mean(), rel=1e-5)
    p[range(16), y] -= 1
    np.testing.assert_allclose(network[1].weight.data, weight - 0.5 * p.T @ flat / 16, atol=1e-6)
    np.testing.assert_allclose(network[1].bias.data, bias - 0.5 * p.mean(axis=0), atol=1e-6)


def test_training_follows_pytorch():
    """Thirty steps of momentum SGD with clipping and a schedule end at PyTorch's weights."""
    torch = pytest.importorskip("torch")
    ours = models.build("lenet5", (1, 16, 16), 10, seed=3).to("cpu", "float64")
    layers = []
    for layer in ours:
        match type(layer).__name__:
            case "Conv2d":
                o, c, k, _ = layer.weight.data.shape
                layers.append(torch.nn.Conv2d(c, o, k, padding=2 if k == 5 and c == 1 else 0))
            case "Linear":
                o, c = layer.weight.data.shape
                layers.append(torch.nn.Linear(c, o))
            case "MaxPool2d":
                layers.append(torch.nn.MaxPool2d(2))
            case name:
                layers.append(getattr(torch.nn, name)())
    theirs = torch.nn.Sequential(*layers).double()
    theirs.load_state_dict({name: torch.tensor(value) for name, value in ours.state_dict().items()})
    our_optimizer = optim.SGD(ours.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    their_optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    trainer = Trainer(
        ours,
        our_optimizer,
        schedule=optim.CosineAnnealingLR(our_optimizer, T_max=30, unit="step"),
        clip_norm=0.5,
        clip_value=0.1,
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(their_optimizer, T_max=30)
    rng = np.random.default_rng(0)
    for _ in range(30):
        x, y = rng.random((8, 1, 16, 16)), rng.integers(0, 10, 8)
        loss = trainer.step(x, y)
        their_optimizer.zero_grad()
        their_loss = torch.nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(y))
        their_loss.backward()
        torch.nn.utils.clip_grad_value_(theirs.parameters(), 0.1)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        their_optimizer.step()
        scheduler.step()
        assert loss == pytest.approx(their_loss.item(), rel=1e-9)
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[name], value.numpy(), rtol=1e-8, atol=1e-10, err_msg=name)


def test_fit_reports_what_went_by(digits):
    """The record of an epoch is the mean over its images, before each update, also with a smaller last batch."""
    train, test = digits
    trainer, twin = make_trainer(), make_trainer()
    (record,) = trainer.fit(data.Loader(train, 48, seed=5), 1, validation=test)
    losses, right = [], 0
    for x, y in data.Loader(train, 48, seed=5):
        output, backward = twin.model.forward(x, train=True)
        loss, loss_backward = ops.cross_entropy(output, y)
        losses += [float(loss)] * len(x)
        right += int((output.argmax(axis=1) == y).sum())
        twin.optimizer.zero_grad()
        backward(loss_backward()[0])
        twin.optimizer.step()
    assert record["epoch"] == 1
    assert record["train_loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert record["train_accuracy"] == right / 200
    probabilities = trainer.predict(test)
    assert record["val_accuracy"] == (probabilities.argmax(axis=1) == test.y).mean()
    assert record["val_loss"] == pytest.approx(-np.log(probabilities[range(100), test.y]).mean(), rel=1e-4)
    assert record["samples_per_second"] == pytest.approx(200 / record["seconds"])


def test_compiling_kernels_is_no_training_time(monkeypatch):
    class Compiles(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            COMPILATION.seconds += 1000.0  # as if the step had compiled that long

    monkeypatch.setattr(COMPILATION, "seconds", 0.0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    trainer = Trainer(model, optim.SGD(model.parameters()), callbacks=[Compiles()])
    batches = [(np.ones((2, 1, 2, 2), np.float32), np.array([0, 1]))] * 3
    (record,) = trainer.fit(batches)
    assert -3000.0 <= record["seconds"] < -2000.0


def test_one_seed_gives_identical_bits(digits):
    train, _ = digits
    states = []
    for _ in range(2):
        trainer = make_trainer(seed=7)
        trainer.fit(data.Loader(train, 32, seed=7, augment=[data.shift, data.flip]), 3)
        states.append(trainer.model.state_dict())
    for name, value in states[0].items():
        assert value.tobytes() == states[1][name].tobytes(), name
    other = make_trainer(seed=8)
    other.fit(data.Loader(train, 32, seed=8), 3)
    assert other.model.state_dict()["0.weight"].tobytes() != states[0]["0.weight"].tobytes()


@pytest.mark.parametrize("backend", LIBRARIES, indirect=True)
def test_trains_on_every_library(backend, digits):
    """Training, evaluation and prediction on another library end where NumPy ends (float64)."""
    train, test = digits
    results = []
    with backend.setting("float64"):
        for where in ("cpu", backend.spec):
            network = small_network(2).to("cpu", "float64")
            trainer = Trainer(network, optim.Adam(network.parameters(), lr=0.01), device=where)
            for x, y in data.Loader(train, 50, seed=1):
                trainer.step(x.astype(np.float64), y)
            images = data.to_float(test.x).astype(np.float64)
            results.append((network.state_dict(), trainer.predict(images)))
    for name, value in results[0][0].items():
        np.testing.assert_allclose(results[1][0][name], value, rtol=1e-10, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=1e-9, atol=1e-12)


AWAY = pytest.mark.parametrize("backend", [name for name in LIBRARIES if name != "numpy"], indirect=True)


def deep_network():
    """Make a network that also has running statistics and a random stream."""
    network = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), *small_network()[2:])
    network.reset_parameters(4)
    return network


def deep_trainer(where, **options):
    network = deep_network()
    optimizer = optim.Adam(network.parameters(), lr=0.01)
    schedule = optim.CosineAnnealingLR(optimizer, T_max=20, unit="step")
    return Trainer(network, optimizer, device=where, schedule=schedule, clip_norm=1.0, clip_value=0.5, **options)


@AWAY
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_batches_made_on_the_device_change_no_bit(backend, kind, digits, monkeypatch):
    """Training and validation end with the bits that batches from the host end with."""
    results, parts = [], digits
    if kind == "float32":
        parts = [data.Dataset(data.to_float(part.x), part.y, part.classes, "floats") for part in parts]
    for where in ("cpu", backend.spec):
        trainer = deep_trainer(backend.spec)
        train, test = (data.Loader(part.to(where), 50, seed=3) for part in parts)
        monkeypatch.setattr(feed, "_MOST_BYTES", 0)  # `fit` moves none by itself
        trainer.fit(train, 2, validation=test)
        results.append((trainer.model.state_dict(), untimed(trainer.history), trainer.predict(test)))
    for name, value in results[0][0].items():
        assert results[1][0][name].tobytes() == value.tobytes(), name
    assert results[1][1] == results[0][1]
    assert results[1][2].tobytes() == results[0][2].tobytes()


def untimed(history):
    return [{name: value for name, value in one.items() if name not in TIMES} for one in history]


TIMES = ("seconds", "data_seconds", "samples_per_second")


NUMBERS = ("__bool__", "__complex__", "__float__", "__index__", "__int__")
READS = {
    "strict-device1": (*NUMBERS, "to_device"),  # np.asarray raises there
    "torch": (*NUMBERS, "__array__", "item", "tolist", "numpy"),
}
"""Methods that read an array on the host; the last one is what `to_numpy` calls."""


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("backend", READS, indirect=True)
def test_a_step_waits_for_the_device_once(backend, shuffle, digits, monkeypatch):
    """For the loss, whether the gradients are finite, and the number of correct predictions, all at once."""
    seen, steps = [], []
    loader = data.Loader(digits[0].to(backend.spec), 50, shuffle=shuffle)

    def note(kind, name):
        method = getattr(kind, name)

        def noted(self, *args, **options):
            seen.append(np.shape(args[0]) if kind is Device else name)
            return method(self, *args, **options)

        monkeypatch.setattr(kind, name, noted)

    class Spy(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            steps.append(seen.copy())
            seen.clear()

    trainer = deep_trainer(backend.spec, callbacks=[Spy()])
    kind = type(trainer.model[0].weight.data)
    for name in READS[backend.name]:
        note(kind, name)
    note(Device, "asarray")
    trainer.fit(loader, 2)
    indices = [(50,)] if shuffle else []
    assert steps == [[*indices, READS[backend.name][-1]]] * 8


def test_predict_gives_probabilities_for_any_batching(digits):
    _, test = digits
    trainer = make_trainer()
    whole, pieces = trainer.predict(test), trainer.predict(data.to_float(test.x), batch_size=7)
    assert whole.shape == (100, 10)
    np.testing.assert_allclose(whole.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(whole, pieces, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match=r"predict: x must be .* got \(0, 1, 8, 8\)"):
        trainer.predict(np.zeros((0, 1, 8, 8), np.float32))


def test_regression_has_no_accuracy():
    rng = np.random.default_rng(0)
    network = nn.Linear(3, 1)
    network.reset_parameters(0)
    trainer = Trainer(network, optim.SGD(network.parameters(), lr=0.1), "mse_loss")
    x = rng.standard_normal((64, 3)).astype(np.float32)
    y = x @ np.array([[1.0], [-2.0], [0.5]], np.float32)
    (*_, record) = trainer.fit([(x, y)] * 20, 3)
    assert record["train_accuracy"] is None
    assert record["train_loss"] < 1e-2
    np.testing.assert_allclose(trainer.predict(x), network(x))


def test_own_loss_function(digits):
    train, _ = digits

    def doubled(output, target):
        loss, backward = ops.cross_entropy(output, target)
        return 2 * loss, lambda: (2 * backward()[0],)

    ours, theirs = make_trainer(loss=doubled), make_trainer()
    theirs.optimizer.param_groups[0]["lr"] *= 2
    x, y = data.to_float(train.x[:32]), train.y[:32]
    assert ours.step(x, y) == pytest.approx(2 * theirs.step(x, y))
    np.testing.assert_allclose(ours.model[0].weight.data, theirs.model[0].weight.data, rtol=1e-6)


def test_loss_options_reach_the_op():
    loss = loss_named("cross_entropy", label_smoothing=0.2)
    x, y = np.random.default_rng(0).standard_normal((4, 3)), np.array([0, 2, 1, 1])
    assert float(loss(x, y)[0]) == float(ops.cross_entropy(x, y, label_smoothing=0.2)[0])
    with pytest.raises(UsageError, match="unknown loss 'crossentropy'; did you mean 'cross_entropy'"):
        loss_named("crossentropy")


def test_a_loss_that_is_prepared_notices_labels_options_and_dtypes():
    loss, x = Loss(ops.cross_entropy, target="classes", options={}), np.eye(3, 4, dtype=np.float32)
    labels = np.array([0, 3, -100])

    def same(x, labels, **options):
        (value, backward), (wanted, plain) = loss(x, labels), ops.cross_entropy(x, labels, **options)
        assert value == wanted
        assert value.dtype == x.dtype
        np.testing.assert_array_equal(loss.gradient(backward, (x.shape, x.dtype)), plain()[0])

    for _ in range(3):
        same(x, labels)
        same(2 * x, labels[::-1])
        same(x.astype(np.float64), labels.astype(np.int8))
        with pytest.raises(UsageError, match="target holds 4"):
            loss(x, labels + 1)
        with pytest.raises(ShapeError):
            loss(x, labels[:2])
    loss.options["label_smoothing"] = 0.1
    same(x, labels, label_smoothing=0.1)
    assert copy.deepcopy(loss) == loss
    for weight in (None, np.arange(1, 5, dtype=np.float32), None):
        loss.options["weight"] = weight
        for _ in range(2):
            same(x, labels, label_smoothing=0.1, weight=weight)


def test_the_backward_pass_of_a_prepared_loss_takes_what_that_of_the_op_takes():
    loss, x, labels = loss_named("cross_entropy"), np.eye(3, 4, dtype=np.float32), np.array([0, 3, 1])
    for _ in range(3):
        backward = loss(x, labels)[1]
        np.testing.assert_array_equal(backward(np.float32(2))[0], 2 * backward()[0])
        assert backward(needs=(False, False, False))[0] is None
        assert backward.saved()
        with pytest.raises(DtypeError):
            backward(2)


def test_nan_loss_stops_before_the_weights_are_hurt(digits):
    train, _ = digits
    good = [(data.to_float(train.x[:8]), train.y[:8])] * 3
    bad = (np.full((8, 1, 8, 8), np.nan, np.float32), train.y[:8])
    seen = []

    class Spy(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            seen.append(trainer.model.state_dict())

    trainer = make_trainer(callbacks=[Spy()])
    with pytest.raises(DivergedError, match=r"epoch 1, batch 4: the loss is nan"):
        trainer.fit([*good, bad], 1)
    for name, value in trainer.model.state_dict().items():
        assert value.tobytes() == seen[-1][name].tobytes()
    assert trainer.history == []


def test_divergence_leaves_running_statistics_alone():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))
    trainer = Trainer(network, optim.SGD(network.parameters(), lr=0.1))
    before = network.state_dict()
    with pytest.raises(DivergedError):
        trainer.step(np.full((4, 1, 8, 8), np.nan, np.float32), np.array([0, 1, 2, 0]))
    for name, value in network.state_dict().items():
        assert value.tobytes() == before[name].tobytes(), name


@pytest.mark.parametrize("device", ["cpu", "strict:device1"])
@pytest.mark.parametrize("label", [12, -1])
def test_labels_out_of_range_are_named(device, label):
    pytest.importorskip("array_api_strict")
    trainer = make_trainer(device=device)
    with pytest.raises(UsageError, match=rf"{label}.*0 \.\. 9"):
        trainer.step(np.zeros((2, 1, 8, 8), np.float32), np.array([1, label]))


class Spent(list):
    """Batches that can be iterated over once."""

    def __iter__(self):
        while self:
            yield self.pop()


def test_no_batch_is_an_error():
    trainer = make_trainer()
    batch = (np.zeros((2, 1, 8, 8), np.float32), np.array([1, 2]))
    with pytest.raises(DataError, match="epoch 1: there is no batch"):
        trainer.fit([])
    with pytest.raises(DataError, match="no batch to test on"):
        trainer.evaluate([])
    with pytest.raises(DataError, match="epoch 2: there is no batch"):
        trainer.fit(Spent([batch]), 2)


def test_wrong_pieces_are_named():
    network = small_network()
    with pytest.raises(UsageError, match="optimizer must be an instance of Optimizer, got 'adam'"):
        Trainer(network, "adam")
    with pytest.raises(UsageError, match="model must be an instance of Module, got 'lenet5'"):
        Trainer("lenet5", optim.SGD(network.parameters()))
    for callbacks in (EarlyStopping(), [EarlyStopping]):
        with pytest.raises(UsageError, match="callbacks must be a list of Callback objects"):
            make_trainer(callbacks=callbacks)


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(UsageError, match="the optimizer has parameters of another model"):
        Trainer(small_network(), optim.SGD(small_network().parameters(), lr=0.1))


def test_wrong_inputs_are_named():
    trainer = make_trainer()
    with pytest.raises(DtypeError, match="x must be a floating-point array, got uint8"):
        trainer.step(np.zeros((2, 1, 8, 8), np.uint8), np.array([1, 2]))
    with pytest.raises(UsageError, match="epochs must be an integer of at least 1, got 0"):
        trainer.fit([(np.zeros((2, 1, 8, 8), np.float32), np.array([1, 2]))], 0)


def test_interrupt_falls_between_two_steps(digits):
    """Ctrl-C inside a step lets it finish: the weights are those of whole steps, and fit raises KeyboardInterrupt."""
    assert threading.current_thread() is threading.main_thread()
    train, _ = digits
    batches = [(data.to_float(train.x[i : i + 8]), train.y[i : i + 8]) for i in range(0, 64, 8)]
    steps, ended = [], []

    def interrupted_step():
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        step()
        steps.append(1)

    class Spy(Callback):
        def on_fit_end(self, trainer):
            ended.append(True)

    trainer, twin = make_trainer(callbacks=[Spy()]), make_trainer()
    step, trainer.optimizer.step = trainer.optimizer.step, interrupted_step
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(batches, 1)
    assert len(steps) == 3
    assert ended == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    for batch in batches[:3]:
        twin.step(*batch)
    assert trainer.model.state_dict()["0.weight"].tobytes() == twin.model.state_dict()["0.weight"].tobytes()


def test_interrupt_during_the_last_validation_is_not_lost(digits):
    train, test = digits
    trainer = make_trainer()

    def interrupted(targets, predictions):
        os.kill(os.getpid(), signal.SIGINT)
        return 0.0

    trainer.metrics = {"interrupted": interrupted}
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(train, 1, validation=test)
    assert len(trainer.history) == 1


def test_second_interrupt_is_immediate(digits):
    train, _ = digits
    trainer = make_trainer()

    def step():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    trainer.optimizer.step = step
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(train, 1)


def test_history_files_hold_every_epoch(tmp_path, digits):
    train, test = digits
    files = [HistoryFile(tmp_path / "history.csv"), HistoryFile(tmp_path / "history.jsonl")]
    trainer = make_trainer(callbacks=files)
    history = trainer.fit(train, 2, validation=test)
    history += trainer.fit(train, 1)
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines == history
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in rows] == [record["train_loss"] for record in history]
    assert rows[2]["val_loss"] == ""
    with pytest.raises(UsageError, match=r"must end in .csv or .jsonl, got 'x.txt'"):
        HistoryFile("x.txt")


def record(epoch, loss):
    return {"epoch": epoch, "val_loss": loss, "val_accuracy": None}


def test_early_stopping_waits_for_its_patience():
    trainer, stopping = make_trainer(), EarlyStopping(patience=2, min_delta=0.05)
    for epoch, loss in enumerate([1.0, 0.8, 0.79, 0.9], 1):
        assert trainer.stop_reason == ""
        stopping.on_epoch_end(trainer, record(epoch, loss))
    assert trainer.stop_reason == "no better val_loss than 0.8 of epoch 2"
    with pytest.raises(UsageError, match=r"the records have no 'val_accuracy' \(known: epoch, val_loss\)"):
        EarlyStopping("val_accuracy").on_epoch_end(trainer, record(1, 1.0))


def test_early_stopping_ends_fit(digits):
    train, test = digits
    trainer = make_trainer(callbacks=[EarlyStopping(patience=2)])
    trainer.optimizer.param_groups[0]["lr"] = 0.0
    assert len(trainer.fit(train, 10, validation=test)) == 3
    assert len(trainer.history) == 3


def test_keep_best_saves_only_better_epochs():
    saved = []
    keep = KeepBest(save=saved.append)
    for epoch, loss in enumerate([float("nan"), 1.0, 1.2, 0.9, 0.9], 1):
        keep.on_epoch_end(make_trainer(), record(epoch, loss))
    assert [entry["epoch"] for entry in saved] == [2, 4]


def test_a_plateau_that_waits_for_more_loss_is_refused():
    """Each epoch in which the loss falls would lower the learning rate."""
    model = nn.Linear(2, 1)
    optimizer = optim.SGD(model.parameters())
    with pytest.raises(UsageError, match=r"^Trainer: schedule gets the loss, of which less is better; .*mode='min'\)$"):
        Trainer(model, optimizer, "mse_loss", schedule=optim.ReduceLROnPlateau(optimizer, "max"))


def test_plateau_schedule_steps_once_an_epoch(digits):
    train, test = digits
    network = small_network()
    optimizer = optim.SGD(network.parameters(), lr=1e-12)
    schedule = optim.ReduceLROnPlateau(optimizer, patience=0, threshold=1e6, threshold_mode="abs")
    Trainer(network, optimizer, schedule=schedule).fit(train, 3, validation=test)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-14)


def test_confusion_matrix_counts_pairs():
    rng = np.random.default_rng(0)
    probabilities, labels = rng.random((50, 4)), rng.integers(0, 4, 50)
    counts = confusion_matrix(probabilities, labels)
    for i in range(4):
        for j in range(4):
            assert counts[i, j] == sum(
                1 for row, label in zip(probabilities, labels, strict=True) if label == i and max(row) == row[j]
            )

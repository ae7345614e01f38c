"""Training on several processes: the same bits for any number of them, and what they exchange."""

import copy
import dataclasses
import functools
import gc
import tracemalloc

import fake_processes
import numpy as np
import pytest
from fake_processes import alike

from xcnn import data, nn, ops, optim
from xcnn.errors import DivergedError, UsageError
from xcnn.training import EarlyStopping, HistoryFile, KeepBest, Trainer, loss_named
from xcnn.training.processes import ALONE

RNG = np.random.default_rng(7)
X = RNG.standard_normal((70, 3, 12, 12)).astype(np.float32)
Y = RNG.integers(0, 4, 70)


def network(seed=0, dtype="float32"):
    """With everything that could depend on who computes: batch norm, dropout, a residual, several buckets."""
    body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, momentum=None), nn.Dropout2d(0.2))
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Residual(body), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(288, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip
    model.reset_parameters(seed)
    return model.to("cpu", dtype=dtype)


def trainer(processes, accumulate, dtype="float32", model=None, **options):
    model = network(dtype=dtype) if model is None else model
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    return Trainer(model, optimizer, accumulate=accumulate, parallel=processes, clip_norm=1.0, **options)


def loader(**options):
    augment = [data.AUGMENTATIONS["shift"], data.AUGMENTATIONS["flip"]]
    return data.Loader((X, Y), batch_size=16, seed=3, augment=augment, **options)


def trained(processes, accumulate, epochs=2, bucket=None, state=None, **options):
    training = trainer(processes, accumulate, **options)
    if bucket is not None:
        training._step._sums.nbytes = bucket
    if state is not None:
        training.load_state_dict(state)
    training.fit(loader(), epochs, validation=data.from_arrays(X[:30], Y[:30]), progress=False)
    return training


def figures(training):
    times = {"seconds", "data_seconds", "samples_per_second"}
    return [{name: value for name, value in one.items() if name not in times} for one in training.history]


@pytest.mark.parametrize("parts", [2, 3, 4, 7])
def test_weights_depend_on_the_parts_and_not_on_the_processes(parts):
    """The last batch has 6 examples, so that some processes have a part less, or none."""
    alone = trained(None, parts)
    for size in range(2, min(parts, 4) + 1):
        found = fake_processes.run(size, lambda one: trained(one, parts, bucket=2000))
        assert alike([one.model.state_dict() for one in (alone, *found)])
        assert all(figures(one) == figures(alone) for one in found)
        streams = [one.state_dict()["streams"] for one in (alone, *found)]
        assert all(stream == streams[0] for stream in streams)


def test_the_bits_depend_on_the_parts():
    two, three = (trained(None, parts, epochs=1) for parts in (2, 3))
    assert not alike([two.model.state_dict(), three.model.state_dict()])


@pytest.mark.parametrize("weight", [None, [0.1, 0.33, 0.77, 1.3]])
@pytest.mark.parametrize("where", ["cpu", "strict", "torch"])
def test_pixels_and_class_weights_on_every_library(where, weight):
    """The counts are arrays of the device, and class weights of float32 are added in one order and precision."""
    pytest.importorskip({"strict": "array_api_strict", "torch": "torch"}.get(where, "numpy"))
    pixels = RNG.integers(0, 4, (20, 10, 10))
    pixels[RNG.random(pixels.shape) < 0.2] = -100

    def fit(processes):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
        model.reset_parameters(0)
        loss = loss_named("cross_entropy", **({} if weight is None else {"weight": weight}))
        training = trainer(processes, 5, model=model, device=where, loss=loss)
        training.fit(data.Loader((X[:20], pixels), 13), 2, progress=False)
        return training

    alone = fit(None)
    for size in (2, 3):
        found = fake_processes.run(size, fit)
        assert alike([one.model.state_dict() for one in (alone, *found)])
        assert all(figures(one) == figures(alone) for one in found)


def test_a_loss_on_the_host_of_a_network_on_a_device():
    pytest.importorskip("array_api_strict")

    def function(output, target):
        loss, backward = ops.cross_entropy(output, target)
        return float(loss), backward

    def fit(processes):
        model = nn.Sequential(nn.Flatten(), nn.Linear(432, 4))
        model.reset_parameters(0)
        loss = dataclasses.replace(loss_named("cross_entropy"), function=function)
        training = trainer(processes, 4, model=model, device="strict", loss=loss)
        training.fit(data.Loader((X, Y), 16), 1, progress=False)
        return training

    alone, found = fit(None), fake_processes.run(2, fit)
    assert alike([one.model.state_dict() for one in (alone, *found)])
    assert all(figures(one) == figures(alone) for one in found)


@pytest.mark.parametrize("bucket", [0, 1, 5000, 1 << 20])
def test_buckets_change_no_bit(bucket):
    alone = trained(None, 4, epochs=1)
    found = fake_processes.run(2, lambda one: trained(one, 4, 1, bucket))
    assert alike([one.model.state_dict() for one in (alone, *found)])


def test_another_number_of_processes_goes_on_with_the_same_bits():
    whole = trained(None, 4, epochs=3)
    states = [one.state_dict() for one in fake_processes.run(4, lambda one: trained(one, 4, epochs=1))]
    for size in (1, 3):
        found = fake_processes.run(size, lambda one: trained(one, 4, 2, state=states[0]))
        assert alike([one.model.state_dict() for one in (whole, *found)])


@pytest.mark.parametrize("parts", [2, 5])
def test_parts_have_the_gradients_of_the_whole_batch(parts):
    def one_step(processes, parts=parts):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 4))
        model.reset_parameters(1)
        model.to("cpu", dtype="float64")
        training = Trainer(model, optim.SGD(model.parameters(), 1.0), accumulate=parts, parallel=processes)
        return training.step(X[:23], Y[:23]), model.state_dict()

    wanted_loss, wanted = one_step(None, 1)
    for size in range(1, parts + 1):
        for loss, state in fake_processes.run(size, one_step):
            assert loss == pytest.approx(wanted_loss, rel=1e-12)
            for name, array in wanted.items():
                np.testing.assert_allclose(state[name], array, rtol=1e-10, atol=1e-13)


def test_gradients_are_sent_while_the_backward_pass_runs():
    """From the second step on, when it is known how many gradients each parameter gets."""

    def fit(processes):
        begun = []

        class Looks(nn.Module):
            def forward(self, x, train):
                def backward(dy, need_dx):
                    begun.append(processes.exchanges)
                    return dy

                return x, backward

        model = nn.Sequential(nn.Flatten(), nn.Linear(432, 8), Looks(), nn.Linear(8, 8), Looks(), nn.Linear(8, 4))
        model.reset_parameters(0)
        training = trainer(processes, 2, model=model)
        training._step._sums.nbytes = 1
        for _ in range(2):
            training.step(X[:16], Y[:16])
        return begun

    for one in fake_processes.run(2, fit):
        assert one[1] == one[0]
        assert one[3] >= one[2] + 2  # weight and bias of the linear layer between


def test_running_statistics_move_once_towards_the_mean_of_the_parts():
    x = RNG.standard_normal((10, 3))
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).to("cpu", dtype="float64")
    training = Trainer(model, optim.SGD(model.parameters(), 0.1), accumulate=3)
    training.step(x, np.zeros(10, int))
    cuts = [x[:3], x[3:6], x[6:]]
    norm = model[0]
    np.testing.assert_allclose(norm.running_mean.data, 0.1 * np.mean([part.mean(axis=0) for part in cuts], axis=0))
    variance = np.mean([part.var(axis=0, ddof=1) for part in cuts], axis=0)
    np.testing.assert_allclose(norm.running_var.data, 0.9 + 0.1 * variance)
    assert int(norm.num_batches_tracked.data) == 1


def test_streams_that_cannot_be_cut_are_refused():
    model = network()
    model[7].rng = np.random.Generator(np.random.MT19937(0))
    trainer(None, 1, model=model).step(X[:8], Y[:8])
    with pytest.raises(UsageError, match="is a MT19937, which cannot be cut into parts; use PCG64"):
        trainer(None, 2, model=model).step(X[:8], Y[:8])


def test_evaluation_and_prediction_are_dealt_out():
    seen = []

    class Count(nn.Module):
        def forward(self, x, train):
            seen.append(x.shape[0])
            return x, lambda dy, need_dx: dy

    def both(processes):
        model = nn.Sequential(Count(), nn.Flatten(), nn.Linear(432, 4))
        model.reset_parameters(0)
        metrics = {"first": lambda targets, predictions: float(predictions[0, 0] + targets[-1])}
        training = trainer(processes, None, model=model, metrics=metrics)
        return training.evaluate((X, Y), batch_size=8), training.predict(X, batch_size=8)

    one, predicted = both(None)
    count, seen[:] = len(seen), []
    for size in (2, 3, 4, 12):
        for metrics, other in fake_processes.run(size, both):
            assert vars(metrics).keys() == vars(one).keys()
            assert metrics.confusion.tolist() == one.confusion.tolist()
            assert (metrics.loss, metrics.accuracy, metrics.values) == (one.loss, one.accuracy, one.values)
            assert other.tobytes() == predicted.tobytes()
        assert len(seen) == count
        seen.clear()


def test_each_process_reads_only_its_part():
    read = []

    class Lazy:
        """Counts the examples that are read, by thread."""

        def __init__(self):
            self.mine = []
            read.append(self.mine)

        def __len__(self):
            return len(X)

        def __getitem__(self, index):
            self.mine.append(index)
            return X[index], Y[index]

    def fit(processes):
        model = nn.Sequential(nn.Flatten(), nn.Linear(432, 4))
        model.reset_parameters(0)
        made = data.Loader(Lazy(), 16, seed=1)
        trainer(processes, 4, model=model).fit(made, 1, progress=False)
        return model.state_dict()

    alone = fit(None)
    read.clear()
    assert alike([alone, *fake_processes.run(4, fit)])
    assert {index for mine in read for index in mine} == {*range(70)}
    assert max(map(len, read)) <= 20


def test_a_loss_that_is_not_finite_stops_all_with_one_error():
    def fit(processes):
        x = X[:16].copy()
        x[13] = 1e30  # in the last part
        training = trainer(processes, 4)
        before = training.model.state_dict(), training.state_dict()["streams"]
        with pytest.raises(DivergedError) as caught, np.errstate(all="ignore"):
            training.step(x * 1e10, Y[:16])
        assert alike([before[0], training.model.state_dict()])
        assert training.state_dict()["streams"] == before[1]
        training.step(X[:16], Y[:16])  # which the failure does not disturb
        return str(caught.value), training.model.state_dict()

    found = [fit(None), *fake_processes.run(3, fit)]
    assert len({said for said, _ in found}) == 1
    assert "the examples hold inf" in found[0][0]
    assert alike([state for _, state in found])


@pytest.mark.parametrize("ignored", [0, 8])
def test_a_gradient_that_is_not_finite_names_the_layer(ignored):
    """Also where the labels of a whole process are ignored, which is no fault."""

    class Bad(nn.Module):
        def forward(self, x, train):
            return x, lambda dy, need_dx: dy * np.where(x > 50.0, np.float32(np.inf), np.float32(1))

    def fit(processes):
        model = nn.Sequential(nn.Flatten(), nn.Linear(432, 4), Bad(), nn.Linear(4, 4))
        model.reset_parameters(0)
        x = X[:16].copy()
        x[9] *= 1000
        y = np.where(np.arange(16) < ignored, -100, Y[:16])
        with pytest.raises(DivergedError) as caught, np.errstate(all="ignore"):
            trainer(processes, 4, model=model).step(x, y)
        return str(caught.value)

    said = {fit(None), *fake_processes.run(2, fit)}
    assert len(said) == 1
    assert "layer 2 (Bad)" in said.pop()


def test_a_batch_without_answers_is_refused_as_by_one_process():
    def fit(processes):
        with pytest.raises(UsageError) as caught:
            trainer(processes, 4).step(X[:16], np.full(16, -100))
        return str(caught.value)

    assert fake_processes.run(3, fit) == [fit(None)] * 3 == ["every label of the batch is -100, which is ignored"] * 3


def test_a_copy_of_a_trainer_trains_with_the_same_processes():
    def both(processes):
        training = trainer(processes, 4)
        training.step(X[:16], Y[:16])
        other = copy.deepcopy(training)
        for one in (training, other, training, other):
            one.step(X[16:32], Y[16:32])
        return [training.model.state_dict(), other.model.state_dict()]

    states = [state for found in fake_processes.run(2, both) for state in found]
    assert alike([*both(None), *states])


def test_a_step_that_fails_keeps_no_gradients():
    class Fails(nn.Module):
        calls = 0

        def forward(self, x, train):
            Fails.calls += 1
            if Fails.calls % 4 == 0:
                raise RuntimeError("no more")
            return x, lambda dy, need_dx: dy

    model = nn.Sequential(nn.Linear(432, 1000), Fails(), nn.Linear(1000, 4))
    model.reset_parameters(0)
    training = trainer(None, 4, model=model)

    def fails():
        with pytest.raises(RuntimeError, match="no more"):
            training.step(X[:16].reshape(16, -1), Y[:16])

    fails()  # compiles
    tracemalloc.start()
    try:
        fails()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 4 * 432 * 1000
    finally:
        tracemalloc.stop()


def test_a_callback_of_one_process_stops_all():
    class Stop(EarlyStopping):
        def on_epoch_end(self, trainer, record):
            if trainer.parallel.rank == 1 and record["epoch"] == 2:
                trainer.stop("rank 1 has enough")

    found = fake_processes.run(3, lambda one: trained(one, 3, 5, callbacks=[Stop()]))
    assert [(one.stop_reason, len(one.history)) for one in found] == [("rank 1 has enough", 2)] * 3


def test_only_the_first_process_writes(tmp_path):
    saved = []

    def fit(processes):
        best = KeepBest("val_loss", save=lambda record: saved.append(processes.rank))
        stop = EarlyStopping("val_loss", patience=5)
        return trained(processes, 2, 2, callbacks=[HistoryFile(tmp_path / "h.csv"), best, stop])

    found = fake_processes.run(2, fit)
    assert set(saved) == {0}
    assert len((tmp_path / "h.csv").read_text().splitlines()) == 3
    assert found[0].callbacks[1].best == found[1].callbacks[1].best


def test_processes_that_differ_are_refused():
    def fit(seed, batch):
        def work(processes):
            model = network(seed=seed if processes.rank else 0)
            made = data.Loader((X, Y), batch if processes.rank else 16)
            trainer(processes, 2, model=model).fit(made, 1, progress=False)

        return work

    with pytest.raises(UsageError, match=r"^fit: the processes 1 and 0 differ in their weights; draw them"):
        fake_processes.run(2, fit(1, 16))
    with pytest.raises(
        UsageError, match=r"differ in their training data: \{.*'batch_size': 8.* and .*'batch_size': 16"
    ):
        fake_processes.run(2, fit(0, 8))


def test_processes_that_would_go_apart_later_are_refused():
    def fit(odd):
        def work(processes):
            first = processes.rank == 0
            model = network()
            if odd == "random streams" and first:
                model[7].reset_parameters(5)  # a dropout that has no weights
            optimizer = optim.SGD(model.parameters(), 0.1 if odd == "optimizer" and first else 0.05)
            training = Trainer(model, optimizer, parallel=processes)
            training.fit((X, Y), 1, None if odd == "validation data" and first else (X[:9], Y[:9]), progress=False)

        return work

    for odd in ("random streams", "optimizer", "validation data"):
        with pytest.raises(UsageError, match=f"^fit: the processes 1 and 0 differ in their {odd}[:;] "):
            fake_processes.run(2, fit(odd))
    fake_processes.run(2, fit(None))


@pytest.mark.parametrize(
    ("sizes", "says"),
    [((16, 16), "one of 16 examples and none"), ((16, 9, 9), "one of 16 examples and one of 9 examples")],
)
def test_iterables_that_differ_are_refused(sizes, says):
    """They could wait for each other for ever."""

    def fit(processes):
        mine = (16, 16, 16) if processes.rank == 0 else sizes
        batches = ((X[:size], Y[:size]) for size in mine)
        with pytest.raises(UsageError, match=f"^fit: train: the next batches of the processes differ: {says}; give"):
            trainer(processes, 2).fit(batches, 1, progress=False)

    fake_processes.run(2, fit)


@pytest.mark.parametrize(
    ("name", "options"),
    {
        "examples": {"seed": 1},
        "loss": {"loss": loss_named("cross_entropy", label_smoothing=0.1)},
        "optimizer": {"lr": 0.1},
        "clip_norm": {"clip_norm": 1.0},
        "schedule": {"decay": True},
        "validation data": {"validation": (X[:20], Y[:20])},
    }.items(),
)
def test_processes_with_other_settings_are_refused(name, options):
    def fit(processes):
        mine = dict(options) if processes.rank else {}
        x = np.random.default_rng(mine.pop("seed", 0)).random(X.shape, np.float32)
        validation, model = mine.pop("validation", None), network(seed=0)
        optimizer = optim.SGD(model.parameters(), mine.pop("lr", 0.05))
        schedule = optim.ExponentialLR(optimizer, 0.9) if mine.pop("decay", False) else None
        Trainer(model, optimizer, parallel=processes, schedule=schedule, **mine).fit((x, Y), validation=validation)

    with pytest.raises(UsageError, match=f"^fit: the processes 1 and 0 differ in their {name}"):
        fake_processes.run(2, fit)


def test_options_that_are_objects_do_not_differ_by_their_addresses():
    def shifted(output, target, shift):
        return ops.cross_entropy(shift(output), target)

    def fit(processes):
        loss = loss_named(shifted, shift=lambda x: x)  # another object in each process
        model = network(seed=0)
        return Trainer(model, optim.SGD(model.parameters(), 0.05), loss, parallel=processes).fit((X, Y))

    assert len(fake_processes.run(2, fit)) == 2


def test_only_the_first_process_tells():
    told = []

    def fit(processes):
        model = network(seed=0)
        optimizer = optim.SGD([model.parameters()[0]], 0.05)  # what it lacks is told
        tell = functools.partial(lambda rank, sentence: told.append(rank), processes.rank)
        Trainer(model, optimizer, parallel=processes, tell=tell).fit((X, Y))

    fake_processes.run(2, fit)
    assert told == [0]
    assert repr(ALONE) == "Processes(rank=0, size=1)"


def test_more_processes_than_parts_are_refused():
    with pytest.raises(UsageError, match=r"^accumulate must be at least the number of processes, 3, got 2; start"):
        fake_processes.run(3, lambda one: trained(one, 2, 1))


def test_parameters_that_get_a_gradient_only_in_some_steps():
    class Either(nn.Module):
        """Uses the one weight or the other, as the numbers of a part are."""

        def __init__(self):
            self.one, self.other = (nn.Parameter(np.ones(432, np.float32)) for _ in range(2))

        def forward(self, x, train):
            weight = self.one if x[0, 0, 0, 0] > 0 else self.other
            flat = x.reshape(len(x), -1)

            def backward(dy, need_dx):
                weight.accumulate((dy * flat).sum(axis=0))
                return dy

            return flat * weight.data, backward

    def fit(processes):
        model = nn.Sequential(Either(), nn.Linear(432, 4))
        model.reset_parameters(0)
        training = trainer(processes, 3, model=model)
        training._step._sums.nbytes = 1
        training.fit(data.Loader((X, Y), 8, seed=2), 2, progress=False)
        return model.state_dict()

    alone = fit(None)
    for size in (2, 3):
        assert alike([alone, *fake_processes.run(size, fit)])


def test_the_gradient_of_a_network_that_changes_is_refused():
    class Changes(nn.Module):
        """Uses its weight a second time in its third step."""

        def __init__(self):
            self.weight, self.count = nn.Parameter(np.ones(432)), 0

        def forward(self, x, train):
            self.count += 1
            twice, flat = self.count >= 3, x.reshape(len(x), -1)

            def backward(dy, need_dx):
                for _ in range(1 + twice):
                    self.weight.accumulate((dy * flat).sum(axis=0))
                return dy

            return flat * self.weight.data, backward

    def fit(processes):
        model = nn.Sequential(nn.Flatten(), nn.Linear(432, 4))
        model = nn.Sequential(Changes(), nn.Linear(432, 4).to("cpu", dtype="float64"))
        training = trainer(processes, 2, model=model)
        for _ in range(3):
            training.step(X.astype(np.float64)[:8], Y[:8])

    with pytest.raises(Exception, match="was sent before it was complete"):
        fake_processes.run(2, fit)


def test_the_bytes_that_travel():
    """2 (N - 1) / N of the gradients, and some figures."""

    def fit(processes):
        model = nn.Sequential(nn.Flatten(), nn.Linear(432, 64), nn.Linear(64, 4))
        model.reset_parameters(0)
        training = trainer(processes, 4, model=model)
        training.step(X[:16], Y[:16])
        return processes.sent

    size = 4 * (432 * 64 + 64 + 64 * 4 + 4)
    for sent in fake_processes.run(4, fit):
        assert sent == pytest.approx(2 * 3 / 4 * size, rel=0.02)

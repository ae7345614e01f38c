"""Data sets on a device: the same batches as on the host, moved once, and devices that are full."""

import gc
import weakref

import numpy as np
import pytest
from conftest import LIBRARIES

from xcnn import data, models, optim
from xcnn.devices import Device, to_numpy
from xcnn.errors import DataError, OutOfMemoryError, UsageError
from xcnn.runs import Config, Reporter, train
from xcnn.training import Callback, Trainer

each_library = pytest.mark.parametrize("backend", LIBRARIES, indirect=True)


def digits(kind=np.uint8):
    d = data.load("digits")[0][:100]
    return d if kind == np.uint8 else data.Dataset(data.to_float(d.x) * 3 - 1, d.y, d.classes, "floats")


@pytest.fixture
def moved(monkeypatch):
    """Record the shapes of arrays that are copied to devices."""
    shapes, asarray = [], Device.asarray
    monkeypatch.setattr(
        Device, "asarray", lambda self, array: (shapes.append(np.shape(array)), asarray(self, array))[1]
    )
    return shapes


@each_library
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("options", [{}, {"shuffle": False}])
def test_batches_are_the_same_bits_on_every_device(backend, kind, options):
    host = data.Loader(digits(kind), 32, seed=3, **options)
    there = data.Loader(digits(kind).to(backend.spec), 32, seed=3, **options)
    for _ in range(2):
        for (x, y), (images, labels) in zip(host, there, strict=True):
            for ours, theirs in ((x, images), (y, labels)):
                placed = backend.device.asarray(ours)
                assert (type(theirs), theirs.dtype) == (type(placed), placed.dtype)
                assert getattr(theirs, "device", None) == getattr(placed, "device", None)
                assert to_numpy(theirs).tobytes() == to_numpy(placed).tobytes()
    assert there.settings() == host.settings()


@each_library
def test_batches_on_a_device_are_fresh_arrays(backend):
    for kind in (np.uint8, np.float32):
        loader = data.Loader(digits(kind).to(backend.spec), 100, shuffle=False)
        for images, labels in loader:
            images += 1.0
            labels += 1
        images, labels = next(iter(loader))
        assert np.array_equal(to_numpy(images), data.to_float(digits(kind).x))
        assert np.array_equal(to_numpy(labels), digits().y)


@each_library
def test_a_data_set_on_a_device_is_a_data_set(backend):
    d = digits()
    there = d.to(backend.spec)
    assert (len(there), there.shape, there.classes) == (len(d), d.shape, d.classes)
    assert there.device == backend.device
    assert there.to(backend.spec) is there
    for index in (slice(3, 50, 2), slice(-5, None), [4, 1, -1], np.arange(100) % 3 == 0):
        part = there[index]
        assert part.device == backend.device
        assert np.array_equal(to_numpy(part.x), d[index].x)
        assert np.array_equal(to_numpy(part.y), d[index].y)
    back = there.to("cpu")
    assert back.device.xp is np
    assert np.array_equal(back.x, d.x)
    with pytest.raises(DataError, match="the data set is empty"):
        there[:0]
    with pytest.raises(UsageError, match="index with a slice"):
        there[0]


def test_a_data_set_is_moved_once_and_then_only_indices_are(moved):
    pytest.importorskip("array_api_strict")
    d = digits()
    there = d.to("strict:device1")
    assert moved == [d.x.shape, d.y.shape]
    moved.clear()
    loader = data.Loader(there, 64)
    for _ in range(2):
        assert sum(len(to_numpy(labels)) for _, labels in loader) == 100
    assert moved == [(64,), (36,), (64,), (36,)]
    moved.clear()
    labels = [to_numpy(labels) for _, labels in data.Loader(there, 30, shuffle=False)]
    assert np.array_equal(np.concatenate(labels), d.y)
    assert moved == []


def test_nothing_is_moved_for_the_host(moved):
    loader = data.Loader(digits().to("cpu"), 64)
    assert all(type(images) is type(labels) is np.ndarray for images, labels in loader)
    assert moved == []


def test_augmentation_wants_its_data_set_on_the_host():
    pytest.importorskip("array_api_strict")
    with pytest.raises(UsageError, match="augment takes NumPy arrays, digits is on strict:device1; leave it on the"):
        data.Loader(digits().to("strict:device1"), 64, augment=[data.flip])


def fill(monkeypatch, most, error=MemoryError):
    """Limit the size of arrays on devices, in bytes."""
    asarray = Device.asarray

    def limited(self, array):
        if np.asarray(array).nbytes > most:
            raise error("out of memory")
        return asarray(self, array)

    monkeypatch.setattr(Device, "asarray", limited)


def test_a_data_set_that_does_not_fit_is_refused(monkeypatch):
    pytest.importorskip("array_api_strict")
    fill(monkeypatch, 5000)
    with pytest.raises(OutOfMemoryError) as caught:
        digits().to("strict:device1")
    assert str(caught.value) == "digits: 100 examples do not fit into the memory of strict:device1"
    assert caught.value.__context__ is None
    fill(monkeypatch, 5000, ValueError)
    with pytest.raises(ValueError, match="out of memory"):
        digits().to("strict:device1")


@pytest.mark.parametrize("augment", [[], [data.shift]])
def test_a_step_that_does_not_fit_beside_the_data_set_is_taken_again(monkeypatch, augment):
    """Without the copy, and with the same bits; if there is no copy to drop, the error is raised unchanged."""
    pytest.importorskip("array_api_strict")

    def trained(loader, full):
        said.clear()
        model = models.build("report", (1, 8, 8), seed=0)
        trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.1), device="strict:device1", tell=said.append)
        step = trainer.optimizer.zero_grad

        def zero_grad():
            if full and trainer.steps == 1 and (augment or trainer._feeds[0]._host is not None):
                raise MemoryError
            step()

        trainer.optimizer.zero_grad = zero_grad
        trainer.fit(loader, epochs=2)
        return [array.tobytes() for array in model.state_dict().values()]

    def loader():
        return data.Loader(digits(), 32, augment=augment)

    said = []
    wanted = trained(loader(), full=False)
    if augment:
        with pytest.raises(OutOfMemoryError, match="try a batch size of 16"):
            trained(loader(), full=True)
        assert said == []
    else:
        assert trained(loader(), full=True) == wanted
        assert said == [
            "digits: 100 examples do not fit into the memory of strict:device1; batches are made on the host"
        ]


def test_memory_that_runs_out_while_a_batch_is_gathered_costs_the_copy(monkeypatch):
    pytest.importorskip("array_api_strict")
    results, told = [], []
    for full in (False, True):
        trainer = trainer_on("strict:device1", tell=told.append)
        gather, calls = data.Dataset.gather, []

        def limited(self, places, gather=gather, calls=calls, full=full):
            calls.append(self.device.name)
            if full and len(calls) > 2 and self.device.name != "cpu":
                raise MemoryError
            return gather(self, places)

        monkeypatch.setattr(data.Dataset, "gather", limited)
        trainer.fit(data.Loader(digits(), 32, seed=2), 2)
        monkeypatch.setattr(data.Dataset, "gather", gather)
        results.append([array.tobytes() for array in trainer.model.state_dict().values()])
        assert trainer.steps == 8
    assert calls == ["strict:device1"] * 3 + ["cpu"] * 6
    assert results[0] == results[1]
    assert told == ["digits: 100 examples do not fit into the memory of strict:device1; batches are made on the host"]


def test_a_loader_on_another_device_than_the_network_is_refused():
    pytest.importorskip("array_api_strict")
    model = models.build("report", (1, 8, 8), seed=0)
    trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.1))
    loader = data.Loader(digits().to("strict:device1"), 32)
    for use in (trainer.fit, trainer.evaluate, trainer.predict, lambda made: trainer.fit(digits(), validation=made)):
        with pytest.raises(UsageError, match="is on strict:device1, the network is on cpu; put both on the same"):
            use(loader)


def test_fit_leaves_no_copy_of_a_data_set_behind():
    pytest.importorskip("array_api_strict")
    copies = []

    class Watch(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            copies.append(weakref.ref(trainer._feeds[0].source.dataset.x))

    trainer = trainer_on("strict:device1", callbacks=[Watch()])
    trainer.fit(digits(), validation=digits())
    trainer.fit(data.Loader(digits()))
    gc.collect()
    assert [copy() for copy in copies] == [None] * 4
    there = digits().to("strict:device1")
    trainer.fit(data.Loader(there))
    assert copies[-1]() is there.x


def test_evaluating_a_data_set_once_copies_no_more_than_a_batch(moved):
    pytest.importorskip("array_api_strict")
    model = models.build("report", (1, 8, 8), seed=0)
    trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.1), device="strict:device1")
    moved.clear()
    trainer.evaluate(digits(), batch_size=40)
    trainer.predict(digits(), batch_size=40)
    assert max(shape[0] for shape in moved) == 40


def test_a_batch_that_does_not_fit_is_an_error_of_ours(monkeypatch):
    pytest.importorskip("array_api_strict")
    trainer = trainer_on("strict:device1")
    fill(monkeypatch, 1000)
    with pytest.raises(OutOfMemoryError) as caught:
        trainer.fit(data.Loader(digits(), 16, augment=[data.flip]))
    said = "out of memory on strict:device1 with 16 images of (1, 8, 8) at a time: "
    said += "try a batch size of 8, accumulate=2 (the same batch in 2 parts), or a smaller network"
    assert str(caught.value) == said
    assert caught.value.__context__ is None


# Training


def trainer_on(where, **options):
    model = models.build("report", (1, 8, 8), 10, seed=0)
    return Trainer(model, optim.Adam(model.parameters(), lr=0.01), device=where, **options)


@pytest.mark.parametrize("made", [lambda d: d, data.Loader, lambda d: (d.x, d.y)])
def test_fit_moves_data_sets_once(moved, made):
    pytest.importorskip("array_api_strict")
    rest, held = data.split(digits(), 0.2, seed=0)
    trainer = trainer_on("strict:device1")
    moved.clear()
    trainer.fit(made(rest), 3, validation=made(held))
    sets = [rest.x.shape, rest.y.shape, held.x.shape, held.y.shape]
    assert moved == sets + [(64,), (16,)] * 3
    moved.clear()
    trainer.evaluate(held)
    assert moved == [held.x.shape, held.y.shape]


def test_what_is_large_or_augmented_stays_on_the_host(moved, monkeypatch):
    pytest.importorskip("array_api_strict")
    trainer, batches = trainer_on("strict:device1"), [(64, 1, 8, 8), (64,), (36, 1, 8, 8), (36,)]
    moved.clear()
    trainer.fit(data.Loader(digits(), 64, augment=[data.flip]))
    assert moved == batches
    moved.clear()
    monkeypatch.setattr("xcnn.training.feed._MOST_BYTES", digits().x.nbytes - 1)
    trainer.fit(digits())
    assert moved == batches


class Notes(Reporter):
    def __init__(self):
        self.told = []

    def on_note(self, message):
        self.told.append(message)


CONFIG = Config(model="report", epochs=2, batch_size=200, validation=0.2, device="strict:device1")


def test_a_run_moves_each_data_set_once(tmp_path, moved):
    pytest.importorskip("array_api_strict")
    notes = Notes()
    train(CONFIG, tmp_path / "run", [notes])
    images = [shape for shape in moved if len(shape) == 4 and shape[0] > 200]
    assert images == [(1150, 1, 8, 8), (287, 1, 8, 8), (360, 1, 8, 8)]  # to train on, to validate on, to test on
    assert not [shape for shape in moved if len(shape) == 4 and shape[1:] == (1, 8, 8) and shape not in images]
    assert notes.told == []


def test_a_run_tells_what_does_not_fit_and_ends_with_the_same_bits(tmp_path, monkeypatch):
    pytest.importorskip("array_api_strict")
    train(CONFIG, tmp_path / "fits")
    notes = Notes()
    fill(monkeypatch, 1150 * 64 - 1)
    train(CONFIG, tmp_path / "does not", [notes])
    why = "examples do not fit into the memory of strict:device1; batches are made on the host"
    assert notes.told == [f"digits: 1150 {why}"]
    ours, theirs = (
        (tmp_path / name / "history.csv").read_text().splitlines()[1].split(",") for name in ("fits", "does not")
    )
    assert ours[:5] == theirs[:5]

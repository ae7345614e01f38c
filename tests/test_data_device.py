"""Data sets that live on a device: the same batches as on the host, moved once, and a device that has no room."""

import gc
import weakref

import numpy as np
import pytest
from conftest import LIBRARIES

from xcnn import data, models, optim
from xcnn.devices import Device, to_numpy
from xcnn.errors import OutOfMemoryError, UsageError
from xcnn.runs import Config, train
from xcnn.training import Callback, Trainer

each_library = pytest.mark.parametrize("backend", LIBRARIES, indirect=True)


def digits(kind=np.uint8):
    d = data.load("digits")[0][:100]
    return d if kind == np.uint8 else data.Dataset(data.to_float(d.images) * 3 - 1, d.labels, d.classes, "floats")


@pytest.fixture
def moved(monkeypatch):
    """The shapes of what is copied to devices."""
    shapes, asarray = [], Device.asarray
    monkeypatch.setattr(
        Device, "asarray", lambda self, array: (shapes.append(np.shape(array)), asarray(self, array))[1]
    )
    return shapes


@each_library
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"augment": [data.shift, data.cutout]}])
def test_batches_are_the_same_bits_on_every_device(backend, kind, options):
    host = data.Loader(digits(kind), 32, seed=3, **options)
    there = data.Loader(digits(kind), 32, seed=3, device=backend.spec, **options)
    for _ in range(2):
        for (x, y), (images, labels) in zip(host, there, strict=True):
            for ours, theirs in ((x, images), (y, labels)):
                placed = backend.device.asarray(ours)
                assert (type(theirs), theirs.dtype) == (type(placed), placed.dtype)
                assert getattr(theirs, "device", None) == getattr(placed, "device", None)
                assert to_numpy(theirs).tobytes() == to_numpy(placed).tobytes()
    assert there.state_dict() == host.state_dict()


@each_library
def test_batches_on_a_device_are_fresh_arrays(backend):
    for kind in (np.uint8, np.float32):
        loader = data.Loader(digits(kind), 100, shuffle=False, device=backend.spec)
        for images, labels in loader:
            images += 1.0
            labels += 1
        images, labels = next(iter(loader))
        assert np.array_equal(to_numpy(images), data.to_float(digits(kind).images))
        assert np.array_equal(to_numpy(labels), digits().labels)


def test_a_data_set_is_moved_once_and_then_only_indices_are(moved):
    pytest.importorskip("array_api_strict")
    d = digits()
    loader = data.Loader(d, 64, device="strict:device1")
    assert moved == []
    for _ in range(2):
        assert sum(len(to_numpy(labels)) for _, labels in loader) == 100
    assert moved == [d.images.shape, d.labels.shape, (64,), (36,), (64,), (36,)]
    moved.clear()
    other = loader.in_order(30)
    labels = [to_numpy(labels) for _, labels in other]
    assert np.array_equal(np.concatenate(labels), d.labels)
    assert moved == []


def test_a_data_set_stays_as_long_as_its_loaders():
    strict = pytest.importorskip("array_api_strict")
    loader = data.Loader(digits(), 64, device="strict:device1")
    next(iter(loader))
    copy = weakref.ref(loader._resident._arrays[0])
    assert isinstance(copy(), type(strict.ones(1)))
    other = loader.in_order(8)
    del loader
    gc.collect()
    assert copy() is not None
    del other
    gc.collect()
    assert copy() is None


def test_nothing_is_moved_for_the_host(moved):
    loader = data.Loader(digits(), 64, device="cpu")
    assert all(type(images) is type(labels) is np.ndarray for images, labels in loader)
    assert moved == []


def test_augmented_batches_are_made_on_the_host_and_moved(moved):
    pytest.importorskip("array_api_strict")
    loader = data.Loader(digits(), 64, augment=[data.flip], device="strict:device1")
    assert [len(to_numpy(labels)) for _, labels in loader] == [64, 36]
    assert moved == [(64, 1, 8, 8), (64,), (36, 1, 8, 8), (36,)]


@each_library
def test_a_pass_begun_on_one_device_ends_on_another(backend):
    d = digits()
    whole = [to_numpy(labels) for _, labels in data.Loader(d, 16, seed=4)]
    for first, second in ((backend.spec, None), (None, backend.spec), (backend.spec, backend.spec)):
        loader = data.Loader(d, 16, seed=4, device=first)
        begun = iter(loader)
        for _ in range(3):
            next(begun)
        other = data.Loader(d, 16, seed=4, device=second)
        other.load_state_dict(loader.state_dict(begun))
        rest = [to_numpy(labels) for _, labels in other]
        assert len(rest) == 4
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(rest, whole[3:], strict=True))


def fill(monkeypatch, most, error=MemoryError):
    """Let every device hold only arrays of so many bytes."""
    asarray = Device.asarray

    def limited(self, array):
        if np.asarray(array).nbytes > most:
            raise error("out of memory")
        return asarray(self, array)

    monkeypatch.setattr(Device, "asarray", limited)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_what_does_not_fit_is_said_and_made_on_the_host(monkeypatch, kind):
    pytest.importorskip("array_api_strict")
    told, d = [], digits(kind)
    fill(monkeypatch, 5000)
    host, loader = data.Loader(d, 16), data.Loader(d, 16, device="strict:device1", tell=told.append)
    for _ in range(2):
        for (images, labels), (x, y) in zip(host, loader, strict=True):
            assert x.device == y.device == loader.device.handle
            assert to_numpy(x).tobytes() == images.tobytes()
            assert to_numpy(y).tobytes() == labels.tobytes()
    assert len(list(loader.in_order(10))) == 10
    why = "images do not fit into the memory of strict:device1; batches are made on the host"
    assert told == [f"{d.name}: 100 {why}"]


def test_a_loader_warns_where_nobody_asked_to_be_told(monkeypatch):
    pytest.importorskip("array_api_strict")
    fill(monkeypatch, 5000)
    with pytest.warns(UserWarning, match="digits: 100 images do not fit into the memory of strict:device1"):
        next(iter(data.Loader(digits(), 16, device="strict:device1")))


def test_memory_that_runs_out_later_is_given_back(monkeypatch):
    """The copy of the data set goes, and is neither held by the loader nor by the error."""
    pytest.importorskip("array_api_strict")
    told = []
    loader = data.Loader(digits(), 16, shuffle=False, device="strict:device1", tell=lambda said: told.append(copy()))
    passing = iter(loader)
    next(passing)
    copy = weakref.ref(loader._resident._arrays[0])
    with monkeypatch.context() as patch:
        patch.setattr("xcnn.data.resident.to_float", out_of_memory)
        x, _ = next(passing)
    assert told == [None]
    assert np.array_equal(to_numpy(x), data.to_float(digits().images[16:32]))


def out_of_memory(images):
    raise MemoryError


@pytest.mark.parametrize("augment", [[], [data.shift]])
def test_a_step_that_does_not_fit_beside_the_data_set_is_taken_again(monkeypatch, augment):
    """Without the copy, and with the same bits; where there is no copy to give up, the error is what it was."""
    pytest.importorskip("array_api_strict")

    def trained(loader, full):
        model = models.build("report", (1, 8, 8), seed=0)
        trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.1), device="strict:device1")
        step = trainer.optimizer.zero_grad

        def zero_grad():
            if full and trainer.steps == 1 and (augment or loader._resident._arrays is not None):
                raise MemoryError
            step()

        trainer.optimizer.zero_grad = zero_grad
        trainer.fit(loader, epochs=2)
        return [array.tobytes() for array in model.state_dict().values()]

    def loader():
        return data.Loader(digits(), 32, device="strict:device1", augment=augment, tell=said.append)

    said = []
    wanted = trained(loader(), full=False)
    if augment:
        with pytest.raises(OutOfMemoryError, match="try a batch size of 16"):
            trained(loader(), full=True)
        assert said == []
    else:
        assert trained(loader(), full=True) == wanted
        assert said == ["digits: 100 images do not fit into the memory of strict:device1; batches are made on the host"]


def test_a_loader_on_another_device_than_the_network_is_refused():
    pytest.importorskip("array_api_strict")
    model = models.build("report", (1, 8, 8), seed=0)
    trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.1))
    loader = data.Loader(digits(), 32, device="strict:device1")
    for use in (trainer.fit, trainer.evaluate, trainer.predict, lambda made: trainer.fit(digits(), validation=made)):
        with pytest.raises(
            UsageError, match="batches are on strict:device1, the network is on cpu: give both the same"
        ):
            use(loader)


def test_fit_leaves_no_copy_of_a_data_set_behind():
    pytest.importorskip("array_api_strict")
    model = models.build("report", (1, 8, 8), seed=0)
    trainer, copies = Trainer(model, optim.SGD(model.parameters(), lr=0.1), device="strict:device1"), []

    class Watch(Callback):
        def on_batch_end(self, trainer, epoch, batch, metrics):
            copies.append(weakref.ref(trainer._batches._resident._arrays[0]))

    trainer.fit(digits(), validation=digits(), callbacks=[Watch()])
    gc.collect()
    assert [copy() for copy in copies] == [None, None]
    own = data.Loader(digits(), 64, device="strict:device1")
    trainer.fit(own)
    assert own._resident._arrays is not None


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
    fill(monkeypatch, 1000)
    loader = data.Loader(digits(), 16, augment=[data.flip], device="strict:device1")
    with pytest.raises(OutOfMemoryError) as caught:
        next(iter(loader))
    assert str(caught.value) == (
        "Loader: out of memory on strict:device1 with 16 images of (1, 8, 8) at a time: try a smaller batch_size"
    )
    assert caught.value.__context__ is None


def test_another_error_is_not_taken_for_memory(monkeypatch):
    pytest.importorskip("array_api_strict")
    for options in ({}, {"augment": [data.flip]}):
        with monkeypatch.context() as patch:
            fill(patch, 1000, ValueError)
            with pytest.raises(ValueError, match="out of memory"):
                next(iter(data.Loader(digits(), 16, device="strict:device1", **options)))


# Training


def trainer_on(where):
    model = models.build("report", (1, 8, 8), 10, seed=0)
    return Trainer(model, optim.Adam(model.parameters(), lr=0.01), device=where)


def test_fit_moves_data_sets_once(moved):
    pytest.importorskip("array_api_strict")
    rest, held = data.split(digits(), 0.2, seed=0)
    trainer = trainer_on("strict:device1")
    moved.clear()
    trainer.fit(rest, 3, validation=held)
    batches = [(64,), (16,)]
    assert moved[:6] == [rest.images.shape, rest.labels.shape, *batches, held.images.shape, held.labels.shape]
    assert moved[6:] == batches * 2
    moved.clear()
    trainer.evaluate(held)
    assert moved == [held.images.shape, held.labels.shape]


def test_a_loader_of_the_host_stays_there(moved):
    """It is how somebody says that the data set is not to be moved."""
    pytest.importorskip("array_api_strict")
    trainer = trainer_on("strict:device1")
    moved.clear()
    loader = data.Loader(digits(), 64)
    trainer.fit(loader, 1, validation=loader)
    assert moved == [(64, 1, 8, 8), (64,), (36, 1, 8, 8), (36,), (100, 1, 8, 8), (100,)]


class Notes(Callback):
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
    why = "images do not fit into the memory of strict:device1; batches are made on the host"
    assert notes.told == [f"digits: 1150 {why}"]
    ours, theirs = (
        (tmp_path / name / "history.csv").read_text().splitlines()[1].split(",") for name in ("fits", "does not")
    )
    assert ours[:5] == theirs[:5]

"""What `fit`, `evaluate` and `predict` take: every task, kind of data and dtype, and a sentence for anything else."""

import collections.abc
import threading

import numpy as np
import pytest
from test_data_lazy import Items, Rows, mapped

from xcnn import data, nn, optim
from xcnn.devices import to_numpy
from xcnn.errors import DataError, ShapeError, UsageError
from xcnn.training import Trainer
from xcnn.training.feed import Feed, place
from xcnn.training.parts import Cut

N = 20
RNG = np.random.default_rng(5)
SIGNALS = RNG.standard_normal((N, 2, 12)).astype(np.float32)
VOLUMES = RNG.integers(0, 256, (N, 1, 4, 4, 4), np.uint8)
IMAGES = RNG.integers(0, 256, (N, 3, 6, 6), np.uint8)
TABLE = RNG.standard_normal((N, 7))


def classes(*shape):
    return RNG.integers(0, 3, (N, *shape))


TASKS = {
    "classification of volumes": (
        [nn.Conv3d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)], "cross_entropy", VOLUMES,
        classes().astype("u1"),
    ),
    "classification of signals": (
        [nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3)], "cross_entropy", SIGNALS, classes(),
    ),
    "segmentation": ([nn.Conv2d(3, 3, 3, padding=1)], "cross_entropy", IMAGES, classes(6, 6).astype(np.int32)),
    "soft targets": (
        [nn.Flatten(), nn.Linear(108, 3)], "cross_entropy", IMAGES, RNG.dirichlet(np.ones(3), N),
    ),
    "several labels": (
        [nn.Linear(7, 4)], "binary_cross_entropy_with_logits", TABLE, RNG.integers(0, 2, (N, 4)).astype(np.float32),
    ),
    "regression": ([nn.Linear(7, 2)], "mse_loss", TABLE, RNG.standard_normal((N, 2))),
}  # fmt: skip
each_task = pytest.mark.parametrize("task", TASKS)


class Table:
    """What a table of pandas has in common with one of Polars, and with a lazy array."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __len__(self):
        return len(self.array)

    def __getitem__(self, column):
        raise KeyError(column)

    def __iter__(self):
        return iter("abcdefg")

    def to_numpy(self):
        return self.array

    def __array__(self, dtype=None, copy=None):
        return self.array


def trainer_of(task, device="cpu", dtype="float32", **options):
    layers, loss, *_ = TASKS[task]
    model = nn.Sequential(*layers)
    model.reset_parameters(0)
    model.to("cpu", dtype)
    return Trainer(model, optim.SGD(model.parameters(), lr=0.05, momentum=0.9), loss, device, **options)


def in_hand(task):
    """The batches of two epochs, cut by hand: the order of a Loader, uint8 divided by 255, float32."""
    _, _, x, y = TASKS[task]
    x = x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x.astype(np.float32)
    y = y.astype(np.float32) if y.dtype.kind == "f" else y.astype(np.int64)
    for epoch in range(2):
        order = np.random.default_rng([3, epoch]).permutation(N)
        for start in range(0, N, 8):
            places = order[start : start + 8]
            yield x[places], y[places]


def outcome(trainer):
    return {name: value.tobytes() for name, value in trainer.model.state_dict().items()}


@each_task
def test_every_task_trains_on_every_kind_of_data(task, tmp_path):
    """With the bits of batches that were cut by hand."""
    _, _, x, y = TASKS[task]
    by_hand = trainer_of(task)
    losses = [by_hand.step(*batch) for batch in in_hand(task)]
    torch = pytest.importorskip("torch")
    kinds = {
        "arrays": (x, y),
        "a data set": data.Dataset(x, y),
        "read-only": (np.broadcast_to(x[None], (1, *x.shape))[0], y),
        "mapped": (mapped(tmp_path, x), y),
        "rows": (Rows(x), Rows(y)),
        "items": Items(x, y, None),
        "tensors": (torch.tensor(x), torch.tensor(y)),
        "tables": (Table(x), Table(y)),
        "a list of targets": (x, y.tolist()),
        "items of tensors": torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y)),
    }
    for kind, one in kinds.items():
        trainer = trainer_of(task)
        history = trainer.fit(data.Loader(one, 8, seed=3), 2, validation=one)
        assert outcome(trainer) == outcome(by_hand), kind
        assert history[1]["train_loss"] == pytest.approx(np.average(losses[3:], weights=[8, 8, 4]), rel=1e-6)
        assert trainer.evaluate(one, batch_size=6).loss == pytest.approx(history[1]["val_loss"], rel=1e-5), kind
    whole = trainer.predict(x)
    kinds |= {
        "x": kinds["mapped"][0],
        "x of rows": Rows(x),
        "x of a table": Table(x),
        "x of tensors": kinds["tensors"][0],
        "batches": [(data.to_float(x), y)],
    }
    for kind, one in kinds.items():
        assert np.array_equal(trainer.predict(one), whole), kind
    if x.dtype != np.uint8:
        assert np.array_equal(trainer.predict(x.tolist()), whole)


@pytest.mark.parametrize("backend", ["strict-device1", "torch"], indirect=True)
@pytest.mark.parametrize("task", ["segmentation", "regression"])
def test_a_device_trains_on_every_kind_of_data(backend, task, tmp_path):
    """A copy on the device, batches of the host and a device's own arrays end with the same bits."""
    _, _, x, y = TASKS[task]
    results = []
    x32, y32 = (a.astype(np.float32) if a.dtype.kind == "f" else a for a in (x, y))
    there = tuple(backend.device.asarray(a) for a in (x32, y32))
    for one in ((x, y), (mapped(tmp_path, x), y), Items(x, y), data.Dataset(x32, y32).to(backend.spec), there):
        trainer = trainer_of(task, backend.spec)
        trainer.fit(data.Loader(one, 8, seed=3), 2, validation=one)
        results.append(outcome(trainer))
    assert all(result == results[0] for result in results)
    wanted = trainer.predict(x)
    assert np.array_equal(trainer.predict(there[0]), wanted)
    assert np.array_equal(trainer.predict(mapped(tmp_path, x)), wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_of_the_model_wins(dtype):
    """Double numbers train a double model with all their digits, and single ones a single model."""
    x, y = TABLE, TABLE[:, :2] * 2
    found = []
    for kind in ("float32", "float64", ">f8", "float16"):
        trainer = trainer_of("regression", dtype=dtype)
        trainer.fit((x.astype(kind), y.astype(kind)))
        trainer.fit([(x.astype(kind), y.astype(kind))])
        assert trainer.predict(x.astype(kind)).dtype == dtype
        found.append(outcome(trainer))
    rounded, double, swapped, half = found
    assert double == swapped
    assert half != double
    assert (rounded == double) == (dtype == "float32")


def test_numbers_beyond_the_dtype_of_the_model_are_named():
    trainer = trainer_of("regression")
    with pytest.raises(ArithmeticError, match="hold inf; check the data"):
        trainer.fit((np.full((4, 7), 1e300), np.zeros((4, 2))))


def test_a_network_gets_arrays_that_it_may_write_to():
    """Kernels are compiled again for read-only arrays."""
    frozen = np.broadcast_to(np.float32(1), (4, 7))
    where = trainer_of("regression").device
    placed = place(frozen, where)
    assert placed.flags.writeable
    assert np.array_equal(placed, frozen)
    usual = np.ones((4, 7), np.float32)
    assert place(usual, where, np.float32) is usual


def test_an_array_of_another_device_is_not_copied_unsaid(monkeypatch):
    torch = pytest.importorskip("torch")
    trainer = trainer_of("regression")
    batch = torch.zeros((4, 7), requires_grad=True), torch.zeros((4, 2))
    assert np.isfinite(trainer.step(*batch))  # a batch of a DataLoader is on the host
    monkeypatch.setattr(torch.Tensor, "__dlpack_device__", lambda self: (2, 0))
    with pytest.raises(UsageError, match=r"^the Tensor is on another device than the network, cpu; put both on"):
        trainer.step(*batch)


def test_images_without_channels_are_told_the_fix():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ShapeError, match=r"takes 1 input channel, x has 8 .* a batch of one channel is x\[:, None\]$"):
        trainer.fit((np.zeros((8, 4, 4), np.uint8), np.zeros(8, int)))


@pytest.mark.parametrize(
    "one", [(IMAGES,), 3, None, "images", {"x": IMAGES}, IMAGES, [IMAGES, IMAGES], Rows(IMAGES), Table(TABLE)]
)
def test_what_is_no_data_is_refused(one):
    trainer = trainer_of("segmentation")
    for use in (trainer.fit, trainer.evaluate, lambda one: trainer.fit((IMAGES, classes(6, 6)), validation=one)):
        if one is None and use not in (trainer.fit, trainer.evaluate):
            continue
        with pytest.raises(
            UsageError,
            match=r"^(fit|evaluate): .* must (be a Loader, .*|be a pair of arrays .*|yield batches \(x, y\)), got ",
        ):
            use(one)
    assert trainer.steps in (0, 1)


def test_targets_outside_of_a_tuple_are_told_the_fix():
    trainer = trainer_of("segmentation")
    says = r"must be an integer, got an array of shape \(20, 6, 6\); pass targets in a tuple, \(x, y\)$"
    for use, name in ((trainer.fit, "fit: epochs"), (trainer.evaluate, "evaluate: batch_size")):
        with pytest.raises(UsageError, match=f"^{name} {says}"):
            use(IMAGES, classes(6, 6))
        with pytest.raises(UsageError, match=f"^{name} {says}"):  # as in Keras, by the name of the third argument
            use(IMAGES, classes(6, 6), **{name.split()[1]: 1})


def test_one_example_alone_is_told_the_fix():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3))
    trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ShapeError) as caught:
        trainer.predict(IMAGES[0])
    assert str(caught.value).endswith("got one image of shape (3, 6, 6); pass x[None]")
    dense = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    with pytest.raises(ShapeError, match=r"linear: .*; one example alone is passed as x\[None\]$"):
        Trainer(dense, optim.SGD(dense.parameters(), lr=0.1)).predict(IMAGES[0])
    assert trainer.predict(IMAGES[0][None]).shape == (1, 3)
    for one in (IMAGES[:, :1], IMAGES[0, 0]):
        with pytest.raises(ShapeError) as caught:
            trainer.predict(one)
        assert "x[None]" not in str(caught.value)


def test_predictions_refuse_pixels_that_are_not_scaled_as_training_does():
    trainer, pixels = trainer_of("segmentation"), IMAGES.astype(np.float32)
    for use in (trainer.predict, lambda x: trainer.fit((x, classes(6, 6)))):
        with pytest.raises(
            DataError, match=r"^(predict|from_arrays): float x from .* divide them by 255, or pass uint8"
        ):
            use(pixels)
    scaled = trainer.predict(IMAGES)
    assert np.array_equal(trainer.predict(pixels / 255), scaled)
    meant = trainer.predict(data.Dataset(pixels, classes(6, 6)))
    assert not np.array_equal(meant, scaled)


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (
            (TABLE, (0, 1)),
            r"^fit: train must be a pair of arrays \(x, y\) or batches .*, got a tuple of ndarray, tuple$",
        ),
        ((TABLE, TABLE, TABLE), "got a tuple of ndarray, ndarray, ndarray$"),
        ((data.from_arrays(IMAGES, classes()),) * 2, "got Dataset; pass one of the data sets$"),
    ],
)
def test_tuples_that_are_no_pair_of_arrays_are_named(one, says):
    with pytest.raises(UsageError, match=says):
        trainer_of("regression").fit(one)


def test_lengths_that_differ_are_refused():
    with pytest.raises(ShapeError, match=r"y must have one target per example, got \(19,\) for 20 examples"):
        trainer_of("regression").fit((TABLE, TABLE[1:, 0]))


def test_a_generator_gives_its_batches_once():
    def batches():
        return (batch for batch in in_hand("regression"))

    trainer = trainer_of("regression")
    trainer.fit(batches())
    with pytest.raises(DataError, match=r"epoch 3: there is no batch to train on \(an iterator gives its batches only"):
        trainer.fit(iter(list(in_hand("regression"))), 2)
    trainer.fit(batches(), until=3, validation=batches())
    for made in (batches(), zip(TABLE, TABLE, strict=True), map(tuple, in_hand("regression"))):
        says = r"^fit: (train|validation) is a \w+, whose batches come once, for 2 epochs; pass a list of batches"
        for train, validation in ((made, None), (list(in_hand("regression")), made)):
            with pytest.raises(DataError, match=says):
                trainer.fit(train, 2, validation=validation)
    assert len(trainer.history) == 3  # none was begun
    used = batches()
    trainer.evaluate(used)
    with pytest.raises(DataError, match=r"there is no batch to test on \(an iterator gives its batches only once\)"):
        trainer.evaluate(used)
    with pytest.raises(DataError, match=r"^predict: x has no batch \(an iterator gives its batches only once\)$"):
        trainer.predict(used)


def feed(one, **options):
    return Feed("fit: train", one, trainer_of("regression").device, print, **options)


def test_a_feed_says_what_it_reads():
    x, y = np.zeros((1437, 7), np.float32), np.zeros(1437)
    batch = (x[:2], y[:2])
    assert feed((x, y)).description == "1,437 examples in shuffled batches of 64"
    assert feed(data.Loader((x, y), 5, shuffle=False)).description == (
        "1,437 examples in batches of 5, in the order of the data set"
    )
    assert feed([batch] * 12).description == "12 batches, in the order in which they come"
    assert feed((batch, batch)).description == "2 batches, in the order in which they come"
    assert feed(iter([batch])).description == "batches, in the order in which they come"


def test_a_feed_of_a_device_gives_its_dtype():
    strict = pytest.importorskip("array_api_strict")
    trainer = trainer_of("regression", "strict:device1")
    made = Feed("fit", (TABLE, TABLE), trainer.device, print, strict.float32)
    x = next(iter(made.batches(1, 0, Cut()))).mine[0].x
    assert x.dtype == strict.float32
    order = np.random.default_rng([0, 0]).permutation(N)
    assert np.array_equal(to_numpy(x), TABLE[order].astype(np.float32))


class Sequence(collections.abc.Sequence):
    """Examples as a sequence, as many libraries have them."""

    def __getitem__(self, index):
        return TABLE[index], TABLE[index, :2]

    def __len__(self):
        return len(TABLE)


def test_a_sequence_that_is_no_list_has_examples():
    assert feed(Sequence()).description == "20 examples in shuffled batches of 64"
    trainer = trainer_of("regression")
    assert trainer.evaluate(Sequence()).samples == 20
    assert trainer.predict(Sequence()).shape[0] == 20


@pytest.mark.parametrize("use", ["fit", "evaluate", "predict"])
def test_workers_end_with_the_error_that_ends_the_work(use, monkeypatch):
    """Also while the error, whose traceback refers to the batches, is kept."""
    trainer = trainer_of("regression")
    loader = data.Loader((TABLE, TABLE[:, :2]), 2, workers=2)

    def fail(*arguments, **options):
        raise RuntimeError("mine")

    before = threading.active_count()
    monkeypatch.setattr(trainer.model[0], "forward", fail)
    with pytest.raises(RuntimeError, match="mine") as held:
        getattr(trainer, use)(loader)
    assert threading.active_count() == before
    assert held.value.__traceback__ is not None


class Unsized:
    """Batches with `__len__` although they have no length, as a `DataLoader` of PyTorch of an iterable data set."""

    def __len__(self):
        raise TypeError("object of type 'Stream' has no len()")

    def __iter__(self):
        return in_hand("regression")


def test_batches_may_have_no_length():
    assert feed(Unsized()).length is None
    wanted = trainer_of("regression").fit(list(in_hand("regression")), 2)
    assert [r["train_loss"] for r in trainer_of("regression").fit(Unsized(), 2)] == [r["train_loss"] for r in wanted]


@pytest.mark.parametrize("y", [3, 0.5, np.float32(2.0), np.asarray(1)])
def test_examples_one_by_one_are_no_batches(y):
    examples, trainer = [(TABLE[0], y), (TABLE[1], y)], trainer_of("regression")
    says = r" must yield batches \(x, y\), but y is the single number [\d.]+; pass examples as data.MapDataset"
    for use in (trainer.fit, trainer.evaluate, trainer.predict):
        with pytest.raises(UsageError, match=says):
            use(examples)
    assert trainer.predict(data.MapDataset(examples)).shape[0] == 2


def test_predictions_need_no_targets():
    trainer = trainer_of("regression")
    wanted, halves = trainer.predict(TABLE), (TABLE[:12], TABLE[12:])
    for batches in (halves, [[half] for half in halves], [(half, None) for half in halves]):
        # Sums of batches of other sizes may be added in another order.
        np.testing.assert_allclose(trainer.predict(batch for batch in batches), wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match=r"^predict: x must yield batches x or \(x, y\), got a tuple of 3$"):
        trainer.predict([(TABLE, TABLE, TABLE)])


@pytest.mark.parametrize("one", ["x.npy", b"x", {"x": TABLE, "y": TABLE}])
def test_names_and_dicts_are_no_data(one):
    trainer = trainer_of("regression")
    for use, name in (("fit", "train"), ("evaluate", "data"), ("predict", "x")):
        with pytest.raises(UsageError, match=f"^{use}: {name} must be a Loader, .* got {type(one).__name__}$"):
            getattr(trainer, use)(one)


def test_lists_instead_of_arrays_are_named():
    trainer, lists = trainer_of("regression"), (TABLE.tolist(), TABLE.tolist())
    with pytest.raises(UsageError, match=r"got a list of 20; pass NumPy arrays as a tuple \(x, y\)$"):
        trainer.fit(lists)
    with pytest.raises(UsageError, match=r"^Loader: dataset must be .* got a tuple of list, list$"):
        data.Loader(lists)
    with pytest.raises(UsageError, match=r"^x and targets must be arrays, got a list of unequal shapes$"):
        trainer.predict([TABLE[0], TABLE[0, :1]])

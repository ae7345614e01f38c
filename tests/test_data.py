"""Data sets, their splits, the table of names, and the loader."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import LIBRARIES

from xcnn import data
from xcnn.devices import to_numpy
from xcnn.errors import DataError, DtypeError, ShapeError, UsageError, XcnnError

CLASSES = ("a", "b", "c")


def small(n=10, name="small"):
    """Return images filled with their own index, which shows the order and coverage of batches."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 1, 2, 3))
    return data.Dataset(images, np.arange(n) % 3, CLASSES, name)


def test_a_dataset_has_a_length_a_shape_and_parts():
    d = small(10)
    assert len(d) == 10
    assert d.shape == (1, 2, 3)
    part = d[np.asarray([7, 2])]
    assert part.x[:, 0, 0, 0].tolist() == [7, 2]
    assert part.y.tolist() == [1, 2]
    assert part.classes == CLASSES
    assert len(d[2:5]) == 3


U8, I64 = np.uint8, np.int64


@pytest.mark.parametrize(
    ("images", "labels", "error", "says"),
    [
        ([[[[0]]]], np.zeros(1, I64), DtypeError, "list"),
        (np.zeros((2, 1, 2, 2), np.int64), np.zeros(2, I64), DtypeError, "uint8 or floating point, got int64"),
        (np.zeros((2, 1, 2, 2), U8), np.zeros(2, bool), DtypeError, "got bool"),
        (np.zeros((2, 1, 2, 2), U8), np.asarray(["a", "b"]), DtypeError, "got <U1"),
        (np.zeros((2, 1, 2, 2), object), np.zeros(2, I64), DtypeError, "got object"),
        (np.zeros(2, U8), np.zeros(2, I64), ShapeError, "two or more axes of at least 1, got (2,)"),
        (np.zeros((2, 1, 0, 2), U8), np.zeros(2, I64), ShapeError, "(2, 1, 0, 2)"),
        (np.zeros((2, 1, 2, 2), U8), np.zeros(3, I64), ShapeError, "got (3,) for 2 examples"),
        (np.zeros((2, 1, 2, 2), U8), np.asarray(1), ShapeError, "got () for 2 examples"),
        (np.zeros((2, 1, 2, 2), U8), np.zeros((2, 4), np.float32), ShapeError, "float y must be (N, 3), a number for"),
        (np.zeros((2, 1, 2, 2), U8), np.zeros(2), ShapeError, "leave out the classes for regression"),
        (np.zeros((2, 1, 2, 2), U8), np.full((2, 3), np.nan), DataError, "float y must be finite, without NaN"),
        (np.zeros((2, 4), U8), np.asarray([[0, 1], [-1, -100]]), DataError, "from -1 to 1; 3 classes allow 0 to 2"),
        (np.zeros((0, 1, 2, 2), U8), np.zeros(0, I64), DataError, "empty"),
        (np.zeros((2, 1, 2, 2), U8), np.asarray([0, 3]), DataError, "0 to 3"),
        (np.zeros((2, 1, 2, 2), U8), np.asarray([-1, 2]), DataError, "-1"),
        (
            np.full((2, 1, 2, 2), np.inf, np.float32),
            np.zeros(2, I64),
            DataError,
            "finite, without NaN, but x[0, 0, 0, 0] is inf, one of 8 ",
        ),
        (np.full((2, 1, 2, 2), np.nan, np.float32), np.zeros(2, I64), DataError, "nan"),
    ],
)
def test_a_dataset_refuses_arrays_that_do_not_fit(images, labels, error, says):
    with pytest.raises(error) as caught:
        data.Dataset(images, labels, CLASSES, "mine")
    assert_one_sentence(caught, "mine: ", says)


def assert_one_sentence(caught, start, says):
    message = str(caught.value)
    assert message.startswith(start)
    assert says in message
    assert "\n" not in message


def test_a_dataset_is_not_indexed_by_one_number():
    with pytest.raises(UsageError, match="small"):
        small()[3]


class Endless:
    """An object with a length and items, and items beyond its length."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return 1.0


def test_from_arrays_converts_to_what_a_dataset_holds():
    grey = data.from_arrays(np.full((4, 1, 5, 6), 0.5).tolist(), np.asarray([0, 1, 2, 1], np.int32))
    assert grey.x.dtype == np.float64
    assert grey.shape == (1, 5, 6)
    assert grey.y.dtype == np.int64
    assert grey.classes == ("0", "1", "2")
    colour = data.from_arrays(np.zeros((2, 3, 5, 6), U8), np.asarray([1, 0], U8), classes=["x", "y"], name="mine")
    assert colour.x.dtype == U8
    assert (colour.name, colour.classes) == ("mine", ("x", "y"))


@pytest.mark.parametrize(
    ("images", "labels", "error", "says"),
    [
        (np.zeros((2, 4, 4), np.int64), [0, 1], DtypeError, "astype('uint8')"),
        (np.zeros((2, 4, 4), bool), [0, 1], DtypeError, "bool; pass pixels from 0 to 255 as x.astype('uint8'), any"),
        (np.zeros((2, 9), np.int64), [0, 1], DtypeError, "anything else as x.astype('float32')"),
        (np.zeros((2, 32, 32, 3), U8), [0, 1], ShapeError, "transpose(0, 3, 1, 2)"),
        ([[1, 2], [3]], [0, 1], DtypeError, "x must be an array, got list"),
        (Endless(), [0, 1], DtypeError, "x must be an array, got Endless"),
        (np.zeros((2, 4, 4), U8), [0, 2**40], DataError, str(2**40)),
    ],
)
def test_from_arrays_says_how_to_convert(images, labels, error, says):
    with pytest.raises(error) as caught:
        data.from_arrays(images, labels)
    assert_one_sentence(caught, "", says)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_from_arrays_refuses_floats_that_are_not_finite(bad):
    images = np.zeros((2, 4, 4))
    images[1, 2, 3] = bad
    with pytest.raises(DataError, match="must be finite"):
        data.from_arrays(images, [0, 1])


def test_float_images_keep_their_values():
    for low, high in ((0, 1), (-2.1, 2.6), (0, 16), (-300, 300)):
        images = np.linspace(low, high, 2 * 4 * 4).reshape(2, 1, 4, 4)
        for kind in (np.float32, np.float64):
            batch, _ = next(iter(data.Loader((images.astype(kind), np.asarray([0, 1])), shuffle=False)))
            assert batch.dtype == kind
            assert np.array_equal(batch, images.astype(kind))


@pytest.mark.parametrize(("high", "by"), [(17, "255"), (255, "255"), (65535, "the largest value that they can have")])
def test_floats_that_nobody_scaled_are_refused_unless_they_are_meant(high, by):
    images = np.rint(np.linspace(0, high, 2 * 4 * 4, dtype=np.float32)).reshape(2, 1, 4, 4)
    with pytest.raises(DataError, match=f"from_arrays: float x from 0.0 to {high}.0 .* divide them by {by}, or"):
        data.from_arrays(images, [0, 1])
    assert data.Dataset(images, np.asarray([0, 1]), ("a", "b"), "mine").x is images
    for other in (images.reshape(2, 1, 16), images + 0.5, images - 1, images.reshape(2, 2, 2, 4)):
        assert data.from_arrays(other, [0, 1]).x is other  # a signal, a measurement, ... may be of any size


def test_split_holds_out_a_part_that_the_seed_decides():
    d = small(100)
    rest, held = data.split(d, 0.25, seed=3)
    assert (len(rest), len(held)) == (75, 25)
    ids = [part.x[:, 0, 0, 0].tolist() for part in (rest, held)]
    assert sorted(ids[0] + ids[1]) == list(range(100))
    assert ids[0] == sorted(ids[0])
    assert np.array_equal(held.x, data.split(d, 0.25, seed=3)[1].x)
    assert not np.array_equal(held.x, data.split(d, 0.25, seed=4)[1].x)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 0.001, 0.999, float("nan"), "0.5", None])
def test_split_leaves_no_part_empty(fraction):
    with pytest.raises(UsageError, match="split: "):
        data.split(small(10), fraction, seed=0)


@pytest.mark.parametrize("seed", [-1, 0.5, "1", None])
def test_split_takes_a_seed(seed):
    with pytest.raises(UsageError, match=r"^split: seed must be an integer of at least 0, got "):
        data.split(small(10), 0.5, seed)


def test_to_float_is_exact_division():
    values = np.arange(256, dtype=U8)
    scaled = data.to_float(values)
    assert scaled.dtype == np.float32
    assert np.array_equal(scaled, values.astype(np.float32) / np.float32(255))
    assert data.to_float(scaled) is scaled
    double = data.to_float(scaled.astype(np.float64))
    assert double.dtype == np.float64
    with pytest.raises(DtypeError, match=r"to_float: .* int64"):
        data.to_float(values.astype(np.int64))


@pytest.mark.parametrize("backend", LIBRARIES, indirect=True)
def test_to_float_gives_the_same_bits_for_every_library(backend):
    values = np.arange(256, dtype=U8).reshape(64, 4)
    scaled = data.to_float(backend.device.asarray(values))
    assert scaled.dtype == backend.device.xp.float32
    assert to_numpy(scaled).tobytes() == data.to_float(values).tobytes()
    assert data.to_float(scaled) is scaled
    with pytest.raises(DtypeError, match=r"to_float: x must be uint8 or floating point, got .*int32"):
        data.to_float(backend.device.asarray(values.astype(np.int32)))


# Names


def test_digits_are_the_ones_of_scikit_learn():
    train, test = data.load("digits")
    assert (len(train), len(test), train.shape) == (1437, 360, (1, 8, 8))
    original = pytest.importorskip("sklearn.datasets").load_digits()
    held_out = np.arange(1797) % 5 == 0
    for part, chosen in ((train, ~held_out), (test, held_out)):
        assert np.array_equal(part.y, original.target[chosen])
        assert np.array_equal(part.x[:, 0], np.rint(original.images[chosen] * 255 / 16))


def test_digits_have_the_published_class_counts():
    train, test = data.load("digits")
    counts = np.bincount(train.y) + np.bincount(test.y)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(test.y).min() > 20
    assert (train.x.min(), train.x.max()) == (0, 255)


def test_a_data_set_may_have_a_part_to_validate_on(monkeypatch):
    parts = [small(n) for n in (3, 4, 5)]
    for given, names in ((parts, ["train", "validation", "test"]), (parts[::2], ["train", "test"])):
        monkeypatch.setitem(data.DATASETS, "mine", data.Entry("mine", lambda data_dir, given=given: tuple(given)))
        assert data.splits("mine") == dict(zip(names, given, strict=True))
        assert data.load("mine") == (parts[0], parts[2])
    for wrong in (parts[:1], [*parts, parts[0]], [parts[0], parts[1].x], None, parts[0]):
        monkeypatch.setitem(data.DATASETS, "mine", data.Entry("mine", lambda data_dir, wrong=wrong: wrong))
        with pytest.raises(
            UsageError, match=r"^mine: the function must return \(train, test\), two xcnn.data.Dataset, or"
        ):
            data.load("mine")


def test_mnist_is_mnist(shared_data):
    train, test = data.load("mnist", shared_data)
    assert (train.x.shape, test.x.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert train.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert np.bincount(train.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert abs(data.to_float(train.x).mean() - 0.1307) < 1e-4  # the well-known mean of MNIST


def test_cifar10_is_cifar10(shared_data):
    train, test = data.load("cifar10", str(shared_data))
    assert (train.x.shape, test.x.shape) == ((20000, 3, 32, 32), (1000, 3, 32, 32))
    assert train.classes[train.y[0]] == "frog"
    assert test.y[:4].tolist() == [3, 8, 8, 0]
    assert np.bincount(train.y[:10000]).tolist() == [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]
    means = data.to_float(train.x).mean(axis=(0, 2, 3))
    assert np.abs(means - [0.4914, 0.4822, 0.4465]).max() < 5e-3  # of the whole set; this is two fifths of it


def test_the_table_tells_the_truth(shared_data):
    for name in ("digits", "mnist"):
        entry = data.DATASETS[name]
        train, test = data.load(name, None if name == "digits" else shared_data)
        assert (train.shape, len(train.classes), (len(train), len(test))) == (entry.shape, entry.classes, entry.sizes)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        (["mnst"], {}, UsageError, "did you mean 'mnist'?"),
        (["digits", "somewhere"], {}, UsageError, "is part of the package"),
        (["folder"], {}, UsageError, "data_dir"),
        ([5], {}, UsageError, "unknown data set 5"),
        ([["mnist"]], {}, UsageError, "unknown data set ['mnist']"),
        (
            ["mnist"],
            {"size": 3},
            UsageError,
            "mnist: no argument 'size' (known: data_dir)",
        ),
        (
            ["folder", "x"],
            {"sise": 3},
            UsageError,
            "folder: no argument 'sise'; did you mean 'size'? (",
        ),
        (["folder", "x"], {"size": 0}, UsageError, "folder: size must be an integer from 1 to 1024, got 0"),
        (["mnist", "/nowhere"], {}, DataError, "train-images-idx3-ubyte, train-labels"),
        (["cifar10", "/nowhere"], {}, DataError, "data_batch_1.bin"),
        (["folder", "/nowhere"], {}, DataError, "no folder /nowhere"),
    ],
)
def test_load_says_what_is_wrong(arguments, options, error, says):
    with pytest.raises(error) as caught:
        data.load(*arguments, **options)
    assert_one_sentence(caught, "", says)
    assert isinstance(caught.value, XcnnError)


WRONG = {
    "a path": lambda: data.load("mnist", 5),
    "a path of an image": lambda: data.read_image(None, (1, 8, 8)),
    "an array": lambda: data.to_float([1, 2]),
    "a data set": lambda: data.split([1, 2], 0.5, 0),
    "class names": lambda: data.from_arrays(np.zeros((2, 8, 8)), [0, 0], 5),
    "class names that are strings": lambda: data.Dataset(np.zeros((1, 1, 8, 8), U8), np.zeros(1, I64), (1,), "mine"),
    "functions": lambda: data.Loader(small(), augment=data.flip),
    "an epoch": lambda: next(data.Loader(small()).batches(-1)),
    "a batch": lambda: next(data.Loader(small()).batches(0, None)),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_argument_of_a_wrong_type_is_one_sentence(what):
    with pytest.raises(XcnnError) as caught:
        WRONG[what]()
    assert_one_sentence(caught, "", ", got ")


def test_importing_the_data_room_is_light():
    code = "import json, sys, xcnn.data; xcnn.data.load('digits'); print(json.dumps(list(sys.modules)))"
    loaded = set(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))
    assert not loaded & {"PIL", "requests", "torch", "jax", "cupy", "matplotlib", "rich", "cyclopts"}


# Loader


def ids(loader):
    return [int(i) for images, _ in loader for i in np.rint(images[:, 0, 0, 0] * 255)]


@pytest.mark.parametrize("n", [1, 7, 8, 9])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_a_pass_shows_each_image_once(n, shuffle, drop_last):
    d = small(n)
    size = min(n, 4)
    loader = data.Loader(d, size, shuffle=shuffle, drop_last=drop_last)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert all(images.shape[1:] == d.shape and len(images) == len(labels) for images, labels in batches)
    assert all(images.dtype == np.float32 and labels.dtype == np.int64 for images, labels in batches)
    seen = ids(loader)
    assert len(set(seen)) == len(seen) == (n - n % size if drop_last else n)
    if not shuffle:
        assert seen == list(range(len(seen)))
    for images, labels in batches:
        assert np.array_equal(np.rint(images[:, 0, 0, 0] * 255) % 3, labels)


def test_seed_and_epoch_alone_decide_the_order():
    first, second = (data.Loader(small(50), 8, seed=1) for _ in range(2))
    orders = [ids(first) for _ in range(3)]
    assert orders == [ids(second) for _ in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert ids(data.Loader(small(50), 8, seed=2)) != orders[0]
    resumed = data.Loader(small(50), 8, seed=1)
    resumed.epoch = 2
    assert ids(resumed) == orders[2]
    assert resumed.epoch == 3


def test_seed_and_epoch_decide_the_augmentation():
    def batches(epoch):
        loader = data.Loader(data.load("digits")[1], 100, seed=5, augment=[data.shift, data.rotate])
        loader.epoch = epoch
        return np.concatenate([images for images, _ in loader])

    assert np.array_equal(batches(0), batches(0))
    assert not np.array_equal(batches(0), batches(1))


def test_a_batch_is_decided_by_seed_epoch_and_number_alone():
    """Whatever was read before, from any batch on, and with several iterators at once."""
    d = data.load("digits")[1]
    loader = data.Loader(d, 100, seed=5, augment=[data.shift, data.rotate, data.cutout])
    whole = [list(loader.batches(epoch)) for epoch in range(2)]
    for epoch, start in ((1, 2), (0, 3), (0, 0), (1, 4)):
        rest = list(loader.batches(epoch, start))
        assert len(rest) == len(loader) - start
        for (x, y), (images, labels) in zip(rest, whole[epoch][start:], strict=True):
            assert x.tobytes() == images.tobytes()
            assert y.tobytes() == labels.tobytes()
    assert loader.epoch == 0
    assert [x.tobytes() for x, _ in loader] == [x.tobytes() for x, _ in whole[0]]
    assert loader.epoch == 1
    first, *_ = whole[0][0]
    assert first.tobytes() != next(iter(data.Loader(d, 100, seed=5)))[0].tobytes()  # it was augmented


def test_a_pass_that_is_broken_off_does_not_count():
    loader = data.Loader(small(9), 3)
    next(iter(loader))
    assert loader.epoch == 0
    before = ids(loader)
    loader.epoch = 0
    assert ids(loader) == before


def test_batches_are_fresh_arrays():
    for d in (small(4), data.from_arrays(np.zeros((4, 1, 2, 2), np.float32), [0, 1, 1, 0])):
        before = d.x.copy()
        for images, labels in data.Loader(d, 4, shuffle=False):
            images += 1
            labels += 1
        assert np.array_equal(d.x, before)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 11, "drop_last": True}, "no batch"),
        ({"augment": ["flip"]}, "'flip'"),
        ({"augment": "flip"}, "'flip'"),
        ({"batch_size": 2.5}, "batch_size must be an integer of at least 1, got 2.5"),
        ({"seed": None}, "seed must be an integer of at least 0, got None"),
        ({"shuffle": "yes"}, "shuffle must be True or False, got 'yes'"),
    ],
)
def test_a_loader_refuses_what_makes_no_sense(options, says):
    with pytest.raises(UsageError) as caught:
        data.Loader(small(10), **options)
    assert_one_sentence(caught, "Loader: ", says)

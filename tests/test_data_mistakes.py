"""Mistakes with data sets, augmentations and pictures, each told in one sentence, and targets that need no classes."""

import functools

import numpy as np
import pytest

from xcnn import data, plots
from xcnn.errors import DataError, UsageError

X = np.random.default_rng(0).random((8, 1, 4, 4), np.float32)
Y = np.arange(8) % 2


# Targets of mixed examples


@pytest.mark.parametrize("function", [data.mixup, data.cutmix])
@pytest.mark.parametrize(
    "y",
    [np.linspace(-1, 1, 8), np.eye(8, 3), np.eye(8, 3, dtype=np.int64)],
    ids=["numbers", "several numbers", "several labels"],
)
def test_targets_that_are_no_classes_are_mixed_without_their_number(function, y):
    _, mixed = next(data.Loader((X, y), 8, augment=[function]).batches(0))
    assert (mixed.shape, mixed.dtype) == (y.shape, np.float32)
    assert mixed.sum() == pytest.approx(y.sum(), abs=3)
    assert not np.isin(mixed, y).all()


@pytest.mark.parametrize("function", [data.mixup, data.cutmix])
def test_labels_need_the_number_of_classes(function):
    _, y = next(data.Loader(data.Dataset(X, Y, ("a", "b")), 8, augment=[function]).batches(0))
    assert y.shape == (8, 2)
    with pytest.raises(UsageError, match=rf"^{function.__name__}: labels \(n,\) need classes, .*partial\(.*regression"):
        next(data.Loader(data.Dataset(X, Y), 8, augment=[function]).batches(0))


# Augmentations of others


class Noise:
    def __call__(self, x, y):
        return x, y


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x, rng: x, r"<lambda>: too many positional arguments; an augmentation is a function \(x, y, draws\)"),
        (Noise(), r"Noise: too many positional arguments; an augmentation is a function \(x, y, draws\) -> \(x, y\)"),
        (functools.partial(data.rotate, degree=5), r"rotate: no argument 'degree'; did you mean 'degrees'\?"),
        (functools.partial(data.mixup, alhpa=1), r"mixup: no argument 'alhpa'; did you mean 'alpha'\?"),
    ],
)
def test_an_augmentation_that_cannot_be_called_is_refused(function, says):
    with pytest.raises(UsageError, match=f"^Loader: {says}"):
        data.Loader((X, Y), augment=[function])


@pytest.mark.parametrize(
    ("made", "got"), [(lambda x: x[:2], "ndarray"), (lambda x: None, "NoneType"), (lambda x: (x, 1, 2), "3 values")]
)
def test_an_augmentation_that_returns_no_pair_is_named(made, got):
    def own(x, y, draws, sigma):
        return made(x)

    loader = data.Loader((X, Y), 2, augment=[functools.partial(own, sigma=1)])
    with pytest.raises(UsageError, match=rf"^Loader: own of augment must return \(x, y\), got {got}$"):
        next(iter(loader))


@pytest.mark.parametrize(("dtype", "used"), [("float16", "f4"), (">f4", "f4"), (">f8", "f8"), ("longdouble", "f8")])
def test_floating_point_of_other_kinds_is_augmented(dtype, used):
    x, _ = next(data.Loader((X.astype(dtype), Y), 8, shuffle=False, augment=[data.flip]).batches(0))
    wanted, _ = next(data.Loader((X.astype(dtype).astype(used), Y), 8, shuffle=False, augment=[data.flip]).batches(0))
    assert x.dtype == np.dtype(used)
    assert np.array_equal(x, wanted)


# Arguments


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: data.Loader((X, Y), batchsize=2), "Loader: no argument 'batchsize'; did you mean 'batch_size'"),
        (lambda: data.Dataset(X, Y, clases=("a",)), "Dataset: no argument 'clases'; did you mean 'classes'"),
        (lambda: data.MapDataset(np.zeros(3), nam="a"), "MapDataset: no argument 'nam'; did you mean 'name'"),
        (
            lambda: data.ImageFiles([], (1, 2, 2), rezise="pad"),
            "ImageFiles: no argument 'rezise'; did you mean 'resize",
        ),
        (lambda: data.Draws(0, epoc=1, indices=[]), "Draws: no argument 'epoc'; did you mean 'epoch'"),
        (lambda: data.from_arrays(X, Y, clases=("a",)), "from_arrays: no argument 'clases'; did you mean 'classes'"),
        (lambda: data.split(data.Dataset(X, Y), fractio=0.5, seed=0), "split: no argument 'fractio'; did you mean"),
        (lambda: data.load(), "load: missing a required argument: 'name'"),
        (lambda: data.splits(), "splits: missing a required argument: 'name'"),
        (lambda: data.read_image("a.png", (1, 2, 2), size=3), "read_image: no argument 'size'"),
        (lambda: data.channel_statistics(), "channel_statistics: missing a required argument"),
        (lambda: plots.curves([], pth="a.png"), "curves: no argument 'pth'; did you mean 'path'"),
        (lambda: data.ImageFiles(None, (1, 2, 2)), "ImageFiles: paths must be a list of paths, got None"),
        (lambda: data.ImageFiles("abc", (1, 2, 2)), "ImageFiles: paths must be a list of paths, got 'abc'"),
        (lambda: data.from_arrays(X, Y, "ab"), "arrays: classes must be a list of names, got 'ab'"),
        (lambda: data.Draws(0, 0, [1]).uniform("a", 1), "uniform: low must be a number or an array of them, got 'a'"),
        (lambda: data.Draws(0, 0, [1]).normal(scale=None, loc="b"), "normal: .* must be a number or an array of them"),
        (lambda: data.Draws(0, 0, [1]).normal(dtype="xx"), "normal: dtype must be float32 or float64, got xx"),
    ],
)
def test_a_wrong_argument_is_named(call, says):
    with pytest.raises(UsageError, match=f"^{says}"):
        call()


@pytest.mark.parametrize("name", sorted(data.AUGMENTATIONS))
def test_every_augmentation_suggests_its_options(name):
    with pytest.raises(UsageError, match=rf"^{name}: no argument 'probability'.*known: x, y, rng, "):
        data.AUGMENTATIONS[name](X, Y, 0, probability=1)


def test_no_index_leaves_no_example():
    with pytest.raises(DataError, match=r"^arrays: the data set is empty"):
        data.Dataset(X, Y)[[]]


def test_negative_integers_may_be_meant_for_regression():
    with pytest.raises(
        DataError, match=r"^from_arrays: labels run from -3 to 4; .* or pass y.astype\('float32'\) for regression$"
    ):
        data.from_arrays(X, np.arange(8) - 3)
    assert data.from_arrays(X, np.where(Y == 0, -100, 1)).classes == ("0", "1")


# Pictures


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda path: plots.curves([], path), "curves: history must be at least one record of fit"),
        (lambda path: plots.confusion(np.zeros((0, 0), int), (), path), "confusion: classes must be at least one name"),
        (lambda path: plots.speeds({"a": {"b": (1.0, 1.0, 1.0)}}, 3), "speeds: path must be a path, got 3"),
    ],
)
def test_a_picture_of_nothing_is_refused(draw, says, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match=f"^{says}"):
        draw(tmp_path / "a.png")


def test_pictures_take_paths_as_text(tmp_path):
    pytest.importorskip("matplotlib")
    assert plots.confusion(np.eye(2, dtype=int), ("a", "b"), str(tmp_path / "c.png")).is_file()

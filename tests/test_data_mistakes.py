"""Mistakes with data sets, augmentations and pictures, each told in one sentence, and targets that need no classes."""

import functools

import numpy as np
import pytest

from xcnn import Trainer, data, nn, optim, plots
from xcnn.errors import DataError, DtypeError, UsageError

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


# What strangers bring


def test_names_of_classes_may_be_an_array():
    """The fix that the error for text names works as it is."""
    text = np.asarray(["dog", "cat"])[Y]
    for y in (text, text.astype(object)):
        with pytest.raises(DtypeError, match=r"; number classes by names, y = numpy.unique\(y, return_inverse=True\)"):
            data.from_arrays(X, y)
    names, y = np.unique(text, return_inverse=True)
    made = data.from_arrays(X, y, names)
    assert made.classes == ("cat", "dog")
    assert [made.classes[k] for k in made.y] == text.tolist()


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (
            X,
            Y > 0,
            r"got bool; pass y.astype\('int64'\) for two classes, y.astype\('float32'\) for labels of yes or no$",
        ),
        (
            (X * 65535).astype(np.uint16),
            Y,
            r"got uint16; pass pixels from 0 to 65535 as x.astype\('float32'\) / 65535$",
        ),
        (
            np.where(X[5, 0, 2, 1] == X, np.nan, X),
            Y,
            r"without NaN, but x\[5, 0, 2, 1\] is nan, one of 1 that are not$",
        ),
        (X, np.where(Y > 0, np.inf, 0.5), r"without NaN, but y\[1\] is inf, one of 4 that are not$"),
        (X.astype(np.longdouble) * np.longdouble("1e400"), Y, r"x\[0, 0, 0, 0\] is inf, one of \d+ that are not$"),
        (np.ma.masked_less(X, 0.5), Y, r"^from_arrays: x is a masked array, whose mask would be ignored; fill it"),
        (X, np.ma.masked_equal(Y, 1), r"^from_arrays: y is a masked array"),
        (X, Y - 1, r"labels run from -1 to 0; .* with -100 where none counts, or"),
    ],
)
def test_what_strangers_bring_is_told_its_fix(x, y, says):
    with pytest.raises((DataError, DtypeError), match=says):
        data.from_arrays(x, y)


def test_a_masked_array_is_neither_held_nor_predicted_from():
    with pytest.raises(DataError, match=r"^arrays: x is a masked array"):
        data.Dataset(np.ma.masked_less(X, 0.5), Y)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(DataError, match=r"is a masked array, whose mask would be ignored; fill it"):
        Trainer(model, optim.SGD(model.parameters())).predict(np.ma.masked_less(X, 0.5))


class Examples:
    def __len__(self):
        return len(X)

    def __getitem__(self, k):
        if k == 5:
            raise RuntimeError("the disk is gone")
        return X[k], Y[k]


@pytest.mark.parametrize("workers", [0, 4])
def test_an_error_of_an_example_says_which_it_is(workers):
    loader = data.Loader(Examples(), 2, shuffle=False, workers=workers)
    with pytest.raises(RuntimeError, match=r"^the disk is gone\nExamples: this is example 5 of 8$"):
        list(loader)


def test_what_a_loader_takes_is_split_and_measured():
    pairs, arrays = list(zip(X, Y, strict=True)), data.Dataset(X, Y, ("0", "1"))
    for part, held in (data.split(made, 0.25, seed=1) for made in ((X, Y), pairs)):
        for made, wanted in zip((part, held), data.split(arrays, 0.25, seed=1), strict=True):
            assert np.array_equal(made.gather(np.arange(len(made)))[0], wanted.x)
    assert data.channel_statistics((X, Y)) == data.channel_statistics(pairs) == data.channel_statistics(arrays)
    with pytest.raises(UsageError, match=r"^split: dataset must be a Dataset, .* got a tuple of list, list$"):
        data.split(([0.0], [1]), 0.5, seed=0)

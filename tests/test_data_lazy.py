"""Data that are read when needed: mapped files, objects with rows, map-style data sets; and workers that read ahead."""

import functools
import itertools
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from xcnn import data
from xcnn.data.lazy import places_of
from xcnn.devices import to_numpy
from xcnn.errors import DataError, DtypeError, ShapeError, UsageError, XcnnError

N = 50


def pixels(n=N, shape=(1, 4, 4)):
    return np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)


def labels(n=N):
    return np.arange(n) % 3


class Rows:
    """A lazy array as strict as an HDF5 data set: slices, or increasing indices. It counts the rows it gives."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.given = array, array.shape, array.dtype, 0

    def __getitem__(self, places):
        if not isinstance(places, slice):
            assert np.all(np.diff(places) > 0)
        rows = self.array[places]
        self.given += len(rows)
        return rows


class Items:
    """A map-style data set."""

    def __init__(self, x, y, classes=("a", "b", "c")):
        self.x, self.y, self.classes = x, y, classes

    def __len__(self):
        return len(self.x)

    def __getitem__(self, k):
        return self.x[k], self.y[k]


def mapped(folder, array):
    folder.mkdir(exist_ok=True)
    np.save(folder / "x.npy", array)
    return np.load(folder / "x.npy", mmap_mode="r")


@pytest.fixture(params=["mapped", "a part of a mapped one", "rows", "items", "tensors"])
def source(request, tmp_path):
    """Every kind of data that are not in memory, with the same content."""
    x, y = pixels(), labels()
    match request.param:
        case "mapped":
            return data.Dataset(mapped(tmp_path, x), y, ("a", "b", "c"))
        case "a part of a mapped one":
            return data.Dataset(mapped(tmp_path, np.flip(pixels(), 3))[..., ::-1], y, ("a", "b", "c"))
        case "rows":
            return data.Dataset(Rows(x), Rows(y), ("a", "b", "c"))
        case "items":
            return Items(x, y)
        case _:
            torch = pytest.importorskip("torch")
            return torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))


def contents(batches):
    return [(x.dtype.name, x.tobytes(), y.dtype.name, y.tobytes()) for x, y in batches]


def jitter(x, y, draws):
    """An augmentation with random numbers for each example, and for the targets."""
    return x + draws.random(x.shape[1:]).astype(x.dtype), y + draws.integers(0, 5)


@pytest.mark.parametrize("options", [{}, {"shuffle": False, "batch_size": 7}, {"augment": [jitter]}])
def test_batches_are_those_of_arrays_in_memory(source, options):
    plain = data.Loader(data.Dataset(pixels(), labels()), **{"batch_size": 16, "seed": 3, **options})
    wanted = contents(itertools.chain(plain.batches(0), plain.batches(1, 2)))
    for workers in (0, 1, 4):
        loader = data.Loader(source, **{"batch_size": 16, "seed": 3, **options}, workers=workers)
        assert contents(itertools.chain(loader.batches(0), loader.batches(1, 2))) == wanted
        assert loader.settings() == plain.settings()
    assert all(x.flags.writeable and y.flags.writeable for x, y in loader)


def test_a_part_reads_nothing_and_is_the_part(source):
    d = data.Loader(source).dataset
    rest, held = data.split(d, 0.2, seed=1)
    plain = data.split(data.Dataset(pixels(), labels()), 0.2, seed=1)
    for ours, theirs in zip(
        (rest, held, rest[5:9], rest[[3, 1]][::-1]), (*plain, plain[0][5:9], plain[0][[1, 3]]), strict=True
    ):
        assert len(ours) == len(theirs)
        assert ours.lazy
        assert contents([ours.gather(slice(0, len(ours)))]) == contents([theirs.gather(slice(0, len(theirs)))])
    if isinstance(getattr(d, "x", None), Rows):
        assert d.x.given == len(rest) + len(held) + 4 + 2  # only what was gathered
    with pytest.raises(DataError, match="is empty"):
        d[:0]
    for wrong in ([N], "x", [[1, 2]], [1.5]):
        with pytest.raises(UsageError, match="indices must be a slice or"):
            d[wrong]


def test_lazy_values_are_not_read_before_they_are_needed(tmp_path):
    rows = Rows(np.full((N, 1, 2, 2), np.nan, np.float32))
    d = data.from_arrays(rows, labels())
    assert (d.lazy, d.classes, rows.given) == (True, ("0", "1", "2"), 0)
    next(iter(data.Loader(d, 8)))
    assert rows.given == 8
    y = Rows(labels().astype(np.int16))
    assert data.from_arrays(pixels(), y).gather(slice(0, 2))[1].dtype == np.int64
    assert not data.from_arrays(pixels(), labels()).lazy


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs the memory map of Linux")
def test_pages_of_a_mapped_file_are_given_back(tmp_path):
    def resident():
        text = Path("/proc/self/smaps").read_text()
        found = re.search(r"x\.npy\n(?:.*\n)*?Rss:\s+(\d+) kB", text)
        return int(found[1])

    x = mapped(tmp_path, np.zeros((64, 1, 64, 64), np.float32))
    x.sum()
    assert resident() >= 1024
    d = data.Dataset(x, labels(64))
    for places in (np.arange(64)[::-1], slice(0, 32)):
        d.gather(places)
        assert resident() < 128
        x.sum()
    copy = np.load(tmp_path / "x.npy", mmap_mode="c")
    copy[:] = 7  # in memory alone: giving these pages back would lose them
    assert data.Dataset(copy, labels(64)).gather(np.arange(64))[0].min() == 7
    assert copy.min() == 7


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs the peak of memory of Linux")
def test_scattered_rows_bring_few_pages_at_once(tmp_path):
    """The peak is that of the rows that are returned: without giving pages back in between, it is twice as high."""

    def used(name):
        return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

    x = mapped(tmp_path, np.ones((1536, 1 << 16), np.uint8))  # 96 MiB
    places, before = np.random.default_rng(0).permutation(1536), used("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    rows, _ = data.Dataset(x, labels(1536)).gather(places)
    assert (peak := used("VmHWM") - before) < 144, peak
    assert rows.shape == (1536, 1 << 16)
    assert rows.min() == 1


class Wrong(Rows):
    def __init__(self, change):
        super().__init__(pixels())
        self.change = change

    def __getitem__(self, places):
        return self.change(super().__getitem__(places))


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda rows: rows[:-1], r"uint8 \(9, 1, 4, 4\)"),
        (lambda rows: rows.astype(np.float32), "float32"),
        (lambda rows: rows.tolist(), "list"),
    ],
)
def test_rows_that_are_not_as_they_should_be_are_refused(change, got):
    loader = data.Loader(data.Dataset(Wrong(change), labels()), 10)
    with pytest.raises(DataError, match=rf"^Wrong: 10 rows must be a NumPy array, uint8 \(10, 1, 4, 4\), got {got}"):
        next(iter(loader))


@pytest.mark.parametrize(("name", "value"), [("shape", 3), ("shape", ("a",)), ("dtype", None), ("dtype", "nonsense")])
def test_a_lazy_array_has_a_shape_and_a_dtype(name, value):
    rows = Rows(pixels())
    setattr(rows, name, value)
    with pytest.raises(DtypeError, match="x must be a NumPy array, or lazy with shape, dtype and rows, got Rows"):
        data.Dataset(rows, labels())
    for use in (data.from_arrays, lambda x, y: data.Loader((x, y))):
        with pytest.raises(XcnnError):
            use(rows, labels())


def test_rows_may_be_read_only_or_shared():
    kept = pixels()
    for change in (lambda rows: np.broadcast_to(rows[:1], rows.shape), lambda rows: kept[: len(rows)]):
        x, _ = data.Dataset(Wrong(change), labels()).gather(np.arange(10))
        x += 1
    assert np.array_equal(kept, pixels())


def test_a_fingerprint_tells_data_apart(tmp_path):
    x, y = pixels(200), labels(200)
    other = x.copy()
    other[199, 0, 3, 3] ^= 1
    made = {
        "memory": data.Dataset(x, y),
        "one bit": data.Dataset(other, y),
        "targets": data.Dataset(x, y + 1),
        "shape": data.Dataset(x.reshape(200, 4, 2, 2), y),
        "kind": data.Dataset(np.zeros((200, 1, 2, 2), np.float32), y),
        "mapped": data.Dataset(mapped(tmp_path, x), y),
        "mapped, one bit": data.Dataset(mapped(tmp_path / "other", other), y),
        "a part": data.Dataset(Rows(x), y)[:100],
        "another part": data.Dataset(Rows(x), y)[1:101],
    }
    prints = {name: d.fingerprint() for name, d in made.items()}
    assert len(set(prints.values())) == len(prints)
    assert data.Dataset(x.copy(), y.astype(np.int32)).fingerprint() == prints["memory"]
    assert data.Dataset(Rows(x), y)[:100].fingerprint() == prints["a part"]
    rows = Rows(x)
    rows.fingerprint = lambda: "from my index"
    assert data.Dataset(rows, y).fingerprint() not in prints.values()
    assert rows.given == 0


def test_lazy_data_stay_on_the_host(tmp_path):
    pytest.importorskip("array_api_strict")
    d = data.Dataset(mapped(tmp_path, pixels()), labels(), name="big")
    assert d.to("cpu") is d
    with pytest.raises(UsageError, match="big: lazy data stay on the host, got strict:device1; a Loader reads"):
        d.to("strict:device1")
    with pytest.raises(UsageError, match="big: astype takes arrays in memory on the host"):
        d.astype("float32")


# Map-style data sets


class Pairs(list):
    """Items as they are."""


X = np.zeros((1, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("items", "error", "says"),
    [
        ([], DataError, "the data set is empty"),
        ([X], UsageError, "example 0 must be a pair (x, y), got ndarray"),
        ([(X, 1, 2)], UsageError, "example 0 must be a pair (x, y), got 3 values"),
        ([("cat", 1)], DtypeError, "x of example 0 must be an array or a number, got str; convert it in __getitem__"),
        ([([[1], [2, 3]], 1)], DtypeError, "x of example 0 must be an array or a number, got list"),
        ([(X.astype(int), 1)], DtypeError, "x of example 0 must be uint8 or floating point, got int64"),
        ([(X, None)], DtypeError, "y of example 0 must be an array or a number, got NoneType"),
        ([(X, True)], DtypeError, "y of example 0 must be integers or floating point, got bool"),
        ([(1.5, 1)], ShapeError, "x of example 0 must have an axis or more"),
        ([(X, 1), (X[:, 1:], 1)], ShapeError, "x of example 1 has shape (1, 3, 4), that of example 0 has (1, 4, 4)"),
        ([(X, 1), (X, 1), (X, [1])], ShapeError, "y of example 2 has shape (1,), that of example 0 has ()"),
        ([(X, 1), (X.astype(np.uint8), 1)], DtypeError, "x of example 1 is uint8, that of example 0 is float32"),
        ([(X, 1), (X, 1.5)], DtypeError, "y of example 1 is float64, that of example 0 is int64"),
    ],
)
def test_an_item_that_does_not_fit_is_named(items, error, says):
    with pytest.raises(error) as caught:
        list(data.Loader(Pairs(items), 4))
    assert str(caught.value).startswith("Pairs: ")
    assert says in str(caught.value)


@pytest.mark.parametrize("wrong", [3, "text", {"x": 1}, np.zeros(3), (1, 2), iter([]), np.float32(1), None])
def test_what_is_no_data_set_is_refused(wrong):
    with pytest.raises(
        UsageError, match=r"^Loader: dataset must be a Dataset, arrays \(x, y\), or an object with __len"
    ):
        data.Loader(wrong)
    if not isinstance(wrong, tuple | np.ndarray):
        with pytest.raises(UsageError, match=r"^MapDataset: source must have __len__ and __getitem__|empty"):
            data.MapDataset(wrong)


def test_a_map_style_data_set_has_names_and_a_shape():
    d = data.MapDataset(Items(pixels(), labels()))
    assert (len(d), d.shape, d.classes, d.name) == (N, (1, 4, 4), ("a", "b", "c"), "Items")
    assert repr(d) == "<MapDataset Items: 50 examples 1x4x4 uint8>"
    assert data.MapDataset(Items(pixels(), labels(), classes=None), "mine").classes == ()


# Augmentations


def test_augmentations_share_draws_that_belong_to_the_examples():
    seen = []

    def look(x, y, draws):
        seen.append(draws)
        return x, draws.random()

    loader = data.Loader((np.arange(20, dtype=np.float32)[:, None], np.arange(20)), 6, seed=4, augment=[look, look])
    values = {}
    for x, y in loader.batches(2):
        assert seen[-1] is seen[-2]
        values |= dict(zip(x[:, 0].tolist(), y.tolist(), strict=True))
    wanted = data.Draws(4, 2, np.arange(20))
    wanted.random()
    assert [values[k] for k in range(20)] == wanted.random().tolist()


def test_a_part_of_a_map_style_data_set_reads_only_what_is_needed():
    read = []

    class Noted(Items):
        def __getitem__(self, k):
            read.append(k)
            return super().__getitem__(k)

    d = data.MapDataset(Noted(pixels(), labels()))
    x, _ = d[10:][np.asarray([3, -1])].gather(slice(0, 2))
    assert read == [0, 13, 49]
    assert np.array_equal(x, pixels()[[13, 49]])


def test_a_length_that_is_too_long_is_told():
    class Long(Items):
        def __len__(self):
            return N + 1

    with pytest.raises(DataError, match=rf"^Long: example {N} of {N + 1} cannot be read: IndexError \("):
        list(data.Loader(Long(pixels(), labels()), 8, shuffle=False))


@pytest.mark.parametrize(
    "index",
    [
        slice(None),
        slice(-3, None),
        slice(9, 2, -3),
        3,
        -1,
        [2, -7, 2],
        np.uint8([6]),
        [],
        np.arange(7) > 4,
        [[1], [-2]],
    ],
)
def test_places_are_those_of_numpy(index):
    found = places_of(index, 7)
    wanted = np.arange(7)[index]
    assert np.array_equal(found, wanted)
    assert found.shape == wanted.shape


@pytest.mark.parametrize("index", [7, -8, [0.5], "a", None, [True], [[0], [7]], np.uint64([2**63])])
def test_wrong_places_are_refused(index):
    with pytest.raises(IndexError):
        places_of(index, 7)


def test_an_augmentation_is_told_the_number_of_classes():
    def soft(x, y, draws, classes):
        return x, np.eye(classes)[y]

    _, y = next(iter(data.Loader(Items(pixels(), labels()), 4, augment=[soft])))
    assert y.shape == (4, 3)
    _, y = next(iter(data.Loader(Items(pixels(), labels()), 4, augment=[functools.partial(soft, classes=5)])))
    assert y.shape == (4, 5)
    with pytest.raises(
        UsageError, match=r"Loader: soft needs the classes, arrays has no names of them; pass Dataset\("
    ):
        data.Loader(data.Dataset(pixels(), labels()), augment=[soft])


# Workers


class Gate(Rows):
    """Rows that are given when the gate is open."""

    def __init__(self, array):
        super().__init__(array)
        self.open, self.begun = threading.Event(), []

    def __getitem__(self, places):
        self.begun.append(places)
        assert self.open.wait(60)
        return super().__getitem__(places)


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("xcnn-loader")]


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 0), (1, 3), (3, 2)])
def test_workers_make_only_so_many_batches_ahead(workers, prefetch):
    gate = Gate(pixels())
    gate.open.set()
    batches = data.Loader(data.Dataset(gate, labels()), 2, workers=workers, prefetch=prefetch).batches(0)
    for taken in range(1, 26):
        next(batches)
        assert len(gate.begun) <= taken + workers + prefetch
    assert len(gate.begun) == 25
    assert next(batches, None) is None
    assert loader_threads() == []


def test_a_pass_that_ends_early_leaves_no_thread():
    gate = Gate(pixels())
    batches = data.Loader(data.Dataset(gate, labels()), 2, workers=2, prefetch=4).batches(0)
    gate.open.set()
    next(batches)
    assert loader_threads() != []
    batches.close()
    assert loader_threads() == []
    assert len(gate.begun) <= 1 + 2 + 4


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_of_a_worker_comes_at_its_batch(workers):
    def fail(x, y, draws):
        if 20 in y:
            raise RuntimeError("no such file")
        return x, y

    loader = data.Loader(data.Dataset(pixels(), np.arange(N)), 8, shuffle=False, augment=[fail], workers=workers)
    batches = loader.batches(0)
    assert [y[0] for _, y in itertools.islice(batches, 2)] == [0, 8]
    with pytest.raises(RuntimeError, match="no such file") as caught:
        next(batches)
    assert caught.traceback[-1].name == "fail"
    assert loader_threads() == []


@pytest.mark.parametrize("end", ["sys.exit(3)", "os.kill(os.getpid(), signal.SIGINT)", "raise ValueError"])
def test_a_program_that_ends_meanwhile_does_not_hang(end):
    code = f"""
import os, signal, sys
import numpy as np
from xcnn.data import Loader
batches = iter(Loader((np.zeros((400, 5), np.uint8), np.zeros(400)), 2, workers=3, prefetch=9))
for number, batch in enumerate(batches):
    if number == 5:
        {end}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, text=True)
    assert done.returncode != 0
    assert done.stderr == "" or done.stderr.splitlines()[-1].startswith(("KeyboardInterrupt", "ValueError"))


def test_data_on_a_device_need_no_workers():
    pytest.importorskip("array_api_strict")
    d = data.Dataset(pixels(), labels())
    loader = data.Loader(d.to("strict:device1"), 16, workers=2)
    batches = loader.batches(0)
    x, _ = next(batches)
    assert loader_threads() == []
    assert to_numpy(x).tobytes() == next(data.Loader(d, 16).batches(0))[0].tobytes()


@pytest.mark.parametrize("name", ["workers", "prefetch"])
@pytest.mark.parametrize("value", [-1, 1.5, None, True])
def test_workers_are_a_number(name, value):
    with pytest.raises(UsageError, match=rf"^Loader: {name} must be an integer of at least 0, got "):
        data.Loader(data.Dataset(pixels(), labels()), **{name: value})


def test_ctrl_c_acts_at_once_and_ends_a_worker_after_its_item(monkeypatch):
    begun, there, go, released = [], threading.Event(), threading.Event(), []

    class Slow(Items):
        def __getitem__(self, k):
            begun.append(k)
            if k == 12:
                there.set()
                released.append(go.wait(60))
            return super().__getitem__(k)

    def interrupted(future):
        assert there.wait(60)
        raise KeyboardInterrupt

    batches = data.Loader(Slow(pixels(), labels()), 10, shuffle=False, workers=1, prefetch=0).batches(0)
    begun.clear()
    next(batches)
    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    threads = loader_threads()
    go.set()
    for thread in threads:
        thread.join(60)
    assert released == [True], "the interrupt waited for the item"
    assert begun == list(range(13))

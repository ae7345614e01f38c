"""Images that are decoded when they are needed: the same as those in memory, whoever decodes them."""

import threading
import time

import numpy as np
import pytest
from PIL import Image
from test_data_folder import pets, picture, refused

import xcnn.data.files
from xcnn import data, threads
from xcnn.errors import DataError, UsageError

RNG = np.random.default_rng(0)


@pytest.fixture
def mixed(tmp_path):
    """A folder of grey, coloured and transparent images of many sizes and formats."""
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for k, (mode, suffix) in enumerate(
            [("L", "png"), ("RGB", "jpg"), ("RGBA", "png"), ("LA", "png"), ("RGB", "gif"), ("L", "jpg"), ("RGB", "tif")]
        ):
            h, w = RNG.integers(5, 90, 2)
            pixels = RNG.integers(0, 256, (h, w, len(mode))).astype(np.uint8)
            Image.fromarray(pixels[..., 0] if mode == "L" else pixels).save(tmp_path / name / f"{k}.{suffix}")
    return tmp_path


@pytest.mark.parametrize("options", [{}, {"resize": "pad", "background": "#204060"}, {"resize": "stretch"}])
def test_images_are_the_same_in_memory_and_in_files(mixed, options):
    kept = data.load("folder", mixed, size=9, **options)
    read = data.load("folder", mixed, size=9, in_memory=0, **options)
    for one, other in zip(kept, read, strict=True):
        assert isinstance(one.x, np.ndarray)
        assert isinstance(other.x, data.ImageFiles)
        assert (other.x.shape, other.x.dtype, len(other.x)) == (one.x.shape, one.x.dtype, len(one.x))
        assert np.array_equal(other.x[:], one.x)
        assert np.array_equal(other.y, one.y)
        whole = [data.read_image(path, one.shape, **options) for path in other.x.paths]
        assert np.array_equal(whole, one.x)


def test_grey_images_stay_grey_in_files(tmp_path):
    pets(tmp_path, mode="LA")
    for background, channels in (("black", 1), ("#204060", 3)):
        for in_memory in (0, 1 << 20):
            train, _ = data.load("folder", tmp_path, background=background, in_memory=in_memory)
            assert train.shape == (channels, 32, 32)


def test_the_result_does_not_depend_on_threads(mixed, monkeypatch):
    monkeypatch.setattr(xcnn.data.files, "_CHUNK", 1)
    found = []
    try:
        for count in (1, 4):
            threads.set_num_threads(count)
            found.append(data.load("folder", mixed, size=9)[0].x)
    finally:
        monkeypatch.setattr(threads, "_threads", 0)
    assert np.array_equal(*found)


def test_images_are_indexed_as_an_array(mixed):
    train, _ = data.load("folder", mixed, size=6, in_memory=0)
    every = train.x[:]
    for index in (slice(1, 4), np.asarray([3, 0, 3]), [2, 1], np.arange(len(every)) % 2 == 0, slice(0, 0), 3, -1):
        assert np.array_equal(train.x[index], every[index])
        assert train.x[index].flags.writeable
    for wrong in (99, "a", np.asarray([0.5]), [99]):
        with pytest.raises(UsageError, match="ImageFiles: index with a slice or an array of indices"):
            train.x[wrong]


def test_own_files_become_a_data_set(mixed):
    paths = sorted(map(str, mixed.glob("*/*")))
    x = data.ImageFiles(paths, (1, 8, 8), resize="pad")
    y = np.asarray([0] * 7 + [1] * 7)
    assert len(data.Dataset(x, y, ("cat", "dog"), "pets")) == 14
    expected = [data.read_image(path, (1, 8, 8), resize="pad") for path in paths]
    assert np.array_equal(x[:], expected)
    with pytest.raises(UsageError, match="14 paths need as many digests, got 1"):
        data.ImageFiles(paths, (1, 8, 8), digests=[b""])
    for call in (data.ImageFiles, lambda paths, shape: data.read_image(paths[0], shape)):
        with pytest.raises(UsageError, match=r"shape must be \(C, H, W\), such as \(3, 32, 32\), got \(32, 32\)$"):
            call(["a.png"], (32, 32))
    with pytest.raises(UsageError, match="1 or 3 channels"):
        data.ImageFiles(paths, (2, 8, 8))
    with pytest.raises(UsageError, match="paths must be a path, got 3"):
        data.ImageFiles([3], (1, 8, 8))


def test_a_file_that_changes_is_noticed(mixed):
    train, _ = data.load("folder", mixed, size=6, in_memory=0)
    again, _ = data.load("folder", mixed, size=6, in_memory=0)
    assert again.x.fingerprint() == train.x.fingerprint() == data.ImageFiles(again.x.paths, train.shape).fingerprint()
    assert data.load("folder", mixed, size=7, in_memory=0)[0].x.fingerprint() != train.x.fingerprint()
    path = train.x.paths[2]
    picture(path)
    refused(lambda: train.x[2], path, "has changed since it was checked")
    assert len(train.x[:2]) == 2
    assert data.load("folder", mixed, size=6, in_memory=0)[0].x.fingerprint() != train.x.fingerprint()
    path.unlink()
    refused(lambda: train.x[2], path, "No such file")


def test_files_are_checked_with_progress_and_an_interrupt_ends_the_threads(tmp_path, monkeypatch):
    pets(tmp_path, 60, 60, size=(2, 2))
    seen = []
    data.load("folder", tmp_path, watch=lambda *numbers: seen.append(numbers))
    assert seen[-1] == (120, 120)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})

    def interrupt(done, total):
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    decoded = []
    monkeypatch.setattr(xcnn.data.files, "_CHUNK", 1)
    real = xcnn.data.files.decode
    monkeypatch.setattr(
        xcnn.data.files, "decode", lambda *rest, **more: (decoded.append(1), time.sleep(0.001), real(*rest, **more))[2]
    )
    with pytest.raises(KeyboardInterrupt):
        data.load("folder", tmp_path, watch=interrupt)
    assert set(threading.enumerate()) <= before
    assert len(decoded) < 120  # the rest was cancelled


def test_too_little_memory_is_not_the_fault_of_a_file(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise MemoryError

    pets(tmp_path)
    monkeypatch.setattr(xcnn.data.files, "decode", fail)
    with pytest.raises(MemoryError):
        data.load("folder", tmp_path, skip_broken=True)


def test_a_small_gif_does_not_limit_what_other_threads_open(tmp_path):
    """Pillow's limit of pixels is one setting of the whole process, so it is left alone."""
    for name in "ab":
        (tmp_path / name).mkdir()
        pixels = RNG.integers(0, 256, (1500, 1500)).astype(np.uint8)
        for k in range(4):
            Image.fromarray(pixels).save(tmp_path / name / f"{k}.jpg")
            Image.new("L", (4, 4), k).save(tmp_path / name / f"{k}.gif")
    stop, errors = threading.Event(), []

    def read_gifs():
        while not stop.is_set():
            data.read_image(tmp_path / "a" / "1.gif", (1, 4, 4))

    thread = threading.Thread(target=read_gifs)
    thread.start()
    try:
        data.load("folder", tmp_path)
    except DataError as error:
        errors.append(error)
    finally:
        stop.set()
        thread.join()
    assert errors == []

"""The parsers of IDX and CIFAR-10 files: what they return, and one sentence for damaged or hostile files."""

import errno
import gzip
import io
import struct
import tarfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xcnn import data
from xcnn.data.cifar import load_cifar10
from xcnn.data.idx import read_idx, write_idx
from xcnn.errors import DataError, DtypeError

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
arrays = st.lists(st.integers(0, 5), min_size=1, max_size=3).flatmap(
    lambda shape: st.binary(min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
        lambda content: np.frombuffer(content, np.uint8).reshape(shape)
    )
)


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@st.composite
def damaged(draw, content):
    """Shorten the content, lengthen it, or change some of its bytes."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        match draw(st.sampled_from(["cut", "grow", "change"])):
            case "cut":
                del content[draw(st.integers(0, len(content))) :]
            case "grow":
                content += draw(st.binary(min_size=1, max_size=9))
            case "change" if content:
                content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


def read_or_refuse(path, read, *arguments):
    """Return the result, or None if the file is refused with a DataError. Any other error is a failure."""
    try:
        return read(*arguments)
    except DataError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message
    return None


def assert_refused(caught, path):
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message


@quick
@given(array=arrays, compress=st.booleans())
def test_idx_comes_back_as_it_was_written(tmp_path, array, compress):
    path = tmp_path / "some.idx"
    write_idx(path, array, compress)
    back = read_idx(path, array.ndim)
    assert back.dtype == np.uint8
    assert np.array_equal(back, array)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == compress
    content = path.read_bytes()
    assert (gzip.decompress(content) if compress else content) == idx_bytes(array)


def test_idx_files_are_reproducible(tmp_path):
    first, second = tmp_path / "a.gz", tmp_path / "b.gz"
    for path in (first, second):
        write_idx(path, np.arange(100, dtype=np.uint8))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[4:8] == bytes(4)  # no time
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_only_bytes_are_written(tmp_path):
    with pytest.raises(DtypeError, match="int64"):
        write_idx(tmp_path / "x", np.arange(3))


@quick
@given(draw=st.data(), array=arrays, compress=st.booleans())
def test_a_damaged_idx_file_is_refused_or_still_valid(tmp_path, draw, array, compress):
    path = tmp_path / "some.idx"
    write_idx(path, array, compress)
    path.write_bytes(draw.draw(damaged(path.read_bytes())))
    back = read_or_refuse(path, read_idx, path, array.ndim)
    assert back is None or (back.dtype == np.uint8 and back.ndim == array.ndim)


@quick
@given(content=st.binary(max_size=60))
def test_any_bytes_are_refused_or_valid(tmp_path, content):
    path = tmp_path / "some.idx"
    path.write_bytes(content)
    back = read_or_refuse(path, read_idx, path, 1)
    assert back is None or back.ndim == 1


GOOD = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 2, 2))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "an empty file"),
        (b"\0\0\x08\x01" + GOOD[4:], "got 00 00 08 01"),
        (b"\0\0\x0d\x03" + GOOD[4:], "got 00 00 0d 03"),
        (b"<html>not found</html>", "got 3c 68 74 6d"),
        (GOOD[:9], "ends within its header"),
        (GOOD[:-1], "declares 12 bytes (3, 2, 2) after its header, but it has only 11"),
        (GOOD[:17], "has only 1"),
        (GOOD + b"x", "has more"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12 + b"x" * 100, "too many for a file of its length"),
        (bytes([0, 0, 8, 3]) + bytes(4) + b"\xff" * 8, "declares 0 bytes (0, 4294967295, 4294967295), at most"),
        (gzip.compress(GOOD)[:-9], "damaged"),
        (gzip.compress(GOOD[:-1]), "has only 11"),
        (gzip.compress(GOOD + b"x"), "has more"),
        (gzip.compress(bytes([0, 0, 8, 3]) + b"\xff" * 12), "too many for a file of its length"),
        (gzip.compress(GOOD)[:-8] + bytes(8), "CRC"),
        (gzip.compress(GOOD) + b"trailing", "damaged"),
    ],
)
def test_each_kind_of_damage_has_its_sentence(tmp_path, content, says):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path, 3)
    assert_refused(caught, path)
    assert says in str(caught.value)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(GOOD + bytes(50_000_000)))
    asked = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: asked.append(size) or read(self, size))
    with pytest.raises(DataError, match="has more"):
        read_idx(bomb, 3)
    assert max(asked) == 13


@pytest.mark.parametrize(
    ("images", "length", "says"),
    [
        (2**28 // 784, 2**28 // 1032, "too many for a file of its length"),  # what deflate could do
        (2**28 // 784 + 1, 2**28 // 32, "at most 268435456 are read"),  # what is believed
    ],
)
def test_a_bomb_whose_header_owns_up_to_it_is_not_unpacked(tmp_path, monkeypatch, images, length, says):
    bomb = tmp_path / "bomb.gz"
    declared = bytes([0, 0, 8, 3]) + struct.pack(">3I", images, 28, 28)
    bomb.write_bytes(gzip.compress(declared + bytes(300_000)) + bytes(length))
    asked = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: asked.append(size) or read(self, size))
    with pytest.raises(DataError, match=says) as caught:
        read_idx(bomb, 3)
    assert max(asked) == 12
    assert_refused(caught, bomb)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="No such file") as caught:
        read_idx(tmp_path / "none", 1)
    assert_refused(caught, tmp_path / "none")
    with pytest.raises(DataError, match="but it is a directory"):
        read_idx(tmp_path, 1)
    with pytest.raises(DataError, match="zero byte"):
        read_idx(tmp_path / "a\0b", 1)


def test_a_set_of_few_images_may_be_blank(tmp_path):
    write_idx(tmp_path / "blank.gz", np.zeros((1000, 28, 28), np.uint8))
    assert (tmp_path / "blank.gz").stat().st_size < 2000
    assert read_idx(tmp_path / "blank.gz", 3).shape == (1000, 28, 28)


def test_a_file_of_many_empty_gzip_members_is_read_in_linear_time(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"") * 50_000 + gzip.compress(GOOD))
    start = time.process_time()
    assert read_idx(path, 3).shape == (3, 2, 2)
    assert time.process_time() - start < 5  # it takes 0.2 s, or 1 s on newer Pythons


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_a_folder_that_cannot_be_searched_is_named(tmp_path, monkeypatch, name):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied") as caught:
        data.load(name, tmp_path)
    assert_refused(caught, tmp_path)


# MNIST's four files


def write_mnist(folder, train=6, test=4, compress=True):
    suffix = ".gz" if compress else ""
    for part, n in (("train", train), ("t10k", test)):
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", np.full((n, 28, 28), n, np.uint8), compress)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", np.arange(n, dtype=np.uint8), compress)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("compress", [True, False])
def test_four_files_make_a_data_set(tmp_path, name, compress):
    write_mnist(tmp_path, compress=compress)
    train, test = data.load(name, tmp_path)
    assert (len(train), len(test), train.shape) == (6, 4, (1, 28, 28))
    assert train.name == name
    assert len(train.classes) == 10


def test_labels_that_do_not_match_are_refused(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.zeros(3, np.uint8))
    with pytest.raises(DataError, match=r"t10k-labels.* has 3 labels for 4 images"):
        data.load("mnist", tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.full(4, 10, np.uint8))
    with pytest.raises(DataError, match="mnist: labels run from 10 to 10"):
        data.load("mnist", tmp_path)


def test_every_missing_file_is_named(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError) as caught:
        data.load("mnist", tmp_path)
    assert "no train-labels-idx1-ubyte, t10k-images-idx3-ubyte (" in str(caught.value)
    assert_refused(caught, tmp_path)


# CIFAR-10


def records(n, seed=0):
    content = np.random.default_rng(seed).integers(0, 256, (n, 3073)).astype(np.uint8)
    content[:, 0] %= 10
    return content


def tar(files, compress="gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compress}") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def put(folder, files, how):
    match how:
        case "bin":
            for name, content in files.items():
                (folder / name).write_bytes(content)
        case "folder":
            (folder / "cifar-10-batches-bin").mkdir()
            put(folder / "cifar-10-batches-bin", files, "bin")
        case "tar":
            inside = {f"cifar-10-batches-bin/{name}": content for name, content in files.items()}
            (folder / "cifar-10-binary-small.tar.gz").write_bytes(tar({"batches.meta.txt": b"airplane\n"} | inside))


@pytest.mark.parametrize("how", ["bin", "folder", "tar"])
def test_cifar_is_read_wherever_it_lies(tmp_path, how):
    batches = {"data_batch_2.bin": records(3, 2), "data_batch_1.bin": records(2, 1), "test_batch.bin": records(4, 3)}
    put(tmp_path, {name: content.tobytes() for name, content in batches.items()}, how)
    train, test = data.load("cifar10", tmp_path)
    expected = np.concatenate([batches["data_batch_1.bin"], batches["data_batch_2.bin"]])
    assert np.array_equal(train.y, expected[:, 0])
    assert np.array_equal(train.x, expected[:, 1:].reshape(-1, 3, 32, 32))
    assert np.array_equal(test.x.reshape(-1, 3072), batches["test_batch.bin"][:, 1:])
    assert train.x.flags.c_contiguous


@pytest.mark.parametrize("how", ["bin", "folder", "tar"])
@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"test_batch.bin": 3073}, "no data_batch_1.bin to data_batch_5.bin"),
        ({"data_batch_1.bin": 3073}, "no test_batch.bin"),
        ({"data_batch_1.bin": 3072, "test_batch.bin": 3073}, "it has 3072 bytes"),
        ({"data_batch_1.bin": 0, "test_batch.bin": 3073}, "it has 0 bytes"),
        ({"data_batch_1.bin": 3073 * 10001, "test_batch.bin": 3073}, "more than "),
    ],
)
def test_incomplete_cifar_files_are_refused(tmp_path, how, files, says):
    put(tmp_path, {name: bytes(size) for name, size in files.items()}, how)
    with pytest.raises(DataError) as caught:
        load_cifar10(tmp_path)
    assert says in str(caught.value)
    assert_refused(caught, tmp_path)


def test_a_label_out_of_range_names_its_file(tmp_path):
    bad = records(2)
    bad[1, 0] = 10
    put(tmp_path, {"data_batch_3.bin": bad.tobytes(), "test_batch.bin": records(1).tobytes()}, "tar")
    with pytest.raises(DataError, match=r"data_batch_3.bin of .* has a label 10"):
        load_cifar10(tmp_path)


def test_nothing_is_written_by_reading_an_archive(tmp_path):
    good = records(1).tobytes()
    files = {"../../data_batch_1.bin": good, "/etc/test_batch.bin": good, "../evil": b"x"}
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(tar(files))
    train, test = load_cifar10(tmp_path)
    assert (len(train), len(test)) == (1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz"]


def test_links_in_an_archive_are_not_followed(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="no data_batch_1"):
        load_cifar10(tmp_path)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("xcnn.data.cifar._MOST_TAR", 100_000)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(tar({"data_batch_1.bin": bytes(1_000_000)}))
    with pytest.raises(DataError, match="holds more than 100000 bytes"):
        load_cifar10(tmp_path)


def test_a_small_archive_that_unpacks_to_much_is_refused(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(tar({"data_batch_1.bin": bytes(20_000_000)}))
    with pytest.raises(DataError, match="too many for a file of its length"):
        load_cifar10(tmp_path)


def test_a_small_batch_takes_little_memory(tmp_path):
    put(tmp_path, {"data_batch_1.bin": records(1).tobytes(), "test_batch.bin": records(1).tobytes()}, "bin")
    tracemalloc.start()
    try:
        load_cifar10(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_two_archives_are_one_too_many(tmp_path):
    for name in ("cifar-10-binary.tar.gz", "cifar-10-binary-20k.tar.gz"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="2 archives"):
        load_cifar10(tmp_path)


def with_checksum(header):
    """Return a tar header with a valid checksum, so that the parser trusts its other bytes."""
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


@pytest.mark.parametrize(
    ("position", "field", "says"),
    [
        (124, b"\x80" + b"\x7f" * 11, "ends within"),  # a size of 2**87
        (124, b"\xff" * 12, "ends within"),  # a size of -1
        (124, b"00000040000\0", "ends within"),  # 16 KiB, more than is there
        (156, b"x", "no data_batch_1"),  # other types of member, whose data is passed over
        (156, b"S", "no data_batch_1"),
        (156, b"1", "no data_batch_1"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, position, field, says):
    content = tar({"data_batch_1.bin": records(1).tobytes(), "test_batch.bin": records(1).tobytes()}, "")
    header = with_checksum(content[:position] + field + content[position + len(field) : 512])
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(header + content[512:])
    with pytest.raises(DataError, match=says):
        load_cifar10(tmp_path)


def test_an_archive_that_ends_early_is_refused_even_between_members(tmp_path):
    content = tar({"data_batch_1.bin": records(1).tobytes(), "test_batch.bin": records(1).tobytes()}, "")
    end = 2 * (512 + 3584)  # header and data of both, without the end mark
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content[:end])
    with pytest.raises(DataError, match="empty header"):
        load_cifar10(tmp_path)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content[: end + 512])
    assert len(load_cifar10(tmp_path)[0]) == 1


@quick
@given(draw=st.data(), compress=st.sampled_from(["", "gz"]))
def test_a_damaged_archive_is_refused_or_still_valid(tmp_path, draw, compress):
    files = {"data_batch_1.bin": records(2).tobytes(), "test_batch.bin": records(1).tobytes()}
    content = tar(files, compress)
    path = Path(tmp_path / "cifar-10-binary.tar.gz")
    # Parsers go wrong in headers, so most damage is there.
    start = draw.draw(st.sampled_from([0, 0, 4096]))
    path.write_bytes(content[:start] + draw.draw(damaged(content[start : start + 512])) + content[start + 512 :])
    loaded = read_or_refuse(tmp_path, load_cifar10, tmp_path)
    assert loaded is None or [len(part) for part in loaded] in ([2, 1], [1, 1], [1, 2])

"""Downloads, from mirrors on this machine that are missing, broken or good."""

import functools
import hashlib
import http.server
import logging
import threading

import numpy as np
import pytest

from xcnn import data
from xcnn.data import download
from xcnn.data.idx import write_idx
from xcnn.errors import DataError


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve a folder, and note what was asked for."""

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    handler = functools.partial(Handler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.asked = []
        running.url = f"http://127.0.0.1:{running.server_port}/"
        running.folder = tmp_path / "served"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XCNN_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def mirrors(server, cache, monkeypatch):
    """A small MNIST on a good mirror, the same with one byte changed on a bad one, and one that has nothing."""
    good, bad = server.folder / "good", server.folder / "bad"
    good.mkdir()
    bad.mkdir()
    for k, file in enumerate(FILES):
        write_idx(good / file, np.full((3,) if "labels" in file else (3, 28, 28), k, np.uint8))
        content = bytearray((good / file).read_bytes())
        content[-1] ^= 1
        (bad / file).write_bytes(content)
    endless = server.folder / "endless"
    endless.mkdir()
    files = {}
    for file in FILES:
        content = (good / file).read_bytes()
        files[file] = len(content), hashlib.sha256(content).hexdigest()
        (endless / file).write_bytes(content + bytes(10_000_000))

    def use(*names):
        urls = tuple(name if "://" in name else f"{server.url}{name}/" for name in names)
        monkeypatch.setitem(download.SOURCES, "mnist", download.Source(urls, files))

    return use


def kept(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_the_first_good_mirror_is_used_and_its_files_are_kept(mirrors, server, cache, capfd):
    mirrors("nothing", "bad", "good")
    train, test = data.load("mnist")
    assert (len(train), len(test), train.images[0, 0, 0, 0], test.labels[0]) == (3, 3, 0, 3)
    assert kept(cache) == sorted(FILES)
    first = [path for path in server.asked if FILES[0] in path]
    assert [path.split("/")[1] for path in first] == ["nothing", "bad", "good"]
    # A mirror that failed is asked last from then on.
    assert all(path.startswith("/good/") for path in server.asked[3:])

    server.asked.clear()
    data.load("mnist")
    assert server.asked == []
    assert capfd.readouterr() == ("", "")


def test_a_mirror_that_does_not_answer_is_passed_over(mirrors):
    mirrors("http://127.0.0.1:9/", "good")  # nobody listens there
    assert len(data.load("mnist")[0]) == 3


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("bad", "nothing"), "HTTP status 404"),
        (("nothing", "bad"), "wrong checksum"),
        (("nothing", "endless"), "sent more than"),
    ],
)
def test_when_all_mirrors_fail_one_sentence_says_so_and_nothing_is_left(mirrors, cache, names, reason):
    mirrors(*names)
    with pytest.raises(DataError) as caught:
        data.load("mnist")
    message = str(caught.value)
    for part in ("mnist", FILES[0], "2 mirrors", reason, "--data-dir"):
        assert part in message
    assert "\n" not in message
    assert kept(cache) == []


def test_without_a_network_the_reason_is_named(mirrors, cache):
    mirrors("http://127.0.0.1:9/", "http://127.0.0.1:9/again/")
    with pytest.raises(DataError, match="ConnectionError"):
        data.load("mnist")
    assert kept(cache) == []


def test_a_damaged_file_in_the_cache_is_fetched_again(mirrors, cache):
    mirrors("good")
    data.load("mnist")
    path = cache / "mnist" / FILES[1]
    path.write_bytes(path.read_bytes()[:-4])
    assert len(data.load("mnist")[0]) == 3
    mirrors("bad")
    path.write_bytes(b"")
    with pytest.raises(DataError, match="could not download train-labels"):
        data.load("mnist")


def test_who_listens_hears_where_files_come_from(mirrors, caplog):
    mirrors("nothing", "good")
    with caplog.at_level(logging.INFO, "xcnn"):
        data.load("mnist")
    assert any("good/train-images" in message for message in caplog.messages)


def test_progress_is_told_of_each_file_from_its_first_byte_to_its_last(mirrors, cache, monkeypatch):
    mirrors("bad", "good")
    monkeypatch.setattr(download, "_CHUNK", 16)
    told = []
    data.load("mnist", progress=lambda *arguments: told.append(arguments))
    sizes = {file: (cache / "mnist" / file).stat().st_size for file in FILES}
    assert list(dict.fromkeys(file for file, _, _ in told)) == list(FILES)
    for file, size in sizes.items():
        counts = [done for name, done, total in told if name == file and total == size]
        once = [*range(0, size, 16), size]
        assert counts == once * (2 if file == FILES[0] else 1)  # the bad mirror is asked for the first file only
    told.clear()
    data.load("mnist", progress=lambda *arguments: told.append(arguments))
    data.load("digits", progress=lambda *arguments: told.append(arguments))
    assert told == []


def test_a_mirror_that_never_ends_is_left(mirrors, monkeypatch):
    mirrors("endless", "good")
    monkeypatch.setattr(download, "_CHUNK", 1024)
    told = []
    assert len(data.load("mnist", progress=lambda *arguments: told.append(arguments))[0]) == 3
    assert all(done <= total for _, done, total in told)


def test_a_cache_that_cannot_be_made_is_named(mirrors, cache):
    mirrors("good")
    cache.write_text("a file, not a folder")
    with pytest.raises(DataError, match="set XCNN_HOME") as caught:
        data.load("mnist")
    assert str(cache) in str(caught.value)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XCNN_HOME", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert download.cache_folder() == tmp_path / "a"
    monkeypatch.delenv("XCNN_HOME")
    assert download.cache_folder() == tmp_path / "b" / "xcnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert download.cache_folder() == tmp_path / "c" / ".cache" / "xcnn"


def test_every_data_set_has_two_mirrors_sizes_and_sha256_sums():
    for source in download.SOURCES.values():
        assert len(set(source.mirrors)) >= 2
        assert all(mirror.endswith("/") for mirror in source.mirrors)
        assert all(size > 0 and len(bytes.fromhex(checksum)) == 32 for size, checksum in source.files.values())


def test_the_checksums_of_the_official_files_are_theirs(shared_data):
    for file in FILES[2:]:  # the training files of this folder are not the official ones
        content = (shared_data / file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == download.SOURCES["mnist"].files[file]

"""Downloads, from mirrors on this machine that are missing, broken or good."""

import functools
import hashlib
import http.server
import json
import logging
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from xcnn import data
from xcnn.data import download
from xcnn.data.idx import write_idx
from xcnn.errors import DataError


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve a folder, and record the requests.

    Files under `cut/` are those of `good/`, but the connection breaks off in the middle; those under `slow/` stop
    there until the server's `gate` opens.
    """

    def do_GET(self):
        self.server.asked.append(self.path)
        _, mirror, file = self.path.split("/")
        if mirror == "astray":
            self.send_response(302)
            self.send_header("Location", "http://[::1")
            return self.end_headers()
        if mirror == "encoded":
            self.path = f"/good/{file}"
            return super().do_GET()
        if mirror not in ("cut", "slow"):
            return super().do_GET()
        content = (self.server.folder / "good" / file).read_bytes()
        half = len(content) // 2
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:half])
        self.wfile.flush()
        if mirror == "slow":
            self.server.gate.wait(10)
            self.wfile.write(content[half:])
        return None

    def end_headers(self):
        if self.server.asked[-1].startswith("/encoded/"):
            self.send_header("Content-Encoding", "x-gzip")
        super().end_headers()

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
        running.gate = threading.Event()
        running.handle_error = lambda *arguments: None  # the client that was downloading left
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.gate.set()
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
    """A good mirror of a small MNIST, a bad one with one byte changed, and an empty one.

    The fixture is a function that makes xcnn use some of them, and returns an argument for `another_process`.
    """
    rng = np.random.default_rng(0)
    good, bad = server.folder / "good", server.folder / "bad"
    good.mkdir()
    bad.mkdir()
    for k, file in enumerate(FILES):
        array = np.full(3, k, np.uint8) if "labels" in file else rng.integers(0, 256, (3, 100, 100)).astype(np.uint8)
        write_idx(good / file, array)
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
        return json.dumps([urls, files])

    return use


CHILD = """
import json, os, resource, sys
from xcnn.data import download

limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
mirrors, files = json.loads(sys.argv[1])
download.SOURCES["mnist"] = download.Source(tuple(mirrors), files)
download._CHUNK = 1024
download.fetch("mnist", lambda *told: print(*told, sep="|", flush=True))
"""


def another_process(source, limit=0):
    """Start a process that downloads MNIST and prints its progress; its files cannot be larger than `limit`."""
    command = [sys.executable, "-c", CHILD, source, str(limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kept(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def test_the_first_good_mirror_is_used_and_its_files_are_kept(mirrors, server, cache, capfd):
    mirrors("nothing", "bad", "good")
    train, test = data.load("mnist")
    assert (len(train), len(test), train.y[0], test.y[0]) == (3, 3, 1, 3)
    assert kept(cache) == sorted(FILES)
    first = [path for path in server.asked if FILES[0] in path]
    assert [path.split("/")[1] for path in first] == ["nothing", "bad", "good"]
    # A mirror that failed is asked last from then on.
    assert all(path.startswith("/good/") for path in server.asked[3:])

    server.asked.clear()
    data.load("mnist")
    assert server.asked == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("broken", ["http://127.0.0.1:9/", "http://a..b/", "astray", "cut"])  # the first has no server
def test_a_mirror_that_does_not_answer_is_passed_over(mirrors, broken):
    mirrors(broken, "good")
    assert len(data.load("mnist")[0]) == 3


def test_files_that_a_server_calls_encoded_are_not_decoded(mirrors):
    mirrors("encoded")
    assert len(data.load("mnist")[0]) == 3


def test_missing_certificates_are_not_taken_for_a_folder_that_cannot_be_written(mirrors, cache, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent.pem")
    mirrors("https://127.0.0.1:9/")
    with pytest.raises(DataError, match="could not download"):
        data.load("mnist")
    assert kept(cache) == []


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
    for part in ("mnist", FILES[0], "2 mirrors", reason, "data_dir"):
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


def test_callbacks_are_told_the_source_of_each_file(mirrors, caplog):
    mirrors("nothing", "good")
    with caplog.at_level(logging.INFO, "xcnn"):
        data.load("mnist")
    assert any("good/train-images" in message for message in caplog.messages)


def test_progress_is_told_of_each_file_from_its_first_byte_to_its_last(mirrors, cache, monkeypatch):
    mirrors("bad", "good")
    monkeypatch.setattr(download, "_CHUNK", 500)
    told = []
    data.load("mnist", progress=lambda *arguments: told.append(arguments))
    sizes = {file: (cache / "mnist" / file).stat().st_size for file in FILES}
    assert list(dict.fromkeys(file for file, _, _ in told)) == list(FILES)
    for file, size in sizes.items():
        counts = [done for name, done, total in told if name == file and total == size]
        once = [*range(0, size, 500), size]
        assert counts == once * (2 if file == FILES[0] else 1)  # the bad mirror is asked for the first file only
    told.clear()
    data.load("mnist", progress=lambda *arguments: told.append(arguments))
    data.load("digits", progress=lambda *arguments: told.append(arguments))
    assert told == []


def test_a_mirror_that_hangs_is_abandoned(mirrors, monkeypatch):
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


def test_a_download_that_is_cut_off_starts_again(mirrors, server, cache):
    mirrors("cut", "good")
    assert len(data.load("mnist")[0]) == 3
    assert [path.split("/")[1] for path in server.asked] == ["cut", "good", "good", "good", "good"]
    (cache / "mnist" / FILES[0]).unlink()
    mirrors("cut")
    with pytest.raises(DataError, match="could not download train-images"):
        data.load("mnist")
    assert kept(cache) == sorted(FILES[1:])
    mirrors("good")
    assert len(data.load("mnist")[0]) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_download_leaves_nothing(mirrors, cache, monkeypatch, error):
    def interrupt(file, done, total):
        if done > 1000:
            raise error

    mirrors("good")
    monkeypatch.setattr(download, "_CHUNK", 500)
    with pytest.raises(error):
        data.load("mnist", progress=interrupt)
    assert kept(cache) == []
    assert len(data.load("mnist")[0]) == 3


def test_what_a_killed_process_leaves_is_removed(mirrors, server, cache):
    with another_process(mirrors("slow")) as child:
        while int(child.stdout.readline().split("|")[1]) < 10_000:
            pass
        child.kill()
    server.gate.set()
    (half,) = kept(cache)
    assert half not in FILES
    mirrors("good")
    assert len(data.load("mnist")[0]) == 3
    assert kept(cache) == sorted(FILES)


def test_of_two_processes_one_downloads_and_the_other_waits(mirrors, server, cache):
    source = mirrors("slow")
    with another_process(source) as first:
        while int(first.stdout.readline().split("|")[1]) < 10_000:
            pass
        with another_process(source) as second:
            assert second.stdout.readline() == "waiting for another process that downloads mnist|0|1\n"
            server.gate.set()
            first.communicate()
            assert second.communicate() == ("waiting for another process that downloads mnist|1|1\n", "")
    assert (first.returncode, second.returncode) == (0, 0)
    assert server.asked == [f"/slow/{file}" for file in FILES]
    assert kept(cache) == sorted(FILES)


def test_threads_wait_for_each_other_as_well(mirrors, server):
    mirrors("good")
    threads = [threading.Thread(target=data.load, args=("mnist",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == [f"/good/{file}" for file in FILES]


@pytest.mark.parametrize("limit", [10_000, 30_000])  # the last bytes are written when the file is closed
def test_a_disk_that_is_full_is_not_the_mirrors_fault(mirrors, server, cache, limit):
    with another_process(mirrors("good", "nothing", "good"), limit) as child:
        _, error = child.communicate()
    last = error.splitlines()[-1]
    for part in ("DataError: load: mnist: cannot write", str(cache / "mnist"), "File too large", "set XCNN_HOME"):
        assert part in last
    assert len(server.asked) == 1
    assert kept(cache) == []


def test_a_folder_in_a_files_place_is_not_the_mirrors_fault(mirrors, cache):
    mirrors("good")
    (cache / "mnist" / FILES[0]).mkdir(parents=True)
    with pytest.raises(DataError, match="cannot write"):
        data.load("mnist")
    assert kept(cache) == []


def test_complete_files_need_no_lock(mirrors, cache):
    mirrors("good")
    data.load("mnist")
    os.remove(cache / "mnist" / ".lock")
    (cache / "mnist" / ".lock").mkdir()  # makes locking fail, as in a read-only folder
    assert len(data.load("mnist")[0]) == 3
    (cache / "mnist" / FILES[0]).unlink()
    with pytest.raises(DataError, match="cannot write"):
        data.load("mnist")


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

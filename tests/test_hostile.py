"""A few hundred damaged files of each kind, files made to do harm, and tests that the harness finds bad readers.

The long form is `python tests/hostile.py`.
"""

import gzip
import hashlib
import os
import random
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import hostile
import pytest
from hostile import KINDS, Finding, Kind, mutants, survives
from PIL import Image

from xcnn import data
from xcnn.data.cifar import load_cifar10
from xcnn.data.idx import read_idx
from xcnn.errors import DataError

MUTANTS = 200


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_give_a_result_or_one_sentence(tmp_path, capfd, name):
    kind = KINDS[name]
    path = kind.make(tmp_path)
    content = path.read_bytes()
    assert len(content) < 16_384
    kind.read(path)
    damaged = mutants(content, random.Random(1), MUTANTS, mend=kind.mend, changes=kind.changes)
    outcomes = [survives(kind, path, mutant) for mutant in damaged]
    assert any(outcome.refusal for outcome in outcomes)
    assert capfd.readouterr() == ("", "")


def test_mutants_can_be_made_again_and_are_never_the_original():
    content = Path(__file__).read_bytes()[:300]
    first, second = (list(mutants(content, random.Random(5), 500, [b"another file"])) for _ in range(2))
    assert first == second
    assert content not in first
    assert len(set(first)) > 450
    assert len(list(mutants(b"x", random.Random(0), 50))) == 50  # even for a small file


# Files made to do harm


def refused_cheaply(path, read, says, most=1 << 20):
    """Check that a file is refused, with no more than a mebibyte of memory."""
    tracemalloc.start()
    start = time.thread_time()
    try:
        with pytest.raises(DataError, match=says) as caught:
            read()
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
    assert time.thread_time() - start < 1
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("zipped", [False, True])
def test_forty_bytes_that_claim_ten_gigabytes(tmp_path, zipped):
    content = bytes([0, 0, 8, 3]) + struct.pack(">3I", 12_755_102, 28, 28)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(gzip.compress(content) if zipped else content + bytes(24))
    assert path.stat().st_size <= 40
    refused_cheaply(path, lambda: read_idx(path, 3), "declares 10000000[0-9]* bytes|declares 9999999968 bytes")


def test_gzip_bombs(tmp_path):
    zeros = gzip.compress(bytes(1 << 26))
    assert len(zeros) < 70_000
    idx = tmp_path / "train-images-idx3-ubyte.gz"
    declared = gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 1 << 14, 64, 64))
    idx.write_bytes(declared + zeros)  # two gzip members, which are read as one file
    refused_cheaply(idx, lambda: read_idx(idx, 3), "too many for a file of its length")
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(zeros)
    refused_cheaply(archive, lambda: load_cifar10(tmp_path), "too many for a file of its length", 12 << 20)


@pytest.mark.parametrize("side", [8000, 20_000])
def test_picture_bombs(tmp_path, side):
    path = tmp_path / "x.png"
    Image.new("1", (side, side)).save(path)
    refused_cheaply(path, lambda: data.read_image(path, (1, 8, 8)), "pixels")


GIF_BOMB = """
import resource, sys
from pathlib import Path
from PIL import GifImagePlugin
from xcnn import data
from xcnn.errors import DataError

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    data.read_image(Path(sys.argv[1]), (1, 8, 8))
except DataError as error:
    assert "pixels" in str(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_gif_makes_no_room_before_its_size_is_known(tmp_path):
    path, side = tmp_path / "x.gif", 12_000
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, side, side, 0)
    disposal = bytes([0x21, 0xF9, 4, 2 << 2, 0, 0, 0, 0])  # the background replaces the frame
    path.write_bytes(b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0, 0, 0) + disposal + frame + bytes([8, 0, 0x3B]))
    done = subprocess.run([sys.executable, "-c", GIF_BOMB, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000  # KiB


def overlapping_tags(length):
    """A TIFF directory whose entries all claim the same bytes: together they have a thousand times its length."""
    count = length // 24
    claimed = length - 12 * count - 14
    entries = [struct.pack("<HHII", 300 + k, 7, claimed, 14 + 12 * count) for k in range(count)]
    return struct.pack("<2sHIH", b"II", 42, 8, count) + b"".join(entries) + bytes(4 + claimed)


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_entries_that_share_their_bytes_take_them_once(tmp_path, suffix):  # since Pillow 13
    path = tmp_path / f"x.{suffix}"
    tags = overlapping_tags(120_000)
    if suffix == "jpg":
        Image.new("L", (8, 8)).save(path)
        content = path.read_bytes()
        parts = [b"Exif\0\0" + tags[at : at + 60_000] for at in range(0, len(tags), 60_000)]
        segments = b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(part)) + part for part in parts)
        tags = content[:2] + segments + content[2:]
    path.write_bytes(tags)
    outcome = survives(Kind(hostile.make_idx("x"), hostile.read_image), path, tags)
    assert outcome.peak < 4 << 20


@pytest.mark.parametrize("read", [lambda path: read_idx(path, 3), lambda path: data.read_image(path, (1, 8, 8))])
def test_a_pipe_is_not_waited_for(tmp_path, read):
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def late(signum, frame):
        pytest.fail("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(5)
    try:
        refused_cheaply(path, lambda: read(path), "must be a file, but it is a directory, pipe or device")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# The harness itself


def read_and_raise(path):
    return {}["what is not there"]


def read_for_ever(path):
    while True:
        try:
            path.suffix  # noqa: B018
        except Exception:
            return


def read_slowly_in_c(path):
    return hashlib.pbkdf2_hmac("sha256", b"", b"", 5_000_000)


def read_into_much_memory(path):
    return bytes(500_000_000)


def read_into_two_lines(path):
    raise Longwinded("one\ntwo")


class Longwinded(DataError):
    def __str__(self):
        return self.args[0]


def read_and_write(path):
    return (path.parent / "another").write_bytes(b"")


def read_and_run_out_of_memory(path):
    raise DataError("x cannot be read as an image (OSError: out of memory when reading image file)")


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (read_and_raise, "raised KeyError"),
        (read_for_ever, "more than .* of CPU time"),
        (read_slowly_in_c, "of CPU time"),
        (read_into_much_memory, "took 500,0.* bytes"),
        (read_into_two_lines, "has not one line"),
        (read_and_write, "beside it"),
        (read_and_run_out_of_memory, "about memory"),
    ],
)
def test_a_bad_reader_is_found(tmp_path, monkeypatch, read, says):
    monkeypatch.setattr(hostile, "SECONDS", 0.2)
    with pytest.raises(Finding, match=says):
        survives(Kind(hostile.make_idx("x"), read), tmp_path / "x", b"content")
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)
    assert not tracemalloc.is_tracing()


def test_a_reader_that_ignores_a_checksum_is_found(tmp_path):
    with pytest.raises(Finding, match="against its checksum"):
        survives(Kind(hostile.make_idx("x"), Path.read_bytes, checked=True), tmp_path / "x", b"content")


LONG_FORM = """
import sys
import hostile
from hostile import KINDS, Kind, make_image

def read(path):
    if {bad}:
        raise KeyError(path)

hostile.KINDS = {{"png": Kind(make_image("x.png"), read)}}
sys.argv += ["--count", "50"]
sys.exit(hostile.main())
"""


@pytest.mark.parametrize("bad", ["False", "path.stat().st_size < 100"])
def test_the_long_form_ends_with_an_exit_code_and_keeps_what_it_found(tmp_path, bad):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", LONG_FORM.format(bad=bad)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    saved = list(tmp_path.iterdir())
    if bad == "False":
        assert (done.returncode, done.stderr, saved) == (0, "", [])
        assert done.stdout.splitlines()[1].split()[:4] == ["png", "50", "0", "50"]
    else:
        assert (done.returncode, done.stderr) == (1, "")
        assert "raised KeyError" in done.stdout
        assert f"--kind png --replay {saved[0].name}" in done.stdout
        assert saved[0].stat().st_size < 100


def test_the_search_itself_runs(tmp_path):
    """A few mutants of the two kinds for which Pillow says most, in a process of their own."""
    kinds = ["--kind", "tiff", "--kind", "tiff-plain"]
    script = Path(__file__).with_name("hostile.py")
    done = subprocess.run(
        [sys.executable, script, "--count", "100", *kinds], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:]] == [["tiff", "100"], ["tiff-plain", "100"]]

"""Damaged and hostile files by the thousand: reading any of them returns a result or raises one clear error.

    python tests/hostile.py --count 20000                   # every kind of file; exit code 1 for any finding
    python tests/hostile.py --kind png --replay FILE        # read one file again
    python tests/hostile.py --fuzz 60                       # guided by coverage; needs `pip install atheris`

`test_hostile.py` does the same with fewer files. A new kind of file is one entry in `KINDS`.
"""

import argparse
import contextlib
import faulthandler
import functools
import importlib
import io
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

watching, fuzzing = contextlib.nullcontext(), any(argument.startswith("--fuzz") for argument in sys.argv)
if fuzzing:
    watching = importlib.import_module("atheris").instrument_imports(include=["xcnn", "PIL"])
with watching:
    import hostile_onnx
    import hostile_runs as runs
    import numpy as np
    import torch_files
    from PIL import Image

    from xcnn import data
    from xcnn.__main__ import _hush_pillow
    from xcnn.data.cifar import load_cifar10
    from xcnn.data.idx import read_idx, write_idx
    from xcnn.errors import XcnnError

    if fuzzing:
        Image.init()  # imports the decoders

__all__ = ["KINDS", "Finding", "Kind", "Outcome", "mutants", "survives"]

SECONDS = 1.0
"""Maximum CPU seconds to read a small file."""

FLOOR, PER_BYTE = 32 << 20, 64
"""Maximum memory to read a file: a constant number of bytes, and a number per byte of the file."""

MARGIN = 64 << 20
"""Maximum growth of the process in the long form, including memory of C code."""


# The kinds of files


@dataclass(frozen=True)
class Kind:
    """A kind of file that xcnn reads.

    Attributes
    ----------
    make : writes a small valid file (and any others it needs) into an empty folder, and returns its path.
    read : reads the file at a path as xcnn does.
    checked : whether the format has a checksum of the whole file, so that no change may be accepted.
    mend : updates the checksums of a damaged file, so that readers get past them.
    changes : the functions that damage it; those of `CHANGES` if it has none.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    checked: bool = False
    mend: Callable[[bytes], bytes] | None = None
    changes: Sequence[Callable[[bytearray, random.Random, bytes], None]] = ()


PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)
IMAGES = PIXELS.transpose(2, 0, 1)


def make_mnist(folder: Path, suffix: str = "") -> None:
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", IMAGES, bool(suffix))
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", np.arange(len(IMAGES), dtype=np.uint8), bool(suffix))


def make_idx(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        make_mnist(folder, Path(name).suffix)
        return folder / name

    return make


def read_zipped_idx(path: Path) -> object:
    array = read_idx(path, 3)
    if path.read_bytes()[:2] == b"\x1f\x8b":  # the header of gzip may change
        assert np.array_equal(array, IMAGES), "other values passed gzip's checksum"
    return array


def cifar_batches() -> dict[str, bytes]:
    records = np.random.default_rng(0).integers(0, 256, (2, 3073)).astype(np.uint8)
    records[:, 0] %= 10
    return {"data_batch_1.bin": records[0].tobytes(), "test_batch.bin": records[1].tobytes()}


def make_cifar(folder: Path) -> Path:
    for name, content in cifar_batches().items():
        (folder / name).write_bytes(content)
    return folder / "data_batch_1.bin"


def make_cifar_tar(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"cifar-10-binary.tar{suffix}"
        with tarfile.open(path, f"w:{suffix[1:]}") as archive:
            for name, content in cifar_batches().items():
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return path

    return make


def mend_tar(content: bytes) -> bytes:
    """Update the checksum of a header block: the sum of its bytes, with blanks in place of the checksum."""
    blocks = [content[at : at + 512] for at in range(0, len(content), 512)]
    for k, block in enumerate(blocks):
        if block.startswith(b"cifar") and len(block) == 512:
            checksum = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
            blocks[k] = block[:148] + b"%06o\0 " % checksum + block[156:]
    return b"".join(blocks)


def mend_png(content: bytes) -> bytes:
    """Update the checksum of each chunk (length, kind, data, checksum), as far as the chunks can be parsed."""
    at, mended = 8, bytearray(content)
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4])
        if end + 4 > len(content):
            break
        mended[end : end + 4] = zlib.crc32(content[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(mended)


def make_image(name: str, **options: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        image = Image.fromarray(PIXELS)
        image.save(folder / name, **options)
        return folder / name

    return make


def make_text_ppm(folder: Path) -> Path:
    (h, w, _), path = PIXELS.shape, folder / "x.ppm"
    path.write_text(f"P3\n# plain\n{w} {h}\n255\n" + " ".join(map(str, PIXELS.ravel())) + "\n")
    return path


def lying_down() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def read_image(path: Path) -> object:
    image = data.read_image(path, (3, 8, 8))
    assert (image.shape, image.dtype) == ((3, 8, 8), np.uint8)
    return image


def make_folder(folder: Path) -> Path:
    for place in ("train/cats/x.png", "train/dogs/y.gif", "test/cats/z.png", "test/dogs/w.png"):
        path = folder / place
        path.parent.mkdir(parents=True)
        Image.fromarray(PIXELS).save(path)
    return folder / "train" / "cats" / "x.png"


def make_table(folder: Path) -> Path:
    for name in ("a", "b", "c", "d"):
        Image.fromarray(PIXELS).save(folder / f"{name}.png")
    path = folder / "pets.csv"
    path.write_text('path,label,split\na.png,cat,train\n"b.png","a ""b""",train\nc.png,cat,test\nd.png,"a ""b""",val\n')
    return path


KINDS: dict[str, Kind] = {
    "idx-images": Kind(make_idx("train-images-idx3-ubyte"), lambda path: read_idx(path, 3)),
    "idx-labels": Kind(make_idx("train-labels-idx1-ubyte"), lambda path: data.load("mnist", path.parent)),
    "idx.gz": Kind(make_idx("train-images-idx3-ubyte.gz"), read_zipped_idx),
    "cifar": Kind(make_cifar, lambda path: load_cifar10(path.parent)),
    "cifar.tar": Kind(make_cifar_tar(""), lambda path: load_cifar10(path.parent), mend=mend_tar),
    "cifar.tar.gz": Kind(make_cifar_tar(".gz"), lambda path: load_cifar10(path.parent)),
    "png": Kind(make_image("x.png", exif=lying_down()), read_image, mend=mend_png),
    "jpeg": Kind(make_image("x.jpg", exif=lying_down()), read_image),
    "jpeg-progressive": Kind(make_image("x.jpg", progressive=True), read_image),
    "gif": Kind(make_image("x.gif", save_all=True, append_images=[Image.new("RGB", (10, 12))]), read_image),
    "bmp": Kind(make_image("x.bmp"), read_image),
    "tiff": Kind(make_image("x.tif", compression="tiff_lzw", exif=lying_down()), read_image),
    "tiff-plain": Kind(make_image("x.tif"), read_image),
    "webp": Kind(make_image("x.webp", exif=lying_down()), read_image),
    "webp-lossless": Kind(make_image("x.webp", lossless=True), read_image),
    "ppm": Kind(make_image("x.ppm"), read_image),
    "ppm-text": Kind(make_text_ppm, read_image),
    "folder": Kind(make_folder, lambda path: data.load("folder", path.parents[2], size=8)),
    "table": Kind(make_table, lambda path: data.load("folder", path, size=8)),
    "weights": Kind(runs.make_weights, runs.read_weights, checked=True),
    "weights-sealed": Kind(runs.make_weights, runs.read_weights, mend=runs.mend_seal),
    "checkpoint": Kind(runs.make_run, runs.read_run, checked=True),
    "checkpoint-sealed": Kind(runs.make_run, runs.read_run, mend=runs.mend_seal),
    "checkpoint-entry": Kind(runs.make_entry, runs.read_entry),
    "network-sealed": Kind(runs.make_network, runs.read_network, mend=runs.mend_seal),
    "network-edited": Kind(runs.make_network_entry, runs.read_network_entry, changes=[runs.edit]),
    "pth": Kind(torch_files.make, runs.read_torch, mend=torch_files.mend_zip),
    "pth-legacy": Kind(functools.partial(torch_files.make, content=torch_files.legacy), runs.read_torch),
    "pth-planted": Kind(
        functools.partial(torch_files.make, planted=True), runs.read_planted, mend=torch_files.mend_zip
    ),
    "onnx": Kind(hostile_onnx.make_onnx, hostile_onnx.read_onnx),
    "onnx-edited": Kind(hostile_onnx.make_onnx, hostile_onnx.read_onnx, changes=[hostile_onnx.edit]),
    "config.json": Kind(functools.partial(runs.make_settings, ".json"), runs.read_settings),
    "config.toml": Kind(functools.partial(runs.make_settings, ".toml"), runs.read_settings),
}
"""Every kind of file that is damaged here."""


# Damaging files: each function changes `file` in place; `other` is another file


def _place(file: bytearray, rng: random.Random) -> int:
    """Return a position in the file, often near its start, where most formats have their headers."""
    return rng.randrange(len(file) if rng.random() < 0.5 else min(len(file), 64))


def _range(file: bytearray, rng: random.Random) -> slice:
    start = _place(file, rng)
    return slice(start, start + rng.choice([1, 2, 4, 8, rng.randint(1, 64), rng.randint(1, len(file))]))


def flip_bit(file: bytearray, rng: random.Random, other: bytes) -> None:
    file[_place(file, rng)] ^= 1 << rng.randrange(8)


def change_byte(file: bytearray, rng: random.Random, other: bytes) -> None:
    file[_place(file, rng)] = rng.randrange(256)


def truncate(file: bytearray, rng: random.Random, other: bytes) -> None:
    del file[rng.randrange(len(file)) :]


def delete(file: bytearray, rng: random.Random, other: bytes) -> None:
    del file[_range(file, rng)]


def insert(file: bytearray, rng: random.Random, other: bytes) -> None:
    place = _place(file, rng)
    file[place:place] = rng.randbytes(rng.choice([1, 2, 4, rng.randint(1, 64)]))


def duplicate(file: bytearray, rng: random.Random, other: bytes) -> None:
    place = _place(file, rng)
    file[place:place] = file[_range(file, rng)]


def swap(file: bytearray, rng: random.Random, other: bytes) -> None:
    first, second = sorted((_range(file, rng), _range(file, rng)), key=lambda part: part.start)
    first = slice(first.start, min(first.stop, second.start))
    file[first.start : second.stop] = file[second] + file[first.stop : second.start] + file[first]


def blot(file: bytearray, rng: random.Random, other: bytes) -> None:
    part = _range(file, rng)
    file[part] = rng.choice([b"\0", b"\xff"]) * len(file[part])


def write_number(file: bytearray, rng: random.Random, other: bytes) -> None:
    number = rng.choice(
        [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 1 << 16, 1 << 20, 1 << 28, (1 << 31) - 1, 1 << 31, 2**32 - 1]
    )
    layout = rng.choice(["<I", ">I", "<H", ">H"])
    place = _place(file, rng)
    file[place : place + 4] = struct.pack(layout, number & (0xFFFF if layout[1] == "H" else 0xFFFFFFFF))


def splice(file: bytearray, rng: random.Random, other: bytes) -> None:
    if part := other[1:]:  # never all of it: that would be a valid file
        file[_range(file, rng)] = part[_range(bytearray(part), rng)]


CHANGES = (
    flip_bit,
    change_byte,
    truncate,
    delete,
    insert,
    duplicate,
    swap,
    blot,
    write_number,
    splice,
)


def mutants(
    content: bytes,
    rng: random.Random,
    count: int,
    others: Sequence[bytes] = (),
    mend: Callable[[bytes], bytes] | None = None,
    changes: Sequence[Callable[[bytearray, random.Random, bytes], None]] = (),
) -> Iterator[bytes]:
    """Yield `count` variants of a file, all different from it and half of them mended, with parts of the `others`."""
    while count:
        file = bytearray(content)
        for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 8])):
            if file:
                rng.choice(changes or CHANGES)(file, rng, rng.choice([content, *others]))
        mutant = mend(bytes(file)) if mend is not None and rng.random() < 0.5 else bytes(file)
        if mutant != content:
            yield mutant
            count -= 1


# Reading them


class Finding(AssertionError):
    """A file whose reading breaks a rule."""


class Slow(Finding):
    """Reading took too long."""


class Stuck(BaseException):
    """Reading takes too long. No `Exception`, because readers turn these into sentences."""


@dataclass(frozen=True)
class Outcome:
    """The result of one file: the error message or "", the CPU time, and the peak of Python's memory."""

    refusal: str
    seconds: float
    peak: int


def _stop(signum: int, frame: object) -> None:
    raise Stuck


def survives(kind: Kind, path: Path, content: bytes) -> Outcome:
    """Read `content` as a file of this kind at `path`, where `kind.make` has made one.

    Raises
    ------
    Finding
        If reading raises anything but an `XcnnError` of one line, accepts a change that a checksum should reveal,
        takes too much time or memory, or leaves another file.
    """
    path.write_bytes(content)
    beside = sorted(os.listdir(path.parent))
    traced = tracemalloc.is_tracing()
    if not traced:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        refusal, seconds = _timed(kind, path)
        peak = tracemalloc.get_traced_memory()[1] - before
    except Slow:  # perhaps because tracing memory makes some code a hundred times slower
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        refusal, seconds = _timed(kind, path)
    finally:  # not stopped and started for each file: Python 3.11 leaks some memory each time
        tracemalloc.start() if traced else tracemalloc.stop()
    if peak > (most := FLOOR + PER_BYTE * len(content)):
        raise Finding(f"took {peak:,} bytes for a file of {len(content):,}, {most:,} are allowed")
    if kind.checked and not refusal:
        raise Finding("was accepted, against its checksum")
    if sorted(os.listdir(path.parent)) != beside or path.read_bytes() != content:
        raise Finding("something was written beside it, or over it")
    return Outcome(refusal, seconds, peak)


def _timed(kind: Kind, path: Path) -> tuple[str, float]:
    """Read a file within the time limit; return the error message, and the CPU time."""
    start = time.thread_time()
    handler = signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, SECONDS)
    try:
        refusal = _refusal(kind, path)
    except Stuck:
        raise Slow(f"took more than {SECONDS} s of CPU time") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
    seconds = time.thread_time() - start
    if seconds > SECONDS:  # in C code, which cannot be interrupted
        raise Slow(f"took {seconds:.1f} s of CPU time")
    return refusal, seconds


def _refusal(kind: Kind, path: Path) -> str:
    """Read a file and return the error message, or "" if it is accepted."""
    try:
        kind.read(path)
    except XcnnError as error:
        refusal = str(error)
        if len(refusal.splitlines()) != 1:
            raise Finding(f"the sentence has not one line: {refusal!r}") from error
        if "memory" in refusal or "decoder error -9" in refusal:
            raise Finding(f"this is about memory, not the file: {refusal}") from error
        return refusal
    except Exception as error:
        raise Finding(f"raised {type(error).__name__}: {error}") from error
    return ""


@contextlib.contextmanager
def made(kind: Kind) -> Iterator[tuple[Path, bytes]]:
    """Yield the path and content of a valid file of this kind, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = kind.make(Path(folder))
        yield path, path.read_bytes()


def samples() -> list[bytes]:
    """Return the valid files of all kinds."""
    contents = []
    for kind in KINDS.values():
        with made(kind) as (_, content):
            contents.append(content)
    return contents


# The long form


def limit_memory(margin: int) -> None:
    """Limit the growth of the process to `margin` bytes, including C code.

    This limits writable memory, not address space, of which each new thread reserves 64 MiB.
    """
    now = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (now + margin, resource.getrlimit(resource.RLIMIT_DATA)[1]))


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], str]]:
    """Yield a function that returns what was written to stderr inside the `with` block, also by C code."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(file.fileno(), 1000, 0).decode(errors="replace")
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def hunt(name: str, count: int, seed: int) -> bool:
    """Read mutants of one kind and print a row of the table; return whether all passed."""
    kind, rng, accepted, slowest, peak = KINDS[name], random.Random(f"{name} {seed}"), 0, 0.0, 0
    others = samples()
    terminal = os.fdopen(os.dup(2), "w")
    with made(kind) as (path, content), listening() as heard:
        for k, mutant in enumerate(mutants(content, rng, count, others, kind.mend, kind.changes)):
            faulthandler.dump_traceback_later(30, exit=True, file=terminal)  # C code that does not return
            try:
                outcome = survives(kind, path, mutant)
                if words := heard():
                    raise Finding(f"printed on stderr: {words!r}")
            except Finding as finding:
                saved = Path(f"hostile-{name}-{seed}-{k}")
                saved.write_bytes(mutant)
                print(f"{name}: mutant {k} of seed {seed} {finding}; again: --kind {name} --replay {saved}", flush=True)
                return False
            finally:
                faulthandler.cancel_dump_traceback_later()
            accepted += not outcome.refusal
            slowest, peak = max(slowest, outcome.seconds), max(peak, outcome.peak)
    row = f"{count:>8,} {count - accepted:>8,} {accepted:>8,} {1000 * slowest:>14.1f} {peak:>12,}"
    print(f"{name:<18} {row}", flush=True)
    return True


def fuzz(name: str, seconds: int) -> None:
    """Let atheris search for a file that fails; it ends the process with an exit code."""
    atheris = importlib.import_module("atheris")
    kind, corpus = KINDS[name], Path(tempfile.mkdtemp())
    path = kind.make(Path(tempfile.mkdtemp()))
    content = path.read_bytes()
    for k, seed in enumerate([content, *mutants(content, random.Random(0), 30, changes=kind.changes)]):
        (corpus / str(k)).write_bytes(seed)
    options = [f"-max_total_time={seconds}", f"-artifact_prefix=hostile-{name}-", "-timeout=30", "-max_len=16384"]

    def one(mutant: bytes) -> None:
        for version in (mutant, kind.mend(mutant)) if kind.mend is not None else (mutant,):
            if version != content:
                survives(kind, path, version)

    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="one of these only; may be repeated")
    parser.add_argument("--count", type=int, default=20_000, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=Path, metavar="FILE", help="read this file alone, as one of the kind")
    parser.add_argument("--fuzz", type=int, metavar="SECONDS", help="guided by coverage, each kind for so long")
    options = parser.parse_args()
    kinds = options.kind or list(KINDS)
    if options.replay and len(kinds) != 1:
        parser.error("--replay wants one --kind")
    if options.fuzz and len(kinds) > 1:  # each ends its process
        command = [sys.executable, __file__, "--fuzz", str(options.fuzz), "--kind"]
        return 1 if any([subprocess.run([*command, name]).returncode for name in kinds]) else 0  # noqa: C419
    samples()  # made while memory is not limited yet
    for name in kinds:  # loads the modules that reading needs
        with made(KINDS[name]) as (path, _):
            KINDS[name].read(path)
    _hush_pillow()  # as the command does; what C code prints is still found
    tracemalloc.start()
    limit_memory(4 * MARGIN if options.fuzz else MARGIN)  # the fuzzer keeps the inputs that it has seen
    if options.fuzz:
        fuzz(kinds[0], options.fuzz)
    if options.replay:
        with made(KINDS[kinds[0]]) as (path, _):
            print(survives(KINDS[kinds[0]], path, options.replay.read_bytes()))
        return 0
    print(f"{'kind':<18} {'mutants':>8} {'refused':>8} {'accepted':>8} {'slowest CPU ms':>14} {'peak bytes':>12}")
    survived = [hunt(name, options.count, options.seed) for name in kinds]
    return 0 if all(survived) else 1


if __name__ == "__main__":
    sys.exit(main())

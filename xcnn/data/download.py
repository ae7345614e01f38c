"""Downloads of data sets, from the first mirror that answers, into a cache.

The cache is `$XCNN_HOME`, else `$XDG_CACHE_HOME/xcnn`, else `~/.cache/xcnn`, with a folder per data set. A file appears
under its name only when it is complete and has the SHA-256 below, which is checked again at each use. An interrupted
download starts again. If several processes need a data set at once, one downloads it and the others wait.

Sources of sizes and checksums: TensorFlow Datasets records all of them (its `url_checksums` folder). Those of
MNIST's test files were also computed from the official files; Fashion-MNIST's authors and CIFAR-10's page publish MD5
sums of the same files (CIFAR-10: c32a1d4ab5d03f1284b67883e8d87530).
"""

import errno
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from xcnn._files import locked, replacing, sweep
from xcnn.errors import DataError

__all__ = ["SOURCES", "Progress", "Source", "cache_folder", "fetch"]

_log = logging.getLogger(__name__)
_CHUNK = 1 << 16

Progress = Callable[[str, int, int], object]
"""Called with (file name, bytes so far, bytes in all) during a download. Bytes count from 0 again if a mirror fails.

While another process downloads, called with ("waiting for ...", 0, 1), and with (the same, 1, 1) at the end.
"""


@dataclass(frozen=True)
class Source:
    """The files of a data set: mirrors (addresses to append a file name to), and the size and SHA-256 of each file."""

    mirrors: tuple[str, ...]
    files: dict[str, tuple[int, str]]


SOURCES: dict[str, Source] = {
    "mnist": Source(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        {
            "train-images-idx3-ubyte.gz": (
                9_912_422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            "train-labels-idx1-ubyte.gz": (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            "t10k-images-idx3-ubyte.gz": (
                1_648_877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            "t10k-labels-idx1-ubyte.gz": (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        },
    ),
    "fashion-mnist": Source(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte.gz": (
                26_421_880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            "train-labels-idx1-ubyte.gz": (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            "t10k-images-idx3-ubyte.gz": (
                4_422_102,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            "t10k-labels-idx1-ubyte.gz": (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        },
    ),
    "cifar10": Source(
        (
            "https://www.cs.toronto.edu/~kriz/",
            "https://cave.cs.toronto.edu/kriz/",
            "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
            "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/",
        ),
        {"cifar-10-binary.tar.gz": (170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd")},
    ),
}


def cache_folder() -> Path:
    """Return the folder of downloads, which need not exist yet."""
    if home := os.environ.get("XCNN_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "xcnn"


def fetch(name: str, progress: Progress | None = None) -> Path:
    """Return the folder that holds the files of a data set, after downloading the missing ones.

    Parameters
    ----------
    name : one of `SOURCES`.
    progress : called as bytes of a file arrive, not for files in the cache.

    Raises
    ------
    DataError
        If no mirror has a file with the right checksum, or the folder cannot be written. No partial file is left.
    """
    source, folder = SOURCES[name], cache_folder() / name
    if all(_is_whole(folder / file, *expected) for file, expected in source.files.items()):
        return folder  # without a lock, so that the folder may be read-only
    try:
        folder.mkdir(parents=True, exist_ok=True)
        waiting = _Waiting(name, progress)
        with locked(folder, waiting):
            waiting.end()
            sweep(folder)
            mirrors = list(source.mirrors)
            for file, expected in source.files.items():
                if not _is_whole(folder / file, *expected):
                    _download(name, folder / file, expected, mirrors, progress)
    except OSError as error:
        raise _cannot_write(name, folder, error) from None
    return folder


def _is_whole(path: Path, size: int, sha256: str) -> bool:
    try:
        if not path.is_file() or path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:  # a disk that cannot read it back
        return False


class _Waiting:
    """Reports the start and the end of a wait for another process."""

    def __init__(self, name: str, progress: Progress | None) -> None:
        self.what, self.progress, self.begun = f"waiting for another process that downloads {name}", progress, False

    def __call__(self) -> None:
        self.begun = True
        _log.info("%s", self.what)
        self._tell(0)

    def end(self) -> None:
        if self.begun:
            self._tell(1)

    def _tell(self, done: int) -> None:
        if self.progress is not None:
            self.progress(self.what, done, 1)


def _download(name: str, path: Path, expected: tuple[int, str], mirrors: list[str], progress: Progress | None) -> None:
    """Download one file from the first mirror that has it whole. A mirror that fails becomes the last."""
    import pooch

    reason = ""
    with replacing(path) as temporary:
        for mirror in tuple(mirrors):
            _log.info("downloading %s%s", mirror, path.name)
            with temporary.open("wb") as stream:
                sink = _Sink(name, path, stream, expected[0], progress)
                try:
                    sink.write(b"")
                    pooch.HTTPDownloader(chunk_size=_CHUNK)(mirror + path.name, sink, None)
                    reason = ""
                except DataError:
                    raise
                except (OSError, ValueError) as error:  # no answer, no such file, or it broke off
                    reason = _reason(error)
            if not reason and not _is_whole(temporary, *expected):
                reason = "wrong checksum"
            if not reason:
                return
            reason = f"{mirror}: {reason}"
            _log.info("%s", reason)
            mirrors.append(mirrors.pop(0))
        raise DataError(
            f"load: {name}: could not download {path.name} from any of {len(mirrors)} mirrors (last, {reason}); "
            "if you have the files, pass their folder as data_dir"
        )


@dataclass
class _Sink:
    """The stream that pooch writes a download to: it counts bytes, reports them, and refuses too many."""

    name: str
    path: Path
    stream: IO[bytes]
    size: int
    progress: Progress | None
    done: int = 0

    def write(self, content: bytes) -> None:
        self.done += len(content)
        if self.done > self.size:
            raise OSError(errno.EFBIG, f"sent more than {self.size} bytes")
        try:
            self.stream.write(content)
        except OSError as error:  # another mirror would not help
            raise _cannot_write(self.name, self.path.parent, error) from None
        if self.progress is not None:
            self.progress(self.path.name, self.done, self.size)

    def flush(self) -> None:
        """Do nothing: pooch calls this after every chunk."""


def _cannot_write(name: str, folder: Path, error: OSError) -> DataError:
    return DataError(
        f"load: {name}: cannot write to {folder} ({error.strerror or error}); set XCNN_HOME to a folder that you can "
        "write to, with enough room"
    )


def _reason(error: OSError | ValueError) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP status {response.status_code}"
    return getattr(error, "strerror", None) or type(error).__name__

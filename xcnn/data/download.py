"""Downloads of data sets, from the first mirror that works, into a cache.

The cache is `$XCNN_HOME`, else `$XDG_CACHE_HOME/xcnn`, else `~/.cache/xcnn`, with a folder for each data set. A file
appears under its name only when it is complete and has the SHA-256 below, which is checked again at each use. An
interrupted download starts again. If several processes need a data set at once, one downloads it and the others wait.

Sources of sizes and checksums: TensorFlow Datasets records all of them (its `url_checksums` folder). Those of
MNIST's test files were also computed from the official files; Fashion-MNIST's authors and CIFAR-10's page publish MD5
sums of the same files (CIFAR-10: c32a1d4ab5d03f1284b67883e8d87530).
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from xcnn._files import cache_folder, locked, replacing, sweep
from xcnn.data.mnist import FILES
from xcnn.errors import DataError, WriteError

__all__ = ["SOURCES", "Progress", "Source", "cache_folder", "fetch"]

_log = logging.getLogger(__name__)
_CHUNK = 1 << 16
_TIMEOUT = 30  # seconds without an answer

Progress = Callable[[str, int, int], object]
"""Called with (file name, bytes so far, bytes in all) during a download; bytes start again from 0 if a mirror fails.

While another process downloads, it is called with ("waiting for ...", 0, 1), and at the end with (the same, 1, 1).
"""


@dataclass(frozen=True)
class Source:
    """The files of a data set.

    Attributes
    ----------
    mirrors : addresses to which a file name is appended.
    files : size and SHA-256 of each file, by name.
    """

    mirrors: tuple[str, ...]
    files: dict[str, tuple[int, str]]


def _idx(*files: tuple[int, str]) -> dict[str, tuple[int, str]]:
    return {f"{name}.gz": file for name, file in zip(FILES, files, strict=True)}


SOURCES: dict[str, Source] = {
    "mnist": Source(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        _idx(
            (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
    ),
    "fashion-mnist": Source(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        _idx(
            (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
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
    report = progress or (lambda *_: None)
    waiting = f"waiting for another process that downloads {name}"

    def wait() -> None:
        _log.info("%s", waiting)
        report(waiting, 0, 1)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait) as waited:
            if waited:
                report(waiting, 1, 1)
            sweep(folder)
            mirrors = list(source.mirrors)
            for file, expected in source.files.items():
                if not _is_whole(folder / file, *expected):
                    _download(name, folder / file, expected, mirrors, report)
    except OSError as error:
        reason = str(error) if isinstance(error, WriteError) else f"cannot write to {folder}: {error.strerror or error}"
        advice = "set XCNN_HOME to a folder that you can write to, with enough space"
        raise DataError(f"load: {name}: {reason}; {advice}") from None
    return folder


def _is_whole(path: Path, size: int, sha256: str) -> bool:
    try:
        if not path.is_file() or path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:  # such as a failing disk
        return False


def _download(name: str, path: Path, expected: tuple[int, str], mirrors: list[str], report: Progress) -> None:
    """Download a file from the first mirror that has it. A mirror that fails becomes the last."""
    reason = ""
    with replacing(path) as temporary:
        for mirror in tuple(mirrors):
            _log.info("downloading %s%s", mirror, path.name)
            with temporary.open("wb") as file:
                reason = _receive(mirror, path.name, file, expected[0], report)
            if not reason and _is_whole(temporary, *expected):
                return
            reason = f"{mirror}: {reason or 'wrong checksum'}"
            _log.info("%s", reason)
            mirrors.append(mirrors.pop(0))
        raise DataError(
            f"load: {name}: could not download {path.name} from any of {len(mirrors)} mirrors (last, {reason}); "
            "if you have the files, pass their folder as data_dir"
        )


def _receive(mirror: str, name: str, file: IO[bytes], size: int, report: Progress) -> str:
    """Write what a mirror sends into a file, and return the reason if the mirror fails, or ""."""
    import requests

    try:
        response = requests.get(mirror + name, stream=True, timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"})
    except (OSError, ValueError) as error:  # no answer, or a redirect to an invalid address
        return type(error).__name__
    with response:
        if not response.ok:
            return f"HTTP status {response.status_code}"
        report(name, 0, size)
        done, chunks = 0, response.raw.stream(_CHUNK, decode_content=False)  # some servers call .gz files encoded
        while True:
            try:
                chunk = next(chunks, b"")
            except Exception as error:  # the connection broke; requests does not wrap the errors of `raw`
                return type(error).__name__
            done += len(chunk)
            if not chunk:
                return ""
            if done > size:
                return f"sent more than {size} bytes"
            file.write(chunk)
            report(name, done, size)

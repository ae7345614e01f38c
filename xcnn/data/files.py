"""Many image files: one pass that checks them all, and arrays whose images are decoded when they are needed."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xcnn._check import choice
from xcnn._check import path as checked_path
from xcnn.data._stream import opened
from xcnn.data._threads import ahead, check_wanted
from xcnn.data.images import RESIZE, Picture, Size, colour, decode, image_shape
from xcnn.data.lazy import places_of
from xcnn.errors import DataError, UsageError, explained
from xcnn.threads import get_num_threads

__all__ = ["Checked", "ImageFiles", "Watch", "check_files"]

Watch = Callable[[int, int], object]
"""Called with the number of files checked so far and of all files."""

_CHUNK = 16  # files that a thread checks at a time
_NONE = np.empty(0, np.uint8)
_AHEAD = 4  # chunks in the queue of each thread


class ImageFiles:
    """Images that stay in their files: `x[slice or index array]` decodes them, as uint8 (n, C, H, W).

    Such an object takes the place of the array `x` of a `Dataset` that is larger than memory.

    Parameters
    ----------
    paths : the files.
    shape : (C, H, W) of every image.
    resize, background : as for `read_image`.
    digests : the SHA-256 of each file. An image of a file that has changed is refused.

    Attributes
    ----------
    shape : (N, C, H, W).
    dtype : uint8.

    Raises
    ------
    UsageError
        If an argument is not as above.
    DataError
        When an image is needed: if its file cannot be read, or has changed.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    @explained
    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        shape: tuple[int, int, int],
        *,
        resize: str = "crop",
        background: str = "white",
        digests: Sequence[bytes] | None = None,
    ) -> None:
        if not isinstance(paths, Iterable) or isinstance(paths, str | bytes | os.PathLike):
            raise UsageError(f"ImageFiles: paths must be a list of paths, got {paths!r}")
        self.paths = [checked_path("ImageFiles", "paths", path) for path in paths]
        c, h, w = image_shape("ImageFiles", shape)
        if digests is not None and len(digests) != len(self.paths):
            raise UsageError(f"ImageFiles: {len(self.paths)} paths need as many digests, got {len(digests)}")
        self.shape = (len(self.paths), c, h, w)
        self.resize = choice("ImageFiles", "resize", resize, RESIZE)
        self.background = background
        self._ground = colour("ImageFiles", "background", background)
        self._digests = digests

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def nbytes(self) -> int:
        """The bytes of all images once they are decoded."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __getitem__(self, index: Any) -> npt.NDArray[np.uint8]:
        """Return the images of a slice or an array of indices, or one image (C, H, W), as a new array."""
        try:
            found = places_of(index, len(self))
        except (IndexError, TypeError, ValueError) as error:
            raise UsageError(f"ImageFiles: index with a slice or an array of indices ({error})") from None
        images = np.empty((*found.shape, *self.shape[1:]), np.uint8)
        for where in np.ndindex(found.shape):
            check_wanted()
            images[where] = self._decode(int(found[where]))
        return images

    def _decode(self, place: int) -> npt.NDArray[np.uint8]:
        _, c, h, w = self.shape
        checked = self._digests is not None
        found = decode(self.paths[place], (w, h), self.resize, self._ground, c, trusted=checked)
        if self._digests is not None and found.digest != self._digests[place]:
            raise DataError(f"{self.paths[place]} has changed since it was checked; load the data set again")
        return found.pixels

    def fingerprint(self) -> str:
        """Return a SHA-256 of the bytes of all files, their order, and how they are made into arrays."""
        content = hashlib.sha256(f"{self.shape} {self.resize} {self._ground}".encode())
        for path, digest in zip(self.paths, self._digests or [b""] * len(self), strict=True):
            content.update(digest or _digest(path))
        return content.hexdigest()


def _digest(path: Path) -> bytes:
    with opened("ImageFiles", path) as file:
        return hashlib.file_digest(file, "sha256").digest()


@dataclass
class Checked:
    """The result of `check_files`, by the indices of the files.

    Attributes
    ----------
    pixels : uint8 (N, C, H, W) if the images are kept; those of broken files are undefined.
    channels : of the images.
    sizes : width and height of each image, (0, 0) for a broken file.
    digests : SHA-256 of each file, empty for a broken one.
    brightest : the largest value of each image of 16-bit grey values.
    broken : why a file cannot be read, a clause that begins with its path.
    """

    pixels: npt.NDArray[np.uint8] | None = None
    channels: int = 1
    sizes: list[Size] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    brightest: list[int] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)


def check_files(
    paths: Sequence[Path],
    side: int,
    resize: str,
    background: tuple[int, int, int],
    keep: bool,
    watch: Watch | None = None,
    channels: int | None = None,
) -> Checked:
    """Decode every image once, in threads, and return what there is to know of it.

    Parameters
    ----------
    side : height and width to which the images are brought.
    keep : whether to return all images. They are the same as those of `ImageFiles`.
    watch : called now and then with the number of files done.
    channels : 1 or 3 for all images; by default 3 unless all are grey.
    """
    result = Checked()
    pixels = np.empty((len(paths), 3, side, side), np.uint8) if keep else None
    coloured = np.zeros(len(paths), bool)

    def chunk(start: int) -> list[Picture | str]:
        found: list[Picture | str] = []
        for k in range(start, min(start + _CHUNK, len(paths))):
            check_wanted()
            try:
                one = decode(paths[k], (side, side), resize, background, channels)
            except DataError as error:
                found.append(str(error).removeprefix("read_image: "))
                continue
            if pixels is not None:
                pixels[k, : len(one.pixels)] = one.pixels
            coloured[k] = not one.grey
            found.append(one._replace(pixels=_NONE))
        return found

    threads = get_num_threads()
    for found in ahead(chunk, range(0, len(paths), _CHUNK), threads, _AHEAD * threads, "xcnn-files"):
        for one in found:
            if isinstance(one, str):
                result.broken[len(result.sizes)] = one
                one = Picture(_NONE, (0, 0), True, b"")
            result.sizes.append(one.size)
            result.digests.append(one.digest)
            if one.brightest is not None:
                result.brightest.append(one.brightest)
        if watch is not None:
            watch(len(result.sizes), len(paths))
    result.channels = channels or (3 if coloured.any() else 1)
    if pixels is not None:
        if result.channels == 1:
            pixels = np.ascontiguousarray(pixels[:, :1])
        elif channels is None:
            pixels[~coloured, 1:] = pixels[~coloured, :1]
        result.pixels = pixels
    return result

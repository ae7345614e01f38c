"""Folders of images, one subfolder per class (`cats/*.png`, `dogs/*.jpg`), and single image files.

Every image is opened by `_image`, which checks its size before it is decompressed.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xcnn._check import integer, integers
from xcnn._check import path as checked_path
from xcnn.data._stream import File, blaming, opened
from xcnn.data.dataset import Dataset
from xcnn.errors import DataError, UsageError, printable

__all__ = ["load_folder", "read_image"]

Files = dict[str, list[Path]]
"""The images of each class."""

_FORMATS = {  # what Pillow may decode, whatever the file name: others start programs (EPS: Ghostscript)
    "BMP": {".bmp"},
    "GIF": {".gif"},
    "JPEG": {".jpeg", ".jpg"},
    "PNG": {".png"},
    "PPM": {".pgm", ".ppm"},
    "TIFF": {".tif", ".tiff"},
    "WEBP": {".webp"},
}
_SUFFIXES = set().union(*_FORMATS.values())
_GREY_MODES = {"1", "L", "LA", "I;16", "I;16L", "I;16B"}
_COLOUR_MODES = {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
_MOST_PIXELS = 64 * 2**20
_MOST_SIDE = 2**16  # resizing takes 16 bytes and decoding 8 for each row, however short
_SMALL = 2**20
_PIXELS_PER_BYTE = 1024
"""The most pixels per byte of the file, for images of more than `_SMALL` pixels, so that a small file cannot take much
memory. Deflate expands at most 1,032 times, so that only images that are almost blank are refused."""

_MOST_SCANS = 1000  # of a JPEG file: each covers the whole image, and may take as little as twelve bytes
_START_OF_SCAN = b"\xff\xda"

_alone = threading.Lock()  # guards settings of the whole process
_EVERY = 5  # without a test folder, every fifth image of a class, sorted by name, is a test image


def load_folder(data_dir: Path | None = None, size: int = 32) -> tuple[Dataset, Dataset]:
    """Return (train, test) of a folder of images.

    The classes are the subfolders, sorted by name; the images are the files in them with an image suffix such as .png,
    sorted by name. Names that start with a dot are ignored. If there are subfolders `train` and `test`, the classes are
    inside them; otherwise every fifth image of each class is a test image. Images are converted to RGB, or to grey if
    all are grey, and resized (not cropped) to size x size pixels.

    A folder may be a link to any place. A link to a single image must lead into `data_dir` or the folder of its class:
    otherwise a downloaded archive could include private files unnoticed.

    Parameters
    ----------
    data_dir : the folder.
    size : height and width in pixels.

    Raises
    ------
    UsageError
        If `data_dir` is None or `size` is not an integer of at least 1.
    DataError
        If an image cannot be read, a link leads out of the folder, there are fewer than two classes, a class has no
        images or has control characters in its name, or there are too few images for a test set.
    """
    if data_dir is None:
        message = "data_dir is missing: the data set 'folder' needs a folder with one subfolder of images per class"
        raise UsageError(message, setting="data_dir")
    size = integer("load: folder", "size", size)
    with blaming("load", data_dir):
        train_files, test_files = _find(data_dir)
    classes = tuple(train_files)
    every = [path for files in (train_files, test_files) for paths in files.values() for path in paths]
    shape = (1 if all(map(_is_grey, every)) else 3, size, size)
    name = data_dir.resolve().name
    return _read(train_files, classes, shape, name), _read(test_files, classes, shape, name)


def _read(files: Files, classes: tuple[str, ...], shape: tuple[int, int, int], name: str) -> Dataset:
    images = np.stack([read_image(path, shape) for paths in files.values() for path in paths])
    labels = np.asarray([classes.index(label) for label, paths in files.items() for _ in paths], np.int64)
    return Dataset(images, labels, classes, name)


def read_image(path: str | os.PathLike[str], shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Return the image in a file as an array of a given shape.

    While a TIFF file is decoded, all that the process writes to stderr is discarded, since libtiff would print there.
    While a GIF file is opened, `PIL.Image.MAX_IMAGE_PIXELS` is lower. Only one thread at a time does either.

    Parameters
    ----------
    path : a BMP, GIF, JPEG, PNG, PPM, TIFF or WebP image, whatever its name. Of 16-bit grey values, the upper 8 bits
        are used; transparency is ignored.
    shape : (C, H, W). The image is converted to grey if C is 1 and to RGB if it is 3, and resized bilinearly to H x W.

    Returns
    -------
    image : uint8 (C, H, W).

    Raises
    ------
    UsageError
        If `shape` is not three integers of at least 1, the first of them 1 or 3.
    DataError
        If the file is missing, not an image, damaged or too large: more than 64 million pixels, more than 65,536 in a
        row or column, more than both a million and 1,024 per byte of the file, or a JPEG of more than 1,000 scans.
    """
    from PIL import Image, ImageOps

    c, h, w = integers("read_image", "shape", shape, 3)
    if c not in (1, 3):
        raise UsageError(f"read_image: images have 1 or 3 channels, got shape {shape}")
    with _image(checked_path("read_image", "path", path)) as image:
        ImageOps.exif_transpose(image, in_place=True)  # cameras may store photographs rotated
        if image.mode.startswith("I;16"):  # Pillow would clip these at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")
        if image.mode != (mode := "L" if c == 1 else "RGB"):
            image = image.convert(mode)
        image = image.resize((w, h), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(h, w, c).transpose(2, 0, 1)


def _is_grey(path: Path) -> bool:
    with _image(path) as image:
        return image.mode in _GREY_MODES


@contextlib.contextmanager
def _image(path: Path) -> Iterator[Any]:
    """Yield an image whose header has been checked. Any error inside the `with` is one of the file."""
    from PIL import Image, UnidentifiedImageError

    with opened("read_image", path) as file:
        most = min(_MOST_PIXELS, max(_SMALL, _PIXELS_PER_BYTE * file.size))
        try:
            with _pillow_limit(most) if file.peek(4)[:4] == b"GIF8" else contextlib.nullcontext():
                image = Image.open(file, formats=list(_FORMATS))
            with image:
                _check(path, image, file, most)
                with _silent() if image.format == "TIFF" else contextlib.nullcontext():
                    yield image
        except (DataError, MemoryError):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the latter where warnings are errors
            raise _too_many_pixels(path, file, most) from None
        except UnidentifiedImageError:
            formats = ", ".join(sorted(_FORMATS))
            raise DataError(f"read_image: {path} cannot be read as an image (of these formats: {formats})") from None
        except Exception as error:  # decoders raise exceptions of any type
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise DataError(f"read_image: {path} cannot be read as an image ({reason})") from None


@contextlib.contextmanager
def _pillow_limit(most: int) -> Iterator[None]:
    """Make Pillow refuse larger images inside a `with`: it allocates the frame of a GIF before its size can be checked.

    Pillow has only this setting of the whole process.
    """
    from PIL import Image

    with _alone:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = most // 2  # Pillow warns above this number, and refuses twice as many
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _too_many_pixels(path: Path, file: File, most: int) -> DataError:
    return DataError(f"read_image: {path} has more than {most} pixels, too many for a file of {file.size} bytes")


def _check(path: Path, image: Any, file: File, most: int) -> None:
    """Refuse an image that cannot be used, or would take too much memory or time, before it is decoded."""
    w, h = image.size
    if image.format == "TIFF":  # its tiles may be larger than the image
        w, h = max(w, image.tag_v2.get(322, 0)), max(h, image.tag_v2.get(323, 0))
    if w * h > most:
        raise _too_many_pixels(path, file, most)
    if max(w, h) > _MOST_SIDE:
        raise DataError(f"read_image: {path} has {w} x {h} pixels, at most {_MOST_SIDE} in a row or column are read")
    if image.format in ("JPEG", "MPO"):  # Pillow seeks before it reads on
        file.seek(0)
        if (scans := file.read().count(_START_OF_SCAN)) > _MOST_SCANS:
            raise DataError(f"read_image: {path} has {scans} scans over its pixels, at most {_MOST_SCANS} are read")
    if image.mode not in _GREY_MODES | _COLOUR_MODES:
        raise DataError(f"read_image: {path} is of mode {image.mode}; save it with 8 bits per channel")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Discard what the process writes to stderr inside a `with`: libtiff prints its errors there."""
    with _alone:
        try:
            kept = os.dup(2)
        except OSError:  # stderr is closed
            yield
            return
        try:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _find(root: Path) -> tuple[Files, Files]:
    """Return the training and the test images."""
    names = {path.name for path in _subfolders(root)}
    if {"train", "test"} <= names:
        train, test = _files_by_class(root, root / "train"), _files_by_class(root, root / "test", least=1)
        if extra := [name for name in test if name not in train]:
            raise DataError(f"load: {root}/test has classes that {root}/train lacks: {', '.join(extra)}")
        return train, test
    if names & {"train", "test"}:
        raise DataError(f"load: {root} has only one of the folders train and test; it needs both or neither")
    train, test = {}, {}
    for name, paths in _files_by_class(root, root).items():
        test[name] = paths[_EVERY - 1 :: _EVERY]
        train[name] = [path for k, path in enumerate(paths, start=1) if k % _EVERY]
    if not any(test.values()):
        raise DataError(f"load: {root} needs a class of {_EVERY} or more images, for a test set, or a test folder")
    return train, test


def _files_by_class(root: Path, folder: Path, least: int = 2) -> Files:
    found = {}
    for place in _subfolders(folder):
        if printable(place.name) != place.name:  # it would appear in tables, pictures and checkpoints
            raise DataError(f"load: {place} cannot be a class: its name has control characters")
        found[place.name] = [path for path in _visible(place) if path.suffix.lower() in _SUFFIXES]
        if not found[place.name]:
            raise DataError(f"load: {place} contains no images ({', '.join(sorted(_SUFFIXES))})")
        for path in found[place.name]:
            if path.is_symlink() and not (_inside(path, root) or _inside(path, place)):
                raise DataError(f"load: {path} is a link that leads out of {place}; put the image itself there")
    if len(found) < least:
        raise DataError(f"load: {folder} needs {least} or more subfolders of images, one per class, got {len(found)}")
    return found


def _inside(path: Path, folder: Path) -> bool:
    """Return whether a path is inside a folder after following all links, also those of the folder."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"load: there is no folder {folder}")
    return [path for path in _visible(folder) if path.is_dir()]


def _visible(folder: Path) -> list[Path]:
    """Return the sorted entries of a folder, without hidden ones: file managers create `._x.png` beside images."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))

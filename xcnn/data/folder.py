"""Your own images: a folder per class, `cats/*.png`, `dogs/*.jpg`, and single files to predict.

Everything that Pillow decodes goes through `_decode`, which looks at an image's size before it unpacks it.
"""

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xcnn.data._stream import File, blaming, opened
from xcnn.data.dataset import Dataset
from xcnn.errors import DataError, UsageError, printable

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["load_folder", "read_image"]

Files = dict[str, list[Path]]
"""The images of each class."""

_FORMATS = {  # what Pillow may decode, whatever a file's name says: others would start programs (EPS: Ghostscript)
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
"""An image of more than `_SMALL` pixels may have this many for each byte of its file, so that a small file cannot make
us allocate much. Deflate cannot make more than 1,032 bytes of one, so only images that are almost blank are lost."""

_MOST_SCANS = 1000  # of a JPEG file, which passes over all of its image once a scan, for as little as twelve bytes
_START_OF_SCAN = b"\xff\xda"

# Pillow logs what it minds about a damaged file; where nobody asked to hear that, Python would print it on stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_alone = threading.Lock()  # for what belongs to the whole process
_EVERY = 5  # of each class's images, sorted by name, every fifth is held out where there is no test folder


def load_folder(data_dir: Path | None = None, size: int = 32) -> tuple[Dataset, Dataset]:
    """Return (train, test) of a folder of images.

    Classes are the names of the subfolders, sorted; images are their files that end in .png, .jpg and the like,
    sorted; names that start with a dot are passed over. With subfolders `train` and `test`, the classes are inside
    these; otherwise every fifth image of each class is a test image. Images become RGB, or grey if all are grey, and
    are resized (not cropped) to size x size pixels.

    Any of the folders may be a link to somewhere else. A link to a single image must stay inside `data_dir` or the
    folder of its class: one link among thousands of files from somebody else is nothing that you would notice.

    Parameters
    ----------
    data_dir : the folder.
    size : height and width in pixels.

    Raises
    ------
    UsageError
        If `data_dir` is missing or `size` is below 1.
    DataError
        For an unreadable image, a link that leads out, fewer than two classes, a class without images or with control
        characters in its name, or too few images to hold any out.
    """
    if data_dir is None:
        raise UsageError("load: folder needs data_dir (--data-dir), a folder with one subfolder of images per class")
    if size < 1:
        raise UsageError(f"load: folder: size must be at least 1 pixel, got {size}")
    with blaming("load", data_dir):
        train_files, test_files = _find(data_dir)
    classes = tuple(train_files)
    every = [path for files in (train_files, test_files) for paths in files.values() for path in paths]
    shape = (1 if all(_is_grey(path) for path in every) else 3, size, size)
    name = data_dir.resolve().name
    return _read(train_files, classes, shape, name), _read(test_files, classes, shape, name)


def _read(files: Files, classes: tuple[str, ...], shape: tuple[int, int, int], name: str) -> Dataset:
    images = np.stack([read_image(path, shape) for paths in files.values() for path in paths])
    labels = np.asarray([classes.index(label) for label, paths in files.items() for _ in paths], np.int64)
    return Dataset(images, labels, classes, name)


def read_image(path: Path, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Read one image file as a network of input shape (C, H, W) takes it.

    Parameters
    ----------
    path : the file, a BMP, GIF, JPEG, PNG, PPM, TIFF or WebP image (told by its content, not its name); 16-bit grey
        keeps its upper 8 bits, transparency is dropped.
    shape : channels (1: converted to grey; 3: to RGB), height and width (resized, with bilinear filtering).

    Returns
    -------
    image : uint8 (C, H, W).

    Raises
    ------
    UsageError
        If the channels are neither 1 nor 3.
    DataError
        If the file is missing, no image, damaged, or too large: more than 64 million pixels, more than 65,536 in a row
        or column, or more than a million and 1,024 for each byte of the file; or a JPEG file of more than 1,000 scans.
    """
    c, h, w = shape
    if c not in (1, 3):
        raise UsageError(f"read_image: images have 1 or 3 channels, not {c} (shape: {shape})")

    def convert(image: "Image.Image") -> npt.NDArray[np.uint8]:
        from PIL import Image, ImageOps

        ImageOps.exif_transpose(image, in_place=True)  # photographs are stored lying down
        if image.mode.startswith("I;16"):  # Pillow would clip these at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")
        if image.mode != (mode := "L" if c == 1 else "RGB"):
            image = image.convert(mode)
        image = image.resize((w, h), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(h, w, c).transpose(2, 0, 1)

    array: npt.NDArray[np.uint8] = _decode(path, convert)
    return array


def _is_grey(path: Path) -> bool:
    return bool(_decode(path, lambda image: image.mode in _GREY_MODES))


def _decode(path: Path, use: Any) -> Any:
    """Open an image, check what its header says, and return `use(image)`."""
    from PIL import Image, UnidentifiedImageError

    with opened("read_image", path) as file:
        most = min(_MOST_PIXELS, max(_SMALL, _PIXELS_PER_BYTE * file.size))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with _pillow_limit(most):
                    image = Image.open(file, formats=list(_FORMATS))
                with image:
                    _check(path, image, file, most)
                    with _silent() if image.format == "TIFF" else contextlib.nullcontext():
                        return use(image)
        except (DataError, MemoryError):
            raise
        except Image.DecompressionBombError:
            raise _too_many_pixels(path, file, most) from None
        except UnidentifiedImageError:
            formats = ", ".join(sorted(_FORMATS))
            raise DataError(f"read_image: {path} cannot be read as an image (of these formats: {formats})") from None
        except Exception as error:  # decoders raise whatever they stumble on
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise DataError(f"read_image: {path} cannot be read as an image ({reason})") from None


@contextlib.contextmanager
def _pillow_limit(most: int) -> Iterator[None]:
    """Let Pillow open no image of more pixels: it makes room for the frame of a GIF before we can ask for its size."""
    from PIL import Image

    with _alone:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = most // 2  # Pillow warns from here on, and refuses twice as many
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _too_many_pixels(path: Path, file: File, most: int) -> DataError:
    return DataError(f"read_image: {path} has more than {most} pixels, the most for an image of {file.size} bytes")


def _check(path: Path, image: Any, file: File, most: int) -> None:
    """Refuse an image that we cannot use, or that would take too much memory or time, before it is decoded."""
    w, h = image.size
    if image.format == "TIFF":  # which may be stored in tiles larger than itself
        w, h = max(w, image.tag_v2.get(322, 0)), max(h, image.tag_v2.get(323, 0))
    if w * h > most:
        raise _too_many_pixels(path, file, most)
    if max(w, h) > _MOST_SIDE:
        raise DataError(f"read_image: {path} has {w} x {h} pixels, at most {_MOST_SIDE} in a row or column are read")
    if image.format in ("JPEG", "MPO"):  # Pillow finds its place again
        file.seek(0)
        if (scans := file.read().count(_START_OF_SCAN)) > _MOST_SCANS:
            raise DataError(f"read_image: {path} has {scans} scans over its pixels, at most {_MOST_SCANS} are read")
    if image.mode not in _GREY_MODES | _COLOUR_MODES:
        raise DataError(f"read_image: {path} is of mode {image.mode}; save it with 8 bits per channel")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the process's stderr shut: libtiff prints there what it minds about a file, from C, and asks nobody."""
    with _alone:
        try:
            kept = os.dup(2)
        except OSError:  # it is shut already
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
            raise DataError(f"load: {root}/test has the classes {', '.join(extra)}, {root}/train has not")
        return train, test
    if names & {"train", "test"}:
        raise DataError(f"load: {root} has one of the folders train and test; it needs both or neither")
    train, test = {}, {}
    for name, paths in _files_by_class(root, root).items():
        test[name] = paths[_EVERY - 1 :: _EVERY]
        train[name] = [path for k, path in enumerate(paths, start=1) if k % _EVERY]
    if not any(test.values()):
        raise DataError(f"load: {root} needs {_EVERY} or more images in a class, to hold some out, or a test folder")
    return train, test


def _files_by_class(root: Path, folder: Path, least: int = 2) -> Files:
    found = {}
    for place in _subfolders(folder):
        if printable(place.name) != place.name:  # it will be in tables, pictures and checkpoints
            raise DataError(f"load: {place} cannot be a class: its name has control characters")
        found[place.name] = [path for path in _visible(place) if path.suffix.lower() in _SUFFIXES]
        if not found[place.name]:
            raise DataError(f"load: {place} holds no images ({', '.join(sorted(_SUFFIXES))})")
        for path in found[place.name]:
            if path.is_symlink() and not (_inside(path, root) or _inside(path, place)):
                raise DataError(f"load: {path} is a link that leads out of {place}; put the image itself there")
    if len(found) < least:
        raise DataError(
            f"load: {folder} needs {least} or more subfolders of images, one per class; it has {len(found)}"
        )
    return found


def _inside(path: Path, folder: Path) -> bool:
    """Whether a path is inside a folder after all links are followed, those of the folder too."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"load: no folder {folder}")
    return [path for path in _visible(folder) if path.is_dir()]


def _visible(folder: Path) -> list[Path]:
    """Give what a folder shows, sorted: file managers leave `._x.png` and the like beside images."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))

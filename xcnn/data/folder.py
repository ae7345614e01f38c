"""Your own images: a folder per class, `cats/*.png`, `dogs/*.jpg`, and single files to predict.

Everything that Pillow decodes goes through `_decode`, which looks at an image's size before it unpacks it.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xcnn.data.dataset import Dataset
from xcnn.errors import DataError, UsageError

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
_EVERY = 5  # of each class's images, sorted by name, every fifth is held out where there is no test folder


def load_folder(data_dir: Path | None = None, size: int = 32) -> tuple[Dataset, Dataset]:
    """Return (train, test) of a folder of images.

    Classes are the names of the subfolders, sorted; images are their files that end in .png, .jpg and the like,
    sorted; names that start with a dot are passed over. With subfolders `train` and `test`, the classes are inside
    these; otherwise every fifth image of each class is a test image. Images become RGB, or grey if all are grey, and
    are resized (not cropped) to size x size pixels.

    Parameters
    ----------
    data_dir : the folder.
    size : height and width in pixels.

    Raises
    ------
    UsageError
        If `data_dir` is missing or `size` is below 1.
    DataError
        For an unreadable image, fewer than two classes, a class without images, or too few images to hold any out.
    """
    if data_dir is None:
        raise UsageError("load: folder needs data_dir (--data-dir), a folder with one subfolder of images per class")
    if size < 1:
        raise UsageError(f"load: folder: size must be at least 1 pixel, got {size}")
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
        If the file is missing, no image, damaged, or has more than 64 million pixels.
    """
    c, h, w = shape
    if c not in (1, 3):
        raise UsageError(f"read_image: images have 1 or 3 channels, not {c} (shape: {shape})")

    def convert(image: "Image.Image") -> npt.NDArray[np.uint8]:
        from PIL import Image, ImageOps

        image = ImageOps.exif_transpose(image)  # photographs are stored lying down
        if image.mode.startswith("I;16"):  # Pillow would clip these at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")
        image = image.convert("L" if c == 1 else "RGB").resize((w, h), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(h, w, c).transpose(2, 0, 1)

    array: npt.NDArray[np.uint8] = _decode(path, convert)
    return array


def _is_grey(path: Path) -> bool:
    return bool(_decode(path, lambda image: image.mode in _GREY_MODES))


def _decode(path: Path, use: Any) -> Any:
    """Open an image, check what its header says, and return `use(image)`."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
            with Image.open(path, formats=list(_FORMATS)) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise DataError(
                        f"read_image: {path} has {image.width} x {image.height} pixels, at most {_MOST_PIXELS} are read"
                    )
                if image.mode not in _GREY_MODES | _COLOUR_MODES:
                    raise DataError(f"read_image: {path} is of mode {image.mode}; save it with 8 bits per channel")
                return use(image)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"read_image: no file {path}") from None
    except Exception as error:  # decoders raise whatever they stumble on
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"read_image: {path} cannot be read as an image ({reason})") from None


def _find(folder: Path) -> tuple[Files, Files]:
    """Return the training and the test images."""
    names = {path.name for path in _subfolders(folder)}
    if {"train", "test"} <= names:
        train, test = _files_by_class(folder / "train"), _files_by_class(folder / "test", least=1)
        if extra := [name for name in test if name not in train]:
            raise DataError(f"load: {folder}/test has the classes {', '.join(extra)}, {folder}/train has not")
        return train, test
    if names & {"train", "test"}:
        raise DataError(f"load: {folder} has one of the folders train and test; it needs both or neither")
    train, test = {}, {}
    for name, paths in _files_by_class(folder).items():
        test[name] = paths[_EVERY - 1 :: _EVERY]
        train[name] = [path for k, path in enumerate(paths, start=1) if k % _EVERY]
    if not any(test.values()):
        raise DataError(f"load: {folder} needs {_EVERY} or more images in a class, to hold some out, or a test folder")
    return train, test


def _files_by_class(folder: Path, least: int = 2) -> Files:
    found = {}
    for place in _subfolders(folder):
        found[place.name] = [path for path in _visible(place) if path.suffix.lower() in _SUFFIXES]
        if not found[place.name]:
            raise DataError(f"load: {place} holds no images ({', '.join(sorted(_SUFFIXES))})")
    if len(found) < least:
        raise DataError(
            f"load: {folder} needs {least} or more subfolders of images, one per class; it has {len(found)}"
        )
    return found


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"load: no folder {folder}")
    return [path for path in _visible(folder) if path.is_dir()]


def _visible(folder: Path) -> list[Path]:
    """Give what a folder shows, sorted: file managers leave `._x.png` and the like beside images."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))

"""Image files: each is opened by `_image`, which checks its size before it is decompressed, and made a given size."""

import contextlib
import hashlib
import math
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xcnn._check import choice, integers, shown
from xcnn._check import path as checked_path
from xcnn.data._stream import File, opened
from xcnn.errors import DataError, UsageError, explained

__all__ = ["RESIZE", "SUFFIXES", "Picture", "colour", "decode", "image_shape", "read_image", "read_photo"]

_FORMATS = {  # what Pillow may decode, whatever the file name: others start programs (EPS: Ghostscript)
    "BMP": {".bmp"},
    "GIF": {".gif"},
    "JPEG": {".jpeg", ".jpg"},
    "PNG": {".png"},
    "PPM": {".pgm", ".ppm"},
    "TIFF": {".tif", ".tiff"},
    "WEBP": {".webp"},
}
SUFFIXES = frozenset().union(*_FORMATS.values())
"""The suffixes of image files, in lower case."""

RESIZE = ("crop", "pad", "stretch")
"""The ways to make an image a given size: cover it and cut off the rest, fit inside, or change the aspect."""

_COLOURS = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}
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

_alone = threading.Lock()  # guards stderr of the whole process

Size = tuple[int, int]


class Picture(NamedTuple):
    """An image from a file.

    Attributes
    ----------
    pixels : uint8 (C, H, W).
    size : width and height of the image in the file, turned upright.
    grey : whether the image is grey, on a grey background if it shows any.
    digest : SHA-256 of the file.
    brightest : the largest value of an image of 16-bit grey values, of which the upper 8 bits are used; otherwise None.
    """

    pixels: npt.NDArray[np.uint8]
    size: Size
    grey: bool
    digest: bytes
    brightest: int | None = None


@explained
def read_image(
    path: str | os.PathLike[str], shape: tuple[int, int, int], *, resize: str = "crop", background: str = "white"
) -> npt.NDArray[np.uint8]:
    """Return the image in a file as an array of a given shape.

    While a TIFF file is decoded, all that the process writes to stderr is discarded, since libtiff would print there.

    Parameters
    ----------
    path : a BMP, GIF, JPEG, PNG, PPM, TIFF or WebP image, whatever its name. Of 16-bit grey values, the upper 8 bits
        are used, so that values of 12 bits become nearly black: scale them to 65,535 first. It is turned upright as its
        EXIF data say.
    shape : (C, H, W). The image is converted to grey if C is 1 and to RGB if it is 3, and scaled bilinearly to H x W.
    resize : `crop` scales the image so that it covers H x W and cuts off what is outside, the same on opposite sides;
        `pad` scales it so that it fits inside, in the middle of the background; `stretch` does not keep its aspect.
    background : colour behind transparent pixels and around a padded image: `white`, `grey`, `black` or `#RRGGBB`.
        Pictures with transparent parts are mostly made for white pages.

    Returns
    -------
    image : uint8 (C, H, W).

    Raises
    ------
    UsageError
        If `shape` is not three integers of at least 1, the first of them 1 or 3, or another argument is unknown.
    DataError
        If the file is missing, not an image, damaged or too large: more than 64 million pixels, more than 65,536 in a
        row or column, more than both a million and 1,024 per byte of the file, or a JPEG of more than 1,000 scans.
    """
    c, h, w = image_shape("read_image", shape)
    choice("read_image", "resize", resize, RESIZE)
    ground = colour("read_image", "background", background)
    return decode(checked_path("read_image", "path", path), (w, h), resize, ground, c).pixels


def image_shape(caller: str, shape: Any) -> tuple[int, int, int]:
    """Return the argument `shape` if it is (C, H, W) with 1 or 3 channels."""
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise UsageError(f"{caller}: shape must be (C, H, W), such as (3, 32, 32), got {shown(shape)}")
    c, h, w = integers(caller, "shape", shape, 3)
    if c not in (1, 3):
        raise UsageError(f"{caller}: shape must be (C, H, W) with 1 or 3 channels, got {shape}")
    return c, h, w


def read_photo(path: str | os.PathLike[str], longest: int = 480) -> npt.NDArray[np.uint8]:
    """Return the upright image in a file as uint8 (H, W, 3), at most `longest` pixels wide and high, for pictures.

    Errors are those of `read_image`.
    """
    file, white = checked_path("read_photo", "path", path), _COLOURS["white"]
    w, h = decode(file, (1, 1), "stretch", white, 3).size
    scale = min(1.0, longest / max(w, h))
    size = max(1, round(w * scale)), max(1, round(h * scale))
    return decode(file, size, "stretch", white, 3).pixels.transpose(1, 2, 0)


def colour(caller: str, name: str, value: Any) -> tuple[int, int, int]:
    """Return red, green and blue of `white`, `grey`, `black` or `#RRGGBB`.

    >>> colour("read_image", "background", "#ff8000")
    (255, 128, 0)
    """
    if isinstance(value, str) and value in _COLOURS:
        return _COLOURS[value]
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value, re.ASCII):
        return int(value[1:3], 16), int(value[3:5], 16), int(value[5:], 16)
    raise UsageError(f"{caller}: {name} must be {', '.join(_COLOURS)} or #RRGGBB, got {value!r}".removeprefix(": "))


def decode(
    path: Path,
    size: Size,
    resize: str,
    background: tuple[int, int, int],
    channels: int | None = None,
    *,
    trusted: bool = False,
) -> Picture:
    """Return the image in a file; the arguments, errors and pixels are those of `read_image`.

    Parameters
    ----------
    size : width and height of the pixels.
    channels : 1, 3, or None for 1 if the image is grey and otherwise 3.
    trusted : whether the file has been decoded before without an error, so that libtiff has nothing to print.
    """
    from PIL import Image, ImageOps

    with _image(path, trusted) as (image, digest):
        was = image.size
        image.draft(None, _enough(resize, was, max(size)))
        coarse = image.size
        ImageOps.exif_transpose(image, in_place=True)  # cameras may store photographs rotated
        was = was if image.size == coarse else was[::-1]
        transparent = image.has_transparency_data
        bare = not transparent and resize != "pad"  # nothing of the background is seen
        grey = image.mode in _GREY_MODES and (bare or len(set(background)) == 1)
        channels = channels or (1 if grey else 3)
        brightest = None
        if image.mode.startswith("I;16"):  # Pillow would clip these at 255
            values = np.asarray(image)
            brightest = int(values.max())
            image, transparent = Image.fromarray((values >> 8).astype(np.uint8)), False
        if transparent and image.mode != "LA":
            image = image.convert("RGBA")
        mode = "L" if channels == 1 else "RGB"
        wanted = mode + "A" * transparent
        image = image if image.mode == wanted else image.convert(wanted)
        inner, box = _placed(resize, image.size, size)
        image = image.resize(inner, Image.Resampling.BILINEAR, box)  # Pillow weights colours by their opacity
        if not bare:
            ground = Image.new("RGB", size, background).convert(mode)
            corner = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
            ground.paste(image.convert(mode), corner, image.getchannel("A") if transparent else None)
            image = ground
        pixels = np.asarray(image).reshape(size[1], size[0], channels).transpose(2, 0, 1)
        return Picture(pixels, was, grey, digest, brightest)


def _enough(resize: str, size: Size, side: int) -> Size:
    """Return the least size in which a JPEG decoder may return an image that will have `side` pixels at most.

    Decoders reduce 2, 4 or 8 times at little cost. Twice the pixels that are needed remain, for the filter.
    """
    if resize == "stretch":
        return 2 * side, 2 * side
    reference = min(size) if resize == "crop" else max(size)
    return math.ceil(2 * side * size[0] / reference), math.ceil(2 * side * size[1] / reference)


def _placed(resize: str, size: Size, target: Size) -> tuple[Size, tuple[float, float, float, float]]:
    """Return the size that an image gets inside the target, and the part of it that is used."""
    (w, h), (to_w, to_h) = size, target
    wide = w * to_h > h * to_w  # wider than the target
    whole = (0.0, 0.0, float(w), float(h))
    if resize == "crop":
        left, top = ((w - h * to_w / to_h) / 2, 0.0) if wide else (0.0, (h - w * to_h / to_w) / 2)
        return target, (left, top, w - left, h - top)
    if resize == "pad":
        return (to_w, max(1, round(h * to_w / w))) if wide else (max(1, round(w * to_h / h)), to_h), whole
    return target, whole


@contextlib.contextmanager
def _image(path: Path, trusted: bool) -> Iterator[tuple[Any, bytes]]:
    """Yield an image whose header has been checked, and the file's SHA-256. Errors inside the `with` are the file's."""
    from PIL import Image, UnidentifiedImageError

    with opened("read_image", path) as file:
        most = min(_MOST_PIXELS, max(_SMALL, _PIXELS_PER_BYTE * file.size))
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0)
        try:
            if file.peek(4)[:4] == b"GIF8":
                _check_size(path, _gif_size(file), file, most)
                file.seek(0)
            image = Image.open(file, formats=list(_FORMATS))
            with image:
                _check(path, image, file, most)
                with _silent() if image.format == "TIFF" and not trusted else contextlib.nullcontext():
                    yield image, digest
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


def _gif_size(file: File) -> Size:
    """Return the size of the first frame of a GIF file, which may extend its screen.

    Pillow allocates that frame before its size can be asked for. This reads the blocks as Pillow does, even where they
    break the rules.
    """

    def block() -> bytes:
        length = file.read(1)
        return file.read(length[0]) if length else b""

    header = file.read(13).ljust(13, b"\0")
    w, h = (int.from_bytes(header[at : at + 2], "little") for at in (6, 8))
    if header[10] & 128:
        file.read(3 << (header[10] & 7) + 1)  # the palette
    while (kind := file.read(1)) and kind != b";":
        if kind == b",":
            frame = file.read(8).ljust(8, b"\0")
            left, top, wide, high = (int.from_bytes(frame[at : at + 2], "little") for at in (0, 2, 4, 6))
            return max(w, left + wide), max(h, top + high)
        if kind == b"!":
            label, first = file.read(1), block()
            if label == b"\xff" and first.startswith(b"NETSCAPE2.0"):
                block()
            while (label != b"\xfe" or first) and (first := block()):
                pass
    return w, h


def _too_many_pixels(path: Path, file: File, most: int) -> DataError:
    return DataError(f"read_image: {path} has more than {most} pixels, too many for a file of {file.size} bytes")


def _check(path: Path, image: Any, file: File, most: int) -> None:
    """Refuse an image that cannot be used, or would take too much memory or time, before it is decoded."""
    w, h = image.size
    if image.format == "TIFF":  # its tiles may be larger than the image
        w, h = max(w, image.tag_v2.get(322, 0)), max(h, image.tag_v2.get(323, 0))
    _check_size(path, (w, h), file, most)
    if image.format in ("JPEG", "MPO"):  # Pillow seeks before it reads on
        file.seek(0)
        if (scans := file.read().count(_START_OF_SCAN)) > _MOST_SCANS:
            raise DataError(f"read_image: {path} has {scans} scans over its pixels, at most {_MOST_SCANS} are read")
    if image.mode not in _GREY_MODES | _COLOUR_MODES:
        raise DataError(f"read_image: {path} is of mode {image.mode}; save it with 8 bits per channel")


def _check_size(path: Path, size: Size, file: File, most: int) -> None:
    w, h = size
    if w * h > most:
        raise _too_many_pixels(path, file, most)
    if max(w, h) > _MOST_SIDE:
        raise DataError(f"read_image: {path} has {w} x {h} pixels, at most {_MOST_SIDE} in a row or column are read")


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

"""Pictures of arrays inside a page, as PNG in its `img` elements: images, maps of layers, overlays."""

import base64
import io
import math
from typing import Any

import numpy as np

from xcnn.pages._html import Html, element

__all__ = [
    "PHOTO",
    "SIGNED",
    "coloured",
    "encode",
    "grey",
    "largest",
    "overlay",
    "picture",
    "seen",
    "sheet",
    "signed",
    "smaller",
]

_COLD, _ZERO, _HOT = (33, 102, 172), (247, 247, 247), (178, 24, 43)
"""The colours of the least, of zero and of the largest value of a signed map."""

_STEPS = 31
"""The shades of each sign; with few of them the files are small."""

_GAP = 2 * _STEPS + 1
"""The transparent index of the palette, between the maps of a sheet."""

PHOTO = 320
"""The largest side of a photo on a page, in pixels."""


def _palette() -> list[int]:
    cold, zero, hot = (np.asarray(colour, float) for colour in (_COLD, _ZERO, _HOT))
    shares = np.linspace(-1.0, 1.0, 2 * _STEPS + 1)[:, None]
    ends = np.where(shares < 0, cold, hot)
    colours = zero + np.abs(shares) * (ends - zero)
    return [*np.rint(colours).astype(int).reshape(-1).tolist(), 128, 128, 128]


SIGNED = element(
    "span",
    class_="scale",
    aria_hidden="true",
    style=f"background:linear-gradient(90deg, rgb{_COLD}, rgb{_ZERO}, rgb{_HOT})",
)
"""A bar of the colours of signed maps."""


def encode(image: Any, **options: Any) -> str:
    """Return an image of Pillow as the text of a PNG file, which a browser shows without reading another one."""
    file = io.BytesIO()
    image.save(file, "png", optimize=True, **options)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def picture(source: str, alt: str, size: tuple[int, int], class_: str = "picture", width: int | None = None) -> Html:
    """Return the element of a picture.

    Parameters
    ----------
    source : what `encode` returns.
    alt : what it shows, for those who do not see it.
    size : its width and height in pixels.
    width : how wide it is shown.
    """
    style = None if width is None else f"width:{width}px"
    return element("img", src=source, alt=alt, width=size[0], height=size[1], class_=class_ or None, style=style)


def _image(pixels: np.ndarray) -> Any:
    """Return uint8 (h, w), (h, w, 3) or (h, w, 4) as an image of Pillow, which is imported only when it is needed."""
    from PIL import Image

    return Image.fromarray(pixels)


def _levels(image: np.ndarray) -> np.ndarray:
    """Return (h, w) or (h, w, 3) uint8 of an image (c, h, w), whose channels are averaged unless they are 1 or 3.

    0 is black and 1 is white, or if there are numbers beyond, the least and the largest are.
    """
    pixels = np.nan_to_num(np.asarray(image, np.float64))
    low, high = min(0.0, float(pixels.min())), max(1.0, float(pixels.max()))
    pixels = (pixels - low) / (high - low)
    pixels = np.moveaxis(pixels, 0, -1) if len(pixels) == 3 else pixels.mean(axis=0)
    return np.asarray(np.rint(255 * pixels), np.uint8)


def seen(image: np.ndarray, alt: str, class_: str = "picture", most: int | None = None) -> Html:
    """Return the picture of an image (c, h, w) from 0 to 1, made smaller if a side has more than `most` pixels."""
    shown = _image(_levels(image))
    if most is not None and max(shown.size) > most:
        shown.thumbnail((most, most))
    return picture(encode(shown), alt, shown.size, class_)


def grey(pixels: np.ndarray, alt: str) -> Html:
    """Return the picture of a photo, uint8 (h, w) or (h, w, 3), which is made smaller if it is large."""
    photo = _image(pixels)
    photo.thumbnail((PHOTO, PHOTO), reducing_gap=3.0)
    return picture(encode(photo), alt, photo.size, "picture photo")


def _shades(values: np.ndarray, most: float) -> np.ndarray:
    """Return the places of values in the palette, where `most` has the strongest colour."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.nan_to_num(np.asarray(values, np.float64) / most if most > 0 else np.zeros(values.shape))
    return np.asarray(np.rint(np.clip(shares, -1.0, 1.0) * _STEPS) + _STEPS, np.uint8)


def _indexed(places: np.ndarray) -> str:
    image = _image(places)
    image.putpalette(_palette())  # its numbers become places in the palette
    return encode(image, transparency=_GAP)


def largest(values: np.ndarray) -> float:
    """Return the largest finite magnitude of values, 0 if there is none."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max(initial=0.0))


def signed(values: np.ndarray, alt: str, class_: str = "picture") -> Html:
    """Return the picture of a map (h, w): red above zero, blue below, the stronger the farther."""
    source = _indexed(_shades(values, largest(values)))
    return picture(source, alt, (values.shape[1], values.shape[0]), class_)


def overlay(image: np.ndarray, values: np.ndarray, alt: str, class_: str = "picture") -> Html:
    """Return the picture of an image (c, h, w) in grey, below the colours of a map (h, w) of it."""
    most, levels = largest(values), _levels(image).astype(np.float64)
    base = levels if levels.ndim == 2 else levels.mean(axis=-1)
    places = _shades(values, most)
    colours = np.asarray(_palette(), np.float64).reshape(-1, 3)[places]
    opaque = 0.75 * np.abs(places.astype(np.float64) - _STEPS)[..., None] / _STEPS
    pixels = np.rint(base[..., None] * (1.0 - opaque) + colours * opaque).astype(np.uint8)
    return picture(encode(_image(pixels)), alt, (pixels.shape[1], pixels.shape[0]), class_)


def sheet(
    maps: np.ndarray, alt: str, columns: int | None = None, cell: int = 44, most: float | None = None, side: int = 64
) -> Html:
    """Return one picture of maps (n, h, w) side by side, in rows, with one scale of colours for all.

    Parameters
    ----------
    columns : number of maps in a row.
    cell : the width of a map on the page, in its pixels.
    most : the magnitude that has the strongest colour; by default the largest one of the maps.
    side : the largest height and width of a map; larger ones are averaged over blocks.
    """
    most = largest(maps) if most is None else most
    maps = smaller(maps, side)
    columns = min(len(maps), columns or 8)
    places = _in_rows(_shades(maps, most), columns, _GAP)
    size = (places.shape[1], places.shape[0])
    return picture(_indexed(places), alt, size, "", width=columns * cell)


def _in_rows(tiles: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """Return tiles (n, h, w, ...) beside and below each other, with lines of `gap` between them."""
    n, h, w, *rest = tiles.shape
    made = np.full((-(-n // columns) * (h + 1) - 1, columns * (w + 1) - 1, *rest), gap, np.uint8)
    for k, tile in enumerate(tiles):
        top, left = k // columns * (h + 1), k % columns * (w + 1)
        made[top : top + h, left : left + w] = tile
    return made


def coloured(filters: np.ndarray, alt: str, most: float) -> Html:
    """Return one picture of filters (n, 3, h, w) in colours: grey for zero, `most` for the strongest."""
    columns = min(len(filters), 8)
    levels = np.rint(255 * np.clip(0.5 + 0.5 * np.nan_to_num(filters) / (most or 1.0), 0.0, 1.0))
    opaque = np.pad(np.moveaxis(levels, 1, -1), ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=255)
    pixels = _in_rows(opaque, columns, 0)  # transparent between them
    size = (pixels.shape[1], pixels.shape[0])
    return picture(encode(_image(pixels)), alt, size, "", width=columns * 64)


def smaller(maps: np.ndarray, side: int) -> np.ndarray:
    """Return maps (n, h, w) of at most `side` in height and width, by means over blocks."""
    block = math.ceil(max(maps.shape[1:]) / side)
    if block == 1:
        return maps
    rows, columns = (np.arange(0, size, block) for size in maps.shape[1:])
    sums = np.add.reduceat(np.add.reduceat(maps.astype(np.float64), rows, axis=1), columns, axis=2)
    counts = np.outer(np.diff([*rows, maps.shape[1]]), np.diff([*columns, maps.shape[2]]))
    return np.asarray(sums / counts)

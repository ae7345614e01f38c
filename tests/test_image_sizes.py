"""Images brought to a size: against a naive filter in float64, and against compositing written out."""

import io

import numpy as np
import pytest
from PIL import Image

from xcnn import data

RNG = np.random.default_rng(0)
COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "#ff8000": (255, 128, 0)}


def weights(start, stop, length, count):
    """Return the triangle filter (count, length) that scales the part start..stop of a line to `count` pixels."""
    scale = (stop - start) / count
    matrix = np.zeros((count, length))
    for k in range(count):
        centre, radius = start + (k + 0.5) * scale, max(scale, 1.0)
        for place in range(length):
            matrix[k, place] = max(0.0, 1 - abs(place + 0.5 - centre) / radius)
    return matrix / matrix.sum(axis=1, keepdims=True)


def scaled(image, box, size):
    """Return the part `box` (left, top, right, bottom) of an array (H, W, ...), scaled to (h, w)."""
    left, top, right, bottom = box
    down = weights(top, bottom, image.shape[0], size[0])
    across = weights(left, right, image.shape[1], size[1])
    return np.einsum("ay,bx,yx...->ab...", down, across, image.astype(float))


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("size", "target", "box"),
    [
        ((30, 50), (8, 8), (10, 0, 40, 30)),
        ((50, 30), (8, 8), (0, 10, 30, 40)),
        ((20, 20), (7, 7), (0, 0, 20, 20)),
        ((12, 40), (8, 16), (8, 0, 32, 12)),
        ((5, 4), (16, 16), (0, 0.5, 4, 4.5)),  # enlarged
        ((40, 1), (4, 4), (0, 19.5, 1, 20.5)),
    ],
)
def test_crop_takes_the_middle_in_full_height_or_width(tmp_path, size, target, box):
    array = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
    found = data.read_image(saved(tmp_path / "x.png", array), (3, *target))
    assert np.abs(found.transpose(1, 2, 0) - scaled(array, box, target)).max() <= 1.01


@pytest.mark.parametrize("size", [(30, 50), (50, 20), (3, 40), (9, 9)])
@pytest.mark.parametrize("background", COLOURS)
def test_pad_shows_the_whole_image_in_the_middle_of_the_background(tmp_path, size, background):
    array = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
    found = data.read_image(saved(tmp_path / "x.png", array), (3, 16, 16), resize="pad", background=background)
    h, w = (max(1, round(16 * side / max(size))) for side in size)
    expected = np.broadcast_to(np.asarray(COLOURS[background], float), (16, 16, 3)).copy()
    top, left = (16 - h) // 2, (16 - w) // 2
    expected[top : top + h, left : left + w] = scaled(array, (0, 0, size[1], size[0]), (h, w))
    assert np.abs(found.transpose(1, 2, 0) - expected).max() <= 1.01


def test_stretch_takes_the_whole_image(tmp_path):
    array = RNG.integers(0, 256, (30, 50, 3)).astype(np.uint8)
    found = data.read_image(saved(tmp_path / "x.png", array), (3, 8, 8), resize="stretch")
    assert np.abs(found.transpose(1, 2, 0) - scaled(array, (0, 0, 50, 30), (8, 8))).max() <= 1.01


@pytest.mark.parametrize("background", COLOURS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("grey", [False, True])
def test_hidden_colours_stay_hidden(tmp_path, background, channels, grey):
    """Transparent pixels show the background, and do not colour their neighbours when the image is scaled."""
    colours = RNG.integers(0, 256, (16, 16, 1 if grey else 3)).astype(np.uint8)
    alpha = RNG.choice(np.asarray([0, 100, 255], np.uint8), (16, 16, 1))
    array = np.concatenate([colours, alpha], axis=2)
    path = saved(tmp_path / "x.png", array)
    share = alpha / 255
    shown = share * colours + (1 - share) * np.asarray(COLOURS[background])
    if channels == 1:
        shown = (shown @ [0.299, 0.587, 0.114])[:, :, None]
    for size, tolerance in ((16, 2), (8, 3)):
        found = data.read_image(path, (channels, size, size), background=background)
        expected = scaled(shown, (0, 0, 16, 16), (size, size)) if size < 16 else shown
        assert np.abs(found.transpose(1, 2, 0) - expected).max() <= tolerance


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "GIF"])
def test_one_colour_may_be_transparent(tmp_path, mode):
    image = Image.new("P" if mode == "GIF" else mode, (4, 4))  # zeros, which are transparent
    if image.mode == "P":
        image.putpalette([200, 10, 10, 0, 0, 0])
    path = tmp_path / ("x.gif" if mode == "GIF" else "x.png")
    image.save(path, transparency=(0, 0, 0) if mode == "RGB" else 0)
    for name, value in (("white", 255), ("black", 0)):
        for c in (1, 3):
            assert np.unique(data.read_image(path, (c, 2, 2), background=name)).tolist() == [value]


def test_a_large_photograph_is_as_if_decoded_whole(tmp_path):
    """The decoder may return fewer pixels than the file has, but enough for the filter."""
    smooth = np.linspace(0, 255, 1200)
    array = np.stack([np.add.outer(smooth[:800], smooth) / 2, np.tile(smooth, (800, 1)), np.full((800, 1200), 90)], 2)
    buffer = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(buffer, "JPEG", quality=95)
    for resize, size in (("crop", (32, 32)), ("pad", (32, 32)), ("stretch", (16, 40))):
        seen = []
        for suffix in (".jpg", ".png"):
            path = tmp_path / f"x{suffix}"
            if suffix == ".jpg":
                path.write_bytes(buffer.getvalue())
            else:
                Image.open(buffer).save(path)  # the same pixels, without such a decoder
            seen.append(data.read_image(path, (3, *size), resize=resize).astype(int))
        assert np.abs(seen[0] - seen[1]).max() <= 3


def test_a_photograph_is_turned_before_it_is_cropped(tmp_path):
    array = RNG.integers(0, 256, (24, 60)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 8  # turn anticlockwise to show
    path = saved(tmp_path / "x.png", array, exif=exif)
    upright = np.rot90(array)
    found = data.read_image(path, (1, 8, 4))[0]
    assert np.abs(found - scaled(upright, (0, 6, 24, 54), (8, 4))).max() <= 1.01

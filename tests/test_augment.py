"""Augmentations against plain loops over the images, and cases with known results."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xcnn import data
from xcnn.data.augment import _turn
from xcnn.errors import DtypeError, ShapeError, UsageError

quick = settings(max_examples=40, deadline=None)
shapes = st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))
seeds = st.integers(0, 2**32)


def batch(shape, seed=0):
    images = np.random.default_rng(seed).random(shape, np.float32)
    images.flags.writeable = False  # an augmentation that writes to its input raises
    return images


@quick
@given(name=st.sampled_from(sorted(data.AUGMENTATIONS)), shape=shapes, seed=seeds)
def test_every_augmentation_keeps_the_contract(name, shape, seed):
    function, images = data.AUGMENTATIONS[name], batch(shape, seed)
    first, second = (function(images, np.random.default_rng(seed)) for _ in range(2))
    assert first.shape == images.shape
    assert first.dtype == np.float32
    assert np.array_equal(first, second)
    assert not np.shares_memory(first, images)
    if first.size:
        assert 0 <= first.min() <= first.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", sorted(data.AUGMENTATIONS))
def test_images_of_a_batch_differ_in_what_they_draw(name):
    images = np.broadcast_to(batch((1, 1, 12, 12)), (30, 1, 12, 12))
    out = data.AUGMENTATIONS[name](images, np.random.default_rng(0))
    assert len(np.unique(out.reshape(30, -1), axis=0)) > 1


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (data.flip, {"p": 0}),
        (data.shift, {"pixels": 0}),
        (data.crop, {"pad": 0}),
        (data.rotate, {"degrees": 0}),
        (data.cutout, {"size": 0}),
    ],
)
def test_options_of_zero_change_nothing(function, options):
    images = batch((3, 2, 5, 6))
    assert np.array_equal(function(images, np.random.default_rng(0), **options), images)


def test_flip_mirrors_whole_images_about_half_of_the_time():
    images = batch((400, 1, 3, 4))
    flipped = data.flip(images, np.random.default_rng(1))
    mirrored = [np.array_equal(a, b[..., ::-1]) for a, b in zip(flipped, images, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 150 < sum(mirrored) < 250
    assert np.array_equal(data.flip(images, np.random.default_rng(1), p=1), images[..., ::-1])


def moved(image, down, right):
    """Shift one image (C, H, W) pixel by pixel."""
    out = np.zeros_like(image)
    _, h, w = image.shape
    for i in range(h):
        for j in range(w):
            if 0 <= i - down < h and 0 <= j - right < w:
                out[:, i, j] = image[:, i - down, j - right]
    return out


@pytest.mark.parametrize(("function", "limit"), [(data.shift, 2), (data.crop, 4)])
def test_shift_and_crop_move_by_every_offset_up_to_their_limit(function, limit):
    images = batch((600, 2, 5, 6))
    out = function(images, np.random.default_rng(2))
    seen = set()
    for image, result in zip(images, out, strict=True):
        offsets = [
            (down, right)
            for down in range(-limit, limit + 1)
            for right in range(-limit, limit + 1)
            if np.array_equal(moved(image, down, right), result)
        ]
        assert len(offsets) == 1
        seen.update(offsets)
    assert len(seen) == (2 * limit + 1) ** 2


def turned(image, angle):
    """Turn one image (C, H, W) anticlockwise by an angle in radians, pixel by pixel, in float64."""
    out = np.zeros(image.shape)
    _, h, w = image.shape
    for i in range(h):
        for j in range(w):
            v, u = i - (h - 1) / 2, j - (w - 1) / 2
            y = math.sin(angle) * u + math.cos(angle) * v + (h - 1) / 2
            x = math.cos(angle) * u - math.sin(angle) * v + (w - 1) / 2
            for yy in (math.floor(y), math.floor(y) + 1):
                for xx in (math.floor(x), math.floor(x) + 1):
                    if 0 <= yy < h and 0 <= xx < w:
                        out[:, i, j] += image[:, yy, xx] * (1 - abs(y - yy)) * (1 - abs(x - xx))
    return out


@quick
@given(shape=shapes, angle=st.floats(-4, 4), seed=seeds)
def test_rotation_agrees_with_a_plain_loop(shape, angle, seed):
    images = batch(shape, seed)
    angles = angle * np.random.default_rng(seed).random(len(images))
    expected = [turned(image, a) for image, a in zip(images, angles, strict=True)]
    assert np.allclose(_turn(images, angles), np.reshape(expected, images.shape), atol=1e-5)


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
@pytest.mark.parametrize("size", [4, 5])
def test_quarter_turns_are_those_of_numpy(quarters, size):
    images = batch((2, 3, size, size))
    out = _turn(images, np.full(2, quarters * np.pi / 2))
    assert np.allclose(out, np.rot90(images, quarters, axes=(2, 3)), atol=1e-5)


def test_rotate_draws_angles_up_to_its_limit():
    images = np.zeros((500, 1, 21, 21), np.float32)
    images[:, 0, 10, 20] = 1  # a point 10 pixels to the right of the centre moves up or down by 10 sin(angle)
    out = data.rotate(images, np.random.default_rng(0), degrees=30)
    rows = (out.sum(axis=(1, 3)) * np.arange(21)).sum(axis=1) / out.sum(axis=(1, 2, 3))
    assert 4.5 <= rows.min() < 5.5
    assert 14.5 < rows.max() <= 15.5


def test_cutout_blanks_a_square_and_nothing_else():
    images = batch((300, 2, 9, 10)) + np.float32(1)
    out = data.cutout(images, np.random.default_rng(0), size=4)
    whole = 0
    for image, result in zip(images, out, strict=True):
        rows, columns = (np.flatnonzero((result == 0).any(axis=axes)) for axes in ((0, 2), (0, 1)))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        expected = image.copy()
        expected[:, top:bottom, left:right] = 0
        assert np.array_equal(result, expected)
        assert all(
            side == 4 or at_edge
            for side, at_edge in (
                (bottom - top, top == 0 or bottom == 9),
                (right - left, left == 0 or right == 10),
            )
        )
        whole += (bottom - top, right - left) == (4, 4)
    assert whole > 100


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (data.flip, {"p": 1.5}),
        (data.flip, {"p": float("nan")}),
        (data.shift, {"pixels": -1}),
        (data.crop, {"pad": -1}),
        (data.rotate, {"degrees": -1}),
        (data.cutout, {"size": -1}),
        (data.flip, {"p": "often"}),
        (data.shift, {"pixels": 1.5}),
        (data.crop, {"pad": None}),
        (data.rotate, {"degrees": float("inf")}),
        (data.cutout, {"size": "8"}),
    ],
)
def test_options_out_of_range_are_refused(function, options):
    with pytest.raises(UsageError, match=f"^{function.__name__}: {next(iter(options))} .*got"):
        function(batch((1, 1, 3, 3)), np.random.default_rng(0), **options)


@pytest.mark.parametrize("name", sorted(data.AUGMENTATIONS))
def test_other_arrays_are_refused(name):
    function = data.AUGMENTATIONS[name]
    with pytest.raises(DtypeError, match="uint8"):
        function(np.zeros((1, 1, 3, 3), np.uint8), np.random.default_rng(0))
    with pytest.raises(ShapeError, match="must be"):
        function(np.zeros((1, 3, 3), np.float32), np.random.default_rng(0))

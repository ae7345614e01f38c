"""Augmentations that move pixels against plain loops and PyTorch; what all augmentations have in common."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xcnn import data
from xcnn.data.augment import geometry
from xcnn.errors import DtypeError, ShapeError, UsageError

quick = settings(max_examples=40, deadline=None)
shapes = st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))
seeds = st.integers(0, 2**32)

ALL = {
    name: functools.partial(function, classes=10) if name in ("mixup", "cutmix") else function
    for name, function in data.AUGMENTATIONS.items()
}
MOVING = ["affine", "crop", "flip", "rand_augment", "random_resized_crop", "rotate", "shift", "zoom"]
every = pytest.mark.parametrize("name", sorted(ALL))


def batch(shape, seed=0, dtype=np.float32):
    images = np.random.default_rng(seed).random(shape, dtype)
    images.flags.writeable = False  # an augmentation that writes to its input raises
    return images


def labels(n):
    y = np.arange(n) % 10
    y.flags.writeable = False
    return y


@quick
@given(name=st.sampled_from(sorted(ALL)), shape=shapes, seed=seeds, dtype=st.sampled_from([np.float32, np.float64]))
def test_every_augmentation_keeps_the_contract(name, shape, seed, dtype):
    x, y = batch(shape, seed, dtype), labels(shape[0])
    (first, targets), (second, _) = (ALL[name](x, y, np.random.default_rng(seed)) for _ in range(2))
    assert first.shape == x.shape
    assert first.dtype == dtype
    assert np.array_equal(first, second)
    assert not np.shares_memory(first, x)
    if name in ("mixup", "cutmix"):
        assert targets.shape == (len(y), 10)
        assert targets.dtype == dtype
        assert np.allclose(targets.sum(axis=1), 1)
    else:
        assert targets is y
    if first.size:
        assert -1e-6 <= first.min() <= first.max() <= 1 + 1e-6


@every
def test_images_of_a_batch_differ_in_what_they_draw(name):
    images = np.broadcast_to(batch((1, 1, 12, 12)), (30, 1, 12, 12))
    if name in ("mixup", "cutmix"):
        images = batch((30, 1, 12, 12))
    out, _ = ALL[name](images, labels(30), 0)
    assert len(np.unique(out.reshape(30, -1), axis=0)) > 1


@pytest.mark.parametrize("shape", [(64, 3, 12, 12), (64, 1, 5, 17)])
@pytest.mark.parametrize("name", sorted(set(ALL) - {"mixup", "cutmix"}))
def test_bits_of_an_image_do_not_depend_on_its_batch(name, shape):
    x, y = batch(shape), labels(64)
    indices = np.random.default_rng(1).permutation(1000)[:64]
    whole, _ = ALL[name](x, y, data.Draws(5, 2, indices))
    assert np.array_equal(ALL[name](x[::-1], y, data.Draws(5, 2, indices[::-1]))[0], whole[::-1])
    for i in (0, 1, 30, 63):
        alone, _ = ALL[name](x[i : i + 1], y[i : i + 1], data.Draws(5, 2, indices[i : i + 1]))
        assert np.array_equal(alone, whole[i : i + 1])


@pytest.mark.parametrize("name", ["contrast", "equalize", "autocontrast", "sharpness", "hue"])
def test_bits_of_an_adjusted_large_image_do_not_depend_on_its_batch(name):
    function, x = getattr(data.augment.adjust, name), batch((5, 3, 97, 103))
    numbers = np.linspace(0.2, 0.8, 5)
    assert all(np.array_equal(function(x[i : i + 1], numbers[i : i + 1])[0], function(x, numbers)[i]) for i in range(5))


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (data.flip, {"p": 0}),
        (data.shift, {"pixels": 0}),
        (data.crop, {"pad": 0}),
        (data.rotate, {"degrees": 0}),
        (data.zoom, {"scale": (1, 1)}),
        (data.affine, {"degrees": 0, "translate": 0, "scale": (1, 1), "shear": 0}),
        (data.random_resized_crop, {"scale": (1, 1), "ratio": (6 / 5, 6 / 5)}),
        (data.color_jitter, {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}),
        (data.gaussian_noise, {"sigma": 0}),
        (data.cutout, {"size": 0}),
        (data.random_erasing, {"p": 0}),
        (data.mixup, {"classes": 10, "alpha": 0}),
        (data.cutmix, {"classes": 10, "alpha": 0}),
        (data.rand_augment, {"n": 0}),
    ],
)
def test_options_of_zero_change_nothing(function, options):
    images = batch((3, 2, 5, 6))
    assert np.array_equal(function(images, labels(3), 0, **options)[0], images)


def test_flip_mirrors_whole_images_about_half_of_the_time():
    images = batch((400, 1, 3, 4))
    flipped, _ = data.flip(images, None, 1)
    mirrored = [np.array_equal(a, b[..., ::-1]) for a, b in zip(flipped, images, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 150 < sum(mirrored) < 250
    assert np.array_equal(data.flip(images, None, 1, p=1)[0], images[..., ::-1])
    assert np.array_equal(data.flip(images, None, 1, p=1, vertical=True)[0], images[:, :, ::-1])


def moved(image, down, right):
    """Shift one image (C, H, W)."""
    out = np.zeros_like(image)
    _, h, w = image.shape
    rows, columns = range(max(0, h - abs(down))), range(max(0, w - abs(right)))
    to, source = ((max(0, sign * down), max(0, sign * right)) for sign in (1, -1))
    if rows and columns:
        part = image[:, source[0] : source[0] + len(rows), source[1] : source[1] + len(columns)]
        out[:, to[0] : to[0] + len(rows), to[1] : to[1] + len(columns)] = part
    return out


@pytest.mark.parametrize(("function", "limit"), [(data.shift, 2), (data.crop, 4)])
def test_shift_and_crop_move_by_every_offset_up_to_their_limit(function, limit):
    image = batch((2, 5, 6))
    out, _ = function(np.broadcast_to(image, (600, 2, 5, 6)), None, 2)
    offsets = [(down, right) for down in range(-limit, limit + 1) for right in range(-limit, limit + 1)]
    equal = np.stack([(out == moved(image, *offset)).all(axis=(1, 2, 3)) for offset in offsets])
    assert (equal.sum(axis=0) == 1).all()
    assert equal.any(axis=1).all()


def placed(image, matrix):
    """Return the bilinear values of one image (C, H, W) at the places matrix @ (v, u, 1), in float64."""
    out = np.zeros(image.shape)
    _, h, w = image.shape
    for i in range(h):
        for j in range(w):
            y, x = matrix @ (i - (h - 1) / 2, j - (w - 1) / 2, 1) + ((h - 1) / 2, (w - 1) / 2)
            for yy in (math.floor(y), math.floor(y) + 1):
                for xx in (math.floor(x), math.floor(x) + 1):
                    if 0 <= yy < h and 0 <= xx < w:
                        out[:, i, j] += image[:, yy, xx] * (1 - abs(y - yy)) * (1 - abs(x - xx))
    return out


def forward(degrees, translate, scale, shear):
    """Return the matrix (3, 3) that moves points (v, u, 1), one step after the other."""
    t, k = math.radians(degrees), math.tan(math.radians(shear))
    sheared = np.array([[1, 0, 0], [-k, 1, 0], [0, 0, 1]])  # the upper part, v < 0, moves right
    turned = np.array([[math.cos(t), -math.sin(t), 0], [math.sin(t), math.cos(t), 0], [0, 0, 1]])  # right moves up
    moved = np.array([[1, 0, translate[0]], [0, 1, translate[1]], [0, 0, 1]])
    return moved @ np.diag([scale, scale, 1]) @ turned @ sheared


moves = st.tuples(
    st.floats(-200, 200), st.tuples(st.floats(-3, 3), st.floats(-3, 3)), st.floats(0.4, 3), st.floats(-60, 60)
)


@quick
@given(shape=shapes, move=moves, seed=seeds)
def test_affine_moves_agree_with_a_plain_loop(shape, move, seed):
    x = batch(shape, seed, np.float64)
    degrees, translate, scale, shear = move
    part = np.random.default_rng(seed).random(len(x))
    matrix = geometry.affine_matrix(degrees * part, np.outer(part, translate), scale, shear * part)
    assert matrix.shape == (len(x), 2, 3)
    for a, m in zip(part, matrix, strict=True):
        expected = np.linalg.inv(forward(degrees * a, np.multiply(translate, a), scale, shear * a))
        assert np.allclose(m, expected[:2], atol=1e-9)
    expected = np.reshape([placed(image, m) for image, m in zip(x, matrix, strict=True)], shape)
    assert np.allclose(geometry.resample(x, matrix), expected, atol=1e-9)
    assert np.allclose(geometry.resample(x.astype(np.float32), matrix), expected, atol=1e-4)


def test_images_are_interpolated_as_by_pytorch():
    torch = pytest.importorskip("torch")
    x = batch((6, 3, 9, 13))
    matrix = geometry.affine_matrix(np.linspace(-90, 170, 6), (1.3, -2.1), 1.2, 20)
    theta = matrix[:, ::-1][:, :, [1, 0, 2]].copy()  # of (x, y, 1), where the sides are from -1 to 1
    theta[:, 0] *= np.array([1, 9 / 13, 2 / 13])
    theta[:, 1] *= np.array([13 / 9, 1, 2 / 9])
    grid = torch.nn.functional.affine_grid(torch.from_numpy(theta).float(), list(x.shape), align_corners=False)
    expected = torch.nn.functional.grid_sample(torch.from_numpy(x.copy()), grid, align_corners=False)
    assert np.allclose(geometry.resample(x, matrix), expected.numpy(), atol=1e-5)
    labels = np.random.default_rng(0).integers(0, 9, (6, 1, 9, 13))
    nearest = torch.nn.functional.grid_sample(
        torch.from_numpy(labels + 100).float(), grid, mode="nearest", align_corners=False
    )
    assert np.array_equal(geometry.resample(labels, matrix, -100), nearest.numpy() - 100)


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
@pytest.mark.parametrize("size", [4, 5])
def test_quarter_turns_are_those_of_numpy(quarters, size):
    images = batch((2, 3, size, size))
    out = geometry.resample(images, geometry.affine_matrix([90 * quarters] * 2))
    assert np.allclose(out, np.rot90(images, quarters, axes=(2, 3)), atol=1e-5)


def test_large_batches_are_interpolated_in_parts():
    x = batch((9, 3, 80, 80))  # several blocks
    matrix = geometry.affine_matrix(np.arange(9) * 10.0)
    whole = geometry.resample(x, matrix)
    assert all(np.array_equal(geometry.resample(x[i : i + 1], matrix[i : i + 1])[0], whole[i]) for i in range(9))


@pytest.mark.parametrize("size", [None, 24, (20, 31)])
def test_random_resized_crop_enlarges_windows_as_pytorch_does(size):
    torch = pytest.importorskip("torch")
    n, h, w = 200, 20, 24
    x = batch((n, 2, h, w))
    ramps = np.broadcast_to(np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij")), (n, 2, h, w))
    draws = functools.partial(data.Draws, 3, 0, np.arange(n))
    out, _ = data.random_resized_crop(x, None, draws(), scale=(0.1, 0.8), size=size)
    places, _ = data.random_resized_crop(ramps.astype(np.float32), None, draws(), scale=(0.1, 0.8), size=size)
    areas, aspects = [], []
    for image, result, (rows, columns) in zip(x, out, places, strict=True):
        top, bottom, left, right = (round(float(f(a))) for a in (rows, columns) for f in (np.min, np.max))
        window = torch.from_numpy(image[None, :, top : bottom + 1, left : right + 1].copy())
        expected = torch.nn.functional.interpolate(window, result.shape[1:], mode="bilinear", align_corners=False)
        assert np.allclose(result, expected[0].numpy(), atol=1e-5)
        areas.append((bottom + 1 - top) * (right + 1 - left) / (h * w))
        aspects.append((right + 1 - left) / (bottom + 1 - top))
    assert 0.08 < min(areas) < 0.15
    assert 0.7 < max(areas) < 0.85
    assert 0.6 < min(aspects) < 0.85
    assert 1.2 < max(aspects) < 1.6


def test_random_resized_crop_takes_the_whole_image_where_no_window_fits():
    x = batch((4, 1, 6, 6))
    assert np.array_equal(data.random_resized_crop(x, None, 0, scale=(1, 1), ratio=(2, 3))[0], x)


def test_zoom_enlarges_about_the_centre():
    x = np.zeros((200, 1, 41, 41), np.float32)
    x[:, :, 20, 30] = 1  # a point 10 pixels to the right of the centre
    out, _ = data.zoom(x, None, 0, scale=(0.5, 1.5))
    columns = (out.sum(axis=(1, 2)) * np.arange(41)).sum(axis=1) / out.sum(axis=(1, 2, 3))
    assert 24.5 < columns.min() < 26
    assert 34 < columns.max() < 35.5


def test_affine_moves_by_parts_of_the_size():
    x = np.zeros((300, 1, 21, 41), np.float32)
    x[:, :, 10, 20] = 1
    out, _ = data.affine(x, None, 0, degrees=0, translate=0.2, scale=(1, 1), shear=0)
    total = out.sum(axis=(1, 2, 3))
    rows = (out.sum(axis=(1, 3)) * np.arange(21)).sum(axis=1) / total - 10
    columns = (out.sum(axis=(1, 2)) * np.arange(41)).sum(axis=1) / total - 20
    for moves, limit in ((rows, 4.2), (columns, 8.2)):
        assert 0.9 * limit < abs(moves).max() < limit + 1e-3
        assert min(moves) < 0 < max(moves)


def test_rotate_draws_angles_up_to_its_limit():
    images = np.zeros((500, 1, 21, 21), np.float32)
    images[:, 0, 10, 20] = 1  # a point 10 pixels to the right of the centre moves up or down by 10 sin(angle)
    out, _ = data.rotate(images, None, 0, degrees=30)
    rows = (out.sum(axis=(1, 3)) * np.arange(21)).sum(axis=1) / out.sum(axis=(1, 2, 3))
    assert 4.5 <= rows.min() < 5.5
    assert 14.5 < rows.max() <= 15.5


@pytest.mark.parametrize("name", MOVING)
def test_masks_move_with_their_images(name):
    """The images show two discs, and a pixel of the mask is 1 on the first, 2 on the second."""
    v, u = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    mask = ((v - 10) ** 2 + (u - 9) ** 2 < 49) + 2 * ((v - 20) ** 2 + (u - 23) ** 2 < 30)
    x = np.repeat(np.stack((mask == 1, mask == 2, mask == 0)).astype(np.float32)[None], 40, axis=0)
    integers, floats = np.repeat(mask[None].astype(np.int64), 40, axis=0), x.copy()
    function = functools.partial(ALL[name], m=30) if name == "rand_augment" else ALL[name]
    (out, moved), (_, soft) = (function(x, y, data.Draws(2, 0, np.arange(40))) for y in (integers, floats))
    assert moved.dtype == np.int64
    assert moved.shape == integers.shape
    assert soft.shape == floats.shape
    assert set(np.unique(moved)) <= {-100, 0, 1, 2}
    assert (moved == -100).any() == (name not in ("flip", "random_resized_crop"))
    # The nearest pixel is the one with most of the weight, but at the edge of a disc, where four pixels count.
    found = np.where(soft.sum(axis=1) < 0.5, -100, np.asarray([1, 2, 0])[soft.argmax(axis=1)])
    assert (found == moved).mean() > 0.98
    if name != "rand_augment":  # that changes colours too
        assert np.array_equal(soft, out)
        assert np.array_equal(function(x, floats[:, 0], data.Draws(2, 0, np.arange(40)))[1], soft[:, 0])


def test_masks_of_bytes_and_bools_have_a_value_outside():
    x, mask = batch((30, 1, 8, 8)), np.ones((30, 8, 8), np.uint8)
    moved = data.shift(x, mask, 0, pixels=3)[1]
    assert set(np.unique(moved)) == {-100, 1}
    moved = data.rotate(x, mask.astype(bool), 0, degrees=90)[1]
    assert moved.dtype == bool
    assert not moved.all()


@pytest.mark.parametrize("name", MOVING)
def test_an_empty_batch_has_masks_too(name):
    x = np.empty((0, 3, 5, 6), np.float32)
    for y in (np.empty((0, 5, 6), np.int64), np.empty((0, 4, 5, 6), np.float32)):
        assert ALL[name](x, y, 0)[1].shape == y.shape


def test_a_shift_may_exceed_the_image():
    x, mask = np.ones((200, 1, 4, 6), np.float32), np.ones((200, 4, 6), np.int64)
    out, moved = data.shift(x, mask, 0, pixels=10**9)  # whose padded images would not fit into memory
    assert not out.any()
    assert (moved == -100).all()
    out, _ = data.shift(x, mask, 0, pixels=7)
    sizes = {int(image.sum()) for image in out}
    assert {0, 1, 24} <= sizes <= {a * b for a in range(5) for b in range(7)}


@pytest.mark.parametrize("name", sorted(set(ALL) - set(MOVING) - {"mixup", "cutmix"}))
def test_other_augmentations_leave_masks_alone(name):
    mask = np.ones((3, 8, 8), np.int64)
    assert ALL[name](batch((3, 3, 8, 8)), mask, 0)[1] is mask


@pytest.mark.parametrize("name", MOVING)
def test_targets_of_another_size_than_the_images_are_refused(name):
    with pytest.raises(ShapeError, match=f"^{name}: y must be .*mask of the size of x .*got"):
        ALL[name](batch((3, 1, 8, 8)), np.zeros((3, 4, 4)), 0)


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
        (data.flip, {"vertical": 1}),
        (data.zoom, {"scale": 1.5}),
        (data.zoom, {"scale": (1.2, 0.8)}),
        (data.zoom, {"scale": (0, 1)}),
        (data.affine, {"shear": 90}),
        (data.affine, {"translate": -0.1}),
        (data.random_resized_crop, {"scale": (0, 1)}),
        (data.random_resized_crop, {"ratio": "square"}),
        (data.random_resized_crop, {"size": 0}),
        (data.color_jitter, {"hue": 0.6}),
        (data.color_jitter, {"contrast": None}),
        (data.gaussian_noise, {"sigma": -1}),
        (data.gaussian_noise, {"clip": 0}),
        (data.random_erasing, {"p": 2}),
        (data.random_erasing, {"value": float("nan")}),
        (data.random_erasing, {"scale": (0.1, 2)}),
        (functools.partial(data.mixup, classes=10), {"alpha": -1}),
        (data.mixup, {"classes": 0}),
        (functools.partial(data.cutmix, classes=10), {"alpha": "1"}),
        (data.rand_augment, {"n": -1}),
        (data.rand_augment, {"n": 10**9}),
        (data.rand_augment, {"m": 31}),
    ],
)
def test_options_out_of_range_are_refused(function, options):
    name = getattr(function, "func", function).__name__
    with pytest.raises(UsageError, match=f"^{name}: {next(iter(options))} .*got"):
        function(batch((1, 1, 3, 3)), labels(1), 0, **options)


@every
@pytest.mark.parametrize(
    ("x", "y", "rng", "error", "words"),
    [
        (np.zeros((1, 1, 3, 3), np.uint8), None, 0, DtypeError, "x must be float32 or float64, got uint8; use data.to"),
        (np.float32(1), None, 0, DtypeError, "x must be a NumPy array, got float32"),
        (np.zeros(3, np.float32), None, 0, ShapeError, r"x must be \(n, .*\), got \(3,\)"),
        (np.zeros((2, 1, 0, 3), np.float32), None, 0, ShapeError, "x must have at least one element"),
        (batch((2, 1, 3, 3)), np.zeros(3), 0, ShapeError, r"y must be .* with 2 targets, .*got \(3,\)"),
        (batch((2, 1, 3, 3)), np.array(["cat", "dog"]), 0, DtypeError, "y must be of real numbers or bool, got <U3"),
        (batch((2, 1, 3, 3)), [0, 1], 0, ShapeError, "y must be a NumPy array .*got list"),
        (batch((2, 1, 3, 3)), labels(2), -1, UsageError, "rng must be .*got -1"),
        (batch((2, 1, 3, 3)), labels(2), None, UsageError, "rng must be .*got None"),
        (batch((2, 1, 3, 3)), labels(2), data.Draws(0, 0, [1]), ShapeError, "x has 2 examples, rng has numbers for 1"),
    ],
)
def test_other_arguments_are_refused(name, x, y, rng, error, words):
    with pytest.raises(error, match=f"^{name}: {words}"):
        ALL[name](x, y, rng)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"gaussian_noise", "mixup"}))
def test_batches_that_are_no_images_are_refused(name):
    with pytest.raises(ShapeError, match=rf"^{name}: x must be \(n, C, H, W\), got \(2, 3, 3\)"):
        ALL[name](batch((2, 3, 3)), labels(2), 0)


@pytest.mark.parametrize("name", ["color_jitter", "gaussian_noise", "rand_augment"])
@pytest.mark.parametrize("value", [255, -1, float("nan")])
def test_values_outside_of_0_to_1_are_refused_where_they_have_a_meaning(name, value):
    x = batch((2, 3, 4, 4)).copy()
    x[1, 2, 3, 0] = value
    with pytest.raises(UsageError, match=rf"^{name}: x must have values in \[0, 1\], got") as caught:
        ALL[name](x, labels(2), 0)
    assert ("pass clip=False" in str(caught.value)) == (name == "gaussian_noise")


def test_a_generator_and_a_seed_give_numbers_that_go_on():
    x, rng = batch((4, 1, 9, 9)), np.random.default_rng(0)
    first, second = (data.shift(x, None, rng)[0] for _ in range(2))
    assert not np.array_equal(first, second)
    assert np.array_equal(data.shift(x, None, 7)[0], data.shift(x, None, data.Draws(7, 0, range(4)))[0])

"""Augmentations of colours against Pillow and the standard library; noise, erasing, mixing and RandAugment."""

import colorsys
import functools

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from xcnn import data
from xcnn.data.augment import adjust
from xcnn.errors import ShapeError, UsageError


def pictures(n=6, channels=3):
    """Return smooth and noisy images of few and of many colours, bytes (n, C, H, W)."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(20, 200, 24)[:, None] * np.linspace(0.3, 1, 19)
    images = ramp + rng.normal(0, 25, (n, channels, 24, 19)) * np.linspace(0, 1, n)[:, None, None, None]
    return np.clip(images, 0, 255).astype(np.uint8)


def unit(images):
    x = images.astype(np.float32) / 255
    x.flags.writeable = False
    return x


def pillow(images, function):
    """Apply a function of Pillow to each image."""
    results = [np.asarray(function(Image.fromarray(i.transpose(1, 2, 0).squeeze()), k)) for k, i in enumerate(images)]
    return np.stack(results).reshape(*images.shape[:1], *images.shape[2:], -1).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("function", "enhance"),
    [
        (adjust.brightness, ImageEnhance.Brightness),
        (adjust.contrast, ImageEnhance.Contrast),
        (adjust.saturation, ImageEnhance.Color),
        (adjust.sharpness, ImageEnhance.Sharpness),
    ],
)
def test_adjustments_by_a_factor_are_those_of_pillow(function, enhance, channels):
    images, factors = pictures(channels=channels), np.array([0, 0.3, 0.9, 1, 1.4, 1.9])
    expected = pillow(images, lambda image, k: enhance(image).enhance(factors[k]))
    # Pillow rounds the grey or smoothed image and the result to bytes.
    assert abs(255 * function(unit(images), factors) - expected).max() < 2.1
    assert np.allclose(function(unit(images), np.ones(6)), unit(images), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_equalize_posterize_and_solarize_are_those_of_pillow(channels):
    images = np.concatenate((pictures(channels=channels), np.full((1, channels, 24, 19), 77, np.uint8)))
    x, unused = unit(images), np.zeros(7)
    assert np.array_equal(np.rint(255 * adjust.equalize(x, unused)), pillow(images, lambda i, k: ImageOps.equalize(i)))
    bits = np.array([1, 2, 4, 5, 7, 8, 8])
    expected = pillow(images, lambda i, k: ImageOps.posterize(i, int(bits[k])))
    assert np.array_equal(np.rint(255 * adjust.posterize(x, bits)), expected)
    thresholds = np.array([0, 30, 128, 200, 255, 256, 90])
    expected = pillow(images, lambda i, k: ImageOps.solarize(i, int(thresholds[k])))
    assert np.allclose(255 * adjust.solarize(x, thresholds / 255), expected, atol=1e-3)


def test_autocontrast_is_that_of_pillow():
    images = np.concatenate((pictures(), np.full((1, 3, 24, 19), 77, np.uint8)))
    expected = pillow(images, lambda image, k: ImageOps.autocontrast(image))
    assert abs(255 * adjust.autocontrast(unit(images), np.zeros(7)) - expected).max() < 1.1  # Pillow rounds down


@pytest.mark.parametrize("turn", [0, 0.1, 1 / 3, -0.5, 0.7])
def test_hue_is_that_of_colorsys(turn):
    x = unit(pictures())[:, :, ::5, ::5].astype(np.float64)
    expected = np.empty_like(x)
    for i, _, j, k in np.ndindex(len(x), 1, *x.shape[2:]):
        h, s, v = colorsys.rgb_to_hsv(*x[i, :, j, k])
        expected[i, :, j, k] = colorsys.hsv_to_rgb((h + turn) % 1, s, v)
    assert np.allclose(adjust.hue(x, np.full(len(x), turn)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("option", "function", "neutral"),
    [
        ("brightness", adjust.brightness, 1),
        ("contrast", adjust.contrast, 1),
        ("saturation", adjust.saturation, 1),
        ("hue", adjust.hue, 0),
    ],
)
def test_color_jitter_draws_factors_up_to_its_limits(option, function, neutral):
    x = np.repeat(unit(pictures()[3:4] // 2 + 50), 200, axis=0)
    options = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0)
    out, _ = data.color_jitter(x, None, 0, **options | {option: 0.3})
    grid = neutral + np.linspace(-0.3, 0.3, 61)
    candidates = function(x[:61], grid)
    errors = abs(out[:, None, :, ::3, ::3] - candidates[None, :, :, ::3, ::3]).mean(axis=(2, 3, 4))
    assert errors.min(axis=1).max() < 0.02  # each is nearly one of the grid, whose steps are 0.01
    chosen = np.bincount(errors.argmin(axis=1) // 16, minlength=4)  # a fourth each
    assert chosen.min() > 25


def test_hue_takes_colours():
    x = np.full((2, 4, 3, 3), 0.5, np.float32)
    with pytest.raises(ShapeError, match="color_jitter: x must have 1 or 3 channels for hue"):
        data.color_jitter(x, None, 0, hue=0.1)
    assert data.color_jitter(x, None, 0)[0].shape == x.shape
    grey = unit(pictures(channels=1))
    assert np.array_equal(data.color_jitter(grey, None, 0, 0, 0, 0, hue=0.5)[0], grey)


def test_noise_is_normal_and_clipped():
    x = np.full((20, 2, 30, 30), 0.5, np.float32)
    noise = data.gaussian_noise(x, None, 0, sigma=0.1)[0] - x
    assert abs(noise.mean()) < 0.003
    assert abs(noise.std() - 0.1) < 0.002
    flat = noise.reshape(20, -1)
    assert abs(np.corrcoef(flat) - np.eye(20)).max() < 0.12
    clipped, _ = data.gaussian_noise(x, None, 0, sigma=1)
    assert (clipped.min(), clipped.max()) == (0, 1)
    signal = np.full((3, 1, 500), 40.0)  # any rank and any values
    assert data.gaussian_noise(signal, None, 0, clip=False)[0].shape == signal.shape


def test_cutout_blanks_a_square_and_nothing_else():
    images = 1 + np.random.default_rng(0).random((300, 2, 9, 10), np.float32)
    out, _ = data.cutout(images, None, 0, size=4)
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


def test_erased_rectangles_lie_within_the_image():
    x = np.random.default_rng(0).random((400, 2, 20, 30), np.float32) / 2
    out, _ = data.random_erasing(x, None, 0, p=0.75, scale=(0.1, 0.4), ratio=(0.5, 2), value=1)
    areas, ratios, places = [], [], set()
    for image, result in zip(x, out, strict=True):
        erased = (result == 1).all(axis=0)
        if not erased.any():
            assert np.array_equal(image, result)
            continue
        rows, columns = np.flatnonzero(erased.any(axis=1)), np.flatnonzero(erased.any(axis=0))
        expected = image.copy()
        expected[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 1
        assert np.array_equal(result, expected)
        areas.append(len(rows) * len(columns) / 600)
        ratios.append(len(rows) / len(columns))
        places.add((rows[0], columns[0]))
    assert 260 < len(areas) < 340
    assert 0.08 < min(areas) < 0.13
    assert 0.35 < max(areas) < 0.43
    assert 0.4 < min(ratios) < 0.6
    assert 1.6 < max(ratios) < 2.4
    assert len(places) > 100
    assert np.array_equal(data.random_erasing(x, None, 0, p=1, scale=(0.9, 1), ratio=(9, 9))[0], x)  # none fits


def parts(mixed):
    """Return the weight of each example in each mixed one, where example i is 1 at element i, and 0 elsewhere."""
    return mixed.reshape(len(mixed), -1)


@pytest.mark.parametrize("alpha", [0.2, 1])
def test_mixup_mixes_examples_and_targets_alike(alpha):
    n = 200
    x, y = np.eye(n).reshape(n, 1, n), np.arange(n)
    mixed, soft = data.mixup(x, y, 0, classes=n, alpha=alpha)
    assert np.array_equal(parts(mixed), soft)
    assert np.allclose(soft.sum(axis=1), 1)
    assert ((soft > 0).sum(axis=1) <= 2).all()
    assert np.allclose(soft.sum(axis=0).mean(), 1)
    lam = soft[y, y]
    assert abs(lam.mean() - 0.5) < 0.1
    assert abs(lam.var() - 1 / (4 * (2 * alpha + 1))) < 0.03  # the variance of the beta distribution
    partner = np.where(soft - np.diag(lam) > 0, 1, 0)
    assert (partner.sum(axis=1) <= 1).all()
    assert (partner.sum(axis=0) <= 1).all()  # a permutation


def test_cutmix_pastes_a_rectangle_and_mixes_targets_by_area():
    n, h, w = 200, 10, 12
    x = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None, None], (n, 2, h, w))
    mixed, soft = data.cutmix(x, np.arange(n), 0, classes=n)
    shares = []
    for i, (image, target) in enumerate(zip(mixed, soft, strict=True)):
        pasted = image[0] != i
        assert np.array_equal(image[0], image[1])
        rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
        if len(rows):
            inside = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert len(np.unique(inside)) == 1
            assert inside[0].size == pasted.sum()
            assert np.isclose(target[int(inside[0, 0, 0])], pasted.mean())
        assert np.isclose(target[i], 1 - pasted.mean())
        assert np.isclose(target.sum(), 1)
        shares.append(pasted.mean())
    assert 0.2 < np.mean(shares) < 0.45
    assert min(shares) < 0.02
    assert max(shares) > 0.6


@pytest.mark.parametrize("function", [data.mixup, data.cutmix])
def test_targets_of_mixed_examples(function):
    x = np.full((4, 1, 6, 6), 0.5, np.float32)
    soft = function(x, np.array([0, -100, 2, -100]), 0, classes=3)[1]
    assert soft.shape == (4, 3)
    assert (soft[:, 1] == 0).all()
    assert (soft.sum(axis=1) <= 1 + 1e-6).all()
    for y in (np.array([1.5, 2, -3, 0]), np.ones((4, 2)), np.array([[1, 0], [0, 1], [1, 1], [0, 0]])):
        mixed = function(x, y, 0, classes=0)[1]
        assert mixed.shape == y.shape
        assert mixed.dtype == np.float32
        assert y.min() <= mixed.min() <= mixed.max() <= y.max()
    with pytest.raises(ShapeError, match=rf"{function.__name__}: y must be labels .*not masks; got \(4, 6, 6\)"):
        function(x, np.zeros((4, 6, 6), np.int64), 0, classes=3)
    with pytest.raises(ShapeError, match=r"y must be labels .*got None"):
        function(x, None, 0, classes=3)
    with pytest.raises(UsageError, match=r"y must be labels from 0 to 2, or -100, got 0 to 3"):
        function(x, np.arange(4), 0, classes=3)
    with pytest.raises(UsageError, match=r"y of shape \(n, k\) must be 0 or 1, or floating, got 0 to 7"):
        function(x, np.array([[0, 7]] * 4), 0, classes=3)


def test_rand_augment_draws_from_its_table():
    """Each image is one of the candidates, which Pillow or the other functions make, and each operation occurs."""
    n, m = 400, 15
    image = unit(pictures(6)[3:4] // 2 + 40)
    x, one = np.repeat(image, n, axis=0), np.ones(1)
    out, _ = data.rand_augment(x, None, 0, n=1, m=m)
    s, bytes_ = m / 30, np.rint(255 * image).astype(np.uint8)
    candidates = {
        "identity": image,
        "posterize": pillow(bytes_, lambda i, k: ImageOps.posterize(i, 6)) / 255,
        "solarize": pillow(bytes_, lambda i, k: ImageOps.solarize(i, 128)) / 255,
        "autocontrast": adjust.autocontrast(image, one),
        "equalize": pillow(bytes_, lambda i, k: ImageOps.equalize(i)) / 255,
    }
    for sign in (-1, 1):
        for name in ("brightness", "saturation", "contrast", "sharpness"):
            candidates[f"{name} {sign}"] = getattr(adjust, name)(image, np.array([1 + sign * 0.9 * s]))
        moved = {
            "shear_x": (1, 0, 0, sign * 0.3 * s, 1, 0),
            "shear_y": (1, sign * 0.3 * s, 0, 0, 1, 0),
            "translate_x": (1, 0, 0, 0, 1, -sign * 150 / 331 * s * 19),
            "translate_y": (1, 0, -sign * 150 / 331 * s * 24, 0, 1, 0),
        }
        for name, matrix in moved.items():
            candidates[f"{name} {sign}"] = data.augment.geometry.resample(image, np.reshape(matrix, (1, 2, 3)))
        turn = data.augment.geometry.affine_matrix([sign * 30 * s])
        candidates[f"rotate {sign}"] = data.augment.geometry.resample(image, turn)
    errors = abs(out[:, None] - np.concatenate(list(candidates.values()))[None]).max(axis=(2, 3, 4))
    assert errors.min(axis=1).max() < 1e-4
    counts = dict.fromkeys((name.split()[0] for name in candidates), 0)
    for place in errors.argmin(axis=1):
        counts[list(candidates)[place].split()[0]] += 1
    assert len(counts) == 14
    assert min(counts.values()) > 10
    assert max(counts.values()) < 55


def test_a_loader_gives_each_image_its_own_numbers():
    train = data.load("digits")[0]
    augment = [data.rand_augment, functools.partial(data.random_erasing, p=1)]
    small, large = (data.Loader(train, size, shuffle=False, seed=3, augment=augment) for size in (1, 40))
    batches = small.batches(2)
    singles = np.concatenate([next(batches)[0] for _ in range(40)])
    assert np.array_equal(singles, next(large.batches(2))[0])
    assert not np.array_equal(singles, next(large.batches(3))[0])

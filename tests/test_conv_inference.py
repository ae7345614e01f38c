"""A convolution and what follows it in one call, `conv_inference` and activations, against the same ops singly."""

import contextlib
from typing import Any

import numpy as np
import pytest

from xcnn import ops
from xcnn._dispatch import portable
from xcnn.ops._window import window_axes
from xcnn.ops.conv import conv_inference

EPS = 1e-3
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, dict[str, Any]]] = {
    "1d": ((3, 4, 40), (5, 4, 3), 1, {"padding": 1}),
    "2d": ((2, 9, 13, 12), (17, 9, 3, 3), 1, {"padding": 1}),
    "3d": ((2, 3, 4, 5, 6), (4, 3, 2, 3, 2), 1, {"stride": 2, "padding": 1}),
    "pointwise": ((5, 12, 7, 7), (10, 12, 1, 1), 1, {}),
    "pointwise, one pixel": ((3, 12, 1, 1), (9, 12, 1, 1), 1, {}),
    "pointwise, strided": ((2, 6, 9, 10), (7, 6, 1, 1), 1, {"stride": (2, 3)}),
    "strided, dilated, groups": ((3, 6, 15, 14), (8, 3, 3, 2), 2, {"stride": 2, "padding": 2, "dilation": (1, 2)}),
    "depthwise": ((2, 20, 9, 11), (20, 1, 3, 5), 20, {"padding": (1, 2)}),
    "depthwise, strided": ((2, 18, 15, 16), (18, 1, 5, 3), 18, {"stride": 2, "padding": (2, 1), "dilation": (2, 1)}),
    "depthwise, several filters": ((2, 5, 8, 8), (15, 1, 3, 3), 5, {"padding": 1}),
    "depthwise, large maps": ((1, 6, 20, 33), (12, 1, 3, 2), 6, {"padding": 1}),
    "small maps of many images": ((33, 8, 4, 4), (6, 8, 3, 3), 1, {"padding": 1}),
    "large map": ((1, 3, 120, 130), (5, 3, 5, 5), 1, {"padding": 2, "stride": (1, 2)}),
}
FOLLOWING = [
    ("bias",), ("norm",), ("bias", "norm", "residual", "relu"), ("norm", "unweighted", "residual"),
    ("bias", "residual", ("hardtanh", -0.5, 2.0)), ("bias", "norm", ("gelu", "none")), ("norm", "residual", "leaky"),
]  # fmt: skip


@pytest.mark.parametrize("engine", [lambda: portable(np), contextlib.nullcontext], ids=["portable", "kernels"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_composition_of_its_ops(case: str, dtype: str, engine: Any) -> None:
    shape, kernel, groups, options = CASES[case]
    rng = np.random.default_rng(0)
    x, weight, bias, mean, scale, shift = (
        rng.standard_normal(size) for size in (shape, kernel, *[kernel[:1]] * 4)
    )  # fmt: skip
    var = rng.uniform(0.5, 2.0, kernel[0])
    axes = window_axes("conv", shape[2:], kernel[2:], **options)
    with portable(np):
        convolve = getattr(ops, f"conv{len(axes)}d")
        plain, _ = convolve(x, weight, groups=groups, **options)
        residual = rng.standard_normal(plain.shape)
    cast: Any = lambda a: a.astype(dtype)  # noqa: E731
    for following in FOLLOWING:
        after: dict[Any, Any] = {one if isinstance(one, str) else one[0]: one for one in following}
        wanted, norm = plain + bias.reshape(-1, *[1] * len(axes)) if "bias" in after else plain, None
        if "norm" in after:
            affine = (None, None) if "unweighted" in after else (scale, shift)
            with portable(np):
                (wanted, _, _), _ = ops.batch_norm(wanted, mean, var, *affine, eps=EPS)
            norm = *map(cast, (mean, var)), *(None if a is None else cast(a) for a in affine), EPS
        wanted = wanted + residual if "residual" in after else wanted
        activation = None
        if "relu" in after:
            activation, wanted = ("relu",), np.maximum(wanted, 0.0)
        elif "hardtanh" in after:
            activation, wanted = after["hardtanh"], np.clip(wanted, -0.5, 2.0)
        elif "leaky" in after:
            activation, wanted = ("leaky_relu", 0.1), np.where(wanted > 0.0, wanted, 0.1 * wanted)
        elif "gelu" in after:
            activation, wanted = after["gelu"], ops.gelu(wanted)[0]
        arrays = [cast(x), cast(weight), cast(bias) if "bias" in after else None, norm]
        before = [a.copy() for a in arrays[:2]]
        with engine():
            y = conv_inference(np, *arrays, cast(residual) if "residual" in after else None, activation, axes, groups)
        tolerance = 3e-5 if dtype == "float32" else 1e-12
        np.testing.assert_allclose(y, wanted, rtol=tolerance, atol=tolerance, err_msg=str(following))
        assert y.dtype == dtype
        assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=False))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ["relu", "relu6", ("hardtanh", -0.5, 0.75), ("leaky_relu", 0.1), "sigmoid"])
def test_gradients_pass_through_an_activation(activation: Any, dtype: str) -> None:
    rng = np.random.default_rng(1)
    x, weight, bias = (rng.standard_normal(shape).astype(dtype) for shape in [(3, 4, 6, 7), (5, 4, 3, 3), (5,)])
    y, backward = ops.conv2d(x, weight, bias, padding=1, activation=activation)
    with portable(np):
        single, single_backward = ops.conv2d(x, weight, bias, padding=1)
        name, *options = (activation,) if isinstance(activation, str) else activation
        wanted, slope = getattr(ops, name)(single, *options)
        dy = rng.standard_normal(y.shape).astype(dtype)
        gradients = single_backward(*slope(dy))
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    for actual, expected in zip((y, *backward(dy)), (wanted, *gradients), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
        assert actual.dtype == dtype


@pytest.mark.parametrize("near", [0, 1 << 20], ids=["copied", "in place"])
@pytest.mark.parametrize("nbytes", [0, 6000, 40_000])
def test_layouts_give_the_same_bits_for_any_batch(nbytes: int, near: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of one line or several, stacks of images, and blocks of channels, against portable code and each other."""
    pytest.importorskip("llvmlite")
    from xcnn.kernels.cpu import _stacks, _winograd, conv, depthwise

    def scratch(owner: int, name: str, size: int, dtype: Any) -> np.ndarray:
        """Return memory that another convolution has used, or zeros for a layout's own memory."""
        return np.full(size, np.nan if owner == -1 else 0.0, dtype)

    def in_tiles(*arguments: Any) -> np.ndarray:
        y = _winograd.in_tiles(*arguments)
        assert y is not None  # nothing that is not finite was read
        return y

    for module in (conv, depthwise, _winograd):
        monkeypatch.setattr(module, "scratch", scratch)
    monkeypatch.setattr(conv, "in_tiles", in_tiles)
    for name, value in {"_GAIN": 1e9, "_FEWEST": 1, "_MOST": nbytes, "_SUM_BYTES": nbytes, "_MICROSECONDS": 1}.items():
        monkeypatch.setattr(_winograd, name, value)
    monkeypatch.setattr(conv, "cleared", scratch)
    sizes = {"_PLANE_BYTES": nbytes, "_NEAR_BYTES": near, "_SUM_BYTES": nbytes, "_MICROSECONDS": 1}
    sizes["_CALL"] = {0: 40, 6000: 10**9, 40_000: -(10**9)}[nbytes]  # few copies, or a plane for each tap
    for name, value in sizes.items():
        monkeypatch.setattr(_stacks, name, value)
    monkeypatch.setattr(depthwise, "_BAND_BYTES", nbytes)
    cached = _stacks._plan, depthwise._plan, _winograd.tiles
    for function in cached:
        function.cache_clear()
    rng = np.random.default_rng(nbytes + near)
    for _ in range(25):
        rank, lanes = int(rng.integers(1, 4)), rng.random() < 0.4
        kernel, stride, dilation, padding = (
            tuple(map(int, rng.integers(low, high, rank))) for low, high in [(1, 5), (1, 4), (1, 3), (0, 4)]
        )
        if rng.random() < 0.2:
            kernel, stride, dilation = (3,) * rank, (1,) * rank, (1,) * rank
        extent = (d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
        maps = tuple(e + int(rng.integers(0, 18 // rank)) for e in extent)
        groups = int(rng.integers(8, 30)) if lanes else int(rng.integers(1, 3))
        cg, og = (1, int(rng.integers(1, 4))) if lanes else map(int, rng.integers(1, 40, 2))
        x, weight = rng.standard_normal((11, groups * cg, *maps)), rng.standard_normal((groups * og, cg, *kernel))
        axes = window_axes("conv", maps, kernel, stride, padding, dilation)
        with portable(np):
            wanted = conv_inference(np, x, weight, None, None, None, None, axes, groups)
        y = conv_inference(np, x, weight, None, None, None, None, axes, groups)
        np.testing.assert_allclose(y, wanted, rtol=1e-11, atol=1e-11)
        pieces = [
            conv_inference(np, x[some], weight, None, None, None, None, axes, groups) for some in np.s_[:1, 1:4, 4:]
        ]
        assert np.array_equal(np.concatenate(pieces), y)
    for function in cached:
        function.cache_clear()

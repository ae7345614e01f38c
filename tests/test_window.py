"""Windows: their number against sliding by hand, and im2col, col2im and the taps against one another."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from reference import window_starts

from xcnn.errors import ShapeError
from xcnn.ops._window import Axes, col2im, im2col, inner_taps, taps, transposed_axes, window_axes

small = st.integers(1, 4)
paddings = st.integers(0, 3) | st.tuples(st.integers(0, 3), st.integers(0, 3)) | st.sampled_from(["same", "valid"])


@st.composite
def windows(draw: Any) -> tuple[Axes, list[list[int]]]:
    """Draw one to three axes, with the starts of their windows from the reference."""
    rank = draw(st.integers(1, 3))
    sizes, kernel, stride, dilation = (tuple(draw(st.tuples(*[small] * rank))) for _ in range(4))
    kind = draw(st.sampled_from(["same", "valid", "pairs"]))
    pairs = draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * rank))
    padding = pairs if kind == "pairs" else (kind,) * rank
    starts = [window_starts(*axis) for axis in zip(sizes, kernel, stride, padding, dilation, strict=True)]
    assume(all(starts))
    return window_axes("test", sizes, kernel, stride, pairs if kind == "pairs" else kind, dilation), starts


@given(st.integers(1, 12), small, small, paddings, small, st.booleans())
def test_there_are_as_many_windows_as_one_counts(
    size: int, kernel: int, stride: int, padding: Any, dilation: int, ceil_mode: bool
) -> None:
    """In ceil mode the padding is at most half the kernel, as pools require."""
    ceil_mode = ceil_mode and isinstance(padding, int) and padding <= kernel // 2
    starts = window_starts(size, kernel, stride, padding, dilation, ceil_mode)
    given_padding = (padding,) if isinstance(padding, tuple) else padding
    arguments = ("test", (size,), (kernel,), stride, given_padding, dilation, ceil_mode)
    if not starts:
        with pytest.raises(ShapeError, match="test: kernel"):
            window_axes(*arguments)
        return
    (axis,) = window_axes(*arguments)
    assert [axis.tap(0).start - axis.before + i * stride for i in range(axis.out)] == starts
    assert axis.tap(kernel - 1).stop <= axis.padded, "a tap leaves the padded map"


@given(st.integers(1, 12), small, small, small)
def test_same_gives_the_size_divided_by_the_stride_rounded_up(
    size: int, kernel: int, stride: int, dilation: int
) -> None:
    (axis,) = window_axes("test", (size,), (kernel,), stride, "same", dilation)
    assert axis.out == math.ceil(size / stride)
    assert axis.after - axis.before in (0, 1)


@given(windows())
def test_im2col_copies_what_a_window_sees(case: tuple[Axes, list[list[int]]]) -> None:
    axes, starts = case
    x = np.random.default_rng(0).standard_normal((2, 2, *(a.size for a in axes)))
    columns = im2col(np, x, axes)
    assert columns.shape == (2, 2, math.prod(a.kernel for a in axes), *map(len, starts))
    kernel = tuple(a.kernel for a in axes)
    for k, tap in enumerate(np.ndindex(*kernel)):
        for window in np.ndindex(*map(len, starts)):
            pixel = tuple(s[w] + t * a.dilation for s, w, t, a in zip(starts, window, tap, axes, strict=True))
            inside = all(0 <= p < a.size for p, a in zip(pixel, axes, strict=True))
            wanted = x[(..., *pixel)] if inside else np.zeros((2, 2))
            assert np.array_equal(columns[(slice(None), slice(None), k, *window)], wanted)


@given(windows())
def test_col2im_is_the_transpose_of_im2col(case: tuple[Axes, list[list[int]]]) -> None:
    """The scalar products agree: <im2col(x), c> = <x, col2im(c)> for any x and c."""
    axes, _ = case
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 2, *(a.size for a in axes)))
    columns = im2col(np, x, axes)
    other = rng.standard_normal(columns.shape)
    assert np.sum(columns * other) == pytest.approx(np.sum(x * col2im(np, other, axes)), rel=1e-10, abs=1e-10)


@given(windows())
def test_inner_taps_are_the_taps_without_the_padding(case: tuple[Axes, list[list[int]]]) -> None:
    axes, _ = case
    pixels = np.arange(1, 1 + math.prod(a.size for a in axes)).reshape([a.size for a in axes])
    padded = np.pad(pixels, [(a.before, a.after) for a in axes])
    seen = np.zeros([a.out for a in axes], int)
    for tap in taps(axes):
        seen += padded[tap]
    inner = np.zeros_like(seen)
    for window, pixel in inner_taps(axes):
        inner[window] += pixels[pixel]
    assert np.array_equal(inner, seen)


@given(small, small, small, st.integers(0, 3), st.integers(0, 3), small)
def test_a_transposed_convolution_undoes_the_size_of_its_convolution(
    size: int, kernel: int, stride: int, padding: int, extra: int, dilation: int
) -> None:
    assume(extra < max(stride, dilation))
    assume((size - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1 > 0)
    (axis,) = transposed_axes("test", (size,), (kernel,), stride, padding, extra, dilation)
    assert axis.out == size
    if extra < stride:  # more pixels make room for one more window
        assert len(window_starts(axis.size, kernel, stride, padding, dilation)) == size

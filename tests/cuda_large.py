"""Run CUDA kernels on the CPU on arrays of more than 2^31 elements, or of the most that 32-bit indices are used for.

    python tests/cuda_large.py [wide | narrow]

The memory of an array is reserved, and allocated page by page when it is touched. Only the first and the last blocks of
a launch run; `cuda_twins.py` computes what they read and write. The compiled code ends the process if an index
overflows.
"""

import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

import cuda_emulator as emulator
import cuda_twins as twins
import numpy as np

from xcnn.ops._window import window_axes

BLOCK, MOST_BLOCKS = 256, 1 << 20


def sparse(count: int, dtype: Any = np.float32) -> np.ndarray:
    """Reserve memory for an array of zeros."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return np.frombuffer(mmap.mmap(-1, count * np.dtype(dtype).itemsize, flags=flags), dtype)


def some_blocks(items: int) -> list[range]:
    blocks = min(-(-items // BLOCK), MOST_BLOCKS)
    return [range(1), range(blocks // 2, blocks // 2 + 1), range(blocks - 1, blocks)]


def items_of(block: range, items: int) -> np.ndarray:
    blocks = min(-(-items // BLOCK), MOST_BLOCKS)
    i = np.add.outer(np.arange(0, items, blocks * BLOCK), np.arange(block.start * BLOCK, block.stop * BLOCK)).ravel()
    return i[i < items]


def value(places: np.ndarray) -> np.ndarray:
    """Return a number that identifies a place; 0 for padding."""
    return np.where(places < 0, 0, places % 65_521 + 1).astype(np.float32)


def run(name: str, items: int, *arguments: Any) -> None:
    emulator.LOADED["xcnn.kernels.cuda._launch"].launch(name, items, *arguments)


def each_block(items: int) -> Any:
    for block in some_blocks(items):
        emulator.BLOCKS[0] = block
        yield items_of(block, items)
    emulator.BLOCKS[0] = None


# A case takes the approximate size of its largest array, and returns the exact size.


def im2col(most: int) -> int:
    c = 3
    axes = window_axes("im2col", (40, 50), (3, 2), (1, 2), 1, (2, 1))
    windows = axes[0].out * axes[1].out
    n = most // (c * 6 * windows)
    x, columns = sparse(n * c * 2000), sparse(c * 6 * n * windows)
    made = emulator.LOADED["xcnn.kernels.cuda._maps"].windows(axes)
    for i in each_block(c * n * windows):
        read, written = twins.im2col(i, n, c, axes)
        x[read[read >= 0]] = value(read[read >= 0])
        run("im2col", c * n * windows, x.reshape(n, c, 2000), c * 2000, 2000, columns, n, c, made)
        assert np.array_equal(columns[written], value(read))
    return columns.size


def col2im(most: int) -> int:
    c = 3
    axes = window_axes("col2im", (40, 50), (3, 2), (1, 2), 1, (2, 1))
    windows = axes[0].out * axes[1].out
    n = most // (c * 6 * windows)
    columns, x = sparse(c * 6 * n * windows), sparse(n * c * 2000)
    made = emulator.LOADED["xcnn.kernels.cuda._maps"].windows(axes)
    for i in each_block(x.size):
        read = twins.col2im(i, n, c, axes)
        columns[read[read >= 0]] = value(read[read >= 0])
        run("col2im", x.size, columns, x, n, c, made)
        assert np.array_equal(x[i], value(read).sum(axis=0))
    return columns.size


def max_pool(most: int) -> int:
    c = 3
    axes = window_axes("pool", (60, 70), (2, 2), 2, 0)
    n = most // (c * 4200)
    x, y, winners = sparse(n * c * 4200), sparse(n * c * 1050), sparse(n * c * 1050, np.uint8)
    made = emulator.LOADED["xcnn.kernels.cuda._maps"].windows(axes)
    for i in each_block(y.size):
        # The same windows; each map is an image with one channel.
        read, _ = twins.im2col(i, n * c, 1, axes)
        x[read] = value(read)
        run("max_pool", y.size, x.reshape(n, c, 4200), c * 4200, 4200, y, winners, n, c, made)
        assert np.array_equal(y[i], value(read).max(axis=0))
        assert np.array_equal(winners[i], value(read).argmax(axis=0))
    return x.size


def pool_gradient(most: int) -> int:
    axes = window_axes("pool", (60, 70), (2, 2), 2, 0)
    n = most // 4200
    dy, winners, dx = sparse(n * 1050), sparse(n * 1050, np.uint8), sparse(n * 4200)
    made = emulator.LOADED["xcnn.kernels.cuda._maps"].windows(axes)
    for i in each_block(dx.size):
        read = twins.col2im(i, n, 1, axes)
        tap, window = np.nonzero(read >= 0)[0], read[read >= 0] % (n * 1050)
        dy[window], winners[window] = value(window), window % 4
        wanted = np.zeros((4, i.size), np.float32)
        wanted[read >= 0] = np.where(window % 4 == tap, value(window), 0)
        run("pool_gradient", dx.size, dy, winners, 1, dx, n, made)
        assert np.array_equal(dx[i], wanted.sum(axis=0))
    return dx.size


def finish_maps(most: int) -> int:
    c, size = 7, 1001
    n = most // (c * size)
    source, target = sparse(n * c * size), sparse(n * c * size)
    for i in each_block(target.size):
        read = twins.finish_maps(i, n, c, size)
        source[read] = value(read)
        run("finish_maps", target.size, source, None, target, n, c, size, 0)
        assert np.array_equal(target[i], value(read))
    return target.size


def normalise(most: int) -> int:
    """Read (channels, images, pixels) in memory, as a convolution without bias returns it."""
    c, size = 7, 1001
    n = most // (c * size)
    x, y, ones = sparse(n * c * size), sparse(n * c * size), np.ones(c, np.float32)
    mean = np.arange(c, dtype=np.float32)
    for i in each_block(y.size):
        read = twins.finish_maps(i, n, c, size)
        x[read] = value(read)
        laid = x.reshape(c, n, size).swapaxes(0, 1)
        run("normalise", y.size, laid, size, n * size, mean, ones, None, None, y, n, c, size)
        assert np.array_equal(y[i], value(read) - i // size % c)
    return y.size


def finish_rows(most: int) -> int:
    columns = 1000
    y, bias = sparse(most // columns * columns), np.arange(columns, dtype=np.float32)
    for i in each_block(y.size):
        y[i] = value(i)
        run("finish_rows", y.size, y, bias, y.size, columns, 1)
        assert np.array_equal(y[i], value(i) + i % columns)
    return y.size


def drop(most: int) -> int:
    """Draw the numbers of the host's generator from a distant position."""
    x, y, kept = sparse(most), sparse(most), sparse(most, np.uint8)
    take = emulator.LOADED["xcnn.kernels.cuda.dropout"]._take
    for i in each_block(most // 2):
        pairs = i[:: max(1, i.size // 64)]
        both = np.stack([2 * pairs, 2 * pairs + 1], axis=1)
        x[2 * i], x[2 * i + 1] = 1, 1
        run("drop", most // 2, x, y, kept, most, *take(np.random.default_rng(3), most), 0.25, 2.0)
        for pair, places in zip(pairs, both, strict=True):
            generator = np.random.default_rng(3)
            generator.bit_generator.advance(int(pair))  # type: ignore[attr-defined]
            wanted = generator.random(2, np.float32) >= 0.25
            assert np.array_equal(kept[places], wanted)
            assert np.array_equal(y[places], 2 * wanted)
    return most


def slice_of(count: int, cut: int) -> np.ndarray:
    """Return the range of the last slice that is not empty, of `count` numbers cut into `cut` slices."""
    step = -(-count // cut)
    return np.arange((count - 1) // step * step, count)


def last_block(name: str, blocks: int, *arguments: Any) -> None:
    emulator.BLOCKS[0] = range(blocks - 1, blocks)
    emulator.LOADED["xcnn.kernels.cuda._launch"].launch_blocks(name, blocks, *arguments)
    emulator.BLOCKS[0] = None


def moments(most: int) -> int:
    c, size, cut = 7, 1001, 256
    n = most // (c * size) // cut * cut  # no slice is empty
    i = slice_of(n * size, cut)
    read = twins.lead_channels(i + (c - 1) * n * size, n, c, size)
    x, totals = sparse(n * c * size), np.zeros((2, c, cut))
    x[read] = value(read)
    last_block("moments", c * cut, x.reshape(n, c, size), c * size, size, totals, n, c, size, cut)
    wanted = value(read).astype(np.float64)
    np.testing.assert_allclose(totals[:, -1, -1], [wanted.sum(), wanted.var() * wanted.size], rtol=1e-12)
    return x.size


def lead_channels(most: int) -> int:
    c, size, cut = 7, 1001, 256
    n = most // (c * size) // cut * cut
    i = slice_of(n * size, cut) + (c - 1) * n * size
    read = twins.lead_channels(i, n, c, size)
    dy, led, sums = sparse(n * c * size), sparse(n * c * size), np.zeros((c, cut), np.float32)
    dy[read] = read % 3
    last_block("lead_channels", c * cut, dy.reshape(n, c, size), c * size, size, None, led, sums, n, c, size, cut)
    assert np.array_equal(led[i], read % 3)
    assert sums[-1, -1] == (read % 3).sum()
    return led.size


def row_sums(most: int) -> int:
    rows, cut = 3, 512
    length = most // rows // cut * cut
    i = slice_of(length, cut) + (rows - 1) * length
    x, sums = sparse(rows * length), np.zeros((rows, cut), np.float32)
    x[i] = i % 3  # small integers, so that a sum is exact in any order
    last_block("row_sums", rows * cut, x.reshape(rows, length), sums, length, cut)
    assert sums[-1, -1] == (i % 3).sum()
    return x.size


def column_sums(most: int) -> int:
    columns, cut = 1000, 64
    rows = most // columns // cut * cut
    chosen = slice_of(rows, cut)[:, None] * columns + np.arange(columns // 32 * 32, columns)
    x, sums = sparse(rows * columns), np.zeros((cut, columns), np.float32)
    x[chosen] = chosen % 3
    last_block("column_sums", -(-columns // 32) * cut, x.reshape(rows, columns), None, None, sums, rows, columns, cut)
    assert np.array_equal(sums[-1, columns // 32 * 32 :], (chosen % 3).sum(axis=0))
    return x.size


CASES: dict[str, Callable[[int], int]] = {
    "im2col": im2col,
    "col2im": col2im,
    "max_pool": max_pool,
    "pool_gradient": pool_gradient,
    "finish_maps": finish_maps,
    "normalise": normalise,
    "finish_rows": finish_rows,
    "drop": drop,
    "moments": moments,
    "lead_channels": lead_channels,
    "row_sums": row_sums,
    "column_sums": column_sums,
}


def main() -> None:
    chosen = sys.argv[1:] or ["wide", "narrow"]
    emulator.room()
    limit = emulator.LOADED["xcnn.kernels.cuda._launch"].LIMIT
    for width in chosen:
        for name, case in CASES.items():
            count = case(limit if width == "narrow" else (1 << 31) + (1 << 28))
            print(f"{width} {name}: {count:,} numbers", flush=True)


if __name__ == "__main__":
    os.environ.setdefault(
        "XCNN_EMULATOR_FLAGS", "-fsanitize=signed-integer-overflow -fsanitize-undefined-trap-on-error"
    )
    main()

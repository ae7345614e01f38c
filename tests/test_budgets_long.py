"""Long sums stay within their budgets.

Equal terms round in the same direction, so the error of a sum of K terms that is added term by term grows as K, to
K / 4 units; the budgets grow as the root of K.
"""

from typing import Any

import numpy as np
import pytest
from cuda_emulator import emulated
from test_kernels import columns_alone

from xcnn._dispatch import portable
from xcnn.compare.budget import errors, reference
from xcnn.compare.op import run_op
from xcnn.devices import device

CALLS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "rows": ("linear", {"x": (250_000, 4), "weight": (2, 4), "bias": (2,)}, {}),
    "features": ("linear", {"x": (2, 300_000), "weight": (2, 300_000), "bias": (2,)}, {}),
    "large maps": ("conv2d", {"x": (1, 1, 1024, 1024), "weight": (1, 1, 1, 1), "bias": (1,)}, {}),
    "large maps, ReLU": (
        "conv2d", {"x": (1, 1, 700, 700), "weight": (2, 1, 3, 3), "bias": (2,)}, {"padding": 1, "activation": "relu"}
    ),
    "long signals": ("conv1d", {"x": (1, 1, 1 << 18), "weight": (1, 1, 1), "bias": (1,)}, {}),
    "many images": ("conv2d", {"x": (200_000, 1, 1, 1), "weight": (2, 1, 1, 1), "bias": (2,)}, {}),
    "many channels": ("conv2d", {"x": (1, 512, 4, 4), "weight": (2, 512, 3, 3), "bias": (2,)}, {}),
    "transposed": ("conv_transpose2d", {"x": (1, 1, 1024, 1024), "weight": (1, 1, 1, 1), "bias": (1,)}, {}),
    "norm of rows": ("batch_norm", {"x": (300_000, 2), "weight": (2,), "bias": (2,)}, {"training": True}),
    "norm of maps": ("batch_norm", {"x": (2, 1, 1024, 512), "weight": (1,), "bias": (1,)}, {"training": True}),
    "norm of images": ("batch_norm", {"x": (300_000, 1, 2), "weight": (1,), "bias": (1,)}, {"training": True}),
    "layer norm": ("layer_norm", {"x": (300_000, 3), "weight": (3,), "bias": (3,)}, {"normalized_shape": 3}),
    "group norm": ("group_norm", {"x": (100_000, 2, 4), "weight": (2,), "bias": (2,)}, {"num_groups": 2}),
    "global mean": ("global_avg_pool", {"x": (1, 1, 1024, 1024)}, {}),
    "many classes": ("cross_entropy", {"x": (1, 16_000), "target": np.zeros(1, int), "weight": None}, {}),
    "many losses": ("cross_entropy", {"x": (5_000, 2), "target": np.zeros(5_000, int), "weight": None}, {}),
    "classes of pixels": ("cross_entropy", {"x": (1, 16_000, 2), "target": np.zeros((1, 2), int), "weight": None}, {}),
    "leading classes": ("softmax", {"x": (100_000, 2)}, {"dim": 0}),
    "leading logarithms": ("log_softmax", {"x": (100_000, 2)}, {"dim": 0}),
    "overlapping windows": ("max_pool2d", {"x": (1, 1, 256, 8)}, {"kernel_size": (128, 1), "stride": 1}),
}  # fmt: skip

# The emulator takes a second for each op: only those that sum differently from the portable code.
EMULATED = ["rows", "many images", "norm of rows", "many classes"]


def equal_numbers(shape: tuple[int, ...]) -> np.ndarray:
    """Return 0.1 everywhere except 0.3 in every third row, so that there are a variance and a maximum."""
    array = np.full(shape, 0.1)
    array[::3] = 0.3
    return array


def assert_within_budget(name: str, dtype: str) -> None:
    op, shapes, options = CALLS[name]
    arrays = {key: equal_numbers(value) if isinstance(value, tuple) else value for key, value in shapes.items()}
    wanted = reference(op, arrays, options, lambda shape: np.full(shape, 0.1), dtype)
    for error in errors(wanted, run_op(wanted, device("cpu"))):
        assert error.within, f"{error.tensor}: {error.units:.1f} of {error.bound:.1f}"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CALLS)
def test_kernels_add_long_sums_in_blocks(name: str, dtype: str) -> None:
    assert_within_budget(name, dtype)


@pytest.mark.parametrize("name", CALLS)
def test_the_portable_code_adds_long_sums_in_blocks(name: str) -> None:
    with portable(np):
        assert_within_budget(name, "float32")


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call[0].startswith("conv")])
def test_columns_add_long_sums_in_blocks(name: str) -> None:
    with columns_alone():
        assert_within_budget(name, "float32")


@pytest.mark.parametrize("name", EMULATED)
def test_cuda_kernels_add_long_sums_in_blocks(name: str) -> None:
    with emulated():
        assert_within_budget(name, "float32")

"""Kernels and the portable code agree on infinities, NaN, negative zero and subnormal numbers at any position."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from test_kernels import ENGINES

from xcnn._dispatch import portable
from xcnn.ops._op import OPS

SPECIAL = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "-0": -0.0, "subnormal": 1e-310}


def planted(arrays: dict[str, Any], dy: np.ndarray, value: float) -> Iterator[tuple[str, dict[str, Any], np.ndarray]]:
    """Yield the arrays and dy with the value at two positions of each of them in turn."""

    def plant(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.reshape(-1)[[0, -1]] = value
        return array

    for name, array in arrays.items():
        if isinstance(array, list):
            yield f"{name}[0]", {**arrays, name: [plant(array[0]), *array[1:]]}, dy
        elif array is not None and array.dtype.kind == "f":
            yield name, {**arrays, name: plant(array)}, dy
    yield "dy", arrays, plant(dy)


def run(op: str, arrays: dict[str, Any], dy: np.ndarray, options: dict[str, Any]) -> list[Any]:
    y, backward = OPS[op].function(**arrays, **options)
    return [*(y if type(y) is tuple else (y,)), *backward(dy)]


@pytest.mark.parametrize("engine", ["kernels", "cuda"])
@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_special_values_go_the_same_way(op: str, special: str, engine: str) -> None:
    for number, sample in enumerate(OPS[op].samples):
        rng = np.random.default_rng(number)
        drawn = sample.draw(rng)
        arrays = {name: drawn[name] for name in OPS[op].arrays}
        with portable(np):
            y, _ = OPS[op].function(**arrays, **sample.options)
        shape = (y[0] if type(y) is tuple else y).shape
        for place, changed, dy in planted(arrays, np.array(rng.standard_normal(shape)), SPECIAL[special]):
            with portable(np):
                wanted = run(op, changed, dy, sample.options)
            with ENGINES[engine]():
                found = run(op, changed, dy, sample.options)
            for i, (actual, expected) in enumerate(zip(found, wanted, strict=True)):
                case = f"{special} in {place} of sample {number}: tensor {i}"
                if expected is None:
                    assert actual is None, case
                elif "max_pool" in op and place == "dy":
                    # The portable code multiplies by a mask: a dy that is not finite makes NaN of more of its window.
                    finite = np.isfinite(expected)
                    np.testing.assert_allclose(actual[finite], expected[finite], 1e-10, 1e-12, err_msg=case)
                elif (op.startswith("conv") or (op.endswith("_norm") and place == "weight")) and (
                    engine == "kernels" and not np.isfinite(SPECIAL[special])
                ):
                    # Planes have zeros between their rows, and zero times infinity is NaN: more may be NaN. So may be
                    # sums of numbers of either sign that are multiplied by an infinite weight first.
                    finite = np.isfinite(actual)
                    assert np.isfinite(expected[finite]).all(), case
                    np.testing.assert_allclose(actual[finite], expected[finite], 1e-10, 1e-12, err_msg=case)
                else:
                    np.testing.assert_allclose(actual, expected, 1e-10, 1e-12, err_msg=case)

"""The error function against the standard library's."""

import math

import numpy as np
import numpy as xp
import pytest

from xcnn.ops._erf import erf

POINTS = np.concatenate(
    [np.linspace(-7, 7, 5601), np.logspace(-300, 300, 601), [0.46875, np.nextafter(0.46875, 1), 4.0, 6.0]]
)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_erf_is_right_to_a_few_units_in_the_last_place(dtype):
    x = POINTS[np.abs(POINTS) < np.finfo(dtype).max].astype(dtype)
    expected = np.array([math.erf(v) for v in x.astype(np.float64)])
    y = erf(xp, x)
    assert y.dtype == dtype
    assert np.all(np.abs(y - expected) <= 6 * np.spacing(np.abs(expected).astype(dtype)))


def test_erf_at_the_ends():
    np.testing.assert_array_equal(
        erf(xp, np.array([0.0, -0.0, math.inf, -math.inf, math.nan])), [0.0, 0.0, 1.0, -1.0, math.nan]
    )


def test_erf_is_odd():
    np.testing.assert_array_equal(erf(xp, -POINTS), -erf(xp, POINTS))

"""The error function, which the exact GELU needs and the array API lacks."""

from types import ModuleType

from xcnn._array import Array

__all__ = ["erf"]

# W. J. Cody, Rational Chebyshev approximations for the error function, Math. Comp. 23 (1969) 631-637; coefficients from
# the highest power down. Near zero erf(x) = x P(x^2) / Q(x^2), further out erfc(x) = exp(-x^2) P(x) / Q(x).
_NEAR = (
    (
        1.85777706184603153e-1,
        3.16112374387056560e0,
        1.13864154151050156e2,
        3.77485237685302021e2,
        3.20937758913846947e3,
    ),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)
_FAR = (
    (
        2.15311535474403846e-8,
        5.64188496988670089e-1,
        8.88314979438837594e0,
        6.61191906371416295e1,
        2.98635138197400131e2,
        8.81952221241769090e2,
        1.71204761263407058e3,
        2.05107837782607147e3,
        1.23033935479799725e3,
    ),
    (
        1.0,
        1.57449261107098347e1,
        1.17693950891312499e2,
        5.37181101862009858e2,
        1.62138957456669019e3,
        3.29079923573345963e3,
        4.36261909014324716e3,
        3.43936767414372164e3,
        1.23033935480374942e3,
    ),
)
_SPLIT = 0.46875


def _polynomial(x: Array, coefficients: tuple[float, ...]) -> Array:
    y = x * coefficients[0]
    for a in coefficients[1:-1]:
        y += a
        y *= x
    return y + coefficients[-1]


def _ratio(x: Array, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    top, bottom = coefficients
    return _polynomial(x, top) / _polynomial(x, bottom)


def erf(xp: ModuleType, x: Array) -> Array:
    """Return `2 / sqrt(pi) * integral of exp(-t^2) from 0 to x`, to a few units in the last place; NaN propagates.

    Cody's third approximation, of erfc beyond 4, is not needed: erfc is below 1.6e-8 there, and the second one has
    the 9 digits that affect `erf = 1 - erfc`. A namespace that has the function, which the array API lacks, is asked.
    """
    if hasattr(xp, "erf"):
        return xp.erf(x)
    size = xp.abs(x)
    near = xp.minimum(xp.maximum(x, -_SPLIT), _SPLIT)
    far = xp.minimum(size, 6.0)  # erf is 1 beyond, in float64 as well
    beyond = 1.0 - xp.exp(-far * far) * _ratio(far, _FAR)
    return xp.where(size <= _SPLIT, near * _ratio(near * near, _NEAR), xp.sign(x) * beyond)

"""The steps of formulas as vector instructions, exponentials and the like as polynomials.

The largest errors that twelve million numbers showed are, in units in the last place: exp 1.1, expm1 1.6 (float64:
2.1), log and log1p 0.9, tanh 1.5, erf 1.3. Infinities, NaN, zeros of either sign and subnormal numbers give what NumPy
gives. There are no floating-point warnings.

The polynomials were fitted with 40 digits, so that the largest relative error of the result is about the smallest.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from xcnn.kernels.cpu._vectors import Vectors

__all__ = ["COSTS", "Functions"]

COSTS = {"erf": 40, "exp": 20, "expm1": 24, "log": 30, "log1p": 36, "tanh": 32, "divide": 5, "sqrt": 6}
"""About how many instructions a step takes, if more than one."""

# (exp(r) - 1 - r - r^2 / 2) / r^3 for r up to log(2) / 2; coefficients from the highest power down
_EXP = {
    4: (0.00139368354, 0.00836661569, 0.041666445, 0.166665428),
    8: (
        2.5112509038921737e-8, 2.7622403522981668e-7, 2.7557234710802818e-6, 2.4801515941195361e-5,
        0.00019841269894739687, 0.0013888888920799555, 0.0083333333333188122, 0.041666666666619358, 0.16666666666666679,
    ),
}  # fmt: skip
# (log((1 + s) / (1 - s)) - 2 s) / s^3 in s^2, for s up to (sqrt(2) - 1) / (sqrt(2) + 1)
_LOG = {
    4: (0.298724597, 0.39977515, 0.666667766),
    8: (
        0.14796953098786446, 0.15313951379868858, 0.18183568172531528, 0.2222219849931334, 0.2857142874311399,
        0.39999999999411308, 0.6666666666666735,
    ),
}  # fmt: skip
# erf(x) / x - 1 in x^2, for x up to 0.89
_ERF_NEAR = {
    4: (-0.000611555302, 0.00501657339, -0.0267818336, 0.112822156, -0.376125299, 0.128379155),
    8: (
        -8.5202791350676067e-10, 1.4062364392186076e-8, -1.6278462601804896e-7, 1.6455522230442095e-6,
        -1.4925319459607206e-5, 0.00012055321850599617, -0.00085483267761473095, 0.0052239776219497141,
        -0.02686617064483952, 0.11283791670953863, -0.37612638903183731, 0.12837916709551257,
    ),
}  # fmt: skip
# -log(1 - erf(x)) in x, for x from 0.89 to where erf is 1
_ERF_FAR = {
    4: (-0.000199459781, 0.00307747783, -0.0223622693, 0.104209735, 0.636868479, 1.12786001, 0.000151537693),
    8: (
        -1.4038475957596976e-12, 6.2610261137574649e-11, -1.3076476203279989e-9, 1.698161147876201e-8,
        -1.5336178002459078e-7, 1.0183038146749278e-6, -5.1025763031197342e-6, 1.9309268340728762e-5,
        -5.2999742061732001e-5, 8.8425102197452005e-5, 1.2133071072668406e-5, -0.00059405020953164765,
        0.0017153025474191698, -0.0002327653557840875, -0.019110511619844049, 0.10276340347911272,
        0.63662289816058502, 1.1283785270873486, 6.0043491590989043e-8,
    ),
}  # fmt: skip
# (tanh(x) / x - 1) / x^2 in x^2, for x up to 0.55
_TANH = {
    4: (-0.00627891666, 0.0210753891, -0.0538533198, 0.133325969, -0.333333179),
    8: (
        5.1037338411269244e-5, -0.00021033019494503572, 0.00057915727332200542, -0.0014532247876286931,
        0.0035917215920058036, -0.0088631947766015682, 0.021869485998272209, -0.053968253877213987,
        0.13333333333171378, -0.33333333333332335,
    ),
}  # fmt: skip
# Where the functions are computed in another way, and where they are 1
_ERF_SPLIT, _ERF_END = 0.89, {4: 4.0, 8: 6.0}
_TANH_SPLIT, _TANH_END = 0.55, {4: 10.0, 8: 20.0}

# Beyond these, exp is 0 or infinite, and expm1 is -1.
_EXP_RANGE = {4: (-104.0, 89.0), 8: (-746.0, 710.0)}
_EXPM1_LEAST = {4: -20.0, 8: -40.0}

# log(2) in two parts, so that the first one times an exponent is exact
_LOG2 = {4: (0.693359375, -2.12194440054690583e-4), 8: (6.93147180369123816490e-01, 1.90821492927058770002e-10)}


def _instruction(name: str, *given: str) -> Callable[..., Any]:
    return lambda self, *arguments: getattr(self.builder, name)(*given, *arguments)


def _intrinsic(name: str) -> Callable[..., Any]:
    return lambda self, *arguments: self.call(name, self.vector, self.vector, *arguments)


class Functions(Vectors):
    """Emits the instructions of steps on vectors of one type."""

    def __init__(self, builder: Any, itemsize: int) -> None:
        super().__init__(builder, itemsize)
        self._integers = ir.VectorType(ir.IntType(8 * itemsize), self.lanes)
        self._dtype = np.dtype(f"f{itemsize}")
        self._info = np.finfo(self._dtype)

    def constant(self, value: float) -> Any:
        """Return a number in all lanes."""
        with np.errstate(over="ignore", under="ignore"):
            return ir.Constant(self.vector, [float(self._dtype.type(value))] * self.lanes)

    def step(self, name: str, arguments: Sequence[Any]) -> Any:
        """Emit a step."""
        return getattr(self, name)(*arguments)

    # Arithmetic, comparisons and masks

    add, subtract, multiply, divide, negative = map(_instruction, ("fadd", "fsub", "fmul", "fdiv", "fneg"))
    less, less_equal, equal = (_instruction("fcmp_ordered", sign) for sign in ("<", "<=", "=="))
    greater, greater_equal = (_instruction("fcmp_ordered", sign) for sign in (">", ">="))
    not_equal = _instruction("fcmp_unordered", "!=")
    logical_and, logical_or, logical_not, where = map(_instruction, ("and_", "or_", "not_", "select"))
    abs, sqrt, copysign = map(_intrinsic, ("fabs", "sqrt", "copysign"))

    def maximum(self, a: Any, b: Any) -> Any:
        return self._extreme(self.greater, a, b)

    def minimum(self, a: Any, b: Any) -> Any:
        return self._extreme(self.less, a, b)

    def _extreme(self, wins: Any, a: Any, b: Any) -> Any:
        """Return b where it wins, else a, which may be NaN; then NaN of b, unless it is a constant."""
        if isinstance(a, ir.Constant):
            a, b = b, a
        extreme = self.where(wins(b, a), b, a)
        return extreme if isinstance(b, ir.Constant) else self.where(self.not_equal(b, b), b, extreme)

    def sign(self, a: Any) -> Any:
        below = self.where(self.less(a, self.constant(0.0)), self.constant(-1.0), a)
        return self.where(self.less(self.constant(0.0), a), self.constant(1.0), below)

    # Exponentials and the like

    def _polynomial(self, x: Any, coefficients: Sequence[float]) -> Any:
        y = self.constant(coefficients[0])
        for coefficient in coefficients[1:]:
            y = self.fused(y, x, self.constant(coefficient))
        return y

    def _integer(self, value: int) -> Any:
        return ir.Constant(self._integers, [int(value)] * self.lanes)

    def _bits(self, a: Any) -> Any:
        return self.builder.bitcast(a, self._integers)

    def _power_of_two(self, exponent: Any) -> Any:
        biased = self.builder.add(exponent, self._integer(self._info.maxexp - 1))
        return self.builder.bitcast(self.builder.shl(biased, self._integer(self._info.nmant)), self.vector)

    def _reduced(self, x: Any) -> tuple[Any, Any]:
        """Return r and an integer n with `x = n * log(2) + r`, r up to log(2) / 2 in magnitude."""
        rounding = self.constant(1.5 * 2.0**self._info.nmant)  # the last digit of a sum with it is that of an integer
        shifted = self.fused(x, self.constant(1.0 / math.log(2.0)), rounding)
        n, (high, low) = self.subtract(shifted, rounding), _LOG2[self.itemsize]
        r = self.fused(n, self.constant(-high), x)
        r = self.fused(n, self.constant(-low), r)
        return r, self.builder.sub(self._bits(shifted), self._bits(rounding))

    def _expm1_of_small(self, r: Any) -> Any:
        q = self.fused(r, self._polynomial(r, _EXP[self.itemsize]), self.constant(0.5))
        return self.fused(self.multiply(r, r), q, r)

    def _exp_in_range(self, x: Any) -> Any:
        """Return the exponential of numbers for which it is a normal number."""
        r, n = self._reduced(x)
        return self.multiply(self.add(self._expm1_of_small(r), self.constant(1.0)), self._power_of_two(n))

    def exp(self, x: Any) -> Any:
        low, high = _EXP_RANGE[self.itemsize]
        r, n = self._reduced(self.minimum(self.maximum(x, self.constant(low)), self.constant(high)))
        half = self.builder.ashr(n, self._integer(1))  # 2^n itself may be out of range
        y = self.add(self._expm1_of_small(r), self.constant(1.0))
        y = self.multiply(y, self._power_of_two(half))
        return self.multiply(y, self._power_of_two(self.builder.sub(n, half)))

    def expm1(self, x: Any) -> Any:
        low, high = _EXPM1_LEAST[self.itemsize], _EXP_RANGE[self.itemsize][1]
        r, n = self._reduced(self.minimum(self.maximum(x, self.constant(low)), self.constant(high)))
        small = self._expm1_of_small(r)
        half = self._power_of_two(self.builder.sub(n, self._integer(1)))  # 2^n may be out of range
        y = self.fused(half, small, self.subtract(half, self.constant(0.5)))
        y = self.where(self.builder.icmp_signed("==", n, self._integer(0)), small, self.add(y, y))
        return self.copysign(y, x)  # -0 remains

    def tanh(self, x: Any) -> Any:
        size, square = self.abs(x), self.multiply(x, x)
        near = self.fused(self.multiply(x, square), self._polynomial(square, _TANH[self.itemsize]), x)
        bounded = self.minimum(size, self.constant(_TANH_END[self.itemsize]))
        e = self._exp_in_range(self.add(bounded, bounded))
        part = self.divide(self.constant(2.0), self.add(e, self.constant(1.0)))
        far = self.subtract(self.constant(1.0), part)
        return self.copysign(self.where(self.less(size, self.constant(_TANH_SPLIT)), near, far), x)

    def _log_of_positive(self, x: Any, correction: Any, scaled: Any = 0) -> Any:
        """Return the logarithm of a normal number, plus a correction, minus `scaled * log(2)`."""
        mantissa = self._integer(self._info.nmant)
        bits = self._bits(x)
        least = self._dtype.type(math.sqrt(0.5)).view(f"i{self.itemsize}")
        exponent = self.builder.ashr(self.builder.sub(bits, self._integer(least)), mantissa)
        m = self.builder.bitcast(self.builder.sub(bits, self.builder.shl(exponent, mantissa)), self.vector)
        n = self.builder.sitofp(exponent, self.vector)
        if scaled:
            n = self.subtract(n, scaled)
        f = self.subtract(m, self.constant(1.0))
        s = self.divide(f, self.add(f, self.constant(2.0)))
        z, half_square = self.multiply(s, s), self.multiply(self.multiply(f, f), self.constant(0.5))
        rest = self.fused(z, self._polynomial(z, _LOG[self.itemsize]), half_square)
        high, low = _LOG2[self.itemsize]
        last = self.fused(n, self.constant(low), correction)
        tail = self.subtract(half_square, self.fused(s, rest, last))
        return self.fused(n, self.constant(high), self.subtract(f, tail))

    def _where_log_is_finite(self, x: Any, zero: float, y: Any) -> Any:
        """Return y, but -inf, NaN or x where the logarithm of `x - zero` is not finite."""
        end = self.constant(zero)
        special = self.where(self.less(x, end), self.constant(math.nan), x)
        special = self.where(self.equal(x, end), self.constant(-math.inf), special)
        finite = self.logical_and(self.less(end, x), self.less(x, self.constant(math.inf)))
        return self.where(finite, y, special)

    def log(self, x: Any) -> Any:
        subnormal = self.less(x, self.constant(float(self._info.smallest_normal)))
        power = self._info.nmant + 2
        normal = self.where(subnormal, self.multiply(x, self.constant(2.0**power)), x)
        scaled = self.where(subnormal, self.constant(power), self.constant(0.0))
        return self._where_log_is_finite(x, 0.0, self._log_of_positive(normal, self.constant(0.0), scaled))

    def log1p(self, x: Any) -> Any:
        one = self.constant(1.0)
        u = self.add(x, one)
        part = self.subtract(u, one)
        lost = self.add(self.subtract(one, self.subtract(u, part)), self.subtract(x, part))  # u + lost = 1 + x, exactly
        y = self._log_of_positive(u, self.divide(lost, u))
        return self._where_log_is_finite(x, -1.0, self.copysign(y, x))  # -0 remains

    def erf(self, x: Any) -> Any:
        size = self.abs(x)
        near = self.fused(x, self._polynomial(self.multiply(x, x), _ERF_NEAR[self.itemsize]), x)
        bounded = self.minimum(size, self.constant(_ERF_END[self.itemsize]))
        e = self._exp_in_range(self.negative(self._polynomial(bounded, _ERF_FAR[self.itemsize])))
        far = self.copysign(self.subtract(self.constant(1.0), e), x)
        return self.where(self.less(size, self.constant(_ERF_SPLIT)), near, far)

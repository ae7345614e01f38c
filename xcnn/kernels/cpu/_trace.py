"""The operations of a formula, recorded by calling it with a namespace and arrays that only note what is done to them.

A formula is written in the array API, so it cannot tell. What it does is a list of steps, each made of earlier ones:

    steps = [("array", 0), ("parameter", 0), ("multiply", 0, 1), ...]

A step is a vector of numbers, a mask (the result of a comparison), or a scalar, computed once per call: a parameter of
the formula, a constant, or arithmetic of these. A function that is not listed here, or a choice by a number, raises
`Untraceable`: the formula is then run as it is.
"""

from collections.abc import Callable
from typing import Any

__all__ = ["FUNCTIONS", "Namespace", "Symbol", "Untraceable"]

_ARITHMETIC = ("add", "subtract", "multiply", "divide", "negative")
_COMPARISONS = ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")
_LOGIC = ("logical_and", "logical_or", "logical_not")
_OTHERS = ("abs", "copysign", "erf", "exp", "expm1", "log", "log1p", "maximum", "minimum", "sign", "sqrt", "tanh")
FUNCTIONS = (*_ARITHMETIC, *_COMPARISONS, *_LOGIC, *_OTHERS, "where")
"""The names of the steps, those of the array API; `erf` is the one more that its namespaces may have."""


class Untraceable(Exception):
    """A formula does something that is no list of steps."""


class Symbol:
    """A result of a step, which stands for an array."""

    __slots__ = ("kind", "number", "xp")
    __array_priority__ = 1000.0  # NumPy's scalars leave the operation to it

    def __init__(self, xp: "Namespace", kind: str, number: int) -> None:
        self.xp, self.kind, self.number = xp, kind, number

    @property
    def dtype(self) -> str:
        return self.xp.bool if self.kind == "mask" else self.xp.float

    def __bool__(self) -> bool:
        raise Untraceable("a choice by a number")

    __float__ = __int__ = __index__ = __len__ = __iter__ = __bool__

    def __pos__(self) -> "Symbol":
        return self

    def __pow__(self, exponent: Any) -> "Symbol":
        return self.xp.pow(self, exponent)

    __hash__ = None  # type: ignore[assignment]


def _operator(name: str, turned: bool = False) -> Callable[..., Symbol]:
    return lambda self, *others: self.xp.step(name, *((*others, self) if turned else (self, *others)))


_TURNED = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide"}
_OPERATORS = {
    **_TURNED, **dict(zip(("lt", "le", "gt", "ge", "eq", "ne"), _COMPARISONS, strict=True)), "neg": "negative",
    "abs": "abs", "and": "logical_and", "or": "logical_or", "invert": "logical_not",
}  # fmt: skip
for _name, _function in _OPERATORS.items():
    setattr(Symbol, f"__{_name}__", _operator(_function))
for _name, _function in _TURNED.items():
    setattr(Symbol, f"__r{_name}__", _operator(_function, turned=True))


class Namespace:
    """The functions of the array API that a formula may use, and the list of the steps that it took.

    Attributes
    ----------
    steps : tuples of a name and the numbers of earlier steps; a constant is `("constant", number)`.
    kinds : what each step is: `"vector"`, `"mask"` or `"scalar"`.
    """

    bool, float = "bool", "float"

    def __init__(self) -> None:
        self.steps: list[tuple[Any, ...]] = []
        self.kinds: list[str] = []
        self._found: dict[tuple[Any, ...], int] = {}

    def step(self, name: str, *arguments: Any) -> Symbol:
        """Record a step, or find the same one among the earlier ones."""
        symbols = [self._symbol(argument) for argument in arguments]
        kinds = {symbol.kind for symbol in symbols}
        if ("mask" in kinds) != (name in _LOGIC or name == "where") or (name in _LOGIC and kinds != {"mask"}):
            raise Untraceable(f"{name} of {' and '.join(sorted(kinds))}")
        if name in _COMPARISONS or name in _LOGIC:
            kind = "mask"
        else:
            kind = "scalar" if name in _ARITHMETIC and kinds == {"scalar"} else "vector"
        return self._note((name, *(symbol.number for symbol in symbols)), kind)

    def array(self, number: int) -> Symbol:
        """Return the symbol of an array that the formula is applied to."""
        return self._note(("array", number), "vector")

    def parameter(self, number: int) -> Symbol:
        """Return the symbol of a number that is given when the formula is run."""
        return self._note(("parameter", number), "scalar")

    def vector(self, value: Any) -> Symbol:
        """Return the step of a result: 1 and 0 for a mask."""
        return self.astype(value, self.float)

    def _note(self, step: tuple[Any, ...], kind: str) -> Symbol:
        if step not in self._found:
            self._found[step] = len(self.steps)
            self.steps.append(step)
            self.kinds.append(kind)
        return Symbol(self, kind, self._found[step])

    def _symbol(self, value: Any) -> Symbol:
        if isinstance(value, Symbol):
            return value
        if isinstance(value, int | float):
            return self._note(("constant", repr(float(value))), "scalar")
        raise Untraceable(f"{type(value).__name__} in a formula")

    def __getattr__(self, name: str) -> Any:
        if name not in FUNCTIONS:
            raise Untraceable(f"the function {name}")
        return lambda *arguments: self.step(name, *arguments)

    def astype(self, x: Any, dtype: Any, *, copy: Any = True) -> Symbol:
        """Return 1 and 0 for a mask; numbers remain."""
        x = self._symbol(x)
        if dtype != x.dtype and (dtype, x.dtype) != (self.float, self.bool):
            raise Untraceable(f"astype to {dtype}")
        return x if dtype == x.dtype else self.step("where", x, 1.0, 0.0)

    def square(self, x: Any) -> Symbol:
        """Return `x * x`."""
        return self.step("multiply", x, x)

    def reciprocal(self, x: Any) -> Symbol:
        """Return `1 / x`."""
        return self.step("divide", 1.0, x)

    def isnan(self, x: Any) -> Symbol:
        """Return where x is not a number."""
        return self.step("not_equal", x, x)

    def clip(self, x: Any, min: Any = None, max: Any = None) -> Symbol:
        """Return x limited to an interval."""
        x = x if min is None else self.step("maximum", x, min)
        return x if max is None else self.step("minimum", x, max)

    def pow(self, x: Any, exponent: Any) -> Symbol:
        """Return x to a power that is known: a small integer, or a half."""
        if isinstance(exponent, Symbol) or exponent not in (-2, -1, 0.5, 1, 2, 3, 4):
            raise Untraceable(f"the power {exponent}")
        if exponent == 0.5:
            return self.step("sqrt", x)
        if exponent < 0:
            return self.reciprocal(self.pow(x, -exponent))
        y = x
        for _ in range(1, int(exponent)):
            y = self.step("multiply", y, x)
        return self._symbol(y)

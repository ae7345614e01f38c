"""The tools of the checks: comparing results, and saying in a few words what is wrong."""

import copy
import inspect
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from xcnn import testing

__all__ = ["Function", "compare", "every", "gradients", "normal", "raised", "require", "shown", "spaced"]

Function = Callable[..., Any]
RNG = np.random.default_rng(0)


def shown(value: Any) -> str:
    """Return a short text of an argument or a result."""
    if isinstance(value, tuple | list) and any(isinstance(one, np.ndarray) for one in value):
        first, last = "[]" if isinstance(value, list) else "()"
        return first + ", ".join(shown(one) for one in value) + last
    if isinstance(value, np.ndarray | np.generic) and value.size > 40:
        return f"<array {' x '.join(map(str, value.shape))}>"
    if isinstance(value, np.ndarray | np.generic):
        exact = value.dtype.kind not in "fc"
        return str(value.tolist() if exact else (np.round(value.astype(np.float64), 4) + 0.0).tolist())
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def difference(came: Any, wanted: Any) -> str:
    """Return what is wrong with a result, or an empty text if it is right."""
    if came is None:
        return f"must return {shown(wanted)}, but returns None: is there a `return`?"
    if isinstance(wanted, tuple | list):
        if not isinstance(came, tuple | list) or len(came) != len(wanted):
            return f"must return {len(wanted)} results, {shown(wanted)}, but returns {shown(came)}"
        problems = [difference(*pair) for pair in zip(came, wanted, strict=True)]
        wrong = [f"result {i + 1} {problem}" for i, problem in enumerate(problems) if problem]
        return wrong[0] if wrong else ""
    try:
        came = np.asarray(came)
        numeric = came.dtype.kind in "fiub"
    except ValueError:
        numeric = False
    if not numeric:
        return f"must be {shown(wanted)}, but is {shown(came)}"
    wanted = np.asarray(wanted)
    if came.shape != wanted.shape:
        return f"must have the shape {wanted.shape}, but has {came.shape}"
    apart = ~np.isclose(came.astype(np.float64), wanted.astype(np.float64), rtol=1e-6, atol=1e-9, equal_nan=True)
    if not apart.any():
        return ""
    if wanted.size <= 40 and shown(wanted) != shown(came):
        return f"must be {shown(wanted)}, but is {shown(came)}"
    index = tuple(int(i) for i in np.argwhere(apart)[0])
    at = f" at {list(index)}" if index else ""
    return f"must be {wanted[index]:.8g}{at}, but is {came[index]:.8g}"


def raised(error: Exception, path: str | None) -> str:
    """Return what was raised, and in which line of the learner's file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f" in line {lines[-1]}" if lines else ""
    return f"raised {type(error).__name__}{where}: {error}"


def run(function: Function, arguments: Iterable[Any]) -> Any:
    """Call a function with copies of the arguments."""
    with np.errstate(all="ignore"):
        return function(*copy.deepcopy(tuple(arguments)))


def called(function: Function, arguments: tuple[Any, ...]) -> str:
    """Return the text of a call."""
    names = inspect.signature(function).parameters
    return f"{function.__name__}({', '.join(f'{n}={shown(v)}' for n, v in zip(names, arguments, strict=False))})"


def compare(right: Function, *cases: tuple[Any, ...], hints: dict[str, Function] | None = None) -> Function:
    """Return a check that compares a function with `right` in all cases, from the smallest to the largest.

    `hints` are sentences by which a wrong answer is explained, with a function that makes the same mistake.
    """

    def check(function: Function) -> None:
        for case in cases:
            wanted = run(right, case)
            try:
                came = run(function, case)
            except NotImplementedError:
                raise
            except Exception as error:
                path = getattr(getattr(function, "__code__", None), "co_filename", None)
                raise AssertionError(f"{called(function, case)}\n{raised(error, path)}") from error
            if problem := difference(came, wanted):
                for hint, mistaken in (hints or {}).items():
                    if not difference(came, run(mistaken, case)):
                        problem += f"\nHint: {hint}"
                        break
                raise AssertionError(f"{called(function, case)}\n{problem}")

    return check


def gradients(adapt: Callable[[Function], Function], *cases: dict[str, np.ndarray]) -> Function:
    """Return a check of gradients against differences, by `xcnn.testing.check_gradients`.

    `adapt(function)` is a function of the arrays of a case that returns `(y, backward)`.
    """

    def check(function: Function) -> None:
        adapted, given = adapt(function), {}

        def recorded(**arrays: np.ndarray) -> tuple[Any, Function]:
            y, backward = adapted(**arrays)

            def noted(dy: np.ndarray) -> Any:
                given["the gradient of the result"] = dy
                return backward(dy)

            return y, noted

        recorded.__name__ = function.__name__
        for case in cases:
            try:
                with np.errstate(all="ignore"):
                    testing.check_gradients(recorded, case)
            except AssertionError as error:
                if isinstance(error.__cause__, NotImplementedError):
                    raise error.__cause__ from None
                arrays = ", ".join(f"{name}={shown(value)}" for name, value in (case | given).items())
                said = str(error).partition(";")[0]
                raise AssertionError(f"with {arrays}\n{said}") from None

    return check


def every(*checks: Function) -> Function:
    """Return a check that makes several, one after the other."""

    def check(function: Function) -> None:
        for one in checks:
            one(function)

    return check


def require(condition: bool, sentence: str) -> None:
    """Raise an AssertionError with the sentence unless the condition holds."""
    if not condition:
        raise AssertionError(sentence)


def normal(*shape: int) -> np.ndarray:
    """Return random numbers, rounded so that they are short to print."""
    return RNG.normal(size=shape).round(1)


def spaced(*shape: int) -> np.ndarray:
    """Return different numbers in random order, all of them away from 0."""
    count = int(np.prod(shape))
    return RNG.permutation(np.arange(1, count + 1) * RNG.choice([-1, 1], count)).reshape(shape).astype(np.float64)

"""Options that several ops share."""

from collections.abc import Sequence

from xcnn.errors import UsageError, unknown, wrong_call
from xcnn.ops._formula import FORMULAS, Activation

__all__ = ["Integers", "activation"]

Integers = int | Sequence[int]


def activation(caller: str, value: str | tuple[object, ...] | None) -> Activation:
    """Return an activation with checked parameters: None, or one whose slope is a function of y, which the op keeps.

    It may be given as the name of a formula, or as a tuple of the name and the parameters that differ from the
    defaults.
    """
    if value is None:
        return None
    name, *options = value if isinstance(value, tuple) and value else (value,)
    found = FORMULAS.get(name) if isinstance(name, str) else None
    if found is None or found.keeps != "y":
        raise _not_an_activation(caller, name)
    try:
        return found.name, *found.check(caller, *options)
    except TypeError:
        wrong = wrong_call(f"{caller}: activation {name!r}", found.check, (caller, *options), {})
        if wrong is None:
            raise
        raise wrong from None


def _not_an_activation(caller: str, name: object) -> UsageError:
    known = [one for one, formula in FORMULAS.items() if formula.keeps == "y"]
    if not isinstance(name, str):
        return UsageError(
            f"{caller}: activation must be None, a name such as 'relu', or a tuple of a name and numbers, got {name!r}"
        )
    if name in FORMULAS:
        return UsageError(
            f"{caller}: activation must be one whose slope is a function of y ({', '.join(sorted(known))}), got "
            f"{name!r}; apply it to y"
        )
    return unknown(f"activation of {caller}", name, known)

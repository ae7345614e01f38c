"""The errors of xcnn. The message of each is one sentence that says how to fix the mistake."""

import contextlib
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

__all__ = [
    "CheckpointError",
    "DataError",
    "DeviceError",
    "DivergedError",
    "DtypeError",
    "Explained",
    "OutOfMemoryError",
    "ShapeError",
    "UsageError",
    "WriteError",
    "XcnnError",
    "explained",
    "making_sense",
    "printable",
    "unknown",
    "wrong_call",
]

F = TypeVar("F", bound=Callable[..., Any])

# Control characters, line ends, characters that reorder or hide the text around them, and surrogates. The two joiners
# (U+200C, U+200D) are harmless, and part of Persian words and emoji.
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    r"\U000e0000-\U000e007f]"
)


class XcnnError(Exception):
    """Base of all errors that xcnn raises."""

    exit_code = 1
    """The exit code of the command: 2 for an invalid request, 1 for a failure."""
    layer = ""
    """Dotted name of the layer in which the error was raised, with which the message begins, or ""."""
    module: object = None
    """The innermost module that is not yet part of `layer`; the module that contains it adds its name."""

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(XcnnError, ValueError):
    """An invalid argument: an unknown name, a number out of range, options that contradict each other.

    Attributes
    ----------
    setting : name of the invalid setting of a run, such as `batch_size`, or "".
    """

    exit_code = 2

    def __init__(self, *message: object, setting: str = "") -> None:
        super().__init__(*message)
        self.setting = setting


class ShapeError(XcnnError, ValueError):
    """Arrays with shapes that do not match each other or the options."""

    exit_code = 2


class DtypeError(XcnnError, TypeError):
    """An array of the wrong dtype or library, or an object that is not an array."""

    exit_code = 2


class DeviceError(XcnnError, RuntimeError):
    """A known device that cannot be used here; the message says what is missing."""

    exit_code = 2


class DataError(XcnnError, ValueError):
    """A data set that is missing, incomplete, damaged or empty."""


class CheckpointError(XcnnError, ValueError):
    """A weight file or checkpoint that is missing, damaged or of another model."""


class WriteError(XcnnError, OSError):
    """A file that cannot be written, as on a full disk or in a read-only folder; an older file is unchanged."""


class DivergedError(XcnnError, ArithmeticError):
    """Training produced a loss or gradients that are not finite."""


class OutOfMemoryError(XcnnError, MemoryError):
    """A batch that needs more memory than is available. Its memory is freed, and the process can continue."""


@contextlib.contextmanager
def making_sense(who: str, state: Any = MappingProxyType({})) -> Iterator[None]:
    """Turn any error that an invalid state causes inside a `with` into a CheckpointError that begins with `who`.

    A state that is not a mapping is one.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{who}: the state is invalid: it must be a mapping, got {type(state).__name__}")
    try:
        yield
    except XcnnError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{who}: the state is invalid: {type(error).__name__}: {error}") from None


def printable(text: str) -> str:
    r"""Return text as one line that is safe to print, with escapes for all characters that a terminal may interpret.

    These are control characters, line ends, and characters that reorder or hide the text around them. They may occur in
    names of files and classes, which may be untrusted.

    >>> print(printable("cats\x1b[2J\n"))
    cats\x1b[2J\n
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def unknown(kind: str, name: object, choices: Iterable[str], nicknames: Mapping[str, str] | None = None) -> UsageError:
    """Return the error for a name that is not in a table. It suggests the nearest one, or that of a nickname.

    >>> str(unknown("model", "lenet", ["lenet5", "report"]))
    "unknown model 'lenet'; did you mean 'lenet5'? (known: lenet5, report)"
    """
    known = sorted(choices)
    called = (nicknames or {}).get(str(name).lower())
    hint = f"; did you mean {called!r}?" if called else _nearest(name, known)
    return UsageError(f"unknown {kind} {name!r}{hint} (known: {', '.join(known)})")


def _nearest(name: object, known: list[str]) -> str:
    found = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def wrong_call(
    name: str, function: Callable[..., Any], arguments: Iterable[Any], options: Mapping[str, Any]
) -> UsageError | None:
    """Return the error for a call with arguments that a function does not take, or None if it takes them.

    The message begins with `name`. The arguments of an `__init__` include the object.

    >>> def conv(x, *, stride=1): ...
    >>> str(wrong_call("conv", conv, [1], {"strid": 2}))
    "conv: no argument 'strid'; did you mean 'stride'? (known: x, stride)"
    >>> str(wrong_call("conv", conv, [], {}))
    "conv: missing a required argument: 'x'"
    """
    try:
        signature = inspect.signature(function)
        signature.bind(*arguments, **options)
    except ValueError:  # some built-in functions have no signature
        return None
    except TypeError as error:
        said = str(error)
    else:
        return None
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [key for key, parameter in signature.parameters.items() if parameter.kind in kinds and key != "self"]
    for key in options:
        if key not in known and not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            return UsageError(f"{name}: no argument {key!r}{_nearest(key, known)} (known: {', '.join(known)})")
    return UsageError(f"{name}: {said}")


class Explained:
    """Base of classes whose constructors report a wrong argument with the class and the nearest valid argument."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = explained(cls.__init__)  # type: ignore[method-assign]


def explained(function: F) -> F:
    """Decorate a function or method so that a call with wrong arguments raises the error of `wrong_call`.

    The message begins with the function's name, or for an `__init__` with the name of the class.
    """

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except TypeError:
            name = type(arguments[0]).__name__ if function.__name__ == "__init__" else function.__name__
            wrong = wrong_call(name, function, arguments, options)
            if wrong is None:
                raise
            raise wrong from None

    return called  # type: ignore[return-value]

"""Look up names: entries of a table, or `package.module:function` for user code.

Such a name is imported only if the user passes it, never because a file contains it; see `refuse_foreign`.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from xcnn.errors import UsageError, unknown

__all__ = ["find", "is_foreign", "refuse_foreign"]


def is_foreign(name: Any) -> bool:
    """Return whether a name has the form `package.module:function`."""
    return isinstance(name, str) and ":" in name


def find(
    kind: str, name: Any, table: Mapping[str, Any], make: Callable[[str, Any], Any] = lambda name, found: found
) -> Any:
    """Return the entry of a table by its name, or the function or class that `package.module:function` names.

    The current folder is searched for the module last. A UsageError, which begins with `kind`, such as `"model"`, is
    raised if the name is unknown, the module cannot be imported, or it has no such function. `make(name, found)`
    returns the entry for what `package.module:function` names.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    if not is_foreign(name):
        raise unknown(kind, name, table)
    module, _, path = name.partition(":")
    if not all(module.split(".")):
        raise UsageError(f"{kind} {name!r}: expected package.module:function, such as nets:small for a file nets.py")
    found: Any = _imported(f"{kind} {name!r}", module)
    for part in path.split("."):
        if not hasattr(found, part):
            public = [key for key in dir(found) if callable(getattr(found, key, None)) and not key.startswith("_")]
            raise unknown(f"{kind} {name!r}: no such name in {module}:", part, public)
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{kind} {name!r}: expected a function or a class, got {type(found).__name__}")
    return make(name, found)


def refuse_foreign(source: object, **names: Any) -> None:
    """Raise a UsageError if a file names code to import; `names` are its names by argument: `model="nets:small"`."""
    foreign = {argument: name for argument, name in names.items() if is_foreign(name)}
    if foreign:
        listed = " and ".join(f"the {argument} {name!r}" for argument, name in foreign.items())
        raise UsageError(
            f"{source} names {listed}; code is never imported because a file names it; if you trust this code, "
            "name it yourself",
            setting=next(iter(foreign)) if len(foreign) == 1 else "",
        )


def _imported(what: str, module: str) -> Any:
    path = list(sys.path)
    sys.path.append("")  # the path of a command does not include the current folder
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise UsageError(f"{what}: there is no module {error.name!r} here or in an installed package") from None
        raise UsageError(f"{what}: importing {module} failed: {error}") from error
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise UsageError(f"{what}: importing {module} failed: {said}") from error
    finally:
        if sys.path == [*path, ""]:
            sys.path.pop()

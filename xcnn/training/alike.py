"""Comparing what the processes that train together have, before they begin."""

import json
from collections.abc import Callable
from typing import Any

from xcnn._array import is_array
from xcnn.errors import UsageError
from xcnn.machine import machine
from xcnn.training.processes import Processes

__all__ = ["check_alike"]

_SEED = "; draw them in all by reset_parameters of the same seed, or load the same state"
_FIXES = {"weights": _SEED, "random streams": _SEED, "state of the optimizer": "", "examples": ""}
"""What is compared by a hash, and how it becomes the same."""


def check_alike(processes: Processes, facts: dict[str, Any], tell: Callable[[str], object]) -> None:
    """Refuse to train together with processes that have something else.

    Parameters
    ----------
    processes : the processes, which all call this.
    facts : what must be the same, as JSON values by their names in errors. Of what is no JSON value and no array, such
        as a function, the type is compared. The versions of libraries are added.
    tell : called if the processors differ, as results then depend on which of them computes a part.

    Raises
    ------
    UsageError
        In all processes, with the first fact that differs.
    """
    here = machine()
    text = json.dumps({"processor": here["cpu"], "versions": here["versions"], **facts}, default=_plain)
    said = [json.loads(one) for one in processes.gather_bytes(text.encode())]
    processors = {one.pop("processor") for one in said}
    if len(processors) > 1:
        tell(f"the processes have different processors, which may round differently: {processors}")
    for rank, other in enumerate(said):
        for name, fact in said[0].items():
            if other[name] != fact:
                these = _FIXES.get(name, f": {other[name]} and {fact}")
                raise UsageError(f"fit: the processes {rank} and 0 differ in their {name}{these}")


def _plain(value: Any) -> Any:
    """Return a value for JSON. The text of an object may hold its address, which differs among processes."""
    return value.tolist() if is_array(value) else type(value).__name__

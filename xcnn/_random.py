"""The state of a random stream as plain data, so that a run can go on with the very numbers that were to come."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from xcnn.errors import CheckpointError

__all__ = ["load_stream", "stream_state"]


def stream_state(generator: np.random.Generator) -> dict[str, Any]:
    """Return the state of a generator: a dict of numbers, strings and, for some kinds, arrays."""
    return dict(generator.bit_generator.state)


def load_stream(generator: np.random.Generator, state: Any, name: str) -> None:
    """Bring a generator to a state of `stream_state`; `name` opens the error.

    Raises
    ------
    CheckpointError
        For a state of another kind of generator, or of none.
    """
    try:
        if not isinstance(state, Mapping):
            raise TypeError("it is no dict")
        generator.bit_generator.state = dict(state)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        kind = type(generator.bit_generator).__name__
        raise CheckpointError(f"{name}: the state of the random stream is none of {kind} ({error})") from None

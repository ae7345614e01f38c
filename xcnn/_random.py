"""The state of a random generator as plain data, so that a resumed run continues its numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from xcnn.errors import CheckpointError

__all__ = ["load_stream", "stream_state"]


def stream_state(generator: np.random.Generator) -> dict[str, Any]:
    """Return the state of a generator: a dict of numbers, strings and, for some bit generators, arrays."""
    return dict(generator.bit_generator.state)


def load_stream(generator: np.random.Generator, state: Any, name: str) -> None:
    """Set a generator to a state that `stream_state` returned; error messages begin with `name`.

    Raises
    ------
    CheckpointError
        If the state is not one of this kind of generator.
    """
    try:
        if not isinstance(state, Mapping):
            raise TypeError("it is not a dict")
        generator.bit_generator.state = dict(state)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        kind = type(generator.bit_generator).__name__
        raise CheckpointError(f"{name}: the state of the random stream is not one of {kind} ({error})") from None

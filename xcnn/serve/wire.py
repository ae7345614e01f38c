"""Answers with arrays: a JSON header and after it the numbers, as the page reads them without parsing text."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["finite", "pack", "unpack"]


def pack(header: Mapping[str, Any], arrays: Sequence[tuple[Mapping[str, Any], npt.NDArray[Any]]]) -> bytes:
    """Return an answer: the length of the header as uint32, the header, and the arrays as float32, little-endian.

    Parameters
    ----------
    header : JSON values; floats that are not finite become null.
    arrays : what each array is, and the array. The header lists them under "arrays", each with its `shape`, in the
        order in which their numbers follow. Spaces after the JSON let them begin at a multiple of four bytes.
    """
    rows = [{**what, "shape": list(array.shape)} for what, array in arrays]
    text = json.dumps(finite({**header, "arrays": rows}), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    numbers = [np.ascontiguousarray(array, dtype="<f4").tobytes() for _, array in arrays]
    return b"".join((len(text).to_bytes(4, "little"), text, *numbers))


def unpack(answer: bytes) -> tuple[dict[str, Any], list[npt.NDArray[np.float32]]]:
    """Return the header and the arrays of an answer.

    >>> header, (array,) = unpack(pack({"step": 1}, [({"kind": "x"}, np.zeros((1, 2)))]))
    >>> header["step"], header["arrays"], array
    (1, [{'kind': 'x', 'shape': [1, 2]}], array([[0., 0.]], dtype=float32))
    """
    at = 4 + int.from_bytes(answer[:4], "little")
    header = json.loads(answer[4:at])
    arrays = []
    for row in header["arrays"]:
        count = math.prod(row["shape"])
        arrays.append(np.frombuffer(answer, "<f4", count, at).reshape(row["shape"]))
        at += 4 * count
    return header, arrays


def finite(value: Any) -> Any:
    """Return JSON values in which floats that are not finite, which JSON does not have, are None."""
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

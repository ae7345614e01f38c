"""Findings: the errors of a comparison, with their places."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from xcnn.compare.budget import Error

__all__ = ["Finding", "nearest"]

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Finding:
    """The error of one tensor, and where it was found.

    Attributes
    ----------
    place : name of the layer or op.
    what : class of the layer, or sample of the op.
    op : name of the op whose budget applies.
    device : name of the device.
    dtype : dtype under test.
    error : the error.
    """

    place: str
    what: str
    op: str
    device: str
    dtype: str
    error: Error

    def __str__(self) -> str:
        e = self.error
        place = f"{self.place} ({self.what}) {e.tensor} on {self.device} in {self.dtype}"
        return f"{place}: {e.units:.2f} units of at most {e.bound:.1f}, {e.ulp:.0f} ULP"


def nearest(
    findings: Iterable[Finding], row: Callable[[Finding], _Key], column: Callable[[Finding], str]
) -> dict[_Key, dict[str, Finding]]:
    """Return the finding with the largest share of its budget by row and column."""
    table: dict[_Key, dict[str, Finding]] = {}
    for finding in findings:
        cells = table.setdefault(row(finding), {})
        best = cells.setdefault(column(finding), finding)
        if finding.error.share > best.error.share:
            cells[column(finding)] = finding
    return table

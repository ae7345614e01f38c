"""Findings as a Markdown document, such as `docs/budgets.md`."""

import platform
from collections.abc import Sequence

import numpy as np

from xcnn.compare.budget import Error, budget
from xcnn.compare.finding import Finding, nearest
from xcnn.compare.inference import NETWORK, Runtime
from xcnn.devices import Device

__all__ = ["line", "markdown"]

_ABOUT = """\
Written by

    {command}

Errors depend on the machine and the versions; the budgets are those of `xcnn/compare/budget.py`.

Each cell holds the error that is nearest to its bound, the bound, and in parentheses the error in ULP (spacings of
floating-point numbers; large where terms cancel). The unit of error and bound is |error| / (eps S), where eps is the
machine epsilon of the dtype, and S is the size of what was rounded: for a sum, the sum of the magnitudes of its terms.
Errors and S are computed with a reference in a wider dtype. K is the number of terms that an element sums.
"""


def markdown(findings: Sequence[Finding], devices: Sequence[Device | Runtime], title: str, command: str) -> str:
    """Return a document with the devices, whether all errors are within their budgets, and a table per dtype.

    Parameters
    ----------
    findings : findings of one comparison; at least one.
    devices : the devices that were compared.
    title : title of the document.
    command : the command that writes the document.
    """
    lines = [f"# {title}", "", _ABOUT.format(command=command), *_run(devices), "", *_verdict(findings)]
    for dtype in dict.fromkeys(f.dtype for f in findings):
        lines += ["", f"## {dtype}", "", *_table([f for f in findings if f.dtype == dtype])]
    return "\n".join(lines) + "\n"


def _run(devices: Sequence[Device | Runtime]) -> list[str]:
    """Return lines with the versions of the libraries and the kind of processor."""
    simd = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    kind = ", ".join([platform.machine(), *simd[-1:]])
    return [
        *(f"- `{device.name}`: {device.summary}" for device in devices),
        f"- Python {platform.python_version()}, {platform.system()}, processor: {kind}",
    ]


def _verdict(findings: Sequence[Finding]) -> list[str]:
    over = sorted((f for f in findings if not f.error.within), key=lambda f: -f.error.share)
    if over:
        return [f"**{len(over)} of {len(findings)} errors exceed their budgets:**", "", *(f"- {f}" for f in over)]
    most = max(f.error.share for f in findings)
    return [f"**All {len(findings)} errors are within their budgets; the largest takes {most:.0%} of its own.**"]


def _table(findings: Sequence[Finding]) -> list[str]:
    places = any(f.place != f.op for f in findings)  # of a network
    rows = nearest(findings, lambda f: (f.place, f.op, f.error.tensor), lambda f: f.device)
    names = list(dict.fromkeys(f.device for f in findings))
    lines = [line([*(["layer"] if places else []), "op", "tensor", "budget", *names])]
    lines.append("|" + "---|" * (lines[0].count("|") - 1))
    for (place, op, tensor), cells in rows.items():
        measured = (_cell(cells[name].error) if name in cells else "-" for name in names)
        bound = "100 + 10 NumPy" if op == NETWORK else str(budget(op))
        lines.append(line([*([place] if places else []), op, f"`{tensor}`", bound, *measured]))
    return lines


def _cell(error: Error) -> str:
    return str(error) if error.within else f"**{error}**"


def line(cells: Sequence[str]) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cells)} |"

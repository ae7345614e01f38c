"""`xcnn devices`."""

from typing import Annotated

from cyclopts import Parameter

from xcnn.cli._console import print_json, print_table
from xcnn.device import Device
from xcnn.device import devices as try_devices

__all__ = ["devices"]


def devices(*, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Show which array libraries and devices can be used here; for each that cannot: why, and the mend.

    Parameters
    ----------
    json
        print JSON lines on stdout.
    """
    rows = []
    for name, found in try_devices().items():
        usable = isinstance(found, Device)
        text = found.summary if isinstance(found, Device) else str(found).removeprefix(f"{name}: ")
        if json:
            print_json({"device": name, "usable": usable, "detail": text})
        rows.append((name, "yes" if usable else "no", text))
    if not json:
        print_table("device", "usable", "what it is, or what is missing", rows=rows)
    return 0

"""`xcnn devices`."""

import dataclasses
from typing import Annotated

from cyclopts import Parameter

from xcnn._cuda import ABILITIES
from xcnn.cli._console import print_json, print_table
from xcnn.devices import Device, Gpu, gpus
from xcnn.devices import devices as try_devices
from xcnn.parallel import mpi_status

__all__ = ["devices"]


def devices(*, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """List the array libraries and devices, whether each can be used here, and if not, the reason and the remedy.

    The GPUs follow, with their properties and which of their abilities work, and MPI, over which several processes
    train together: its library, and the launchers.

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
    found_gpus = gpus()
    if json:
        for gpu in found_gpus:
            print_json(_record(gpu))
        print_json({"processes": "mpi", **mpi_status()})
        return 0
    print_table("device", "usable", "description, or what is missing", rows=rows)
    if found_gpus:
        facts = ("GPU", "name", "compute capability", "driver", "toolkit", "memory free")
        print_table(*facts, rows=[_facts(gpu) for gpu in found_gpus], gap=True)
        abilities = [ability.words for ability in ABILITIES.values()]
        print_table("GPU", "usable", *abilities, rows=[_abilities(gpu) for gpu in found_gpus], gap=True)
    print_table("processes", "usable", "description, or what is missing", rows=[_mpi()], gap=True)
    return 0


def _record(gpu: Gpu) -> dict[str, object]:
    """Return the JSON object of a GPU: `abilities` are true or false, and `faults` has the reasons of those false."""
    abilities = {name: not fault for name, fault in gpu.faults.items()}
    faults = {name: fault for name, fault in gpu.faults.items() if fault}
    return dataclasses.asdict(gpu) | {"usable": gpu.usable, "abilities": abilities, "faults": faults}


def _facts(gpu: Gpu) -> tuple[str, ...]:
    memory = "-"
    if gpu.memory_free is not None and gpu.memory_total is not None:
        memory = f"{gpu.memory_free / 2**30:.1f} of {gpu.memory_total / 2**30:.1f} GiB"
    driver, toolkit = f"CUDA {gpu.driver or '-'}", f"CUDA {gpu.runtime or '-'}, NVRTC {gpu.nvrtc or '-'}"
    return gpu.device, gpu.name or "-", gpu.compute_capability or "-", driver, toolkit, memory


def _abilities(gpu: Gpu) -> tuple[str, ...]:
    return gpu.device, "yes" if gpu.usable else "no", *(fault or "works" for fault in gpu.faults.values())


def _mpi() -> tuple[str, ...]:
    found = mpi_status()
    start = "there is no mpiexec in the PATH"
    if found["launcher"]:
        start = f"process {found['rank']} of {found['size'] or 'several'} of {found['launcher']}"
    elif found["mpiexec"]:
        start = f"start with {found['mpiexec']} -n 2 xcnn train ..."
    return "mpi", "yes" if found["usable"] else "no", found["detail"] + (f"; {start}" if found["usable"] else "")

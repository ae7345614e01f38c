"""Several processes: MPI, and NCCL for GPUs, as the `parallel` of a trainer."""

from xcnn.parallel.failure import fail
from xcnn.parallel.launch import Launch, launch, launch_command, mpi_status
from xcnn.parallel.mpi import MPI, processes
from xcnn.parallel.nccl import NCCL, device_of, with_gpus

__all__ = [
    "MPI",
    "NCCL",
    "Launch",
    "device_of",
    "fail",
    "launch",
    "launch_command",
    "mpi_status",
    "processes",
    "with_gpus",
]

"""Several processes: MPI, and NCCL for GPUs, as the `parallel` of a trainer."""

from xcnn.parallel.failure import fail
from xcnn.parallel.launch import Launch, launch, launch_command, mpi_status
from xcnn.parallel.mpi import MPI, processes

__all__ = ["MPI", "Launch", "fail", "launch", "launch_command", "mpi_status", "processes"]

"""Several processes: MPI, and NCCL for GPUs, as the `parallel` of a trainer."""

__all__: list[str] = []

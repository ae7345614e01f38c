"""Faster code for one array library each. A room here is loaded by `xcnn/_dispatch.py`, and by nothing else."""

__all__: list[str] = []

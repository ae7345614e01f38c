"""Read tables that `_grids.pack` wrote."""

from xcnn.kernels.cpu._compile import compiled

__all__ = ["array"]


@compiled
def array(tables, i):
    """Return array i."""
    at = 1 + tables[0] + i
    return tables[tables[at] : tables[at + 1]]

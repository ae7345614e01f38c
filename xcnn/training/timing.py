"""The clock that training is timed with."""

from xcnn._dispatch import COMPILATION

__all__ = ["clock"]


def clock() -> float:
    """Return the time in seconds since an arbitrary start. The clock stands still while kernels are compiled.

    Compiling happens once on a machine, at the first call of each kernel, and says nothing about the speed of training.
    """
    return COMPILATION.clock()

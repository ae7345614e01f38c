"""The clock that training is timed by."""

from xcnn._dispatch import COMPILATION

__all__ = ["clock"]


def clock() -> float:
    """Return the time in seconds, from some beginning; it stands still while kernels are compiled.

    Compiling happens once on a machine, at the first call of each kernel, and says nothing of the speed of training.
    """
    return COMPILATION.clock()

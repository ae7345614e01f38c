"""The time for which exchanges between processes are under way."""

import time
from collections.abc import Sequence
from typing import Any, NoReturn

from xcnn.training.processes import Done, Message, Processes

__all__ = ["Metered"]


class Metered(Processes):
    """Processes whose exchanges are timed.

    Attributes
    ----------
    under_way : seconds for which at least one was under way, as far as this process has asked.
    """

    def __init__(self, inner: Processes) -> None:
        self.rank, self.size = inner.rank, inner.size
        self.under_way = 0.0
        self._inner, self._count, self._since = inner, 0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)  # what only a kind of processes has

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message], tag: int = 0) -> Done:
        """Begin an exchange; see `Processes.exchange`."""
        if not self._count:
            self._since = time.perf_counter()
        self._count += 1
        done, ended = self._inner.exchange(sends, receives, tag), False

        def asked() -> bool:
            nonlocal ended
            if not ended and done():
                ended = True
                self._count -= 1
                if not self._count:
                    self.under_way += time.perf_counter() - self._since
            return ended

        return asked

    def abort(self, code: int) -> NoReturn:
        """End all processes at once."""
        self._inner.abort(code)

    def wait(self, done: Done) -> None:
        """Wait until an exchange has ended."""
        self._inner.wait(done)
        self.waited = self._inner.waited

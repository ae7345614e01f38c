"""ONNX Runtime on the CPU: the network exported once, with all optimisations of the graph; inference only.

Its threads do not spin while they wait: they would disturb the turns of the others.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from xcnn import nn, onnx
from xcnn.compare.case import Case
from xcnn.compare.contestants import Passes, Step

__all__ = ["alone", "opened"]


@contextlib.contextmanager
def opened(case: Case, device: str, way: str) -> Iterator[Step]:
    """Yield the inference of ONNX Runtime, in a way of `PEERS`."""
    x, _ = case.arrays()
    session = _session(case, way, case.network(), case.shape)
    yield lambda: session(x)


def _session(case: Case, way: str, network: nn.Module, shape: Any) -> onnx.Session:
    threads = 1 if way.endswith("1 thread") else case.threads
    return onnx.Session(onnx.to_model(network, shape), threads, spins=False)


def alone(case: Case, device: str, way: str, module: nn.Module, x: Any, wanted: Sequence[bool]) -> Passes:
    """Return the inference of a part of the network; see `contestants`."""
    several = isinstance(x, tuple)
    session = _session(case, way, module, tuple(one.shape[1:] for one in x) if several else x.shape[1:])
    return Passes(lambda: session(*(x if several else (x,))), lambda y, dy: None, lambda dy: dy, (), lambda: None)

"""ONNX Runtime on the CPU: the network exported once, with all optimisations of the graph; inference only.

Its threads do not spin while they wait: they would disturb the turns of the others.
"""

import contextlib
from collections.abc import Iterator

from xcnn import onnx
from xcnn.compare.case import Case
from xcnn.compare.contestants import Step

__all__ = ["opened"]


@contextlib.contextmanager
def opened(case: Case, device: str, way: str) -> Iterator[Step]:
    """Yield the inference of ONNX Runtime, in a way of `PEERS`."""
    x, _ = case.arrays()
    threads = 1 if way.endswith("1 thread") else case.threads
    session = onnx.Session(onnx.to_model(case.network(), case.shape), threads, spins=False)
    yield lambda: session(x)

"""No body of a usual network runs portably unnoticed."""

import numpy as np
import pytest
from portable_calls import portable_calls, recorded

from xcnn import ops
from xcnn._dispatch import kernels

pytest.importorskip("llvmlite")


def test_networks_run_portable_code_only_where_that_is_known():
    found, _ = portable_calls(seed=0, count=60, batch=2)
    assert {name: one.calls for (name, known), one in found.items() if not known} == {}


def test_a_call_that_no_kernel_takes_is_recorded():
    before = {name: list(some) for name, some in kernels(np).items()}
    x, y = np.ones((2, 3), np.float16), np.ones((2, 3), np.float32)
    with recorded() as found:
        ops.relu(y)
        assert not found
        ops.relu(x)
        ops.flatten(y)
    assert [*found] == [("elementwise", False), ("reshape", True)]
    assert {*found["elementwise", False].calls} == {"float16[2, 3], ('relu')"}
    assert kernels(np) == before

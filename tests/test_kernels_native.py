"""Functions that are written as instructions: their arguments, their results, and calls of one by another."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from xcnn.kernels.cpu._integers import Integer
from xcnn.kernels.cpu._native import address, native
from xcnn.kernels.cpu._vectors import DOUBLE, INT


def weigh(emit: Any, x: Any, i: Any, d: Any, u: Any, maybe: Any, n: Any, f: Any) -> None:
    """Write `x[n] += i[n] + d[n] * f + u[n]`, plus `maybe[n]` if it is given; return n + 1, or n without `maybe`."""
    builder = emit.builder
    integer, double, byte, number = (builder.load(builder.gep(pointer, [n])) for pointer in (i, d, u, x))
    total = builder.fadd(builder.sitofp(integer, DOUBLE), builder.fmul(double, f))
    total = builder.fadd(total, builder.uitofp(byte, DOUBLE))
    builder.store(builder.fadd(number, emit.number(total)), builder.gep(x, [n]))
    given = builder.icmp_unsigned("!=", builder.ptrtoint(maybe, INT), INT(0))
    with builder.if_then(given):
        place = builder.gep(x, [n])
        builder.store(builder.fadd(builder.load(place), builder.load(builder.gep(maybe, [n]))), place)
    builder.ret(builder.add(n, builder.zext(given, INT)))


KINDS = "n:xiduXnf"


@pytest.mark.parametrize("itemsize", [4, 8])
def test_arguments_and_result(itemsize: int) -> None:
    call = native(KINDS)(weigh)(itemsize)
    x, maybe = np.zeros(3, f"f{itemsize}"), np.full(3, 1000, f"f{itemsize}")
    others = np.array([-1, -2, 3]), np.array([0.5, 0.25, 1.0]), np.array([0, 1, 200], np.uint8)
    for array in (*others, maybe):
        array.flags.writeable = False
    assert call(x, *others, maybe, 2, 4.0) == 3
    assert call(x, *others, None, 1, 4.0) == 1
    np.testing.assert_array_equal(x, [0, -2 + 1 + 1, 3 + 4 + 200 + 1000])


def test_a_function_calls_another_by_its_address() -> None:
    inner = native(KINDS)(weigh)

    @native("nxid")
    def outer(emit: Any, place: Any, x: Any, i: Any, d: Any) -> None:
        count = inner.write(emit, place, x, i, d, i, x, Integer(emit.builder, 1), DOUBLE(2))
        again = inner.write(emit, place, x, i, d, i, x, 0, DOUBLE(2))
        emit.builder.store(emit.builder.add(count, again), i)

    x, i, d = np.array([1.0, 2.0], np.float32), np.array([10, 20]), np.array([0.5, 1.5])
    outer(4)(inner.address(4), x, i, d)
    assert i[0] == 3
    assert x.tolist() == [2 * (1 + 10 + 1 + 10), 2 * (2 + 20 + 3)]
    assert address(x) == x.ctypes.data


def test_arguments_that_are_no_numbers_are_refused() -> None:
    call = native(KINDS)(weigh)(4)
    x, d, u = np.zeros(3, np.float32), np.ones(3), np.ones(3, np.uint8)
    for arguments in ((1,), (None, 1.0), (1, "1")):
        with pytest.raises(TypeError):
            call(x, np.arange(3), d, u, None, *arguments)
    assert not x.any()


def test_without_compiled_kernels_where_arrays_have_another_layout() -> None:
    program = """
import sys
sys.implementation.name = "another"
import numpy as np
from xcnn import ops
y, backward = ops.conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)))
print(y.sum(), "xcnn.kernels.cpu.pool" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["16.0", "False"]
    assert "compiled kernels cannot be used" in found.stderr

"""One random call of every body with a kernel, between guard pages; `nox -s kernels` makes thousands."""

import sys

import pytest
from kernel_calls import CALLS
from test_kernels_processes import run

from xcnn._dispatch import kernels

pytest.importorskip("llvmlite")

import numpy as np

NOT_HERE = {"adam", "each", "recorded", "rmsprop", "sgd"}
"""Optimizers, which have the bits of the portable code (tests/test_kernels_optim.py), and what computes nothing."""


def test_every_body_with_a_kernel_is_called() -> None:
    assert {*CALLS} == {*kernels(np)} - NOT_HERE


@pytest.mark.skipif(sys.platform != "linux", reason="forbids pages by mprotect")
def test_random_calls_agree_with_the_portable_code() -> None:
    run("from fuzz_kernels import *; from kernel_calls import CALLS; assert not work([*CALLS], 7, 8)")

"""Kernels in separate processes: without llvmlite, and after a fork."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xcnn import Trainer, models, ops, optim
from xcnn._dispatch import portable


def run(code: str, *arguments: str) -> str:
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def results() -> dict[str, np.ndarray]:
    """Return the results of a convolution, forward and backward, and of one training step."""
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in [(70, 3, 14, 14), (5, 3, 3, 3), (5,)])
    y, backward = ops.conv2d(x, w, b, 1, 1, activation="relu")
    model = models.build("lenet5", seed=1)
    trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.1))
    loss = trainer.step(rng.random((40, 1, 28, 28), np.float32), rng.integers(0, 10, 40))
    gradients = dict(zip(("dx", "dw", "db"), backward(np.ones_like(y)), strict=True))
    return {"y": y, "loss": np.array(loss), **gradients, **model.state_dict()}


def test_all_works_without_llvmlite(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["llvmlite"] = None
import numpy as np
from test_kernels_processes import results
from xcnn._dispatch import kernels
assert kernels(np)["conv"][0].__module__ == "xcnn.kernels.cpu.columns"
np.savez(sys.argv[1], **results())
"""
    file = tmp_path / "columns.npz"
    run(code, str(file))
    with portable(np):
        wanted = results()
    with np.load(file, allow_pickle=False) as actual:
        assert set(actual) == set(wanted)
        for name in wanted:
            size = max(1.0, float(np.max(np.abs(wanted[name]))))
            np.testing.assert_allclose(actual[name], wanted[name], rtol=0, atol=2e-5 * size)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_kernels_work_after_a_fork() -> None:
    code = """
import os, warnings
import numpy as np
from test_kernels_processes import results
from xcnn.threads import set_num_threads
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork beside threads
set_num_threads(3)
wanted = results()
for again in range(3):
    if not (child := os.fork()):
        if again == 2:
            set_num_threads(2)
        right = all(np.array_equal(a, wanted[name]) for name, a in results().items())
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(np.array_equal(a, wanted[name]) for name, a in results().items())
"""
    run(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_compiles_that_was_forked_while_a_thread_compiled() -> None:
    pytest.importorskip("llvmlite")
    code = """
import os, signal, threading, time, warnings
from xcnn.kernels.cpu import _native
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork beside threads
compile, begun = _native._compiled, threading.Event()
_native._read = lambda name: None
_native._compiled = lambda *arguments: begun.set() or time.sleep(0.2) or compile(*arguments)
square = _native.native("n:n")(lambda emit, n: emit.builder.ret(emit.builder.mul(n, n)))
other = threading.Thread(target=square, args=(8,))
other.start()
begun.wait()
if not (child := os.fork()):
    signal.alarm(30)
    os._exit(square(8)(3) != 9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
other.join()
"""
    run(code)

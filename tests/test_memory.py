"""Memory: hundreds of steps leave nothing allocated, and the system gets back the large arrays that are freed.

These tests count live allocations, which do not depend on other programs; `soak.py` checks the resident memory over
20,000 steps in `nox -s endurance`.
"""

import sys

import pytest
from test_kernels_processes import run

STEPS = """
import gc, tracemalloc
import numpy as np
from xcnn import Trainer, data, models, optim
{0}
rng = np.random.default_rng(0)
images = data.from_arrays(rng.integers(0, 256, (16 * 50, 1, 28, 28), np.uint8), rng.integers(0, 10, 16 * 50))
model = models.build("lenet5", seed=0)
trainer = Trainer(model, optim.Adam(model.parameters(), lr=1e-3))

def alive():
    gc.collect()
    return tracemalloc.get_traced_memory()[0]

loader = data.Loader(images, 16, augment=[data.shift])
tracemalloc.start()
trainer.fit(loader, 5)
before = alive()
trainer.fit(loader, 4)
after = alive()
print((after - before) / 200)
"""


def test_hundreds_of_steps_leave_nothing_alive() -> None:
    per_step = run(STEPS.format(""))
    # Bytes per step: 6 to 33 of them after the first epochs, in which the histories and NumPy's own lists of freed
    # memory fill up (60 to 100). An array, even an empty one, takes 112.
    assert float(per_step) < 100


def test_a_small_array_that_is_kept_by_every_step_is_found() -> None:
    leak = """
from xcnn import nn
kept = []
def forward(self, x, forward=nn.Sequential.forward, **how):
    kept.append(np.empty(100))
    return forward(self, x, **how)
nn.Sequential.forward = forward
"""
    per_step = run(STEPS.format(leak))
    assert float(per_step) > 800


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
def test_arrays_are_kept_for_the_next_one_and_large_ones_are_returned() -> None:
    code = """
import resource
import numpy as np
from xcnn import ops

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

ops.relu(np.ones(16, np.float32))
np.ones(20 << 20, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(20 << 20, np.uint8)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = resident()
arrays = [np.ones(100 << 20, np.uint8) for _ in range(5)]
grown = resident() - before
del arrays
left = resident() - before
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(20 << 20, np.uint8) for _ in range(10)]
    del arrays
print(faults, grown >> 20, left >> 20, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults, grown, left, again = map(int, run(code).split())
    assert again < 1000, "200 MiB have 51,200 pages"
    assert faults < 100, "an array of 20 MiB has up to 5,120 pages, each of which costs a fault where it is fresh"
    assert grown > 450
    assert left < 32

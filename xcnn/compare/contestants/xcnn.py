"""xcnn itself, as its users run it: `Trainer.step`, and what `evaluate` and `predict` do with a batch."""

import contextlib
from collections.abc import Iterator

from xcnn._dispatch import kernels
from xcnn.compare.case import MOMENTUM, Case
from xcnn.compare.contestants import Step
from xcnn.devices import device as open_device
from xcnn.optim import SGD
from xcnn.threads import get_num_threads, one_blas_thread, set_num_threads
from xcnn.training import Trainer
from xcnn.training.inference import place

__all__ = ["opened", "ready", "stepper"]


@contextlib.contextmanager
def opened(case: Case, device: str, way: str) -> Iterator[Step]:
    """Give the step of xcnn on a device, in its one way."""
    with ready(case, device) as training:
        yield stepper(case, training)


@contextlib.contextmanager
def ready(case: Case, device: str) -> Iterator[Trainer]:
    """Give a trainer on a device, which is active, threads set as in `fit`."""
    model = case.network()
    training = Trainer(model, SGD(model.parameters(), lr=case.lr, momentum=MOMENTUM), device=open_device(device))
    kernels(training.device.xp)  # as a peer's library is: imported, its code not yet loaded
    threads = get_num_threads()
    set_num_threads(case.threads)
    try:
        with one_blas_thread(), training.device.active():
            yield training
    finally:
        set_num_threads(threads)


def stepper(case: Case, training: Trainer) -> Step:
    """Give the function that does one step, on a batch that lies on the device."""
    where, model = training.device, training.model
    x, y = (place(array, where) for array in case.arrays())
    if case.mode == "train":
        return lambda: training.step(x, y)
    return lambda: where.to_numpy(model(x))

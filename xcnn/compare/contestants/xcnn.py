"""xcnn itself, as its users run it: `Trainer.step`, and what `evaluate` and `predict` do with a batch."""

import contextlib
from collections.abc import Iterator

from xcnn.compare.case import MOMENTUM, Case
from xcnn.compare.contestants import Step
from xcnn.device import device
from xcnn.optim import SGD
from xcnn.threads import get_num_threads, one_blas_thread, set_num_threads
from xcnn.training import Trainer
from xcnn.training.inference import place

__all__ = ["opened", "ready", "stepper"]


@contextlib.contextmanager
def opened(case: Case, variant: str) -> Iterator[Step]:
    """Give the step of xcnn on the device `variant`."""
    with ready(case, variant) as training:
        yield stepper(case, training)


@contextlib.contextmanager
def ready(case: Case, variant: str) -> Iterator[Trainer]:
    """Give a trainer on the device `variant`, threads set as in `fit`."""
    model = case.network()
    training = Trainer(model, SGD(model.parameters(), lr=case.lr, momentum=MOMENTUM), device=device(variant))
    threads = get_num_threads()
    set_num_threads(case.threads)
    try:
        with one_blas_thread():
            yield training
    finally:
        set_num_threads(threads)


def stepper(case: Case, training: Trainer) -> Step:
    """Give the function that does one step."""
    x, y = case.arrays()
    where, model = training.device, training.model
    if case.mode == "train":
        return lambda: training.step(x, y)
    return lambda: where.to_numpy(model(place(x, where)))

"""xcnn itself, as its users run it: `Trainer.step`, and what `evaluate` and `predict` do with a batch."""

import contextlib
from collections.abc import Iterator

from xcnn.compare.case import Case
from xcnn.compare.contestants import Step
from xcnn.compare.steps import trainer
from xcnn.device import device, one_blas_thread
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
    training = trainer(case.network(), device(variant), "float32")
    with one_blas_thread():
        yield training


def stepper(case: Case, training: Trainer) -> Step:
    """Give the function that does one step."""
    x, y = case.arrays()
    where, model = training.device, training.model
    if case.mode == "train":
        return lambda: training.step(x, y)
    return lambda: where.to_numpy(model(place(x, where)))

"""xcnn as users run it: `Trainer.step` for training, and the forward pass of `evaluate` and `predict`.

Several processes train over MPI, with a part of the batch each: `accumulate` is their number.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

from xcnn import nn
from xcnn._dispatch import kernels
from xcnn.compare.case import MOMENTUM, Case
from xcnn.compare.contestants import Group, Passes, Step
from xcnn.compare.traffic import Metered
from xcnn.devices import device as open_device
from xcnn.optim import SGD
from xcnn.threads import get_num_threads, set_num_threads
from xcnn.training import Trainer
from xcnn.training.feed import place

__all__ = ["alone", "opened", "ready", "stepper", "updating"]


@contextlib.contextmanager
def opened(case: Case, device: str, way: str, group: Group | None = None) -> Iterator[Step]:
    """Yield the step of xcnn on a device; `way` is not used."""
    with ready(case, device, group) as training:
        yield stepper(case, training)


@contextlib.contextmanager
def ready(case: Case, device: str, group: Group | None = None) -> Iterator[Trainer]:
    """Yield a trainer with the threads of the case, on its device, which is active."""
    model, where, together = case.network(), open_device(device), None
    if group is not None:
        from xcnn.parallel import processes

        together = group.traffic = Metered(processes())
    training = Trainer(model, SGD(model.parameters(), lr=case.lr, momentum=MOMENTUM), device=where, parallel=together)
    kernels(training.device.xp)  # imports the kernels, as the libraries of peers are imported, but compiles nothing
    threads = get_num_threads()
    set_num_threads(case.threads)
    try:
        with training.device.active():
            yield training
    finally:
        set_num_threads(threads)


def stepper(case: Case, training: Trainer) -> Step:
    """Return the function that runs a step on a batch on the device."""
    where, model = training.device, training.model
    x, y = (place(array, where) for array in case.arrays())
    if case.mode == "train":
        return lambda: training.step(x, y)
    return lambda: where.to_numpy(model(x))


def alone(case: Case, device: str, way: str, module: nn.Module, x: Any, wanted: Sequence[bool]) -> Passes:
    """Return the passes of a part of the network; see `contestants`."""
    where = open_device(device)
    model = copy.deepcopy(module).to(where)
    parameters = list(model.parameters())
    if isinstance(x, tuple):
        x = tuple(place(one, where) for one in x)
    else:
        x, model = place(x, where), nn.Sequential(model)  # a layer by itself makes all checks at each call
    run, need_dx = (lambda: model.forward(x, True)) if case.mode == "train" else (lambda: model(x)), any(wanted)
    return Passes(run, lambda y, dy: y[1](dy, need_dx), lambda dy: place(dy, where), parameters, model.zero_grad)


def updating(case: Case, parameters: Sequence[Any]) -> Step:
    """Return the update of parameters."""
    return SGD(parameters, lr=case.lr, momentum=MOMENTUM).step

"""`EMA`: a callback that averages the weights over the steps of training."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from xcnn._array import Array, is_kind, namespace_of
from xcnn._check import number
from xcnn.devices import like, to_numpy
from xcnn.errors import CheckpointError
from xcnn.nn import Module
from xcnn.parameter import Buffer, Parameter
from xcnn.training.evaluation import Metrics
from xcnn.training.state import count
from xcnn.training.trainer import Callback, Trainer

__all__ = ["EMA"]


class EMA(Callback):
    """Keep an exponential moving average of the weights, which evaluation and saving use instead of the last weights.

    After step t the average is moved towards the weights by a share of `1 - min(decay, (1 + t) / (10 + t))`. The
    second term is the warm-up of TensorFlow's `ExponentialMovingAverage(num_updates=t)`: without it, the average would
    stay near the initial weights for `1 / (1 - decay)` steps. Running statistics are averaged in the same way.

    The average goes on in the next `fit`. It begins anew with another network, and with a trainer that has not trained
    yet. If other weights were loaded into the model in between, call `reset` first. Validation in `fit`,
    `Trainer.evaluate`, `Trainer.predict` and `KeepBest` use the average, the training itself does not. To save it, use
    `Trainer.inference_weights`.

    Parameters
    ----------
    decay : the share of the old average that a step keeps, from 0 to below 1.

    Attributes
    ----------
    updates : the number of steps averaged.

    References
    ----------
    B. T. Polyak, A. B. Juditsky, Acceleration of stochastic approximation by averaging, 1992.

    Examples
    --------
    >>> from xcnn import data, models, optim
    >>> train, test = data.load("digits")
    >>> model = models.build("report", train.shape, 10, seed=0)
    >>> trainer = Trainer(model, optim.Adam(model.parameters()), callbacks=[EMA(0.99)])
    >>> history = trainer.fit(train)
    >>> with trainer.inference_weights():
    ...     averaged = model.state_dict()
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay, self.updates = number("EMA", "decay", decay, "[0, 1)"), 0
        self._average: dict[str, Array] = {}
        self._loaded: dict[str, np.ndarray] = {}  # as long as no trainer says to which device it belongs
        self._model: Module | None = None  # of which it is the average

    def on_fit_start(self, trainer: Trainer, batches: int | None, epochs: int) -> None:
        """Begin with the current weights, or go on from a loaded average."""
        if not self._loaded and (trainer.model is not self._model or not trainer.steps):
            self.reset()  # the average is that of another trainer
        self._place(trainer)
        if not self._average:
            self._model = trainer.model
            for name, slot in self._slots(trainer).items():
                self._average[name] = namespace_of(slot.data).asarray(slot.data, copy=True)

    def on_batch_end(self, trainer: Trainer, epoch: int, batch: int, metrics: Metrics) -> None:
        """Move the average towards the weights."""
        self.updates += 1
        share = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, slot in self._slots(trainer).items():
            xp, average = namespace_of(slot.data), self._average[name]
            if not is_kind(xp, average.dtype, "real floating"):
                self._average[name] = xp.asarray(slot.data, copy=True)
                continue
            change = slot.data - average  # 0 for frozen weights, whose average keeps every bit
            change *= share
            average += change
            self._average[name] = average  # a new array if those of the library are immutable

    def exchange_weights(self, trainer: Trainer) -> None:
        """Exchange the arrays of the model with those of the average."""
        self._place(trainer)
        if self._average and trainer.model is self._model:
            for name, slot in self._slots(trainer).items():
                slot.data, self._average[name] = self._average[name], slot.data

    def reset(self) -> None:
        """Forget the average; the next `fit` begins with the weights that the model then has."""
        self.updates, self._average, self._loaded, self._model = 0, {}, {}, None

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of steps."""
        average = self._loaded or {name: to_numpy(array) for name, array in self._average.items()}
        return {"updates": self.updates, "average": average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        average = state["average"]
        if not isinstance(average, Mapping) or not all(isinstance(array, np.ndarray) for array in average.values()):
            raise CheckpointError("EMA: the state must hold an average of arrays")
        self.updates, self._loaded, self._average = count(state["updates"]), dict(average), {}

    def _place(self, trainer: Trainer) -> None:
        """Move a loaded average to the device of the model."""
        if not self._loaded:
            return
        slots = self._slots(trainer)
        shapes = {name: tuple(slot.data.shape) for name, slot in slots.items()}
        if {name: array.shape for name, array in self._loaded.items()} != shapes:
            raise CheckpointError("EMA: the state holds the average of another model")
        self._average = {name: like(self._loaded[name], slot.data) for name, slot in slots.items()}
        self._loaded, self._model = {}, trainer.model

    @staticmethod
    def _slots(trainer: Trainer) -> dict[str, Parameter | Buffer]:
        """Return every parameter and buffer once, by its first name."""
        named: list[tuple[str, Parameter | Buffer]] = [*trainer.model.named_parameters()]
        named += trainer.model.named_buffers()
        first = {id(slot): name for name, slot in reversed(named)}
        return {name: slot for name, slot in named if first[id(slot)] == name}

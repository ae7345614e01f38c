"""`find_lr`: the learning-rate range test."""

import contextlib
import copy
import dataclasses
import itertools
import math
from collections.abc import Generator
from dataclasses import dataclass

from xcnn._check import integer, number
from xcnn.errors import DataError, DivergedError, UsageError, explained
from xcnn.training.feed import Data, Feed
from xcnn.training.parts import Cut, Parts
from xcnn.training.trainer import Trainer

__all__ = ["LRFinder", "find_lr"]

_MEMORY = 0.1
"""The share of the steps over which losses are averaged."""

_DIVERGED = 4.0
"""The test ends when the loss is this many times the lowest."""

_BELOW = 10.0
"""By how much the suggestion is below the learning rate with the lowest loss."""


@dataclass(frozen=True, repr=False)
class LRFinder:
    """The result of a learning-rate range test.

    Attributes
    ----------
    lrs : the learning rates that were tried, rising.
    losses : the loss of the batch before the step with each of them, as an exponential average over a tenth of the
        steps.
    suggestion : a tenth of the learning rate with the lowest loss, without the first tenth of the steps, which are
        averages of too few; None if the loss has not fallen.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float | None

    def __repr__(self) -> str:
        said = None if self.suggestion is None else float(f"{self.suggestion:.3g}")
        tried = f" from {self.lrs[0]:.3g} to {self.lrs[-1]:.3g}" if self.lrs else ""
        return f"LRFinder(suggestion={said}, {len(self.lrs)} learning rates{tried})"


@explained
def find_lr(trainer: Trainer, data: Data, low: float = 1e-7, high: float = 10.0, steps: int = 100) -> LRFinder:
    """Train a copy of the model with a learning rate that rises from batch to batch, and suggest one to train with.

    The learning rate rises exponentially until the loss diverges. The trainer keeps its state: the copy has weights,
    statistics, random streams and an optimizer of its own, which take as much memory again. `xcnn.plots.lr_finder`
    draws the result.

    Parameters
    ----------
    trainer : with the model, the optimizer and the loss; its schedule and its callbacks are not used, and it can be the
        one that you train with.
    data : what `Trainer.fit` takes as training data. It is passed over as often as necessary.
    low, high : the first and the last learning rate of the first parameter group; those of the others keep their ratio
        to it.
    steps : the number of batches, at most.

    Returns
    -------
    The learning rates, the losses, and a suggestion: a tenth of the learning rate with the lowest loss.

    Raises
    ------
    UsageError
        If `low` is not below `high`.
    DataError
        If there is no batch.
    DivergedError
        If the first step fails: the data or the weights hold numbers that are not finite.

    References
    ----------
    Smith 2017, Cyclical learning rates for training neural networks, section 3.3.

    Examples
    --------
    >>> from xcnn import data, models, optim
    >>> from xcnn.training import Trainer, find_lr
    >>> digits, _ = data.load("digits")
    >>> model = models.build("report", digits.shape, 10, seed=0)
    >>> trainer = Trainer(model, optim.SGD(model.parameters(), lr=1.0))
    >>> found = find_lr(trainer, digits, low=1e-4)
    >>> found.lrs[0], found.lrs[-1] <= 10, 0.01 < found.suggestion < 10
    (0.0001, True, True)
    """
    me = "find_lr"
    if not isinstance(trainer, Trainer):
        raise UsageError(f"{me}: trainer must be a Trainer, got {trainer!r}")
    low, high = number(me, "low", low, "(0, inf)"), number(me, "high", high, "(0, inf)")
    if low >= high:
        raise UsageError(f"{me}: low must be less than high, got {low:g} and {high:g}")
    steps = integer(me, "steps", steps, 2)
    if any("lr" not in group for group in trainer.optimizer.param_groups):
        raise UsageError(f"{me}: {type(trainer.optimizer).__name__} has no learning rate lr to change")
    feed = Feed(f"{me}: data", data, trainer.device, trainer.tell)
    lrs: list[float] = []
    losses: list[float] = []
    cut = trainer._step.cut
    # The trial has the weights that are trained, also inside `with trainer.inference_weights()`, and no callbacks.
    with (
        trainer.device.active(),
        trainer._weights(inference=False),
        contextlib.closing(_batches(feed, cut, steps)) as made,
    ):
        trial = copy.copy(trainer)
        trial.callbacks = []
        trial.model, trial.optimizer = model, optimizer = copy.deepcopy((trainer.model, trainer.optimizer))
        trial._step = dataclasses.replace(trainer._step, model=model, optimizer=optimizer, schedule=None)
        first = optimizer.param_groups[0]["lr"]
        ratios = [group["lr"] / first if first else 1.0 for group in optimizer.param_groups]
        mean, keep = 0.0, math.exp(-1 / (_MEMORY * steps))
        for batch in made:
            lr = low * (high / low) ** (len(lrs) / (steps - 1))
            for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                group["lr"] = lr * ratio
            try:
                loss = trial._step.train_on(batch)[1]
            except DivergedError:
                if not lrs:
                    raise
                break
            mean = keep * mean + (1 - keep) * loss
            lrs.append(lr)
            losses.append(mean / (1 - keep ** len(lrs)))
            if losses[-1] > min(losses) + (_DIVERGED - 1) * abs(min(losses)):
                break
        else:
            if 0 < len(lrs) < steps:
                trainer.tell(
                    f"{me}: the data ended after {len(lrs)} of {steps} batches, at the learning rate {lrs[-1]:.2g}; "
                    "pass data that can be read again, such as a list of batches, or fewer steps"
                )
    if not lrs:
        raise DataError(f"{me}: there is no batch to train on")
    return LRFinder(tuple(lrs), tuple(losses), _suggestion(lrs, losses, start=round(_MEMORY * steps)))


def _suggestion(lrs: list[float], losses: list[float], start: int) -> float | None:
    """Return the suggestion; the losses before `start` are averages of too few."""
    averages = losses[start:]
    if not averages or min(averages) >= averages[0] or math.isclose(min(averages), averages[0]):
        return None
    return lrs[losses.index(min(averages), start)] / _BELOW


def _batches(feed: Feed, cut: Cut, steps: int) -> Generator[Parts, None, None]:
    """Yield `steps` batches, from as many epochs as it takes; fewer if an epoch has none."""
    for epoch in itertools.count(1):
        count = 0
        for batch in itertools.islice(feed.batches(epoch, 0, cut), steps):
            yield batch
            count += 1
        steps -= count
        if not count or not steps:
            return

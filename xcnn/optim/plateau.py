"""The schedule that waits for a metric to stop improving."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from xcnn._check import choice, integer, number
from xcnn.errors import UsageError
from xcnn.optim.optimizer import Optimizer
from xcnn.optim.schedule import Schedule, per_group

__all__ = ["ReduceLROnPlateau"]

_SIGN = {"min": 1.0, "max": -1.0}


class ReduceLROnPlateau(Schedule):
    """Multiply the learning rate by `factor` when a metric has stopped improving. It counts epochs.

    Parameters
    ----------
    optimizer : the optimizer whose groups to change.
    mode : `"min"` if a lower metric is better, as of the loss, which is what a `Trainer` passes; `"max"` if a higher
        one is.
    factor : factor of each reduction.
    patience : number of epochs without improvement before a reduction.
    threshold : the smallest change that counts as an improvement.
    threshold_mode : `"rel"` if the threshold is a share of the best metric, `"abs"` if it is a difference.
    cooldown : number of epochs after a reduction in which bad epochs are not counted.
    min_lr : the lowest learning rate; one number, or one per group.
    eps : smaller changes of the learning rate are skipped.
    """

    saved = ("last_epoch", "best", "num_bad_epochs", "cooldown_counter")

    def __init__(
        self,
        optimizer: Optimizer,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        me = "ReduceLROnPlateau"
        self.mode = choice(me, "mode", mode, _SIGN)
        self._sign = _SIGN[self.mode]
        self.factor = number(me, "factor", factor, "(0, 1)")
        self.patience = integer(me, "patience", patience, 0)
        self.relative = choice(me, "threshold_mode", threshold_mode, ("rel", "abs")) == "rel"
        self.threshold = number(me, "threshold", threshold, "[0, 1)" if self.relative else "[0, inf)")
        self.cooldown = integer(me, "cooldown", cooldown, 0)
        per_group(me, "min_lr", min_lr, optimizer)
        self.min_lr = min_lr
        self.eps = number(me, "eps", eps, "[0, inf)")
        self.best = math.inf * self._sign
        self.num_bad_epochs = self.cooldown_counter = 0
        super().__init__(optimizer)

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        return {}  # `step` sets the learning rate, which is part of the optimizer's state

    def step(self, metrics: float | None = None) -> None:
        """Reduce the learning rates if the metric of this epoch requires it. NaN counts as no improvement."""
        if metrics is None:
            raise UsageError("ReduceLROnPlateau: step needs the metric of the epoch, such as the validation loss")
        try:
            metric = float(metrics)
        except (TypeError, ValueError):
            raise UsageError(f"ReduceLROnPlateau: metrics must be a number, got {metrics!r}") from None
        self.last_epoch += 1
        margin = self._sign * self.threshold
        bound = self.best * (1 - margin) if self.relative else self.best - margin
        if self._sign * metric < self._sign * bound:
            self.best, self.num_bad_epochs = metric, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
            least_lrs = per_group("ReduceLROnPlateau", "min_lr", self.min_lr, self.optimizer)
            for group, least in zip(self.optimizer.param_groups, least_lrs, strict=True):
                lr = max(group["lr"] * self.factor, least)
                if group["lr"] - lr > self.eps:
                    group["lr"] = lr

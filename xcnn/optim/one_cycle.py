"""The one-cycle schedule."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from xcnn._check import choice, flag, integer, number
from xcnn.errors import UsageError
from xcnn.optim.optimizer import Optimizer
from xcnn.optim.schedule import Schedule, Unit, per_group

__all__ = ["OneCycleLR"]

_FEW = 10
"""Steps of a cycle below which its start and its end leave little between them."""

_ANNEAL: dict[str, Callable[[float, float, float], float]] = {
    "linear": lambda start, end, done: start * (1 - done) + end * done,
    "cos": lambda start, end, done: end + (start - end) / 2 * (1 + math.cos(math.pi * done)),
}


class OneCycleLR(Schedule):
    """Raise the learning rate to `max_lr`, then lower it far below the first; momentum changes the opposite way.

    Parameters
    ----------
    optimizer : the optimizer whose groups to change; `max_lr / div_factor` replaces their `lr`.
    max_lr : the highest learning rate; one number, or one per group.
    total_steps : number of steps of the cycle, or None if `epochs` and `steps_per_epoch` are passed.
    epochs, steps_per_epoch : their product is the number of steps if `total_steps` is None.
    pct_start : share of the cycle in which the learning rate rises.
    anneal_strategy : `"cos"` or `"linear"`.
    cycle_momentum : whether to change `momentum`, or the first of `betas`, too.
    base_momentum, max_momentum : momentum at the highest learning rate, and at the start and the end.
    div_factor : the highest learning rate divided by the first.
    final_div_factor : the first learning rate divided by the last.
    three_phase : whether to lower the learning rate to the first one as slowly as it rose, and then to the last one.
    unit : `"epoch"` to count epochs instead of the steps of the optimizer.

    Raises
    ------
    UsageError
        If an argument is out of range, or `step` is called after the end of the cycle.

    References
    ----------
    Smith and Topin 2018, Super-convergence: very fast training of neural networks using large learning rates.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        *,
        unit: Unit = "step",
    ) -> None:
        me = "OneCycleLR"
        if total_steps is None:
            if epochs is None or steps_per_epoch is None or unit == "epoch":
                epochwise = ", the number of epochs" if unit == "epoch" else ", or epochs and steps_per_epoch"
                raise UsageError(f"OneCycleLR: pass total_steps{epochwise}")
            total_steps = integer(me, "epochs", epochs) * integer(me, "steps_per_epoch", steps_per_epoch)
        self.total_steps = self.end = integer(me, "total_steps", total_steps)
        pct_start = number(me, "pct_start", pct_start, "[0, 0.5]" if three_phase else "[0, 1]")
        self.anneal_strategy = choice(me, "anneal_strategy", anneal_strategy, _ANNEAL)
        low = number(me, "base_momentum", base_momentum, "[0, 1)")
        high = number(me, "max_momentum", max_momentum, "[0, 1)")
        rise = number(me, "div_factor", div_factor, "(0, inf)")
        fall = number(me, "final_div_factor", final_div_factor, "(0, inf)")
        last = self.total_steps - 1
        # The corners of the cycle: (step, learning rate divided by the initial one, momentum).
        self._corners = [(0.0, 1.0, high), (pct_start * self.total_steps - 1, rise, low)]
        if flag(me, "three_phase", three_phase):
            self._corners.append((2 * pct_start * self.total_steps - 2, 1.0, high))
        self._corners.append((last, 1 / fall, high))
        self._cycle_momentum = flag(me, "cycle_momentum", cycle_momentum)
        peaks = per_group(me, "max_lr", max_lr, optimizer)
        if self._cycle_momentum and not {"momentum", "betas"} & optimizer.defaults.keys():
            raise UsageError(f"OneCycleLR: {type(optimizer).__name__} has no momentum; pass cycle_momentum=False")
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["initial_lr"] = peak / rise
        super().__init__(optimizer, unit=unit)

    def check_length(self, epochs: int, batches: int, done: int = 0) -> str:
        """Check that the cycle is long enough, see `Schedule`; also return a sentence if it has very few steps."""
        doubt = super().check_length(epochs, batches, done)
        if doubt or self.unit == "epoch" or self.last_epoch or self.total_steps >= _FEW:
            return doubt
        group = self.optimizer.param_groups[0]
        rates = [self.at(step, group)["lr"] for step in range(self.total_steps)]
        return (
            f"OneCycleLR has {self.total_steps} steps in all, with learning rates from {min(rates):.2g} to "
            f"{max(rates):.2g}, which train little; train for more epochs, or with a smaller batch_size"
        )

    def at(self, step: int, group: Mapping[str, Any]) -> dict[str, Any]:
        if step > self.total_steps:
            fix = f"increase total_steps, which is {self.total_steps}"
            raise UsageError(f"OneCycleLR: {self.unit} {step} is after the last one; {fix}")
        anneal = _ANNEAL[self.anneal_strategy]
        end = next((i for i, corner in enumerate(self._corners) if i and step < corner[0]), len(self._corners) - 1)
        (start, factor, momentum), (stop, next_factor, next_momentum) = self._corners[end - 1 : end + 1]
        done = min(1.0, (step - start) / (stop - start)) if stop > start else 1.0
        options: dict[str, Any] = {"lr": group["initial_lr"] * anneal(factor, next_factor, done)}
        if self._cycle_momentum:
            momentum = anneal(momentum, next_momentum, done)
            options |= {"betas": (momentum, group["betas"][1])} if "betas" in group else {"momentum": momentum}
        return options

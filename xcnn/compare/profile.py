"""The time of a step part by part, in xcnn and beside it in its peers: where the time is lost.

Every part runs alone, on the input that it has in the network, again and again: so inputs of small layers lie in the
caches, and the sum of all parts differs from the step, which has its loss and other work besides, calls its layers with
less overhead, and in inference runs a batch in pieces. The contestants take turns in processes of their own. The
fastest call of all turns counts, on which other programs have the least influence.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xcnn.compare.case import Case
from xcnn.compare.contestants import Contestant
from xcnn.compare.worker import Worker

__all__ = ["Row", "profile"]


@dataclass(frozen=True)
class Row:
    """The time of a part of a network, of the optimizer, of the rest, or of the whole step.

    Attributes
    ----------
    name : dotted name of the first layer of the part, or "".
    what : what the layers are; `"update"` for the optimizer, `"loss and the rest"`, or `"whole step"`.
    shape : shape of the part's first input, without the batch.
    flops : floating-point operations of the multiply-adds, forward and backward, per step.
    forward, backward : seconds; None where there is nothing to do, or the library cannot run the part alone.
    share : share of the time of all parts, the update and the rest of the same contestant, which add up to 1; that of
        the whole step is less than 1 if its parts take longer alone.
    """

    name: str
    what: str
    shape: tuple[int, ...]
    flops: int
    forward: float | None
    backward: float | None
    share: float = 0.0

    @property
    def seconds(self) -> float | None:
        """Seconds of both passes."""
        known = [one for one in (self.forward, self.backward) if one is not None]
        return math.fsum(known) if known else None


def profile(case: Case, entered: Sequence[Contestant], turns: int, seconds: float) -> dict[Contestant, tuple[Row, ...]]:
    """Return the rows of each contestant, of which all have the same parts in the same order.

    Parameters
    ----------
    case : the case.
    entered : the contestants; those that cannot run parts are left out.
    turns : number of turns of each.
    seconds : approximate length of a turn.

    Raises
    ------
    SpeedError
        If a contestant fails.
    """
    case = case.fitted() if case.mode == "train" else case
    found: dict[Contestant, list[list[dict[str, Any]]]] = {}
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(one, case)) for one in entered if one.runs_parts]
        for number in range(turns):
            for worker in workers[:: 1 if number % 2 == 0 else -1]:
                found.setdefault(worker.contestant, []).append(worker.ask("costs", seconds=seconds))
    return {one: tuple(_rows(turns, case.mode)) for one, turns in found.items()}


def _rows(turns: Sequence[Sequence[Mapping[str, Any]]], mode: str) -> list[Row]:
    """Return the rows of one contestant from its turns."""

    def least(values: Sequence[float | None]) -> float | None:
        return min((one for one in values if one is not None), default=None)

    rows: list[Row] = []
    for each in zip(*turns, strict=True):
        fields = {key: each[0][key] for key in ("name", "what", "flops")} | {"shape": tuple(each[0]["shape"])}
        times = [least([one[way] for one in each]) for way in ("forward", "backward")]
        rows.append(Row(**fields, forward=times[0], backward=times[1]))
    *found, whole = rows
    spent = math.fsum(row.seconds or 0.0 for row in found)
    rest = max(0.0, (whole.seconds or 0.0) - spent)
    found.append(Row("", "loss and the rest" if mode == "train" else "the rest", (), 0, rest, None))
    return [replace(row, share=(row.seconds or 0.0) / (spent + rest)) for row in (*found, whole)]

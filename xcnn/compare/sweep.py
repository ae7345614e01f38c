"""What the results of many cases have in common: the mean ratios, and the cells in which xcnn is slowest."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from xcnn.compare.bench import Result, Timing

__all__ = ["BOUNDS", "Mean", "means", "worst"]

BOUNDS = (0.9, 0.7, 0.4)
"""Ratios below which cells are counted."""


@dataclass(frozen=True)
class Mean:
    """The ratios of xcnn on one device to one peer, over cases of one mode.

    Attributes
    ----------
    mode : `"train"` or `"infer"`.
    device : device of xcnn.
    peer : name of the peer, whose fastest way counts; or "" for the fastest of all peers.
    geometric_mean, lowest : of the ratios.
    lowest_of : the case of the lowest ratio.
    cells : number of ratios.
    below : share of the ratios below each of `BOUNDS`.
    """

    mode: str
    device: str
    peer: str
    geometric_mean: float
    lowest: float
    lowest_of: str
    cells: int
    below: dict[float, float] = field(default_factory=dict)


def means(results: Sequence[Result]) -> list[Mean]:
    """Return the means by mode and device: to the best of all peers first, then to each if there are several."""
    peers = list(dict.fromkeys(peer.contestant.name for result in results for peer in result.peers))
    groups: dict[tuple[str, str, str], dict[str, float]] = {}
    for result in results:
        for timing in result.ours:
            for peer in ("", *(peers if len(peers) > 1 else ())):
                if best := result.best(timing, peer or None):
                    of = f"{result.case.named}, batch {result.case.batch}"
                    where = result.case.mode, timing.contestant.variant, peer
                    groups.setdefault(where, {})[of] = timing.ratio(best)
    found = []
    for where, ratios in groups.items():
        mean, lowest = statistics.geometric_mean(ratios.values()), min(ratios, key=ratios.__getitem__)
        below = {bound: sum(ratio < bound for ratio in ratios.values()) / len(ratios) for bound in BOUNDS}
        found.append(Mean(*where, mean, ratios[lowest], lowest, len(ratios), below))
    return found


def worst(results: Sequence[Result], count: int) -> list[tuple[Result, Timing, Timing]]:
    """Return the `count` lowest ratios to the best peer: result, timing of xcnn and of that peer, the lowest first."""
    pairs = [(result, timing, best) for result in results for timing in result.ours if (best := result.best(timing))]
    return sorted(pairs, key=lambda pair: pair[1].ratio(pair[2]))[:count]

"""What the results of many cases have in common: the mean ratios, and the cells in which xcnn is slowest."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xcnn.compare.bench import Result, Timing

__all__ = ["BATCHES", "BOUNDS", "Mean", "band", "means", "rivals", "worst"]

BATCHES = (1, 32)
"""The largest batch sizes of the bands; those of large networks are halved, so that there are many sizes."""

BOUNDS = (0.9, 0.7, 0.4)
"""Ratios below which cells are counted."""


@dataclass(frozen=True)
class Mean:
    """The ratios of xcnn on one device to one peer, over cases of one mode.

    Attributes
    ----------
    mode : `"train"` or `"infer"`.
    device : device of xcnn.
    peer : name of the peer, whose fastest way counts, such as `"torch"` or `"torch or torch-compile"`; or "" for the
        fastest of all peers.
    geometric_mean, lowest : of the ratios.
    lowest_of : the case of the lowest ratio.
    cells : number of ratios.
    below : share of the ratios below each of `BOUNDS`.
    batch : the batch sizes, such as `"2 to 32"`, or "" for all.
    memory : geometric mean of the memory of xcnn over that of the peer's fastest way; None if unknown.
    """

    mode: str
    device: str
    peer: str
    geometric_mean: float
    lowest: float
    lowest_of: str
    cells: int
    below: dict[float, float] = field(default_factory=dict)
    batch: str = ""
    memory: float | None = None


def rivals(results: Sequence[Result]) -> dict[str, tuple[str, ...]]:
    """Return the peers by name, and a library together with its compiler if both took part."""
    peers = list(dict.fromkeys(peer.contestant.name for result in results for peer in result.peers))
    pairs = [(name, f"{name}-compile") for name in peers if f"{name}-compile" in peers]
    return {" or ".join(names): names for names in (*((peer,) for peer in peers), *pairs)}


def means(results: Sequence[Result], by_batch: bool = False) -> list[Mean]:
    """Return the means by mode and device: to the best of all peers first, then to each if there are several.

    With `by_batch`, those by batch size follow, apart for the sizes up to each of `BATCHES`.
    """
    found = list[Mean]()
    batches = ["", *dict.fromkeys(band(one) for one in sorted(r.case.batch for r in results))] if by_batch else [""]
    keys = dict.fromkeys((result.case.mode, one.contestant.variant) for result in results for one in result.ours)
    for mode, device in keys:
        several = rivals([result for result in results if result.case.mode == mode])
        for batch in batches:
            for peer, names in {"": (), **(several if len(several) > 1 else {})}.items():
                cells = {
                    f"{result.case.named}, batch {result.case.batch}": (timing, best)
                    for result in results
                    if result.case.mode == mode and batch in ("", band(result.case.batch))
                    for timing in result.ours
                    if timing.contestant.variant == device and (best := result.best(timing, *names))
                }
                if cells:
                    found.append(_mean((mode, device, peer), batch, cells))
    return found


def _mean(where: tuple[str, str, str], batch: str, cells: Mapping[str, tuple[Timing, Timing]]) -> Mean:
    ratios = {of: timing.ratio(best) for of, (timing, best) in cells.items()}
    mean, lowest = statistics.geometric_mean(ratios.values()), min(ratios, key=ratios.__getitem__)
    below = {bound: sum(ratio < bound for ratio in ratios.values()) / len(ratios) for bound in BOUNDS}
    memory = [one.memory / best.memory for one, best in cells.values() if one.memory and best.memory]
    growth = statistics.geometric_mean(memory) if memory else None
    return Mean(*where, mean, ratios[lowest], lowest, len(ratios), below, batch, growth)


def band(batch: int) -> str:
    """Return in which of the bands of `BATCHES` a batch size is."""
    first = 1
    for last in BATCHES:
        if batch <= last:
            return str(last) if first == last else f"{first} to {last}"
        first = last + 1
    return f"{first} and more"


def worst(results: Sequence[Result], count: int) -> list[tuple[Result, Timing, Timing]]:
    """Return the `count` lowest ratios to the best peer: result, timing of xcnn and of that peer, the lowest first."""
    pairs = [(result, timing, best) for result in results for timing in result.ours if (best := result.best(timing))]
    return sorted(pairs, key=lambda pair: pair[1].ratio(pair[2]))[:count]

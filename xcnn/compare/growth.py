"""How a step's cost grows with its work: whether an image, or a pixel of one, costs more in larger portions."""

from collections.abc import Iterable
from dataclasses import dataclass

from xcnn.compare.bench import Result

__all__ = ["Growth", "growths"]


@dataclass(frozen=True)
class Growth:
    """What several cases cost that differ in one size alone; cost that grows linearly has the factor 1.

    Attributes
    ----------
    cases : what they have in common, such as `"lenet5, train"`.
    device : where xcnn ran.
    unit : of what the time is taken: `"image"` for several batch sizes, `"pixel"` for several sizes of images.
    smallest, largest : the sizes that were run, as batch size, or height and width.
    factor : the longest time of a unit over the shortest.
    """

    cases: str
    device: str
    unit: str
    smallest: int
    largest: int
    factor: float


def growths(results: Iterable[Result]) -> list[Growth]:
    """Compare the results that differ in batch size alone, and those that differ in the size of images alone."""
    groups: dict[tuple[str, str, str], dict[int, float]] = {}
    for result in results:
        case, (_, height, width) = result.case, result.case.shape
        for timing in result.ours:
            cost = timing.seconds / timing.batch
            for unit, size, per_unit, cases in (
                ("image", case.batch, cost, f"{case.named}, {case.mode}"),
                ("pixel", height, cost / (height * width), f"{case.model}, batch {case.batch}, {case.mode}"),
            ):
                groups.setdefault((cases, timing.contestant.variant, unit), {})[size] = per_unit
    return [
        Growth(*group, min(costs), max(costs), max(costs.values()) / min(costs.values()))
        for group, costs in groups.items()
        if len(costs) > 1
    ]

"""The flags of commands that take a trained model."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from xcnn.cli._console import Bar, note, use_threads
from xcnn.parallel import processes
from xcnn.runs import Restored, restore

__all__ = ["Source", "note_inverted"]


def _floats(type_: Any, tokens: Sequence[Token]) -> tuple[float, ...]:
    return tuple(float(number) for token in tokens for number in token.value.split(",") if number)


_Numbers = Annotated[tuple[float, ...], Parameter(converter=_floats, n_tokens=1, negative=(), show_default=False)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the model and its test images come from.

    Parameters
    ----------
    dataset
        data set to use instead of the one that the model was trained on.
    data_dir
        folder that holds the data set's files. Of a folder of images those in its subfolder `test` are tested, or
        without one, every fifth; its classes may be some of the network's.
    skip_broken
        leave out images of the data set `folder` that cannot be read, and name them.
    model
        model of the weights, if the file does not name it.
    classes
        file with the names of the classes: one per line, or a JSON list.
    mean
        mean of each channel, 0 to 1, that is subtracted from the images, separated by commas; one is for all.
    std
        deviation of each channel, by which they are divided.
    image_size
        height and width of the images, if the file does not state them.
    resize
        how images get this size: crop, pad or stretch.
    device
        where to compute: cpu, cuda, cuda:1, auto; see `xcnn devices`.
    threads
        number of threads; by default all cores that the process may use. No result depends on it.
    """

    dataset: str | None = None
    data_dir: Path | None = None
    skip_broken: Annotated[bool, Parameter(negative=())] = False
    model: str | None = None
    classes: Path | None = None
    mean: _Numbers | None = None
    std: _Numbers | None = None
    image_size: int | None = None
    resize: str | None = None
    device: str = "cpu"
    threads: int | None = None

    def flags(self) -> list[str]:
        """Return the words that give the same flags again, without those on which no result depends."""
        words: list[str] = []
        for one in fields(self):
            value = getattr(self, one.name)
            if value != one.default and one.name != "threads":
                said = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                words += [f"--{one.name.replace('_', '-')}", *([] if value is True else [said])]
        return words

    def restore(self, checkpoint: Path, bar: Bar, scores: bool = True) -> Restored:
        """Return the model of a checkpoint, with classes if `scores`; `bar` shows a download of the data set."""
        use_threads(self.threads)
        return restore(
            checkpoint,
            self.device,
            model=self.model,
            dataset=self.dataset,
            data_dir=self.data_dir,
            skip_broken=self.skip_broken,
            image_size=self.image_size,
            resize=self.resize,
            classes=self.classes or (),
            mean=self.mean,
            std=self.std,
            scores=scores,
            progress=bar,
            tell=note,
            parallel=processes(),
        )


def note_inverted(restored: Restored, names: Sequence[str], invert: bool) -> None:
    """Say which images look inverted against the training images, if any do, and what to try."""
    if not names:
        return
    light = restored.checkpoint.statistics["border"] < 0.5
    more = f" and {len(names) - 1} more look" if len(names) > 1 else " looks"
    drawn, hint = "light on dark" if light else "dark on light", "without " * invert
    note(f"{names[0]}{more} inverted against the training images ({drawn}): try {hint}--invert")

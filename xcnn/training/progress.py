"""`Progress`: what a run trains, a line per epoch, and a bar with the time that is left."""

import contextlib
import functools
import math
from typing import Any

from xcnn._dispatch import COMPILATION
from xcnn.data import Loader
from xcnn.threads import get_num_threads
from xcnn.training.evaluation import Metrics
from xcnn.training.feed import Feed
from xcnn.training.terminal import Bar, duration, note, percent, stderr
from xcnn.training.trainer import Callback, Trainer, clock

__all__ = ["COMPILING", "Progress"]

COMPILING = "compiling kernels, each once on this machine"

_HIDDEN = {"epoch", "seconds", "samples_per_second", "data_seconds"}
"""Entries of a record that are shown in another way."""


class Progress(Callback):
    """Shows the progress of training on stderr: a header, a line per epoch and, on a terminal, a bar.

    `Trainer.fit` adds one by itself where somebody watches: on a terminal and in a notebook. The time left is that of
    the whole run, with validation and callbacks. A line leaves out what does not fit the terminal; elsewhere it is
    whole.

    Parameters
    ----------
    name : name of the network in the header; by default its class.

    Attributes
    ----------
    redirect : of the class: whether what others print while the bar is shown appears above it.
    """

    writes = True
    shows_progress = True
    redirect = True

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._header: list[str] = []
        self._scope = contextlib.ExitStack()

    @functools.cached_property
    def bar(self) -> Bar:
        """The progress bar."""
        return Bar(redirect=self.redirect)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "bar"} | {"_scope": contextlib.ExitStack()}

    def on_fit_start(self, trainer: Trainer, batches: int | None, epochs: int) -> None:
        """Print the header, unless it is the same as before, and show the empty bar."""
        header = _header(trainer, self.name)
        if header != self._header:
            self._header = header
            for line in header:
                note(line)
        self._scope.enter_context(COMPILATION.announced(lambda: note(COMPILING)))
        self.batches, self.epochs = batches, epochs
        self._last = self._start = clock()  # the ends of the last batch and of the last epoch
        self._since: tuple[int, float] | None = None  # a batch of this epoch and its end, from where speed is measured
        self._pace = math.nan  # seconds per batch
        self._after: float | None = None  # seconds from the last batch of an epoch to its end
        self._validation = _share(trainer)
        self._lr = self._next_lr = _lr(trainer)
        self.bar(f"epoch {len(trainer.history) + 1}/{epochs}", trainer.unfinished, batches)

    def on_batch_end(self, trainer: Trainer, epoch: int, batch: int, metrics: Metrics) -> None:
        """Move the bar."""
        self._last, (self._lr, self._next_lr) = clock(), (self._next_lr, _lr(trainer))
        if self._since is None:
            self._since = batch, self._last  # after the first batch, which is slower than all others
        elif batch > self._since[0]:
            self._pace = (self._last - self._since[1]) / (batch - self._since[0])
        left = None
        if self.batches is not None:
            pace, after = self._pace, self._after
            after = self._validation * self.batches * pace if after is None else after
            left = (self.batches - batch) * pace + after + (self.epochs - epoch) * (self.batches * pace + after)
        self.bar.batch(f"epoch {epoch}/{self.epochs}", batch, self.batches, metrics, left)

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Print the line of the epoch."""
        now = clock()
        self._after = now - self._last
        known = self.batches is not None and self._pace == self._pace
        whole = (self.batches or 0) * self._pace + self._after if known else now - self._start
        self.bar.stop()
        note(self.line(record, 0.0 if trainer.stop_reason else (self.epochs - record["epoch"]) * whole))
        self._start, self._next_lr = clock(), _lr(trainer)
        self._since = 0, self._start

    def line(self, record: dict[str, Any], left: float = 0.0) -> str:
        """Return the line of an epoch; `left` are the seconds to the end of the run."""
        seconds, waited = record["seconds"], record["data_seconds"]
        parts = [(0, f"epoch {record['epoch']:>{len(str(self.epochs))}}/{self.epochs}")]
        for name, value in record.items():
            if name not in _HIDDEN and value is not None:
                label = name.removeprefix("train_").replace("_", " ").replace("accuracy", "acc")
                figure = f"{percent(value):>7}" if name.endswith("accuracy") else _figure(value)
                parts.append((1 if name == "train_accuracy" else 0, f"{label} {figure}"))
        parts += [
            (5, f"lr {self._lr:.3g}" if self._lr == self._lr else ""),
            (2, duration(seconds)),
            (6, f"{record['samples_per_second']:,.0f} samples/s"),
            (3, f"{waited / seconds:.0%} waiting for data" if waited > 0.1 * seconds else ""),
            (4, f"{duration(left)} left" if left else ""),
        ]
        parts = [(rank, text) for rank, text in parts if text]
        return _fitted(parts, stderr().width if stderr().is_terminal else None)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Hide the bar."""
        self._scope.close()
        self.bar.stop()


def _fitted(parts: list[tuple[int, str]], width: int | None) -> str:
    """Return parts on one line. If it is too wide, leave out those of the highest ranks."""
    for most in range(6, -1, -1):
        line = "  ".join(text for rank, text in parts if rank <= most)
        if width is None or len(line) <= width:
            break
    return line


def _figure(value: float) -> str:
    """Return a number with four digits after the point, or in scientific notation if those say little.

    >>> [_figure(value) for value in (0.25, 12, 3e-7, 1e9)]
    ['0.2500', '12.0000', '3e-07', '1e+09']
    """
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 or not math.isfinite(value) else f"{value:.3g}"


def _header(trainer: Trainer, name: str) -> list[str]:
    """Return lines that say what is trained, on what and where."""
    model, device = trainer.model, trainer.device
    sizes = [(math.prod(p.data.shape), p.trainable) for p in model.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, trainable in sizes if trainable)
    count = sum(1 for _, module in model.modules() if not any(True for _ in module.children()))
    layers = f"{count} layer{'s' * (count != 1)}"
    frozen = "" if trained == total else f", {trained:,} of them trained"
    schedule, lr = trainer.schedule, _lr(trainer)
    at = "" if schedule is None else f"{type(schedule).__name__} {'now at' if schedule.last_epoch else 'from'} "
    rate = f", {at}lr {lr:.3g}" if lr == lr else ""
    rows = {
        "network": f"{name or type(model).__name__}: {total:,} parameters{frozen} in {layers}",
        "data": _data(trainer.feeds),
        "training": f"{_loss(trainer)}, {type(trainer.optimizer).__name__}{rate}",
        "device": device.name + _share_of_work(trainer),
    }
    return [f"{label:<9}{text}" for label, text in rows.items()]


def _data(feeds: tuple[Feed, ...]) -> str:
    """Return what the data are, in words."""
    said = [feeds[0].description]
    if len(feeds) > 1:
        held_out = feeds[1].source
        examples = f"{len(held_out.dataset):,} examples" if isinstance(held_out, Loader) else "batches"
        said.append(f"validation: {examples}")
    return "; ".join(said)


def _loss(trainer: Trainer) -> str:
    """Return the name of the loss, with its options."""
    function = trainer.loss.function
    options = getattr(trainer.loss, "options", {}) or getattr(function, "keywords", {})
    function = getattr(function, "func", function)
    shown = [f"{name} {value}" for name, value in options.items() if value and isinstance(value, str | int | float)]
    return " ".join([getattr(function, "__name__", type(function).__name__), *shown])


def _share_of_work(trainer: Trainer) -> str:
    """Return how many processes and threads compute, and in how many parts."""
    texts, size, parts = [], trainer.parallel.size, trainer.accumulate
    if size > 1:
        texts.append(f"{size} processes")
    if trainer.device.name == "cpu":
        threads = get_num_threads()
        texts.append(f"{threads} thread{'s' * (threads > 1)}{' each' * (size > 1)}")
    if parts > 1:
        texts.append(f"each batch in {parts} parts")
    return "".join(f", {text}" for text in texts)


def _share(trainer: Trainer) -> float:
    """Return the estimated time of validation, as a share of that of training, of which a third is the forward pass."""
    sources = [feed.source for feed in trainer.feeds]
    counts = [len(source.dataset) for source in sources if isinstance(source, Loader)]
    return counts[1] / max(counts[0], 1) / 3 if len(counts) == 2 else 0.0


def _lr(trainer: Trainer) -> float:
    """Return the learning rate of the first group; NaN for an optimizer without one."""
    return float(trainer.optimizer.param_groups[0].get("lr", math.nan))

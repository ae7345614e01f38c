"""`xcnn train`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from xcnn import plots
from xcnn._dispatch import COMPILATION
from xcnn.cli._console import EpochReport, note, percent, print_json, print_table, use_threads
from xcnn.device import device as open_device
from xcnn.errors import UsageError
from xcnn.training import Config, Result
from xcnn.training import train as run_training

__all__ = ["Flags", "train"]


def _names(type_: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    return tuple(name for token in tokens for name in token.value.split(",") if name)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Flags(Config):
    """The settings of a run, with their short flags."""

    batch_size: Annotated[int, Parameter(name=["--batch-size", "-b"])] = Config.batch_size
    augment: Annotated[tuple[str, ...], Parameter(converter=_names, n_tokens=1, negative=(), show_default=False)] = ()


def train(
    flags: Flags | None = None,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    threads: int | None = None,
    deterministic: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Train a network, test it, and write a folder with everything that came of it.

    Parameters
    ----------
    out
        folder for the results; `runs/DATASET-MODEL-TIME` if left out.
    threads
        how many threads to compute with; all cores that the process may use if left out. No result depends on it.
    deterministic
        refuse a device that does not promise the same bits from the same seed. On the cpu they are always the same, for
        any number of threads, given the same versions and kind of processor.
    json
        print JSON lines on stdout, one per epoch and a last one with the test figures.
    """
    config = Config(**dataclasses.asdict(flags or Flags()))
    use_threads(threads)
    if deterministic and open_device(config.device).name != "cpu":
        raise UsageError(f"--deterministic: {config.device} may round otherwise in every run; use --device cpu")
    result = run_training(config, out, [EpochReport(json)])
    _draw(result, config)
    if result.interrupted:
        note(f"{result.note}; what was learned is in {result.checkpoint}")
        return 130
    if result.note:
        note(f"stopped early: {result.note}")
    if json:
        print_json(
            {
                "test_accuracy": result.test_accuracy,
                "test_loss": result.test_loss,
                "seconds": result.seconds,
                "compile_seconds": COMPILATION.seconds,
                "device": result.device,
                "checkpoint": str(result.checkpoint),
            }
        )
    else:
        rows = [
            ("test accuracy", percent(result.test_accuracy)),
            ("test loss", f"{result.test_loss:.4f}"),
            ("training time", f"{result.seconds:.1f} s on {result.device}{_compiling()}"),
            ("checkpoint", result.checkpoint),
            ("everything else", f"{result.folder}/"),
        ]
        print_table(f"{config.model} on {config.dataset}", "", rows=rows)
        note(f"next: xcnn predict {result.checkpoint} --index 0")
    return 0


def _compiling() -> str:
    return f", after {COMPILATION.seconds:.0f} s of compiling kernels, once" if COMPILATION.seconds else ""


def _draw(result: Result, config: Config) -> None:
    """Add the pictures to the folder; a run without them is still a run."""
    title = f"{config.model} on {config.dataset}"
    try:
        if result.history:
            plots.curves(result.history, result.folder / "curves.png", title)
        if result.confusion is not None:
            title = f"{title}: test accuracy {percent(result.test_accuracy)}"
            plots.confusion(result.confusion, result.classes, result.folder / "confusion.png", title)
    except plots.NoMatplotlibError as error:
        note(f"no pictures: {error}")

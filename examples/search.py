"""What the report asks for next, answered on MNIST: tuned hyper-parameters, regularisation and deeper networks.

    python examples/search.py [--data-dir D] [--out searches/report] [--trials 30] [--epochs 4]

Searches for the learning rate, the number of filters, the depth, the weight decay and the dropout of the report's
network with Optuna (`pip install '.[search,plots]'`), and draws the trials. The same command goes on with a search that
was interrupted. On the command line, the search itself is

    xcnn search --dataset mnist --model report --epochs 4 --opt adamw --vary lr=1e-4..1e-1:log \
        --vary model_options.filters=1..16:log --vary model_options.depth=1..3 --vary wd=1e-4..1:log \
        --vary model_options.dropout=0..0.5 --trials 30 --out searches/report
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from xcnn import plots
from xcnn.errors import XcnnError
from xcnn.runs import Config, Search, Trial, search

__all__ = ["VARY", "main", "run"]

VARY = (
    "lr=1e-4..1e-1:log",
    "model_options.filters=1..16:log",
    "model_options.depth=1..3",
    "wd=1e-4..1:log",
    "model_options.dropout=0..0.5",
)


def run(
    folder: Path,
    data_dir: Path | None = None,
    dataset: str = "mnist",
    trials: int = 30,
    epochs: int = 4,
) -> Search:
    """Search, print what each trial reached and what the best of each depth is, and draw the picture."""
    config = Config(dataset=dataset, data_dir=data_dir, model="report", epochs=epochs, opt="adamw")

    def watch(trial: Trial) -> None:
        if trial.ended:
            print(_line(trial), flush=True)

    found = search(config, VARY, trials, folder, watch=watch)
    for depth in (1, 2, 3):
        same = [trial for trial in found.ranking if trial.values["model_options.depth"] == depth]
        if same:
            print(f"best of depth {depth}: {_line(same[0])}")
    if found.best is not None:
        tested = (
            "not tested yet" if found.best.test_accuracy is None else f"test accuracy {found.best.test_accuracy:.2%}"
        )
        print(f"best of all, {tested}: {_line(found.best)}")
        print(f"picture: {plots.search(found, folder / 'search.png', f'report on {dataset}: {trials} trials')}")
    return found


def _line(trial: Trial) -> str:
    values = ", ".join(
        f"{name.rpartition('.')[2]} {value:.3g}" if isinstance(value, float) else f"{name.rpartition('.')[2]} {value}"
        for name, value in trial.values.items()
    )
    reached = trial.note if trial.value is None else f"validation loss {trial.value:.4f}"
    return f"trial {trial.number:>2}, {trial.state}: {reached} ({values})"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path, help="folder with the files of MNIST; by default they are downloaded")
    parser.add_argument("--out", type=Path, default=Path("searches/report"), help="folder (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=30, help="number of trials (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of a trial (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        plots.check()
        found = run(arguments.out, arguments.data_dir, trials=arguments.trials, epochs=arguments.epochs)
    except XcnnError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return found.interrupted


if __name__ == "__main__":
    sys.exit(main())

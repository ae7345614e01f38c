"""`xcnn evaluate`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from xcnn.cli._console import Bar, percent, print_json, print_table
from xcnn.cli._model import Source

__all__ = ["evaluate"]


def evaluate(
    checkpoint: Path,
    /,
    *,
    source: Source | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Evaluate a checkpoint on the test images of a data set.

    Parameters
    ----------
    checkpoint
        folder of a run, one of its checkpoints, or plain safetensors weights together with --model and --dataset.
    json
        print one JSON object on stdout.
    """
    bar = Bar()
    restored = (source or Source()).restore(checkpoint, bar)
    metrics = restored.evaluate(bar.test)
    if json:
        print_json(
            {
                "test_accuracy": metrics.accuracy,
                "test_loss": metrics.loss,
                "images": metrics.images,
                "dataset": restored.dataset,
                "device": restored.device.name,
                "checkpoint": str(checkpoint),
            }
        )
    else:
        rows = [
            ("test accuracy", percent(metrics.accuracy)),
            ("test loss", f"{metrics.loss:.4f}"),
            ("images", f"{metrics.images:,}"),
        ]
        print_table(f"{restored.checkpoint.model or checkpoint.name} on {restored.dataset}", "", rows=rows)
    return 0

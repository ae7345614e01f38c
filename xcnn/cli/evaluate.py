"""`xcnn evaluate`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from xcnn.cli._console import Bar, percent, print_json, print_table
from xcnn.cli._model import Source

__all__ = ["evaluate"]

_COLUMNS = ("precision", "recall", "F1", "images")


def evaluate(
    checkpoint: Path,
    /,
    *,
    source: Source | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Evaluate a checkpoint on the test images of a data set, in all and for each class.

    Parameters
    ----------
    checkpoint
        folder of a run, a checkpoint, an ONNX file, weights of safetensors or PyTorch together with --model, or the
        name of an installed package of weights, such as efficientnet_lite0.
    json
        print one JSON object on stdout.
    """
    bar = Bar()
    restored = (source or Source()).restore(checkpoint, bar)
    metrics = restored.evaluate(bar.test)
    # For very many classes there is no confusion matrix.
    columns = [] if metrics.confusion is None else [column.tolist() for column in metrics.per_class()]
    figures = list(zip(restored.checkpoint.classes, *columns, strict=True)) if columns else []
    if json:
        print_json(
            {
                "test_accuracy": metrics.accuracy,
                "test_loss": metrics.loss,
                "samples": metrics.samples,
                "dataset": restored.dataset,
                "device": restored.device.name,
                "checkpoint": str(checkpoint),
                "weights": restored.checkpoint.weights,
                "classes": [
                    {"class": name, "precision": p, "recall": r, "f1": f1, "support": n}
                    for name, p, r, f1, n in figures
                ],
            }
        )
    else:
        rows = [
            ("test accuracy", percent(metrics.accuracy)),
            ("test loss", f"{metrics.loss:.4f}"),
            ("images", f"{metrics.samples:,}"),
        ]
        rows += [("weights", text)] if (text := restored.checkpoint.weights) else []
        print_table(f"{restored.checkpoint.model or checkpoint.name} on {restored.title}", "", rows=rows)
        table = [(name, percent(p), percent(r), percent(f1), f"{n:,}") for name, p, r, f1, n in figures]
        if table:
            print_table("class", *_COLUMNS, rows=table, right=_COLUMNS, gap=True)
    return 0

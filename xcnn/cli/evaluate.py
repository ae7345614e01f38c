"""`xcnn evaluate`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from xcnn.cli._console import Bar, percent, print_json, print_table, use_threads
from xcnn.runs import restore

__all__ = ["evaluate"]


def evaluate(
    checkpoint: Path,
    /,
    *,
    dataset: str | None = None,
    data_dir: Path | None = None,
    model: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Test a checkpoint on the test images of a data set.

    Parameters
    ----------
    checkpoint
        folder of a run, one of its checkpoints, or plain safetensors weights together with --model and --dataset.
    dataset
        data set to use instead of the one that the model was trained on.
    data_dir
        folder that holds the data set's files.
    model
        model of the weights, if the file does not name it.
    device
        where to compute: cpu, cuda, cuda:1, auto; see `xcnn devices`.
    threads
        number of threads; by default all cores that the process may use. No result depends on it.
    json
        print one JSON object on stdout.
    """
    use_threads(threads)
    bar = Bar()
    restored = restore(checkpoint, device, model=model, dataset=dataset, data_dir=data_dir, progress=bar)
    metrics, _ = restored.evaluate(bar.test)
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
        print_table(f"{restored.checkpoint.model} on {restored.dataset}", "", rows=rows)
    return 0

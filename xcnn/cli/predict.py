"""`xcnn predict`."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from xcnn import plots
from xcnn.cli._console import Bar, note, print_json, print_table
from xcnn.cli._model import Source
from xcnn.errors import UsageError
from xcnn.runs import Prediction

__all__ = ["predict"]


def predict(
    checkpoint: Path,
    /,
    *images: Path,
    index: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative=(), show_default=False)] = (),
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path(),
    source: Source | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Classify image files or test images: class, probabilities, and a picture of each.

    Parameters
    ----------
    checkpoint
        folder of a run, one of its checkpoints, or plain safetensors weights together with --model and --dataset.
    images
        image files; made the size that the model takes as in its training, see --resize of train.
    index
        indices of test images, counted from 0.
    out
        folder for the pictures, `prediction-NAME.png`; by default the current folder. Older pictures are replaced.
    json
        print one JSON object per image on stdout.
    """
    restored = (source or Source()).restore(checkpoint, Bar())
    classes = restored.checkpoint.classes
    predictions = restored.predict(images, index)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder {out} cannot be created: {error.strerror}", setting="out") from None
    for one, picture in zip(predictions, _pictures(out, predictions), strict=True):
        best = int(one.probabilities.argmax())
        truth = None if one.truth is None else classes[one.truth]
        drawn = True
        try:
            plots.prediction(one.image, one.probabilities, classes, picture, truth)
        except plots.NoMatplotlibError as error:
            note(f"no picture: {error}")
            drawn = False
        if json:
            print_json(
                {
                    "image": one.name,
                    "class": classes[best],
                    "probability": float(one.probabilities[best]),
                    "truth": truth,
                    "probabilities": dict(zip(classes, one.probabilities.tolist(), strict=True)),
                    "picture": str(picture) if drawn else None,
                }
            )
            continue
        known = "" if truth is None else f" (truth: {truth})"
        title = f"{one.name}: class {classes[best]}{known}"
        order = (-one.probabilities).argsort(kind="stable")[:10]
        rows = [(classes[i], f"{one.probabilities[i]:.4f}") for i in order]
        print_table("class", "probability", rows=rows, right="probability", title=title)
        if drawn:
            note(f"picture: {picture}")
    return 0


def _pictures(out: Path, predictions: Sequence[Prediction]) -> list[Path]:
    """Return a file name for the picture of each image; images of the same name are numbered."""
    names: dict[str, str] = {}  # by their lower case, as some file systems ignore the case
    for one in predictions:
        stem = Path(one.name).stem.replace(":", "-")  # of `package.module:function`; Windows has no colon in names
        numbered = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
        name = next(name for name in numbered if name.casefold() not in names)
        names[name.casefold()] = name
    return [out / f"prediction-{name}.png" for name in names.values()]

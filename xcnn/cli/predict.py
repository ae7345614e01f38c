"""`xcnn predict`."""

import csv
import io
import itertools
import json as json_lines
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from xcnn import plots
from xcnn._files import replacing
from xcnn.cli._console import Bar, check_writable, note, print_json, print_table
from xcnn.cli._model import Source, note_inverted
from xcnn.data.images import SUFFIXES, read_photo
from xcnn.errors import DataError, UsageError
from xcnn.runs import Prediction

__all__ = ["predict"]

_AT_ONCE = 256
"""Images at a time, on each process."""

_TOP = {False: 10, True: 3}
"""The default of `top`: for one image, and for several."""


def predict(
    checkpoint: Path,
    /,
    *images: Path,
    index: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative=(), show_default=False)] = (),
    top: int | None = None,
    invert: Annotated[bool, Parameter(negative=())] = False,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    pictures: Path | None = None,
    source: Source | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Classify image files, whole folders, or test images, and print the most likely classes.

    Parameters
    ----------
    checkpoint
        folder of a run, a checkpoint, an ONNX file, weights of safetensors or PyTorch together with --model, or the
        name of an installed package of weights, such as efficientnet_lite0.
    images
        image files, and folders whose images are classified, also those in their subfolders. They are converted and
        resized as the training images were.
    index
        indices of test images, counted from 0, separated by spaces or commas.
    top
        number of the most likely classes in tables and files; by default 10 for one image, 3 for several.
    invert
        turn light into dark, for dark drawings on white paper if the training images are light on black.
    out
        file for the table: CSV if its name ends in .csv, JSON lines if it ends in .jsonl.
    pictures
        folder for a picture of each image with what the network sees and the probabilities; needs matplotlib.
    json
        print one JSON object per image on stdout.
    """
    if checkpoint.suffix.lower() in SUFFIXES:
        raise UsageError(f"the first argument is the run or its file, then come the images, got the image {checkpoint}")
    if top is not None and top < 1:
        raise UsageError(f"top must be at least 1, got {top}", setting="top")
    write = _writer(out)
    if pictures is not None:
        plots.check()
    files = _files(images)
    restored, bar = (source or Source()).restore(checkpoint, Bar()), Bar()
    classes, several = restored.checkpoint.classes, len(files) + len(index) > 1
    top = _TOP[several] if top is None else top
    broken: list[DataError] = []
    inverted: list[str] = []
    names: dict[str, str] = {}
    records = []
    together = restored.parallel
    first, at_once = together.rank == 0, _AT_ONCE * together.size
    for start in range(0, max(1, len(files)), at_once):
        for one in restored.predict(
            files[start : start + at_once],
            () if start else index,
            invert=invert,
            broken=broken.append if several else None,
        ):
            record = _record(one, classes, top)
            records.append(record)
            inverted += [one.name] * one.inverted
            if pictures is not None and first:
                record["picture"] = str(_draw(pictures, one, classes, names))
            if json:
                print_json(record)
            elif not several:
                _print_one(record)
        if len(files) > at_once:
            bar("images", min(start + at_once, len(files)), len(files))
    if several and records and not json:
        _print_all(records)
    if write is not None and first:
        write(records)
    if names:
        note(f"pictures: {pictures}/")
    note_inverted(restored, inverted, invert)
    for error in broken:
        note(f"left out: {str(error).removeprefix('read_image: ')}")
    return int(bool(broken))


def _files(paths: Sequence[Path]) -> list[Path]:
    """Return the files among the paths and, sorted, the images in the folders, except hidden ones."""
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(_inside(path))
        if not inside:
            raise UsageError(f"{path} contains no images ({', '.join(sorted(SUFFIXES))})")
        files += inside
    return files


def _inside(folder: Path) -> Iterator[Path]:
    """Yield the images in a folder and its subfolders, also linked ones, each of which is entered once."""
    root = folder.resolve()
    entered = {root, *root.parents}  # a link upwards leads to what is not in the folder
    for top, folders, names in os.walk(folder, followlinks=True):
        inner = []
        for name in sorted(folders):
            real = Path(top, name).resolve()
            if not name.startswith(".") and real not in entered:
                entered.add(real)
                inner.append(name)
        folders[:] = inner
        for file in (Path(top, name) for name in names if not name.startswith(".")):
            if file.suffix.lower() in SUFFIXES and file.is_file():
                yield file


def _record(one: Prediction, classes: Sequence[str], top: int) -> dict[str, Any]:
    """Return the JSON object of a prediction."""
    order = (-one.probabilities).argsort(kind="stable")
    return {
        "image": one.name,
        "class": classes[order[0]],
        "probability": float(one.probabilities[order[0]]),
        "truth": None if one.truth is None else classes[one.truth],
        "top": [(classes[i], float(one.probabilities[i])) for i in order[:top]],
        "probabilities": dict(zip(classes, one.probabilities.tolist(), strict=True)),
    }


def _print_one(record: dict[str, Any]) -> None:
    """Print a table with a row per class."""
    known = "" if record["truth"] is None else f" (truth: {record['truth']})"
    rows = [(name, f"{share:.4f}") for name, share in record["top"]]
    title = f"{record['image']}: class {record['class'].removeprefix('class ')}{known}"
    print_table("class", "probability", rows=rows, right="probability", title=title)


def _ordinal(rank: int) -> str:
    """Return a rank in words, such as 2nd."""
    return f"{rank}{'th' if 10 < rank % 100 < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(rank % 10, 'th')}"


def _print_all(records: list[dict[str, Any]]) -> None:
    """Print a table with a row per image."""
    known = any(record["truth"] is not None for record in records)
    ranks = len(records[0]["top"])
    columns = ["image", *["truth"] * known, "class", *(_ordinal(k) for k in range(2, ranks + 1))]
    rows = [
        (record["image"], *[record["truth"] or ""] * known, *(f"{name} {share:.3f}" for name, share in record["top"]))
        for record in records
    ]
    print_table(*columns, rows=rows, fold=False)


def _writer(out: Path | None) -> Callable[[list[dict[str, Any]]], None] | None:
    """Return the function that writes records to the file `out`, after checking that it will be possible."""
    if out is None:
        return None
    texts = {".csv": _as_csv, ".jsonl": _as_json_lines}
    if out.suffix.lower() not in texts:
        raise UsageError(f"out must be a file that ends in .csv or .jsonl, got {out}", setting="out")
    check_writable(out)

    def write(records: list[dict[str, Any]]) -> None:
        with replacing(out) as temporary:
            temporary.write_text(texts[out.suffix.lower()](records), encoding="utf-8", newline="")
        note(f"table: {out}")

    return write


def _as_csv(records: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    most = max((len(record["top"]) for record in records), default=0)
    ranks = itertools.chain.from_iterable((f"class_{k}", f"probability_{k}") for k in range(1, most + 1))
    drawn = ["picture"] * any("picture" in record for record in records)
    table.writerow(["image", "truth", *ranks, *drawn])
    for record in records:
        found = itertools.chain.from_iterable((name, f"{share:.6g}") for name, share in record["top"])
        table.writerow([record["image"], record["truth"] or "", *found, *(record[name] for name in drawn)])
    return text.getvalue()


def _as_json_lines(records: list[dict[str, Any]]) -> str:
    return "".join(json_lines.dumps(record) + "\n" for record in records)


def _draw(folder: Path, one: Prediction, classes: Sequence[str], names: dict[str, str]) -> Path:
    """Draw a prediction into a folder. `names` holds the names so far; images of the same name are numbered."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be created: {error.strerror}", setting="pictures") from None
    stem = Path(one.name).stem.replace(":", "-")  # of `package.module:function`; Windows has no colon in names
    numbered = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    name = next(name for name in numbered if name.casefold() not in names)  # some file systems ignore the case
    names[name.casefold()] = name
    truth = None if one.truth is None else classes[one.truth]
    photo = None if one.file is None else read_photo(one.file)
    return plots.prediction(one.image, one.probabilities, classes, folder / f"prediction-{name}.png", truth, photo)

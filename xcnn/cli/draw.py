"""`xcnn draw`."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from xcnn import models as room
from xcnn import plots
from xcnn.cli._console import check_writable, note, print_json, print_line
from xcnn.errors import UsageError
from xcnn.runs import restore

__all__ = ["draw"]


def draw(
    model: str,
    /,
    *,
    shape: Annotated[tuple[int, int, int] | None, Parameter(negative=())] = None,
    classes: int | None = None,
    depth: int | None = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Draw a network: its layers with shapes, parameters and receptive fields, and how they are connected.

    Parameters
    ----------
    model
        name of a network as in `xcnn models`, or a trained one: the folder of a run, a checkpoint, an ONNX file.
    shape
        channels, height and width of the images, separated by spaces; by default those of the
        network's usual data, or of its training.
    classes
        number of classes of a network that is not trained; by default that of its usual data.
    depth
        levels of blocks inside blocks that are drawn, 1 or more; by default as many as can be read.
    out
        file for the picture, .svg or .png; by default an SVG with the name of the network.
    json
        print one JSON object on stdout.
    """
    named = model in room.MODELS or (":" in model and not Path(model).exists())  # package.module:function
    trained = not named and (Path(model).exists() or Path(model).suffix != "" or "/" in model)
    path = Path(f"{Path(model).stem if trained else model.replace(':', '.')}.svg") if out is None else out
    plots.check(path, "out")
    check_writable(path)
    if depth is not None and depth < 1:
        raise UsageError(f"depth must be at least 1, got {depth}", setting="depth")
    network, images = _trained(Path(model), shape, classes) if trained else _new(model, shape, classes)
    plots.network(network, images, path, depth, title=f"{Path(model).name if trained else model}")
    if json:
        count = sum(slot.data.size for slot in network.parameters())
        print_json({"picture": str(path), "shape": images, "parameters": count})
    else:
        print_line(str(path))
    return 0


def _new(name: str, shape: tuple[int, int, int] | None, classes: int | None) -> tuple[Any, tuple[int, ...]]:
    """Return a network by its name, with weights that mean nothing, and the shape of its images."""
    images = shape or room.entry(name).shape
    return room.build(name, images, classes, seed=0), images


def _trained(path: Path, shape: tuple[int, int, int] | None, classes: int | None) -> tuple[Any, tuple[int, ...]]:
    """Return the network of a file and the shape of its images."""
    if classes is not None:
        raise UsageError(f"classes are those of {path}, which is trained", setting="classes")
    try:
        restored = restore(path, image_size=None if shape is None else shape[-1], scores=False, tell=note)
    except UsageError as error:
        if error.setting != "dataset":
            raise
        raise UsageError(f"{path} does not say of which shape its images are; name it", setting="shape") from None
    return restored.model, restored.checkpoint.shape if shape is None else shape

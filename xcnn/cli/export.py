"""`xcnn export`."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from xcnn.cli._console import Bar, check_writable, percent, print_json, print_table
from xcnn.cli._model import Source
from xcnn.errors import UsageError
from xcnn.onnx import package
from xcnn.onnx.export import OLDEST
from xcnn.runs import export_onnx

__all__ = ["export"]

_IMAGES = 200
"""The default of `calibrate`."""


def export(
    checkpoint: Path,
    /,
    *,
    onnx: Path | None = None,
    softmax: Annotated[bool, Parameter(negative=())] = False,
    opset: int = OLDEST,
    int8: Annotated[bool, Parameter(negative=())] = False,
    calibrate: int | None = None,
    source: Source | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Write a trained network as an ONNX file, for browsers, phones, other languages and other frameworks.

    The file also holds the names of the classes and how images become inputs. It is written only if ONNX Runtime
    computes from it what the network computes.

    Parameters
    ----------
    checkpoint
        folder of a run, a checkpoint, an ONNX file, weights of safetensors or PyTorch together with --model, or the
        name of an installed package of weights, such as efficientnet_lite0.
    onnx
        the file to write; its name ends in .onnx.
    softmax
        let the network end with a softmax, so that it gives probabilities in place of scores.
    opset
        version of ONNX's operators, 17 or later.
    int8
        make weights and activations 8 bits wide, and state the accuracy beside that of float32 on the test images.
    calibrate
        number of training images on which --int8 measures the activations; by default 200.
    json
        print one JSON object on stdout.
    """
    if onnx is None:
        raise UsageError("export needs the file to write: --onnx FILE.onnx")
    if onnx.suffix.lower() != ".onnx":
        raise UsageError(f"onnx must be a file that ends in .onnx, got {onnx}", setting="onnx")
    if calibrate is not None and not int8:
        raise UsageError("calibrate is the number of images for int8, which is not set", setting="calibrate")
    if calibrate is not None and calibrate < 1:
        raise UsageError(f"calibrate must be at least 1, got {calibrate}", setting="calibrate")
    for name in ("onnx", "onnxruntime"):  # before anything is loaded
        package(name)
    check_writable(onnx)
    bar = Bar()
    restored = (source or Source()).restore(checkpoint, bar, scores=int8)
    made = export_onnx(
        restored, onnx, softmax=softmax, opset=opset, calibrate=(calibrate or _IMAGES) * int8, watch=bar.test
    )
    if json:
        print_json(
            {
                "onnx": str(onnx),
                "bytes": made.size,
                "opset": opset,
                "inputs": made.inputs,
                "outputs": made.outputs,
                "classes": restored.checkpoint.classes,
                "error": made.difference.units,
                "bound": made.difference.bound,
                "calibrated": made.calibrated or None,
                "accuracy": made.accuracies or None,
            }
        )
        return 0
    rows: list[tuple[str, Any]] = [("size", f"{made.size:,} bytes"), ("opset", opset)]
    for kind, shapes in (("input", made.inputs), ("output", made.outputs)):
        rows += [(kind, f"{name} ({', '.join(map(str, shape))})") for name, shape in shapes.items()]
    rows += [("classes", f"{len(restored.checkpoint.classes):,}")] if restored.checkpoint.classes else []
    rows.append(("error", f"{made.difference} eps times the largest output, of float32 in ONNX Runtime"))
    if made.accuracies:
        rows.append(("calibrated", f"on {made.calibrated:,} training images"))
        rows += [(f"{name} accuracy", percent(share)) for name, share in made.accuracies.items()]
    print_table(str(onnx), "", rows=rows)
    return 0

"""`xcnn explain`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from xcnn.cli._console import Bar, check_writable, note, print_table, split_names
from xcnn.cli._model import Source, note_inverted
from xcnn.data.images import SUFFIXES
from xcnn.errors import UsageError

__all__ = ["explain"]


def explain(
    checkpoint: Path,
    /,
    *images: Path,
    index: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative=(), show_default=False)] = (),
    method: str | None = None,
    target: str | None = None,
    invert: Annotated[bool, Parameter(negative=())] = False,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("explain.html"),
    source: Source | None = None,
) -> int:
    """Write one page on what a network answers for an image, why, and what each of its layers sees.

    The page is a single file that needs no network: open it in any browser, or send it to somebody.

    Parameters
    ----------
    checkpoint
        folder of a run, a checkpoint, an ONNX file, weights of safetensors or PyTorch together with --model, or the
        name of an installed package of weights, such as efficientnet_lite0.
    images
        image files. They are converted and resized as the training images were.
    index
        indices of test images, counted from 0, separated by spaces or commas.
    method
        what answers the question why, separated by commas: grad_cam, grad_cam_plus_plus, occlusion, input_gradient,
        gradient_times_input, smooth_grad, integrated_gradients, guided_backprop, or your own as
        package.module:function; by default grad_cam,occlusion.
    target
        class whose score is explained, by its name or its number; by default the most likely class.
    invert
        turn light into dark, for dark drawings on white paper if the training images are light on black.
    out
        the page to write.
    """
    from xcnn import pages

    if checkpoint.suffix.lower() in SUFFIXES:
        raise UsageError(f"the first argument is the run or its file, then come the images, got the image {checkpoint}")
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"out must be a file that ends in .html, got {out}", setting="out")
    if folder := next((path for path in images if path.is_dir()), None):
        raise UsageError(f"{folder} is a folder; name the images in it that the page shall explain, up to 8")
    if not images and not index:
        raise UsageError("nothing to explain: pass image files or, with --index, the numbers of test images")
    methods = None if method is None else split_names(method)
    if methods is not None:
        pages.methods_named(methods)  # before anything is computed
    check_writable(out)
    source = source or Source()
    restored, named = source.restore(checkpoint, Bar()), [str(checkpoint), *source.flags()]
    made = pages.explanation(
        restored, out, images, index, methods=methods, target=target, invert=invert, source=named, tell=note
    )
    note_inverted(restored, [one.name for one in made if one.inverted], invert)
    rows = [(one.name, one.answer, one.truth) for one in made]
    known = any(one.truth for one in made)
    print_table(*("image", "class", "truth")[: 2 + known], rows=[row[: 2 + known] for row in rows], fold=False)
    note(f"page: {out} ({out.stat().st_size / 1024:,.0f} KiB); open it in a browser")
    return 0

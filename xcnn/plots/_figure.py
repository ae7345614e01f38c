"""What all pictures share: figures, colours, and writing them as PNG or SVG."""

import hashlib
import importlib.util
import io
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import quoteattr

from xcnn import _check
from xcnn._files import replacing
from xcnn.errors import UsageError, XcnnError, printable

__all__ = ["COLOURS", "INK", "NoMatplotlibError", "check", "figure", "literal", "save", "svg"]

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#999999", "#222222")
"""The colours of lines and points, in their order; readable on white and on black, also for the colour-blind."""

INK = "black"
"""The colour of text and axes. In an SVG it is that of the text around it; what has to stay dark there needs another
colour, such as `COLOURS[7]`."""

_HINT = "pictures need matplotlib; pip install matplotlib"

_STANDALONE = (
    "<style>:root { color-scheme: light dark } @media (prefers-color-scheme: dark) { :root { color: #e6e6e6 } }</style>"
)
"""Of an SVG file, which has no page around it that sets the colour of the ink."""


class NoMatplotlibError(XcnnError):
    """Matplotlib is not installed."""


def check(path: str | Path | None = None, setting: str = "") -> None:
    """Raise an error if a picture cannot be drawn. Call it before computing the data of one.

    Parameters
    ----------
    path : where the picture is to be written; its name must end in `.png` or `.svg`.
    setting : the name of the flag that set the path.

    Raises
    ------
    NoMatplotlibError
        If Matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise NoMatplotlibError(_HINT)
    if path is not None:
        _format(setting or "path", Path(path), setting)


def _format(name: str, path: Path, setting: str = "") -> str:
    """Return "png" or "svg", as the name of a file ends."""
    suffix = path.suffix.lower()
    if suffix not in (".png", ".svg"):
        raise UsageError(f"{name} must be a file that ends in .png or .svg, got {path}", setting=setting)
    return suffix[1:]


def figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Any:
    """Return a Matplotlib figure of a size in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NoMatplotlibError(_HINT) from None
    return Figure(figsize=(width, height), layout=layout, dpi=150)


def literal(text: str) -> str:
    """Return text that Matplotlib draws as it is: on one line, and without mathematics between dollar signs."""
    return printable(text).replace("$", r"\$")


def save(name: str, figure: Any, path: str | Path, title: str = "", label: str = "") -> Path:
    """Write the figure of a function, with a title, and with a legend if the lines of its first axes have labels.

    Parameters
    ----------
    name : of the function, for errors.
    label : what a screen reader says of an SVG; by default the title.
    """
    path = _check.path(name, "path", path)
    kind = _format(f"{name}: path", path)
    if figure.get_layout_engine() is not None:
        _finish(figure, title)
    with replacing(path) as temporary, warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        if kind == "png":
            figure.savefig(temporary, format="png")
        else:
            temporary.write_text(_svg(figure, printable(label or title)), "utf-8")
    return path


def _finish(figure: Any, title: str) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if labels:
        inches = 0.7 + 0.09 * max(map(len, labels))
        columns = max(1, min(len(labels), int(figure.get_figwidth() / inches)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    if title:
        figure.suptitle(literal(title))


def _svg(figure: Any, label: str) -> str:
    """Return a figure as SVG: the same bytes each time, text as text, ink in the colour of the text around it."""
    import matplotlib

    made = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "xcnn"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(made, format="svg", transparent=True, metadata=nothing)
    text = made.getvalue()[made.getvalue().index("<svg") :]
    # In a page, this style would be that of everything else, too.
    text = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    # A page may hold several pictures, and an id only once: those that are used begin with what is in the picture.
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', "".join(re.findall("<[^>]*>", text))))
    own = hashlib.sha256((text + label).encode()).hexdigest()[:8]

    def renamed(found: re.Match[str]) -> str:
        return f' id="{own}-{found[1]}"' if found[1] in used else ""

    def cleaned(found: re.Match[str]) -> str:
        tag = found[0].replace("stroke: #000000", "stroke: currentColor")  # Matplotlib leaves out `fill: #000000`
        tag = re.sub(r"font-family: [^;\"]*", "font-family: 'DejaVu Sans', Verdana, sans-serif", tag)
        tag = re.sub(r' id="([^"]*)"', renamed, tag)
        return re.sub(r'(url\(#|href="#)', rf"\g<1>{own}-", tag)

    text = re.sub("<[^>]*>", cleaned, text)  # only tags: a text may be the name of a class, which says what it likes
    spoken = f'role="img" aria-label={quoteattr(label)}' if label else 'role="img"'
    head = f'<svg {spoken} fill="currentColor" stroke-linejoin="round" stroke-linecap="butt"'
    text = text.replace("<svg", head, 1)
    text = text.replace("\n", f"\n {_STANDALONE}\n", 1) if text.partition("\n")[0].endswith(">") else text
    return '<?xml version="1.0" encoding="utf-8"?>\n' + text


def svg(draw: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Return a picture as an `<svg>` element for a page: `svg(curves, history, title="a run")`.

    Its background is transparent, and text and axes have the colour of the page's text (`currentColor`), so that it is
    readable on light and dark pages. Text is text, in the page's fonts where those of the picture are missing. Nothing
    in it concerns the rest of the page: it has no style element, and its ids are its own. The same arguments give the
    same characters.

    Parameters
    ----------
    draw : a function of `xcnn.plots`, whose arguments follow, without its `path`; those after it by their names.
    """
    with tempfile.TemporaryDirectory(prefix="xcnn-") as folder:
        text = Path(draw(*arguments, path=Path(folder) / "picture.svg", **options)).read_text("utf-8")
    return text[text.index("<svg") :].replace(_STANDALONE, "", 1).strip()

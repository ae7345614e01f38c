"""Pictures of results and of what a network has learned, as PNG or SVG.

Each function writes a file to `path`, a PNG or an SVG as its name ends, under a title if there is one, and returns the
path. `svg` returns a picture for a page instead. Matplotlib (extra `plots`) is imported when the first
picture is drawn.
"""

from xcnn.plots._figure import NoMatplotlibError, check, svg
from xcnn.plots.results import comparison, confusion, curves, lr_finder, prediction, search, speeds

__all__ = [
    "NoMatplotlibError",
    "check",
    "comparison",
    "confusion",
    "curves",
    "lr_finder",
    "prediction",
    "search",
    "speeds",
    "svg",
]

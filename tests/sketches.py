"""Pictures that take no time to draw, for tests of runs: what is in a picture is tested in `test_plots.py`."""

import io
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

__all__ = ["use"]


def _noise() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8)).save(file, "png")
    return file.getvalue()


_PICTURE = _noise()
"""A PNG file of 40 kB, as large as a real one."""


def use(patch: pytest.MonkeyPatch) -> None:
    """Make Matplotlib write the same picture for every figure."""

    def save(figure: Any, path: Path, format: str) -> None:
        path.write_bytes(_PICTURE)

    patch.setattr(matplotlib.figure.Figure, "savefig", save)

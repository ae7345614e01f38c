"""Every block of code in the pages of `PAGES` runs, where its library is installed."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xcnn.devices import device
from xcnn.errors import DeviceError

DOCS = Path(__file__).parents[1] / "docs"

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="runs away from the source tree, without docs/")

PAGES = ("research.md", "runs.md", "data.md", "training.md", "models.md", "explain.md")

LIBRARIES = {"torch": "torch", "jax": "jax", "cupy": "cuda", "mine": "strict"}
"""The libraries that a block may import, and a device that can be used only if the block can run."""


def blocks(page: str) -> list[str]:
    text = (DOCS / page).read_text("utf-8") if DOCS.exists() else ""
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def libraries(block: str) -> list[str]:
    return [name for name in LIBRARIES if re.search(rf"^import {name}\b", block, flags=re.MULTILINE)]


def name(block: str) -> str:
    return "-".join(libraries(block)) or "numpy"


def stand_in(folder: Path) -> None:
    """Write the library `mine`: a copy of array-api-strict under a name that xcnn does not know."""
    source = Path(importlib.util.find_spec("array_api_strict").origin).parent
    shutil.copytree(source, folder / "mine", ignore=shutil.ignore_patterns("tests", "__pycache__"))
    for path in (folder / "mine").rglob("*.py"):
        path.write_text(path.read_text("utf-8").replace("array_api_strict", "mine"), "utf-8")


def test_every_section_has_its_blocks() -> None:
    assert [name(block) for block in blocks("research.md")] == ["torch", "jax", "cupy", "torch", "mine", "jax"]
    assert [name(block) for block in blocks("runs.md")] == ["numpy", "numpy"]
    assert [name(block) for block in blocks("data.md")] == ["numpy"] * 4
    assert [name(block) for block in blocks("training.md")] == ["numpy", "numpy"]
    assert [name(block) for block in blocks("models.md")] == ["numpy"]
    assert [name(block) for block in blocks("explain.md")] == ["numpy"] * 6


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page)], ids=name)
def test_a_block_runs(block: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for library in libraries(block):
        try:
            device(LIBRARIES[library])
        except DeviceError as error:
            if library in request.config.getoption("--require-backend"):
                pytest.fail(str(error))
            pytest.skip(str(error))
        if library == "mine":
            stand_in(tmp_path)
    # The block's own folder first, then the path on which this process finds xcnn and the libraries.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

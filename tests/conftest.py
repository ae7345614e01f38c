"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with MNIST and CIFAR-10 files: `$XCNN_TEST_DATA`, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("XCNN_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; set XCNN_TEST_DATA")
    return folder

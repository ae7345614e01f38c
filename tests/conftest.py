"""What several test files share: the array libraries that a test runs on, settings of hypothesis, and data files."""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from xcnn._array import Array
from xcnn.device import Device, device
from xcnn.errors import DeviceError

hypothesis.settings.register_profile(
    "xcnn",
    deadline=None,
    max_examples=int(os.environ.get("XCNN_HYPOTHESIS_EXAMPLES", "50")),
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
)
hypothesis.settings.load_profile("xcnn")


@dataclass(frozen=True)
class Backend:
    """One kind of array to run a test on: an opened device, and how a host array becomes an array there."""

    name: str
    device: Device
    wrap: Callable[[Array], Array]

    def array(self, host: np.ndarray) -> Array:
        return self.wrap(self.device.asarray(host))

    def to_numpy(self, array: Array) -> np.ndarray:
        return self.device.to_numpy(array)


def _as_it_is(array: Array) -> Array:
    return array


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _strided(array: np.ndarray) -> np.ndarray:
    """Every second element, back to front, of a buffer that is full of NaN in between."""
    if array.ndim == 0:
        return array
    buffer = np.full([2 * n for n in array.shape], np.nan if array.dtype.kind == "f" else -1, dtype=array.dtype)
    view = buffer[(slice(None, None, -2),) * array.ndim]
    view[...] = array
    return view


# Strict arrays live on a pretended device: reading one on the host by accident, or mixing it with an array made on the
# default device, raises as it would with a GPU.
BACKENDS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "cpu": ("cpu", _as_it_is),
    "cpu-readonly": ("cpu", _read_only),
    "cpu-strided": ("cpu", _strided),
    "strict": ("strict:device1", _as_it_is),
    "torch": ("torch", _as_it_is),
    "jax": ("jax", _as_it_is),
    "cuda": ("cuda", _as_it_is),
}
"""Every kind of array: the device that holds it, and what is done to the array there."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-backend",
        action="append",
        default=[],
        choices=list(BACKENDS),
        help="fail instead of skipping where this array library is missing; may be given several times",
    )


@pytest.fixture(scope="session", params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each kind of array in turn; skipped with the reason where its library cannot be used here."""
    spec, wrap = BACKENDS[request.param]
    try:
        opened = device(spec)
    except DeviceError as error:
        if request.param in request.config.getoption("--require-backend"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    if request.param == "jax":
        importlib.import_module("jax").config.update("jax_enable_x64", True)  # else JAX makes every float64 a float32
    return Backend(request.param, opened, wrap)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with MNIST and CIFAR-10 files: `$XCNN_TEST_DATA`, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("XCNN_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; set XCNN_TEST_DATA")
    return folder

"""Shared by the test files: the kinds of array that tests run on, the settings of hypothesis, and data files."""

import collections
import contextlib
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import numpy as np
import pytest

from xcnn._array import Array
from xcnn._dispatch import portable
from xcnn.devices import Device, device
from xcnn.errors import DeviceError

hypothesis.settings.register_profile(
    "xcnn",
    deadline=None,
    max_examples=int(os.environ.get("XCNN_HYPOTHESIS_EXAMPLES", "50")),
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
)
hypothesis.settings.load_profile("xcnn")


# A shell starts background jobs with SIGINT ignored, and child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A JAX with CUDA otherwise opens every GPU, and reserves most of its memory, on behalf of `jax.devices("cpu")`.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# PyTorch's idle threads otherwise spin: on a busy machine its small networks take several times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _as_it_is(array: Array) -> Array:
    return array


def _run(function: Callable[..., Any], dtype: str, *arrays: Any) -> Any:
    return function(*arrays)


@dataclass(frozen=True)
class Backend:
    """A kind of array to run tests on.

    Attributes
    ----------
    name : key in `BACKENDS`.
    spec : the device string.
    wrap : applied to each array on the device.
    run : calls a function with arrays of a dtype, compiled if the library would otherwise compile every operation.
    setting : context in which tests of a dtype run.
    """

    name: str
    spec: str
    wrap: Callable[[Array], Array] = _as_it_is
    run: Callable[..., Any] = _run
    setting: Callable[[str], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    @property
    def device(self) -> Device:
        return device(self.spec)

    def array(self, host: np.ndarray) -> Array:
        return self.wrap(self.device.asarray(host))

    def to_numpy(self, array: Array) -> np.ndarray:
        return self.device.to_numpy(array)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _strided(array: np.ndarray) -> np.ndarray:
    """Return a view of every second element, in reverse, of a buffer that holds NaN in between."""
    if array.ndim == 0:
        return array
    buffer = np.full([2 * n for n in array.shape], np.nan if array.dtype.kind == "f" else -1, dtype=array.dtype)
    view = buffer[(slice(None, None, -2),) * array.ndim]
    view[...] = array
    return view


def _run_jax(function: Callable[..., Any], dtype: str, *arrays: Any) -> Any:
    """Run float64 under `jax.jit` and float32 without: every combination of both would take minutes."""
    return (importlib.import_module("jax").jit(function) if dtype == "float64" else function)(*arrays)


def _emulated(dtype: str) -> contextlib.AbstractContextManager[None]:
    """Run the CUDA kernels on the CPU."""
    context: contextlib.AbstractContextManager[None] = importlib.import_module("cuda_emulator").emulated()
    return context


@contextlib.contextmanager
def jax_x64(dtype: str) -> Iterator[None]:
    """Enable 64-bit numbers in JAX for float64 only: float32 is tested with JAX's defaults."""
    config = importlib.import_module("jax").config
    before = config.jax_enable_x64
    config.update("jax_enable_x64", dtype == "float64")
    try:
        yield
    finally:
        config.update("jax_enable_x64", before)


# On a fake device of array-api-strict, as on a GPU, reading an array on the host raises, and so does mixing it with an
# array of another device.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in [
        Backend("numpy", "cpu"),
        Backend("numpy-portable", "cpu", setting=lambda dtype: portable(np)),
        Backend("numpy-readonly", "cpu", _read_only),
        Backend("numpy-strided", "cpu", _strided),
        Backend("numpy-cuda", "cpu", setting=_emulated),
        Backend("numpy-cuda-strided", "cpu", _strided, setting=_emulated),
        Backend("strict", "strict"),
        Backend("strict-device1", "strict:device1"),
        Backend("strict-no_float64", "strict:no_float64"),
        Backend("torch", "torch"),
        Backend("jax", "jax", run=_run_jax, setting=jax_x64),
        Backend("cupy", "cuda"),
    ]
}
"""The kinds of array that tests run on."""

CANNOT: dict[tuple[str, str], str] = {
    ("strict-no_float64", "float64"): "this fake device has no float64",
}
"""What a library cannot do, and why. Tests skip an installed library for no other reason."""

LIBRARIES = ["numpy", "strict", "strict-device1", "torch", "jax", "cupy"]
"""One backend per library, and the fake device that catches hidden transfers: for tests of whole training runs."""

APART: dict[tuple[int, str], dict[str, float]] = {
    (3, "float64"): {"": 1e-14},
    (3, "float32"): {"": 1e-6, "cupy": 1e-5},
    (50, "float64"): {"": 1e-10},
    (50, "float32"): {"": 1e-5, "cupy": 1e-3},
}
"""How far the weights may be from NumPy's, relative to their size, after so many steps in a dtype: the default, and
bounds of single libraries.

In float32 a rounding error of 6e-8 in the first steps is carried through all later ones, and a pixel may move to the
other side of a ReLU or a maximum. The bounds of `cupy`, whose sums have another order, are not measured on a GPU yet.
"""


def apart(steps: int, dtype: str, backend: str) -> float:
    """Return the bound of `APART` for a library."""
    bounds = APART[steps, dtype]
    return bounds.get(backend, bounds[""])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-backend",
        action="append",
        default=[],
        choices=[*BACKENDS, "nvrtc"],
        metavar="NAME",
        help=f"fail instead of skipping if this is missing: {', '.join(BACKENDS)}, nvrtc; may be repeated",
    )


def pytest_configure(config: pytest.Config) -> None:
    if "numpy-cuda" in config.getoption("--require-backend"):
        os.environ["XCNN_REQUIRE_COMPILER"] = "1"  # for cuda_emulator.py


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name bytes by their argument. Compressed bytes hold the time, and ids must be the same in every process."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every kind of array in turn. Skips with the reason if its library cannot be used here."""
    backend = BACKENDS[request.param]
    try:
        device(backend.spec)
    except DeviceError as error:
        if backend.name in request.config.getoption("--require-backend"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    return backend


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest, backend: Backend) -> Iterator[str]:
    """Both precisions, if the backend has them."""
    if reason := CANNOT.get((backend.name, request.param)):
        pytest.skip(reason)
    with backend.setting(request.param):
        yield request.param


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Record each test's array library. With `$XCNN_ONLY_SKIPPED`, keep the tests that another run skipped."""
    if only := os.environ.get("XCNN_ONLY_SKIPPED"):
        skipped = set(Path(only).read_text("utf-8").splitlines())
        chosen: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            again = item.get_closest_marker("with_libraries") is not None
            names = item.nodeid, item.nodeid.partition("::")[0]
            chosen[again or not skipped.isdisjoint(names)].append(item)
        config.hook.pytest_deselected(items=chosen[False])
        items[:] = chosen[True]
    for item in items:
        if name := getattr(item, "callspec", None) and item.callspec.params.get("backend"):
            item.user_properties.append(("backend", name))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print per array library how many tests passed, failed and were skipped, and why.

    Write the ids of skipped tests to the file `$XCNN_LIST_SKIPPED`, if set.
    """
    if listing := os.environ.get("XCNN_LIST_SKIPPED"):
        skipped = [report.nodeid for report in terminalreporter.stats.get("skipped", ())]
        Path(listing).write_text("\n".join(skipped) + "\n", "utf-8")
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    reasons: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            name = dict(getattr(report, "user_properties", ())).get("backend")  # not if the file could not be imported
            if name is not None:
                counts[name][outcome] += 1
                if outcome == "skipped":
                    reasons[name][report.longrepr[2].removeprefix("Skipped: ")] += 1
    if counts:
        terminalreporter.section("array libraries")
    for name in [name for name in BACKENDS if name in counts]:
        failed = counts[name]["failed"] + counts[name]["error"]
        line = f"{name}: {counts[name]['passed']} passed, {failed} failed, {counts[name]['skipped']} skipped"
        terminalreporter.line(line)
        for reason, count in reasons[name].items():
            terminalreporter.line(f"    {count} skipped: {reason}")


@pytest.fixture
def load_example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a file of `examples/` by its name."""

    def load(name: str) -> ModuleType:
        path = Path(__file__).parents[1] / "examples" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look for it there
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def xcnn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    from xcnn.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with two fake GPUs."""
    return importlib.import_module("fake_cupy").install(monkeypatch)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with MNIST and CIFAR-10 files: `$XCNN_TEST_DATA`, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("XCNN_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; set XCNN_TEST_DATA")
    return folder

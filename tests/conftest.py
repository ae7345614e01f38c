"""What the test files share: the kinds of array that tests run on, the settings of hypothesis, and data files."""

import collections
import contextlib
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest

from xcnn import testing
from xcnn.devices import device
from xcnn.errors import DeviceError
from xcnn.testing import Backend

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

# Otherwise a JAX with CUDA opens every GPU for `jax.devices("cpu")`, and reserves most of its memory.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# PyTorch's idle threads otherwise spin: on a busy machine its small networks take several times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _emulated(dtype: str) -> contextlib.AbstractContextManager[None]:
    """Run the CUDA kernels on the CPU."""
    context: contextlib.AbstractContextManager[None] = importlib.import_module("cuda_emulator").emulated()
    return context


BACKENDS: dict[str, Backend] = {
    **testing.BACKENDS,
    **{
        backend.name: backend
        for backend in [
            Backend("numpy-cuda", "cpu", setting=_emulated),
            Backend("numpy-cuda-strided", "cpu", testing.BACKENDS["numpy-strided"].wrap, setting=_emulated),
            Backend("strict-no_float64", "strict:no_float64"),
        ]
    },
}
"""The kinds of array for tests: those of `xcnn.testing`, the CUDA kernels on the CPU, and a device without float64."""

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
"""The largest relative distance of the weights from NumPy's, by number of steps and dtype: the default, and the bounds
of single libraries.

In float32, later steps amplify a rounding error of 6e-8 in the first ones, and a pixel may move to the other side of a
ReLU or a maximum. The bounds of `cupy`, whose sums have another order, are not measured on a GPU yet.
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
    """float32 and float64, if the backend has them."""
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
def sketches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no pictures: runs write a ready one."""
    importlib.import_module("sketches").use(monkeypatch)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best weights of a run on the digits, which no test may change."""
    from commands import QUICK

    from xcnn.cli import main

    folder = tmp_path_factory.mktemp("run") / "out"
    assert main([*QUICK, "--json", "-o", str(folder)]) == 0
    return folder / "best.safetensors"


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

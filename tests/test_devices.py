"""Devices: their strings and errors, moving arrays, and adding a device."""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import BACKENDS, LIBRARIES, Backend

import xcnn
from xcnn import nn, ops, optim
from xcnn._array import namespace_of
from xcnn.devices import LIBRARIES as TABLE
from xcnn.devices import Device, Library, devices, like, to_numpy
from xcnn.errors import DeviceError, DtypeError, UsageError

each_library = pytest.mark.parametrize("backend", LIBRARIES, indirect=True)
every_device = pytest.mark.parametrize(
    "backend", ["numpy", "strict", "strict-device1", "strict-no_float64", "torch", "jax", "cupy"], indirect=True
)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("cpu", "cpu"),
        ("strict", "strict"),
        ("strict:device1", "strict:device1"),
        ("strict:no_float64", "strict:no_float64"),
        ("torch", "torch:cpu"),
        ("torch:cpu", "torch:cpu"),
        ("jax", "jax:cpu"),
        ("jax:cpu", "jax:cpu"),
        ("jax:cpu:0", "jax:cpu:0"),
        ("cuda", "cuda:0"),
        ("cuda:0", "cuda:0"),
    ],
)
def test_a_string_opens_a_device_whose_name_opens_it_again(spec: str, name: str) -> None:
    try:
        opened = xcnn.device(spec)
    except DeviceError as error:
        pytest.skip(str(error))
    assert opened.name == name
    assert repr(opened) == f"device('{name}')"
    assert xcnn.device(opened.name) == opened
    assert xcnn.device(opened) is opened
    assert opened.summary


def test_auto_is_a_device_that_works() -> None:
    opened = xcnn.device("auto")
    assert opened.name == ("cuda:0" if isinstance(devices()["cuda"], Device) else "cpu")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("strct", "unknown device 'strct'; did you mean 'strict'? (known: auto, cpu, cuda, jax, strict, torch)"),
        ("", "unknown device '' (known: auto, cpu, cuda, jax, strict, torch)"),
        ("auto:1", "unknown device 'auto:1'; did you mean 'auto'? (known: auto, cpu, cuda, jax, strict, torch)"),
        ("gpu", "unknown device 'gpu'; did you mean 'cuda'? ("),
        ("CUDA:0", "unknown device 'CUDA:0'; did you mean 'cuda'? ("),
        ("cpu:0", "device 'cpu:0': the CPU takes no number; write 'cpu'"),
        ("cuda:x", "device 'cuda:x': expected a device number after the colon, as in 'cuda:0'"),
        ("strict:divice1", "unknown device 'strict:divice1'; did you mean 'strict:device1'? (known: strict, strict:"),
        (3, "device takes a string such as 'cpu', or an opened device, got 3"),
        (None, "device takes a string such as 'cpu', or an opened device, got None"),
    ],
)
def test_a_string_that_means_nothing_names_the_nearest(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        xcnn.device(spec)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("module", "spec", "error", "message"),
    [
        ("torch", "torch:foo", UsageError, "unknown device 'torch:foo'; did you mean 'torch"),
        ("torch", "torch:meta", DeviceError, "torch:meta: PyTorch cannot use it ("),
        ("jax", "jax:foo", DeviceError, "jax:foo: JAX cannot use it (Unknown backend"),
        ("jax", "jax:cpu:x", UsageError, "device 'jax:cpu:x': expected a device number after the colon, as in 'jax:cp"),
        ("jax", "jax:cpu:99", DeviceError, "jax:cpu:99: JAX has "),
    ],
)
def test_a_device_that_a_library_does_not_have(module: str, spec: str, error: type, message: str) -> None:
    pytest.importorskip(module)
    with pytest.raises(error) as caught:
        xcnn.device(spec)
    assert str(caught.value).startswith(message)
    if error is DeviceError and "cannot use" in message:
        assert "; install a build of " in str(caught.value)


def test_a_missing_library_is_named_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, mend in [
        ("torch", "pip install torch"),
        ("jax", "pip install jax"),
        ("cupy", "pip install 'cupy-cuda12x[ctk]'"),
    ]:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(DeviceError, match=f"the package {name} ") as caught:
            xcnn.device("cuda" if name == "cupy" else name)
        assert mend in str(caught.value)
        assert isinstance(devices()["cuda" if name == "cupy" else name], DeviceError)


@every_device
@pytest.mark.parametrize("kind", ["float32", "float64", "int64", "uint8", "bool"])
def test_arrays_move_there_and_back(backend: Backend, kind: str) -> None:
    """With JAX in its default setting, which has neither float64 nor int64."""
    opened, host = backend.device, np.array([[0, 1, 1], [1, 0, 0]]).astype(kind)
    if kind == "float64" and backend.name in ("strict-no_float64", "jax"):
        with pytest.raises(DtypeError, match=r" has no float64 on .*; convert the array to a narrower dtype first"):
            opened.asarray(host)
        return
    there = opened.asarray(host)
    host[...] = 7  # the copy is private
    assert namespace_of(there) is opened.xp
    back = opened.to_numpy(there)
    assert np.array_equal(back, [[0, 1, 1], [1, 0, 0]])
    assert back.dtype == ("int32" if (backend.name, kind) == ("jax", "int64") else kind)
    assert back.flags.owndata
    assert back.flags.writeable
    assert np.array_equal(to_numpy(opened.asarray(np.float32(2))), 2)


@every_device
def test_like_takes_library_device_and_dtype_of_another_array(backend: Backend) -> None:
    """A wider host array is rounded on the host, as the device may lack its dtype."""
    other = backend.array(np.zeros(2, np.float32))
    array = like(np.array([1.1, 2.2, 3.3]), other)
    assert namespace_of(array) is namespace_of(other)
    assert array.dtype == other.dtype
    assert array.device == other.device
    assert np.array_equal(to_numpy(array), np.array([1.1, 2.2, 3.3], np.float32))


def test_like_knows_dtypes_that_the_host_lacks() -> None:
    torch = pytest.importorskip("torch")
    assert like(np.array([1.0, 0.5]), torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ["jax"], indirect=True)
def test_jax_has_float64_when_it_is_switched_on(backend: Backend) -> None:
    with pytest.raises(DtypeError, match="set JAX_ENABLE_X64=1 in the environment to enable it"):
        nn.Linear(2, 2).to(backend.spec, "float64")
    with BACKENDS["jax"].setting("float64"):
        assert backend.array(np.ones(2)).dtype == np.float64
        assert nn.Linear(2, 2).to(backend.spec, "float64").weight.data.dtype == np.float64


@pytest.mark.parametrize("spec", ["strict:no_x64", "jax"])
def test_wide_integers_that_do_not_fit_are_refused(spec: str) -> None:
    try:
        opened = xcnn.device(spec)
    except DeviceError as error:
        pytest.skip(str(error))
    labels = opened.asarray(np.array([3, 2**31 - 1, -(2**31)]))
    assert to_numpy(labels).tolist() == [3, 2**31 - 1, -(2**31)]
    assert opened.asarray(np.zeros(0, np.int64)).shape == (0,)
    with pytest.raises(DtypeError, match="has no int64"):
        opened.asarray(np.array([2**31]))


def test_an_array_of_a_library_outside_the_table_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = xcnn.device("strict")
    monkeypatch.delitem(TABLE, "strict")
    with pytest.raises(DtypeError, match=r"array_api_strict is not in xcnn\.devices\.LIBRARIES"):
        to_numpy(strict.xp.ones(2))


@each_library
def test_ops_take_arrays_of_the_users_own_making_and_return_the_same_kind(backend: Backend) -> None:
    """Arrays that the library itself has made, without `xcnn.device`."""
    opened = backend.device
    xp, rng = opened.xp, np.random.default_rng(0)
    hosts = [rng.standard_normal(shape).astype(np.float32) for shape in [(2, 3, 6, 6), (4, 3, 3, 3), (4,)]]
    arrays = [xp.asarray(host.tolist(), dtype=xp.float32, device=opened.handle) for host in hosts]
    y, backward = ops.conv2d(*arrays, padding="same")
    gradients = backward(xp.ones_like(y))
    wanted, host_backward = ops.conv2d(*hosts, padding="same")
    for mine, host in zip((y, *gradients), (wanted, *host_backward(np.ones_like(wanted))), strict=True):
        assert type(mine) is type(arrays[0])
        assert mine.device == arrays[0].device
        assert mine.dtype == arrays[0].dtype
        np.testing.assert_allclose(to_numpy(mine), host, rtol=1e-5, atol=1e-4)


@pytest.mark.with_libraries
@pytest.mark.parametrize("backend", ["numpy", "strict", "torch", "jax"], indirect=True)
def test_dlpack_takes_arrays_in_and_out(backend: Backend) -> None:
    """The library's `from_dlpack` takes host arrays, and NumPy's and PyTorch's take results. All in host memory."""
    xp, host = backend.device.xp, np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5
    x = xp.from_dlpack(host)
    y, backward = ops.relu(x)
    assert type(y) is type(x)
    torch = [importlib.import_module("torch")] if isinstance(devices()["torch"], Device) else []
    for library in (np, *torch):
        taken = library.from_dlpack(y)
        assert type(taken) is (np.ndarray if library is np else library.Tensor)
        assert np.array_equal(np.asarray(taken), np.maximum(host, 0))
        (dx,) = backward(xp.from_dlpack(np.ones_like(host)))
        assert np.array_equal(np.asarray(library.from_dlpack(dx)), host > 0)


def test_another_array_library_is_one_entry_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that xcnn does not know: array-api-strict's source under another name."""
    mine = foreign_library(monkeypatch)
    with pytest.raises(UsageError, match="unknown device 'mine'"):
        xcnn.device("mine")

    def open_mine(rest: str) -> Device:
        return Device("mine", mine, mine.Device("device1"), "my own arrays")

    entry = Library("mine", "pip install mine", open_mine, lambda a: np.asarray(a.to_device(mine.Device("CPU_DEVICE"))))
    monkeypatch.setitem(TABLE, "mine", entry)

    trained = {}
    for spec in ("cpu", "mine"):
        model = nn.Sequential(
            nn.Conv2d(1, 2, 3, bias=False),  # the gradient of a bias before batch norm is nothing but rounding errors
            *(nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(8, 3)),
        )
        model.reset_parameters(0)
        trainer = xcnn.Trainer(model, optim.Adam(model.parameters(), lr=0.01), device=spec, clip_norm=1.0)
        rng = np.random.default_rng(1)
        trainer.step(rng.standard_normal((4, 1, 4, 4)).astype(np.float32), np.array([0, 1, 2, 0]))
        assert namespace_of(model[0].weight.data) is (np if spec == "cpu" else mine)
        trained[spec] = model.state_dict()
    for name, value in trained["cpu"].items():
        np.testing.assert_allclose(trained["mine"][name], value, rtol=1e-4, atol=1e-6)
    assert isinstance(devices()["mine"], Device)


def foreign_library(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Load array-api-strict a second time, as the package `mine` with types of its own."""
    strict = pytest.importorskip("array_api_strict")
    spec = importlib.util.spec_from_file_location(
        "mine", strict.__file__, submodule_search_locations=[str(Path(strict.__file__).parent)]
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mine", module)
    spec.loader.exec_module(module)
    array_type = type(module.ones(1))
    assert array_type is not type(strict.ones(1))
    monkeypatch.setattr(array_type, "__array_namespace__", lambda self, api_version=None: module)
    return module


@pytest.mark.parametrize("required", [list(BACKENDS), ["torch"]], ids=["all", "torch"])
def test_a_required_library_that_is_missing_fails(required: list[str], tmp_path: Path) -> None:
    """A test run with NumPy alone fails for each required library, and skips the others."""
    hide = "import sys\nsys.modules |= dict.fromkeys(['array_api_strict', 'torch', 'jax', 'cupy'])\n"
    (tmp_path / "conftest.py").write_text(hide + (Path(__file__).parent / "conftest.py").read_text("utf-8"))
    (tmp_path / "test_one.py").write_text("def test(backend):\n    assert backend\n")
    # No settings from a pyproject.toml in the folders above: the temporary folder may lie in a copy of the project.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".", "."]
    command += [f"--require-backend={name}" for name in required]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    for name in BACKENDS:
        if name.startswith("numpy"):
            assert f"{name}: 1 passed, 0 failed, 0 skipped" in done.stdout
        elif name in required:
            assert f"{name}: 0 passed, 1 failed, 0 skipped" in done.stdout
        else:
            assert re.search(rf"{name}: 0 passed, 0 failed, 1 skipped\n +1 skipped: .* the package \w+ ", done.stdout)


def test_a_device_can_be_a_key_though_its_handle_cannot() -> None:
    """Such as `cupy.cuda.Device`, which defines equality but no hash."""
    one, same = (Device("cuda:0", np, [0], "a GPU") for _ in range(2))
    assert {one: 1}[same] == 1
    assert one != Device("cuda:1", np, [1], "a GPU")


@pytest.mark.parametrize("spec", ["cpu", "strict"])
@pytest.mark.parametrize("array", [None, "a", [[1], [1, 2]], np.array(["a"])], ids=["None", "text", "ragged", "texts"])
def test_objects_without_numbers_are_refused(spec, array):
    with pytest.raises(DtypeError, match=r"^asarray: expected an array of numbers"):
        xcnn.device(spec).asarray(array)


def test_only_arrays_are_copied_to_the_host():
    with pytest.raises(DtypeError, match=r"^to_numpy: expected an array, got list$"):
        to_numpy([1, 2])


def test_the_cpu_says_whether_kernels_are_off(monkeypatch):
    monkeypatch.setenv("XCNN_KERNELS", "off")
    assert "without kernels, as XCNN" in importlib.import_module("xcnn.devices")._cpu.__wrapped__("").summary


def test_the_cpu_says_what_kernels_need(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.delenv("XCNN_KERNELS", raising=False)
    assert "pip install llvmlite" in importlib.import_module("xcnn.devices")._cpu.__wrapped__("").summary

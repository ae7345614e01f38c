"""Every check of the project as a session of its own: `nox` runs the default ones, `nox -s lint types` some of them."""

import glob
import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.sessions = ["lint", "types", "tests", "cuda", "examples", "build", "backends"]

DATA = Path(os.environ.get("XCNN_TEST_DATA", "../shared/data")).resolve()
"""MNIST and CIFAR-10 files for the tests that want them; the others run without."""

EXTRAS = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]

CUPY = EXTRAS["cuda12"][0].replace("[ctk]", "")
"""CuPy without the CUDA libraries that the extra `cuda12` brings: they take gigabytes, and want a GPU."""

LIBRARIES = {"torch": "torch==2.13.0", "jax": "jax[cpu]>=0.10"}
"""The array libraries that `.[test]` does not bring, by their names in `tests/conftest.py`, and what to install."""


ONCE = (
    "full_disk",
    "memory",
    "hostile",
    "hostile_states",
    "data_download",
    "data_files",
    "data_folder",
    "kernels_compile",
)
"""Test files that depend neither on the array library nor on where xcnn is installed: the session `tests` is enough."""

WHEEL = ("architecture", "bench", "cli", "compare", "cuda_kernels", "data", "kernels", "models", "ops", "training")
"""Test files that touch every part of an installed wheel: what is asked of it is whether it is complete."""

BENCHMARKS = (
    "--against torch --mode both",
    "--against torch --mode both --models resnet20 --batch-sizes 128",
    "--models lenet5,mnist_cnn,vgg_small --batch-sizes 64,256,1024,4096",
    "--models report,vgg_small --batch-sizes 64 --sizes 28,56,112,224",
    "--models resnet20 --batch-sizes 16 --sizes 28,56,112,224",
)
"""What `xcnn bench` measures for docs/speed.md: speed, a deeper network, and that cost grows linearly.

The last ones' networks have padding: without it, a large map has more outputs per pixel than a small one.
"""


@nox.session
def lint(session: nox.Session) -> None:
    """Look for mistakes and for lines that are not formatted."""
    session.install("ruff>=0.14")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package and the examples, strictly."""
    session.install(".[plots]", "mypy>=1.15")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; what follows `--` goes to pytest."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def backends(session: nox.Session) -> None:
    """Run the tests with every array library for the CPU, where one that is missing is a failure and not a skip.

    The end of the output counts the tests of each library, and its skips with their reasons. With `$XCNN_ONLY_SKIPPED`
    (see tests/conftest.py) only those are run that a run without these libraries has skipped.
    """
    session.install(".[test]", *LIBRARIES.values())
    required = [f"--require-backend={name}" for name in ("strict", *LIBRARIES)]
    session.run("python", "-m", "pytest", *required, *_without_once("tests"), *session.posargs)


@nox.session
def cuda(session: nox.Session) -> None:
    """Check the CUDA kernels without a GPU: NVRTC compiles them, and a C++ compiler, so that they run on the CPU."""
    session.install(".[test]", CUPY, "nvidia-cuda-nvrtc-cu12")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        session.install("ziglang")
    required = [f"--require-backend={name}" for name in ("nvrtc", "numpy-cuda")]
    files = [*sorted(glob.glob("tests/test_cuda*.py")), "tests/test_ops.py", "tests/test_kernels.py"]
    session.run("python", "-m", "pytest", *required, *files, "-k", "cuda", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Check and measure what only a GPU can show, where there is one; it fails where there is none.

    The op matrix and training with CuPy's arrays, errors against the CPU's, speed beside PyTorch, MNIST, memory.
    """
    session.install(".[test,cuda12]", "torch")
    session.run("xcnn", "devices")
    session.run("python", "-m", "pytest", "--require-backend=cupy", "-k", "cupy or cuda or gpu", *session.posargs)
    for model in ("lenet5", "resnet20"):
        session.run("xcnn", "compare", "--devices", "cpu,cuda", "--model", model)
    measured = ("report,lenet5,mnist_cnn -b 64,256", "vgg_small,resnet20 -b 256")
    for models in measured:
        session.run("xcnn", "bench", "--device", "cuda", "--against", "torch", "--models", *models.split())
    data = ["--data-dir", str(DATA)] if DATA.is_dir() else []
    for library in ("xcnn", "torch"):
        session.run("python", "examples/mnist_to_99.py", "--library", library, "--device", "cuda", *data)
    session.run("python", "tests/soak.py", "--steps", "10000", "--device", "cuda")


@nox.session
def endurance(session: nox.Session) -> None:
    """Kill runs 1,000 times, fill disks of every size, and watch memory over 20,000 steps, twice: some ten minutes."""
    session.install(".[test]")
    session.run("python", "tests/kill_runs.py", "--kills", "1000")
    session.run("python", "tests/full_disk.py", "limit")
    if shutil.which("unshare") is not None:
        session.run("unshare", "-Urm", "python", "tests/full_disk.py", "tmpfs", session.create_tmp(), external=True)
    session.run("python", "tests/soak.py", "--steps", "20000", "--epochs", "24")


@nox.session
def hostile(session: nox.Session) -> None:
    """Read 20,000 damaged variants of every kind of file; what follows `--` goes to tests/hostile.py."""
    session.install(".[test]")
    session.run("python", "tests/hostile.py", "--count", "20000", *session.posargs)
    session.run("python", "-m", "pytest", "tests/test_hostile_states.py", env={"XCNN_HOSTILE_STATES": "3000"})


@nox.session
def fuzz(session: nox.Session) -> None:
    """Let a coverage-guided fuzzer look for files that are read wrongly, each kind for some minutes.

    `-- --fuzz 60` takes a minute for each, `--kind png` one kind alone.
    """
    session.install(".[test]", "atheris>=2.3")
    session.run("python", "tests/hostile.py", *(session.posargs or ["--fuzz", "180"]))


@nox.session
def budgets(session: nox.Session) -> None:
    """Measure the error of every op on every library anew, and write the table of docs/budgets.md."""
    session.install(".[test]", *LIBRARIES.values())
    command = "xcnn compare --op all --devices cpu,strict,torch,jax --dtype float32,float64 --markdown docs/budgets.md"
    session.run(*command.split(), env={"JAX_ENABLE_X64": "1"})  # without it JAX has no float64


@nox.session
def examples(session: nox.Session) -> None:
    """Run the examples, the report's training run in full and checked, where there is MNIST."""
    session.install(".[test]")
    session.run("python", "examples/report_example.py")
    if not DATA.is_dir():
        session.warn(f"no MNIST in {DATA} (XCNN_TEST_DATA), so the training run is left out")
        return
    session.run("python", "examples/report_training.py", "--data-dir", str(DATA), "--limit", "5000")
    session.run("python", "-m", "pytest", "tests/test_report.py", "-k", "whole", env={"XCNN_FULL_REPORT": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Measure everything that docs/speed.md shows; `-- --quick` tries it out in little time, with useless figures.

    What else follows `--` goes to each `xcnn bench`. It wants a machine without other work, for about an hour.
    """
    session.install(".[fast,plots]", LIBRARIES["torch"])
    quick, options = "--quick" in session.posargs, [option for option in session.posargs if option != "--quick"]
    if quick:
        options += ["--rounds", "1", "--seconds", "0.01"]
    # The memory that compiling takes is not to be measured, so kernels are to be on the disk.
    every = "--models report,lenet5,mnist_cnn,vgg_small,resnet20 --batch-sizes 1,64 --mode both"
    session.run("xcnn", "bench", *every.split(), "--rounds", "1", "--seconds", "0.001", silent=True)
    for measured in BENCHMARKS:
        session.run("xcnn", "bench", *measured.split(), *options)
    data = ["--data-dir", str(DATA)] if DATA.is_dir() else []
    limit = ["--limit", "2000"] if quick else []
    for learner in ("--library xcnn", "--library torch --layout NCHW", "--library torch --layout channels_last"):
        session.run("python", "examples/mnist_to_99.py", *learner.split(), *data, *limit)
    session.run("python", "examples/report_training.py", *data, *limit)
    # What checkpoints cost: `checkpoint_seconds` of `seconds`.
    often = "--dataset mnist --model lenet5 --epochs 1 --checkpoint-every 100steps --json"
    for _ in range(1 if quick else 5):
        session.run("xcnn", "train", *often.split(), *data, "--out", str(Path(session.create_tmp()) / "run"))
        shutil.rmtree(Path(session.create_tmp()) / "run")


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist and wheel, and run tests against the installed wheel, away from the source tree."""
    folder = Path(session.create_tmp())
    shutil.rmtree(folder)  # what an earlier run left
    session.install("build>=1.2")
    session.run("python", "-m", "build", "--outdir", str(folder))  # the wheel is made from the sdist
    (wheel,) = folder.glob("*.whl")
    session.install(f"{wheel}[test]")
    for name in ("tests", "examples"):
        shutil.copytree(name, folder / name)
    shutil.copy("pyproject.toml", folder)
    session.chdir(folder)
    environment = {"XCNN_HYPOTHESIS_EXAMPLES": "5", "XCNN_TEST_DATA": str(DATA)}
    options = [*(f"tests/test_{name}.py" for name in WHEEL), "--pyargs", "xcnn", *session.posargs]
    session.run("python", "-m", "pytest", *options, env=environment)


def _without_once(folder: str) -> list[str]:
    return [f"--ignore={folder}/test_{name}.py" for name in ONCE]

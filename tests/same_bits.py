"""Train the same run on 1, 2, 3 and 4 processes, kill and resume it on others, and compare the weights.

    python tests/same_bits.py --data-dir data

lenet5 on MNIST and resnet20 on CIFAR-10, for an epoch, with augmentation, dropout, momentum and four parts a batch. The
SHA-256 of the weights must be the same each time. Without a folder of data, the digits of the package are used. Needs
mpi4py and `mpiexec`.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from xcnn import models, nn
from xcnn.parallel import launch_command
from xcnn.runs.checkpoint import BEST, read_checkpoint

__all__ = ["lenet5", "mnist_cnn", "resnet20"]

SETTINGS = "--accumulate 4 --opt sgd --momentum 0.9 --wd 5e-4"
LARGE = ["--epochs", "1", "-b", "128", "--lr", "0.05", "--checkpoint-every", "20steps"]
SMALL = ["--epochs", "8", "-b", "32", "--lr", "0.02", "--checkpoint-every", "5steps"]


def _dropping(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a named network with dropout before its last layer."""
    network = models.build(name, shape, classes)
    assert isinstance(network, nn.Sequential)
    return nn.Sequential(*network[:-1], nn.Dropout(0.25), network[-1])


def lenet5(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return lenet5 with dropout."""
    return _dropping("lenet5", shape, classes)


def mnist_cnn(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return mnist_cnn with dropout."""
    return _dropping("mnist_cnn", shape, classes)


def resnet20(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return resnet20 with dropout."""
    return _dropping("resnet20", shape, classes)


def start(size: int, *arguments: str) -> subprocess.Popen[str]:
    """Start `xcnn train` on some processes."""
    here = Path(__file__).parent
    paths = [str(here.parent), str(here), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = launch_command(size, sys.executable, "-m", "xcnn", "train", *arguments)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def end(program: subprocess.Popen[str]) -> None:
    """Wait for a run."""
    _, said = program.communicate()
    assert program.returncode == 0, said


def weights(folder: Path) -> str:
    """Return the SHA-256 of the best weights and running statistics of a run."""
    found = hashlib.sha256()
    for name, array in sorted(read_checkpoint(folder / BEST).state.items()):
        found.update(name.encode() + array.tobytes())
    return found.hexdigest()


def _accuracy(folder: Path) -> float:
    record = json.loads((folder / "history.jsonl").read_text().splitlines()[-1])
    return float(record["val_accuracy"])


def _check(name: str, settings: list[str], root: Path) -> None:
    found: dict[str, str] = {}
    model = ["--model", f"same_bits:{name}"]
    for size in (1, 2, 3, 4):
        folder, begin = root / f"{name}-{size}", time.time()
        end(start(size, *model, *SETTINGS.split(), *settings, "--out", str(folder)))
        found[f"{size} process{'es' * (size > 1)}"] = weights(folder)
        print(f"{name}, {size}: {weights(folder)}, val. accuracy {_accuracy(folder):.2%}, {time.time() - begin:.1f} s")
    folder = root / f"{name}-killed"
    program = start(4, *model, *SETTINGS.split(), *settings, "--out", str(folder))
    while len(list((folder / "checkpoints").glob("step-*.safetensors"))) < 2:
        assert program.poll() is None, program.communicate()
        time.sleep(0.05)
    assert program.poll() is None, "the run ended before it was killed"
    os.killpg(program.pid, signal.SIGKILL)
    program.communicate()
    newest = max((folder / "checkpoints").glob("step-*.safetensors")).stem
    end(start(3, "--resume", str(folder), *model))
    found["killed on 4, resumed on 3"] = weights(folder)
    print(f"{name}, killed on 4 after {newest}, resumed on 3: {weights(folder)}")
    assert len(set(found.values())) == 1, found


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, help="folder with the files of MNIST and CIFAR-10")
    chosen = parser.parse_args().data_dir
    with tempfile.TemporaryDirectory() as root:
        if chosen is None:
            _check("mnist_cnn", [*SMALL, "--augment", "shift"], Path(root))
            return
        data = [*LARGE, "--data-dir", str(chosen)]
        _check("lenet5", ["--dataset", "mnist", "--augment", "shift,rotate", *data], Path(root))
        _check("resnet20", ["--dataset", "cifar10", "--augment", "shift,flip", *data], Path(root))


if __name__ == "__main__":
    _main()

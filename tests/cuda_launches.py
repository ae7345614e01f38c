"""Count on the CPU how many launches a training step makes on a GPU, with and without the CUDA kernels.

    python tests/cuda_launches.py [MODEL ...]

Counting arrays replace those of a device. A launch is a kernel, a matrix product, or a NumPy call that makes or fills
an array, but not one that makes a view. CuPy may need more in some places, such as a second one for a long sum.
"""

import collections
import contextlib
import sys
from collections.abc import Callable
from typing import Any

import cuda_emulator as emulator
import numpy as np

from xcnn import Trainer, models, optim
from xcnn._dispatch import portable
from xcnn.training import divergence, step

COUNTS: collections.Counter[str] = collections.Counter()

_VIEWS = {"broadcast_to", "expand_dims", "matrix_transpose", "reshape", "shape", "squeeze", "swapaxes", "transpose"}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value.view(np.ndarray) if isinstance(value, Counting) else value


def _counting(value: Any) -> Any:
    return np.asarray(value).view(Counting) if isinstance(value, np.ndarray | np.generic) else value


class Counting(np.ndarray):
    """An array that counts the calls that it takes part in, and how often a number is read on the host."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        COUNTS[ufunc.__name__] += 1
        if out is not None:
            getattr(ufunc, method)(*_plain(inputs), out=_plain(out), **options)
            return out[0]
        return _counting(getattr(ufunc, method)(*_plain(inputs), **options))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function.__name__ not in _VIEWS:
            COUNTS[function.__name__] += 1
        return _counting(function(*_plain(args), **{name: _plain(value) for name, value in kwargs.items()}))

    def __setitem__(self, index: Any, value: Any) -> None:
        COUNTS["setitem"] += 1
        super().__setitem__(index, value)

    def astype(self, dtype: Any, *args: Any, copy: bool = True, **kwargs: Any) -> Any:
        COUNTS["astype"] += copy or self.dtype != dtype
        return super().astype(dtype, *args, copy=copy, **kwargs)

    def copy(self, *args: Any) -> Any:
        COUNTS["copy"] += 1
        return super().copy(*args)


def _empty(*args: Any) -> Any:
    return emulator.empty(*args).view(Counting)


def count(name: str, context: Callable[[], contextlib.AbstractContextManager[None]]) -> dict[str, int]:
    """Count the launches of a network's second step, for batches of 4 and with momentum."""
    shape = models.MODELS[name].shape
    model = models.build(name, shape, seed=0)
    training = Trainer(model, optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
    for slot in (*model.parameters(), *(buffer for _, buffer in model.named_buffers())):
        slot.data = _counting(slot.data)
    images = _counting(np.random.default_rng(0).random((4, *shape), np.float32))
    labels = _counting(np.arange(4))
    with context():
        training.step(images, labels)
        COUNTS.clear()
        emulator.LAUNCHES.clear()
        training.step(images, labels)
    return {**COUNTS, **collections.Counter(emulator.LAUNCHES)}


def main() -> None:
    emulator.room()
    for module in emulator.LOADED.values():
        if hasattr(module, "empty"):
            module.empty = _empty
    divergence.on_host = step.on_host = lambda array: not isinstance(array, Counting)
    print("| network | portable code | with kernels | matrix products |\n|---|---:|---:|---:|")
    for name in sys.argv[1:] or ["report", "lenet5", "mnist_cnn", "vgg_small", "resnet20"]:
        before, after = count(name, lambda: portable(np)), count(name, emulator.emulated)
        print(f"| `{name}` | {sum(before.values())} | {sum(after.values())} | {after['matmul']} |")
        print(name, dict(sorted(after.items())), file=sys.stderr)


if __name__ == "__main__":
    main()

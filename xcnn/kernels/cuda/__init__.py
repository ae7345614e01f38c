"""Kernels for CuPy arrays: CUDA sources in `*.cu`, and the Python code that launches them.

A batch of maps lies in memory as (images, channels, pixels) or, after a convolution without bias, as (channels, images,
pixels): kernels read both without a copy, and gradients get the same order. Only a map's pixels must be contiguous.
No kernel adds atomically, so that results depend on the inputs alone.
"""

from xcnn.kernels.cuda import activation, conv, cross_entropy, dropout, linear, norm, optim, pool, tree  # noqa: F401

__all__: list[str] = []

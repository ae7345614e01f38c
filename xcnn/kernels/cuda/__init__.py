"""Kernels for CuPy arrays: CUDA sources in `*.cu`, and beside them what calls them.

A batch of maps lies in memory as (images, channels, pixels) or, after a convolution without bias, as (channels, images,
pixels): what follows reads it where it is, and gives its gradient the same order. Only a map's pixels must be together.
No kernel adds atomically, so that each result depends on its inputs alone.
"""

from xcnn.kernels.cuda import activation, conv, cross_entropy, dropout, linear, norm, optim, pool  # noqa: F401

__all__: list[str] = []

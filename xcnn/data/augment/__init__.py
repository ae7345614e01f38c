"""Random augmentations of a batch: functions (x, y, rng, **options) -> (x, y), by name in `AUGMENTATIONS`.

`x` is a batch of images (n, C, H, W), float32 or float64, and `y` its targets. Each function returns new images of the
same shape and dtype, and draws the numbers of each image from `rng`, a `data.Draws`; a NumPy generator or a seed will
also do. The bits of an image do not depend on the other images of the batch, except with `mixup` and `cutmix`.

Functions that move pixels move those of a mask with them: a `y` (n, H, W) or (n, K, H, W). Masks of integers take the
nearest pixel, and -100, which the losses ignore, from outside of the image; those of floating point are interpolated as
images are, and take 0. All other targets are returned unchanged, except by `mixup` and `cutmix`.

Options are set by `functools.partial`. To add an augmentation, write a function and, for the command, add it to the
table.

Examples
--------
>>> import functools
>>> from xcnn import data
>>> train, test = data.load("digits")
>>> augment = [data.shift, functools.partial(data.rotate, degrees=20)]
>>> loader = data.Loader(train, 64, augment=augment)
"""

from xcnn.data.augment._batch import Augmentation
from xcnn.data.augment.color import color_jitter, gaussian_noise
from xcnn.data.augment.geometry import affine, crop, flip, random_resized_crop, rotate, shift, zoom
from xcnn.data.augment.mixing import cutmix, cutout, mixup, random_erasing
from xcnn.data.augment.policy import rand_augment

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "affine",
    "color_jitter",
    "crop",
    "cutmix",
    "cutout",
    "flip",
    "gaussian_noise",
    "mixup",
    "rand_augment",
    "random_erasing",
    "random_resized_crop",
    "rotate",
    "shift",
    "zoom",
]

AUGMENTATIONS: dict[str, Augmentation] = {
    function.__name__: function
    for function in (
        flip,
        shift,
        crop,
        random_resized_crop,
        rotate,
        zoom,
        affine,
        color_jitter,
        gaussian_noise,
        cutout,
        random_erasing,
        mixup,
        cutmix,
        rand_augment,
    )
}
"""Every augmentation by name, with its default options."""

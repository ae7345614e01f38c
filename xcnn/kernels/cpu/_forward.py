"""The compiled passes of a convolution and of its input gradient: lay out, multiply, write; `_stacks.py` plans them."""

from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._moves import affine, every
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._tables import array

__all__ = ["convolve", "fold"]


@compiled
def fold(bias, mean, var, weight, add, eps, scale, shift):
    """Set scale and shift of each channel so that they add a bias and apply a batch norm; either may be empty."""
    for o in range(scale.size):
        factor = 1 / (var[o] + eps) ** 0.5
        if weight.size:
            factor *= weight[o]
        centre = (bias[o] if bias.size else 0.0) - mean[o]
        scale[o] = factor
        shift[o] = centre * factor + (add[o] if add.size else 0.0)


@compiled
def convolve(product, copy, write, x, mask, w, scale, shift, residual, low, high, plain, y, tables, first, last, xs, ys):
    """Do jobs first .. last - 1: y = clip(convolution * scale + shift + residual, low, high).

    Parameters
    ----------
    product, copy, write : addresses of `multiply`, `every` and `affine`.
    mask : of the shape of x, which counts as 0 where it is 0; or empty.
    scale, shift : of each channel of y, or one for all.
    residual : of the shape of y, or empty.
    plain : whether y is only the convolution.
    tables : numbers, and these arrays.

        - units: jobs of a stack. Where its channels are in x, its first channel of y, how many it has, its first
          weight, whether it is the first one of its pixels, its copies and its pieces.
        - copies: rows of pixels. From, how far apart, to, how far apart, how many, and how long.
        - pieces: targets that are computed together. The terms, place, length, and the rows to write.
        - rows of targets, as copies.
        - of each number of terms: where pixels, and where weights are read.
    xs, ys : memory for planes and products.
    """
    n, stacks, channels, x_map, x_image = tables[1], tables[2], tables[3], tables[4], tables[5]
    y_map, y_image, channel, cleared, pitch = tables[6], tables[7], tables[8], tables[9], tables[10]
    w_row, width, most, in_place, direct = tables[11], tables[12], tables[13], tables[14], tables[15]
    across, stride, apart = tables[16], tables[17], tables[18]
    units, copies, pieces, rows = array(tables, 0), array(tables, 1), array(tables, 2), array(tables, 3)
    source, results = x if in_place else xs, y if direct else ys
    per_stack = units.size // 9
    for job in range(first, last):
        part, u = job // per_stack, job % per_stack * 9
        image = n * part // stacks
        images = n * (part + 1) // stacks - image
        x0, row, count, w0 = image * x_image + units[u], units[u + 1], units[u + 2], units[u + 3]
        if not in_place:
            if units[u + 4] or job == first:
                for j in range(cleared):
                    xs[j] = 0
                for i in range(images):
                    for c in range(channels):
                        for k in range(units[u + 5] * 6, units[u + 6] * 6, 6):
                            every(
                                copy, x, x0 + i * x_image + c * x_map + copies[k], copies[k + 1], stride, mask,
                                xs, i * pitch + c * channel + copies[k + 2], copies[k + 3], 1, copies[k + 4],
                                copies[k + 5],
                            )  # fmt: skip
            x0 -= x0
        for r in range(0, count, most):
            many = min(most, count - r)
            to = image * y_image + (row + r) * y_map
            for p in range(units[u + 7] * 5, units[u + 8] * 5, 5):
                shifts, columns = array(tables, 4 + 2 * pieces[p]), array(tables, 5 + 2 * pieces[p])
                k, end = pieces[p + 3] * 6, pieces[p + 4] * 6
                at = to + rows[k + 2] if direct else x0 - x0
                multiply(
                    product, source, x0 + pieces[p + 1], shifts, w, w0 + r * w_row, w_row, columns, columns.size,
                    results, at, width, many, pieces[p + 2],
                )  # fmt: skip
                if plain and direct:
                    continue
                if apart > 1 and not plain:
                    affine(
                        write, ys, at, width, scale, shift, row + r, 1, residual, low, high, ys, at, width, many,
                        pieces[p + 2],
                    )  # fmt: skip
                for k in range(k, end, 6):
                    outer, outer_from, outer_to, inner, inner_from, inner_to = many, width, y_map, rows[k + 4], rows[k + 1], rows[k + 3]
                    if across:
                        outer, outer_from, outer_to, inner, inner_from, inner_to = inner, inner_from, inner_to, outer, outer_from, outer_to
                    for i in range(images):
                        for c in range(outer):
                            begin = at + i * pitch + rows[k] + c * outer_from
                            target = to + i * y_image + rows[k + 2] + c * outer_to
                            if apart == 1:
                                affine(
                                    write, results, begin, inner_from, scale, shift, row + r + (0 if across else c),
                                    across, residual, low, high, y, target, inner_to, inner, rows[k + 5],
                                )  # fmt: skip
                            else:
                                every(
                                    copy, results, begin, inner_from, 1, residual, y, target, inner_to, apart, inner,
                                    rows[k + 5],
                                )  # fmt: skip

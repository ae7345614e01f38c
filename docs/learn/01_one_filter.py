"""Chapter 1: one filter slides over one image.

python docs/learn/01_one_filter.py
"""

from pathlib import Path

import numpy as np

from xcnn import data, ops, plots

np.set_printoptions(precision=3, suppress=True)

pictures = Path("pictures")
pictures.mkdir(exist_ok=True)

print("1. One window")

image = np.array([[1, 0, 2], [2, 5, 1], [4, 0, 3]])
kernel = np.array([[1, 0], [2, -1]])

window = image[1:3, 0:2]  # rows 1 and 2, columns 0 and 1
print("window\n", window, sep="")
print("products\n", window * kernel, sep="")
print("sum", (window * kernel).sum())

print("\n2. All windows")


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Slide the kernel over the image; return the map of sums."""
    rows = image.shape[0] - kernel.shape[0] + 1
    columns = image.shape[1] - kernel.shape[1] + 1
    result = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = image[i : i + kernel.shape[0], j : j + kernel.shape[1]]
            result[i, j] = (window * kernel).sum()
    return result


print(convolve(image, kernel))
plots.convolution(image, kernel, [(0, 0), (1, 0)], pictures / "01_windows.svg")

print("\n3. The size of the map")

for size, width in [(3, 2), (8, 3), (28, 5)]:
    map_ = convolve(np.zeros((size, size)), np.zeros((width, width)))
    print(f"image {size} x {size}, filter {width} x {width}: map {map_.shape[0]} x {map_.shape[1]}")

print("\n4. A digit")

train, test = data.load("digits")
digit = (train.x[0, 0] / 255.0).round(1)  # from 0 (black) to 1 (white)
print("class", train.classes[train.y[0]], "- tenths of white:")
print((10 * digit).round().astype(int))

print("\n5. A filter that answers to edges")

edges = np.array([[-1.0, 0, 1], [-1, 0, 1], [-1, 0, 1]])
answer = convolve(digit, edges)
print(answer.round(1) + 0.0)
plots.convolution(digit, edges, [(3, 1)], pictures / "01_digit.svg")

print("\n6. The library does the same")

x = digit[None, None]  # (images, channels, rows, columns) = (1, 1, 8, 8)
weight = edges[None, None]  # (filters, channels, rows, columns) = (1, 1, 3, 3)
y, backward = ops.conv2d(x, weight)
print("shape", y.shape)
print("largest difference", abs(y[0, 0] - answer).max().round(12))

print("\n7. Several channels, several filters")

rng = np.random.default_rng(0)
photo = rng.random((1, 3, 8, 8))  # one image with red, green and blue
filters = rng.normal(size=(4, 3, 3, 3))  # four filters with a kernel for each colour
maps, _ = ops.conv2d(photo, filters)
by_hand = sum(convolve(photo[0, c], filters[2, c]) for c in range(3))
print("shape", maps.shape)
print("largest difference", abs(maps[0, 2] - by_hand).max().round(12))

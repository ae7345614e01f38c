"""Chapter 2: why padding and stride, and what pooling loses.

python docs/learn/02_padding_stride_pooling.py
"""

from pathlib import Path

import numpy as np

from xcnn import data, ops, plots

np.set_printoptions(precision=3, suppress=True)

pictures = Path("pictures")
pictures.mkdir(exist_ok=True)

train, test = data.load("digits")
digit = train.x[:1] / 255.0  # (1, 1, 8, 8)
blur = np.full((1, 1, 3, 3), 1 / 9)
edges = np.array([[-1.0, 0, 1], [-1, 0, 1], [-1, 0, 1]])[None, None]

print("1. Maps shrink")

y, sizes = digit, [8]
while y.shape[2] >= 3:
    y, _ = ops.conv2d(y, blur)
    sizes.append(y.shape[2])
print("without padding", sizes)

y, sizes = digit, [8]
for _ in range(3):
    y, _ = ops.conv2d(y, blur, padding=1)
    sizes.append(y.shape[2])
print("with padding 1 ", sizes)

print("\n2. Pixels at the border are seen less often")


def windows_of_each_pixel(size: int, padding: int) -> np.ndarray:
    """Count in how many 3x3 windows each pixel of an image lies."""
    count = np.zeros((size + 2 * padding, size + 2 * padding), int)
    for i in range(count.shape[0] - 2):
        for j in range(count.shape[1] - 2):
            count[i : i + 3, j : j + 3] += 1
    return count[padding : padding + size, padding : padding + size]


print("padding 0\n", windows_of_each_pixel(5, 0), sep="")
print("padding 1\n", windows_of_each_pixel(5, 1), sep="")

print("\n3. The zeros around the image are not there for free")

white = np.ones((1, 1, 4, 4))
print(ops.conv2d(white, edges, padding=1)[0][0, 0])

print("\n4. Stride")

every, _ = ops.conv2d(digit, edges, padding=1)
second, _ = ops.conv2d(digit, edges, padding=1, stride=2)
print("stride 1:", every.shape[2:], " stride 2:", second.shape[2:])
print("every second number of the first map?", np.array_equal(second, every[:, :, ::2, ::2]))

for size, window, padding, stride in [(28, 5, 0, 1), (28, 3, 1, 1), (28, 3, 1, 2), (8, 2, 0, 2), (7, 2, 0, 2)]:
    result, _ = ops.conv2d(np.zeros((1, 1, size, size)), np.zeros((1, 1, window, window)), None, stride, padding)
    print(f"H={size:<2} F={window} P={padding} S={stride}: ({size} - {window} + 2*{padding})", end="")
    print(f" / {stride} + 1 = {result.shape[2]}")
shown = digit[0, 0].round(1)
plots.convolution(shown, edges[0, 0], [(1, 2)], pictures / "02_stride.svg", padding=1, stride=2)

print("\n5. What stride loses: thin stripes")

stripes = np.tile([1.0, 0], 4)[None, None, None]  # one row of pixels
moved = np.tile([0, 1.0], 4)[None, None, None]
look = np.ones((1, 1, 1, 1))
for name, row in [("stripes", stripes), ("moved by one pixel", moved)]:
    print(f"{name:18}", row.ravel(), "-> stride 2 ->", ops.conv2d(row, look, stride=2)[0].ravel())

print("\n6. Max pooling")

a = np.array([[1.0, 9, 2, 0], [3, 4, 0, 5], [0, 0, 1, 1], [7, 0, 0, 6]])
b = np.array([[9.0, 9, 5, 5], [9, 9, 5, 5], [7, 7, 6, 6], [7, 7, 6, 6]])
print("a\n", a, sep="")
print("b\n", b, sep="")
print("pooled a\n", ops.max_pool2d(a[None, None], 2)[0][0, 0], sep="")
print("pooled b\n", ops.max_pool2d(b[None, None], 2)[0][0, 0], sep="")
plots.pooling(a, pictures / "02_pooling.svg")

print("\n7. What pooling gains: small moves matter less")


def change(before: np.ndarray, after: np.ndarray) -> float:
    """Return how far two maps are apart, as a share of the first."""
    return float(np.sqrt(((before - after) ** 2).sum() / (before**2).sum()))


images = train.x[:200] / 255.0
cuts = images[:, :, :, :-1], images[:, :, :, 1:]  # the same digits, cut out one pixel apart
maps = [ops.conv2d(cut, edges, padding=1)[0] for cut in cuts]
print(f"the map itself  changes by {change(*maps):.0%}")
for size in (2, 4, 8):
    pooled = [ops.max_pool2d(one, size, ceil_mode=True)[0] for one in maps]
    print(f"pooled {size} x {size}    changes by {change(*pooled):.0%}")

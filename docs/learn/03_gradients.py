"""Chapter 3: from scores to a loss, and back: gradients by hand and by the library.

python docs/learn/03_gradients.py
"""

from pathlib import Path

import numpy as np

from xcnn import ops, plots

np.set_printoptions(precision=4, suppress=True)

pictures = Path("pictures")
pictures.mkdir(exist_ok=True)

X = np.array([[1.0, 0, 2], [2, 5, 1], [4, 0, 3]])  # the image
f = np.array([[[1.0, 0], [2, -1]], [[-1, 2], [0, 1]]])  # two filters
W = np.array([[0.5, -0.3], [-0.2, 0.7]])  # weights of the fully connected layer: (classes, inputs)
b = np.array([1.2, -0.5])  # its biases
label = 1

print("1. Forward")

maps, maps_backward = ops.conv2d(X[None, None], f[:, None])
positive, relu_backward = ops.relu(maps)
pooled, pool_backward = ops.max_pool2d(positive, 2)
flat, flatten_backward = ops.flatten(pooled)
scores, linear_backward = ops.linear(flat, W, b)
loss, loss_backward = ops.cross_entropy(scores, np.array([label]))
x, z, p = flat[0], scores[0], ops.softmax(scores)[0][0]  # the batch has one image

print("map 1\n", maps[0, 0], sep="")
print("map 2\n", maps[0, 1], sep="")
print("pooled, flattened", x)
print("scores z", z)
print("probabilities p", p)
print("loss", loss.round(4))
plots.softmax(z, pictures / "03_softmax.svg", truth=label)

print("\n2. A gradient by trying")


def loss_with(filters: np.ndarray, weights: np.ndarray, biases: np.ndarray = b) -> float:
    """Run the network with these filters, weights and biases, and return its loss."""
    y, _ = ops.conv2d(X[None, None], filters[:, None])
    y, _ = ops.relu(y)
    y, _ = ops.max_pool2d(y, 2)
    y, _ = ops.flatten(y)
    y, _ = ops.linear(y, weights, biases)
    return float(ops.cross_entropy(y, np.array([label]))[0])


h = 0.0001
up, down = W.copy(), W.copy()
up[0, 0] += h
down[0, 0] -= h
print("dloss / dW[0, 0] is about", round((loss_with(f, up) - loss_with(f, down)) / (2 * h), 4))

print("\n3. Backward by hand")

y = np.array([0.0, 1])  # the label as a vector: one-hot
dz = p - y
dW = np.outer(dz, x)
db = dz
dx = W.T @ dz
print("dz", dz)
print("dW\n", dW, sep="")
print("db", db)
print("dx", dx)

dmaps = np.zeros((2, 2, 2))
for k in (0, 1):
    row, column = np.unravel_index(maps[0, k].argmax(), (2, 2))
    dmaps[k, row, column] = dx[k]  # to the place of the maximum; all other places get nothing
print("gradient of map 1\n", dmaps[0], sep="")

df, dX = np.zeros((2, 2, 2)), np.zeros((3, 3))
for k in (0, 1):
    for i in (0, 1):
        for j in (0, 1):
            df[k] += dmaps[k, i, j] * X[i : i + 2, j : j + 2]  # what the filter saw, times the gradient
            dX[i : i + 2, j : j + 2] += dmaps[k, i, j] * f[k]  # the filter, put back where it lay
print("df1\n", df[0], sep="")
print("df2\n", df[1], sep="")
print("dX\n", dX, sep="")

plots.softmax_backward(z, label, pictures / "03_softmax_backward.svg")
plots.linear_backward(x, W, dz, pictures / "03_linear_backward.svg")
plots.pooling_backward(maps[0, 0], dx[:1, None], pictures / "03_pooling_backward.svg")
plots.convolution_backward(X, f[0], dmaps[0], pictures / "03_convolution_backward.svg")

print("\n4. Backward by the library")

(dscores, *_) = loss_backward()
dflat, dweight, dbias = linear_backward(dscores)
(dpooled,) = flatten_backward(dflat)
(dpositive,) = pool_backward(dpooled)
(dconv,) = relu_backward(dpositive)
dimage, dfilters, _ = maps_backward(dconv)
for name, hand, library in [("dW", dW, dweight), ("db", db, dbias), ("df", df, dfilters[:, 0]), ("dX", dX, dimage)]:
    print(name, "differs by", abs(hand - library).max().round(12))

print("\n5. Every number of the filters by trying")

tried = np.zeros_like(f)
for index in np.ndindex(*f.shape):
    up, down = f.copy(), f.copy()
    up[index] += h
    down[index] -= h
    tried[index] = (loss_with(up, W) - loss_with(down, W)) / (2 * h)
print("largest difference", abs(tried - df).max().round(6))

print("\n6. One step downhill")

rate = 0.01
better = loss_with(f - rate * df, W - rate * dW, b - rate * db)
print(f"loss {loss:.2f} -> {better:.2f}")

print("\n7. Three mistakes of the report")

flipped = np.zeros((3, 3))
for k in (0, 1):
    for i in (0, 1):
        for j in (0, 1):
            flipped[i : i + 2, j : j + 2] += dmaps[k, i, j] * f[k, ::-1, ::-1]
print(f"kernel turned once too often: dX[2, 0] = {flipped[2, 0]:.3f} instead of {dX[2, 0]:.3f}")
print(f"base-10 logarithm: loss {loss / np.log(10):.2f} instead of {loss:.2f}")
print("divided by 10 classes instead of 1 image: dW[0, 0] =", (dW[0, 0] / 10).round(3), "instead of", dW[0, 0].round(3))

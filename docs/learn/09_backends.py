"""Chapter 9: the same network on other array libraries, and how exact numbers are.

python docs/learn/09_backends.py
"""

import importlib.util

import numpy as np

import xcnn
from xcnn import Trainer, data, models, ops, optim

train, test = data.load("digits")


print("1. Numbers have gaps")

print("0.1 + 0.2 =", 0.1 + 0.2)
for dtype in (np.float16, np.float32, np.float64):
    kind = np.finfo(dtype)
    print(f"{kind.dtype}: {kind.bits // 8} bytes a number, next number after 1: 1 + {kind.eps:.1e}")
print("float32(16777216) + 1 =", int(np.float32(16777216) + np.float32(1)))

print("\n2. The order of a sum matters")

terms = [1e8, 1.0, -1e8, 1.0]
for order in (terms, sorted(terms)):
    total = np.float32(0)
    for term in order:
        total = total + np.float32(term)
    print([f"{term:g}" for term in order], "->", total)

print("\n3. A convolution in float32, beside float64")

rng = np.random.default_rng(0)
x, weight = rng.normal(size=(4, 16, 8, 8)), rng.normal(size=(16, 16, 3, 3))
exact, _ = ops.conv2d(x.astype(np.float32).astype(np.float64), weight.astype(np.float32).astype(np.float64))
rounded, _ = ops.conv2d(x.astype(np.float32), weight.astype(np.float32))
error = abs(rounded - exact).max() / abs(exact).max()
print("largest error, relative to the largest number:", f"{error:.0e}")

print("\n4. One network, several libraries")

model = models.build("report", (1, 8, 8), 10, seed=0)
Trainer(model, optim.Adam(model.parameters(), lr=0.01)).fit(train, epochs=20, progress=False)
images = (test.x / 255.0).astype(np.float32)
scores = model(images)
print(f"numpy, float32: accuracy {(scores.argmax(axis=1) == test.y).mean():.2f}", end="")
print(f", scores from {scores.min():.0f} to {scores.max():.0f}")

for name, package in [("strict", "array_api_strict"), ("torch", "torch")]:
    if importlib.util.find_spec(package) is None:
        print(f"{name}: not installed")
        continue
    device = xcnn.device(name)
    model.to(device)
    with device.active():
        there = device.to_numpy(model(device.asarray(images)))
    print(f"{name}: largest difference of a score {abs(there - scores).max():.0e}", end="")
    print(", same classes:", np.array_equal(there.argmax(axis=1), scores.argmax(axis=1)))
model.to("cpu")

print("\n5. Training drifts apart")

runs = {}
for dtype in ("float32", "float64"):
    learner = models.build("report", (1, 8, 8), 10, seed=0).to("cpu", dtype)
    trainer = Trainer(learner, optim.SGD(learner.parameters(), lr=0.1))
    weights = []
    for step in range(200):
        at = slice(32 * (step % 44), 32 * (step % 44) + 32)
        trainer.step((train.x[at] / 255.0).astype(dtype), train.y[at])
        weights.append(np.concatenate([one.data.ravel().astype(np.float64) for one in learner.parameters()]))
    runs[dtype] = weights
for step in (1, 10, 50, 200):
    one, other = runs["float32"][step - 1], runs["float64"][step - 1]
    apart = np.linalg.norm(one - other) / np.linalg.norm(other)
    print(f"after {step:>3} steps the weights differ by a share {apart:.0e}")

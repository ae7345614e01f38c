"""Chapter 8: reading a network's mistakes, seeing what it looks at, and attacking it.

python docs/learn/08_mistakes.py
"""

from pathlib import Path

import numpy as np

from xcnn import Trainer, data, nn, ops, optim, plots
from xcnn.explain import certain_mistakes, input_gradient, occlusion, trace

np.set_printoptions(precision=3, suppress=True, linewidth=120)

pictures = Path("pictures")
pictures.mkdir(exist_ok=True)

train, test = data.load("digits")
model = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(8 * 4 * 4, 10),
)
model.reset_parameters(0)
model.to("cpu", "float64")
trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.5), "cross_entropy")
trainer.fit(data.Loader(train, 32, seed=0), epochs=4, progress=False)  # few epochs, so that there are mistakes

print("1. The confusion matrix")

result = trainer.evaluate(test)
confusion = result.confusion
print(f"accuracy {result.accuracy:.3f}")
print(confusion)
plots.confusion(confusion, test.classes, pictures / "08_confusion.svg")

print("\n2. Two questions about each class")

for k in (1, 8):
    found = confusion[k, k] / confusion[k].sum()
    correct = confusion[k, k] / confusion[:, k].sum()
    print(f"class {k}: recall {confusion[k, k]} / {confusion[k].sum()} = {found:.2f}", end="")
    print(f", precision {confusion[k, k]} / {confusion[:, k].sum()} = {correct:.2f}")

wrong = confusion - np.diag(np.diag(confusion))
true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
print(f"most frequent mistake: class {true} is taken for class {predicted}, {wrong.max()} times")

print("\n3. The mistakes that the network is most certain of")

p = trainer.predict(test)
worst = certain_mistakes(p, test.y, 3)
for i in worst:
    print(f"test image {i}: it says {p[i].argmax()} with probability {p[i].max():.2f}; the label is {test.y[i]}")

plots.certain_mistakes(test.x[worst] / 255.0, p[worst], test.y[worst], test.classes, pictures / "08_mistakes.svg")

print("\n4. The gradient at the picture")


def gradient(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the gradient of the sum of the losses at the pixels."""
    found = trace(model, x)
    _, loss_backward = ops.cross_entropy(found.y, labels)
    (dscores, *_) = loss_backward()
    return len(x) * found.backward(dscores)  # the loss is the mean over the images


x, labels = test.x / 255.0, test.y
dx = gradient(x, labels)
print(f"image 0, a {labels[0]}: tenths of white, and hundredths of the largest gradient")
shares = 100 * dx[0, 0] / abs(dx[0, 0]).max()
for row in range(8):
    pixels = " ".join(f"{10 * value:2.0f}" for value in x[0, 0, row])
    print(pixels, "   ", " ".join(f"{round(value):4d}" for value in shares[row]))

attributions = {"input_gradient": input_gradient(model, x[:1]), "occlusion": occlusion(model, x[:1], window=2)}
plots.attributions(x[:1], attributions, pictures / "08_attributions.svg")

print("\n5. An attack")


def accuracy(x: np.ndarray) -> float:
    """Return the share of images that the network gets right."""
    return float((model(x).argmax(axis=1) == labels).mean())


signs = np.random.default_rng(0).choice([-1.0, 1.0], x.shape)
for epsilon in (0, 0.05, 0.1, 0.15, 0.2, 0.3):
    attacked = np.clip(x + epsilon * np.sign(dx), 0, 1)
    noisy = np.clip(x + epsilon * signs, 0, 1)
    print(f"every pixel by at most {epsilon:.2f}: attacked {accuracy(attacked):.2f}, noise {accuracy(noisy):.2f}")

attacked = np.clip(x + 0.15 * np.sign(dx), 0, 1)
p = ops.softmax(model(attacked))[0]
worst = certain_mistakes(p, labels, 8)
plots.certain_mistakes(attacked[worst], p[worst], labels[worst], test.classes, pictures / "08_attack.svg", "Attacked")

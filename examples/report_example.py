"""Compute the worked example of the report with `xcnn.ops`, and print every figure beside that of the report.

    python examples/report_example.py

A 3x3 image passes through two 2x2 filters, ReLU, 2x2 max pooling, a fully connected layer and softmax. Then all
gradients are computed, and one step of gradient descent. An op returns its result and the function that computes its
gradients. If a figure differs from that of the report by more than 0.01, the exit code is 1 and an error names it.
"""

import sys
from collections.abc import Callable

import numpy as np

from xcnn import ops

__all__ = ["LEARNING_RATE", "REPORT", "TOLERANCE", "Network", "main"]

Figures = dict[str, np.ndarray]

LEARNING_RATE = 0.01
TOLERANCE = 0.01

IMAGE = np.array([[1.0, 0, 2], [2, 5, 1], [4, 0, 3]])
FILTERS = np.array([[[1.0, 0], [2, -1]], [[-1, 2], [0, 1]]])
WEIGHT = np.array([[0.5, -0.3], [-0.2, 0.7]])
BIAS = np.array([1.2, -0.5])
TARGET = np.array([0.0, 1])

REPORT: Figures = {
    name: np.array(figures, dtype=np.float64)
    for name, figures in {
        "pooled": [10, 8],
        "z": [3.8, 3.1],
        "p": [0.67, 0.33],
        "loss, base 10": [0.48],
        "dz": [0.67, -0.67],
        "dW": [[6.7, 5.36], [-6.7, -5.36]],
        "db": [0.67, -0.67],
        "dx": [0.469, -0.67],
        "maximum of map 1": [1, 0],
        "maximum of map 2": [1, 0],
        "df1": [[0.938, 2.345], [1.876, 0]],
        "df2": [[-1.34, -3.35], [-2.68, 0]],
        "dX[2, 0]": [0.938],
        "new W": [[0.433, -0.353], [-0.133, 0.7536]],
        "new b": [1.193, -0.493],
        "new f1": [[0.99, -0.0245], [1.98, -1]],
        "new f2": [[-0.99, 2.033], [0.0268, 1]],
    }.items()
}
"""Every figure of the report, by its name in the output."""


class Network:
    """The network of the example. Making it runs the forward pass; `backward` computes all gradients from dz.

    Attributes
    ----------
    image, filters : (1, 1, 3, 3) and (2, 1, 2, 2).
    maps, positive, pooled, x, z : results of convolution, ReLU, pooling, flattening and the fully connected layer, each
        with a leading axis for the batch of one image.
    """

    def __init__(self) -> None:
        self.image, self.filters = IMAGE[None, None], FILTERS[:, None]
        self.maps, self._conv = ops.conv2d(self.image, self.filters)
        self.positive, self._relu = ops.relu(self.maps)
        self.pooled, self._pool = ops.max_pool2d(self.positive, 2)
        self.x, self._flatten = ops.flatten(self.pooled)
        self.z, self._linear = ops.linear(self.x, WEIGHT, BIAS)

    def backward(self, dz: np.ndarray) -> Figures:
        """Return all gradients, computed from that of the scores, and the parameters after one step of descent."""
        dx, dweight, dbias = self._linear(dz[None])
        (dpooled,) = self._flatten(dx)
        (dpositive,) = self._pool(dpooled)
        (dmaps,) = self._relu(dpositive)
        dimage, dfilters, _ = self._conv(dmaps)
        # What the program of the report computes by mistake.
        _, conv_flipped = ops.conv2d(self.image, self.filters[:, :, ::-1, ::-1])
        flipped = conv_flipped(dmaps, (True, False, False))[0]

        figures = {"dz": dz, "dW": dweight, "db": dbias, "dx": dx[0], "dX": dimage[0, 0], "dX, flipped": flipped[0, 0]}
        for k in (0, 1):
            figures[f"dmap {k + 1}"] = dmaps[0, k]
            figures[f"maximum of map {k + 1}"] = np.argwhere(dmaps[0, k])[0]
            figures[f"df{k + 1}"] = dfilters[k, 0]
            figures[f"new f{k + 1}"] = FILTERS[k] - LEARNING_RATE * dfilters[k, 0]
        figures["dX[2, 0]"] = dimage[0, 0, 2:, 0]
        figures["new W"] = WEIGHT - LEARNING_RATE * dweight
        figures["new b"] = BIAS - LEARNING_RATE * dbias
        return figures


def compute() -> tuple[Network, Figures, Figures]:
    """Return the network, all figures, and all figures with p rounded to two digits as in the report."""
    network = Network()
    p = ops.softmax(network.z)[0][0]
    loss, loss_backward = ops.cross_entropy(network.z, TARGET[None])
    forward = {
        "pooled": network.x[0],
        "z": network.z[0],
        "p": p,
        "loss": loss[None],
        "loss, base 10": loss[None] / np.log(10),
    }
    exact = forward | network.backward(loss_backward()[0][0])
    return network, exact, forward | network.backward(p.round(2) - TARGET)


class Page:
    """Prints the steps, and collects the figures that differ from the report."""

    def __init__(self, exact: Figures, rounded: Figures) -> None:
        self.exact, self.rounded = exact, rounded
        self.steps = self.mistakes = 0
        self.wrong: list[str] = []

    def step(self, title: str, *remarks: str) -> None:
        """Print the number and the title of a step."""
        self.steps += 1
        print(f"\n{self.steps:>2}. {title}")
        for remark in remarks:
            print(f"    {remark}")

    def mistake(self, *lines: str) -> None:
        """Print a mistake of the report."""
        self.mistakes += 1
        print(f"\n    !! The report's mistake {self.mistakes} of 3")
        for line in lines:
            print(f"    !! {line}")

    def matrices(self, **named: np.ndarray) -> None:
        """Print matrices side by side, each after its name."""
        blocks = [_block(array, _short) for array in named.values()]
        print()
        for row in range(max(map(len, blocks))):
            cells = []
            for name, block in zip(named, blocks, strict=True):
                label = f"{name} =" if row == (len(block) - 1) // 2 else ""
                cells.append(f"{label:>9}{block[row] if row < len(block) else '':<{len(block[0])}}")
            print("".join(cells).rstrip())

    def table(self, *names: str, rounds: bool = True) -> None:
        """Print figures beside those of the report and check them; `rounds` if the report has rounded p before."""
        headings = ["report", "xcnn", "difference"] + ["xcnn, exact p"] * rounds
        print("\n" + " " * 21 + "".join(f"{heading:>22}" for heading in headings))
        for name in names:
            report, ours = REPORT[name], self.rounded[name]
            blocks = [_block(report, _long), _block(ours, _long), _block(ours - report, _signed)]
            if rounds:
                blocks.append(_block(self.exact[name], _long))
            for row, cells in enumerate(zip(*blocks, strict=True)):
                print(f"    {name if row == 0 else '':<17}" + "".join(f"{cell:>22}" for cell in cells))
            self._check(name, report, ours)

    def _check(self, name: str, report: np.ndarray, ours: np.ndarray) -> None:
        for index in np.argwhere(~(np.abs(ours - report) <= TOLERANCE)).tolist():
            figure, came = report[tuple(index)], ours[tuple(index)]
            place = str(index) if report.size > 1 else ""
            self.wrong.append(f"{name}{place}: the report prints {figure:g}, xcnn computes {came:.4f}")


def _short(value: float) -> str:
    return f"{value + 0.0:>7g}"  # + 0.0 turns -0 into 0


def _long(value: float) -> str:
    return f"{value + 0.0:>9.4f}"


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:>+9.4f}"


def _block(array: np.ndarray, write: Callable[[float], str]) -> list[str]:
    """Return a matrix as lines of the same width, a vector as one line."""
    return ["".join(write(float(value)) for value in row) for row in np.atleast_2d(array)]


def main() -> int:
    """Print the example and return the exit code."""
    network, exact, rounded = compute()
    page = Page(exact, rounded)
    _forward(page, network, exact)
    _backward(page, exact, rounded)
    _update(page)
    figures = sum(report.size for report in REPORT.values())
    if page.wrong:
        print()
        for sentence in page.wrong:
            print(f"error: {sentence}, more than {TOLERANCE} apart", file=sys.stderr)
        return 1
    print(f"\nAll {figures} figures of the report agree to {TOLERANCE}.")
    return 0


def _forward(page: Page, network: Network, exact: Figures) -> None:
    print("The worked example of the report, by xcnn.ops in float64")
    print("=" * 56)
    print("\nFORWARD")
    page.step("The image, its label, and what the network starts with", "The label is class 1, one-hot y = [0, 1].")
    page.matrices(X=IMAGE, f1=FILTERS[0], f2=FILTERS[1], W=WEIGHT, b=BIAS)

    page.step(
        "Convolution: each filter slides over the image; multiply and add under it",
        "Output size (H - F + 2P) / S + 1 = (3 - 2 + 0) / 1 + 1 = 2, each way.",
        "Where the report has its maxima, at row 1, column 0, the filters see 2 5 / 4 0:",
        "    map 1:   1*2 + 0*5 + 2*4 - 1*0 = 10        map 2:  -1*2 + 2*5 + 0*4 + 1*0 = 8",
    )
    page.matrices(map1=network.maps[0, 0], map2=network.maps[0, 1])

    page.step("ReLU: max(0, map)", "Nothing was negative, so nothing changes.")
    page.matrices(map1=network.positive[0, 0], map2=network.positive[0, 1])

    page.step("Max pooling, 2x2, and flattening: the largest number of each map, in one vector x")
    page.table("pooled", rounds=False)

    page.step(
        "Fully connected layer: z = W x + b",
        "z0 =  0.5*10 - 0.3*8 + 1.2 = 3.8        z1 = -0.2*10 + 0.7*8 - 0.5 = 3.1",
    )
    page.table("z", rounds=False)

    page.step(
        "Softmax: p = exp(z - max z) / sum(exp(z - max z))",
        "The network believes in class 0, and it is class 1: there is something to learn.",
    )
    page.table("p", rounds=False)

    page.step("Loss: the cross entropy -sum(y log p) = -log p1")
    page.table("loss, base 10", rounds=False)
    page.mistake(
        f"0.48 is the base-10 logarithm of 1 / p1. The loss is the natural one, {exact['loss'][0]:.2f},",
        "whose gradient is the p - y of the next step.",
    )


def _backward(page: Page, exact: Figures, rounded: Figures) -> None:
    print("\n\nBACKWARD")
    print("    The report goes on with p rounded to 0.67 and 0.33. To stand beside its figures, `xcnn` does the same;")
    print("    `xcnn, exact p` rounds nowhere.")
    page.step("Softmax and cross entropy together: dz = p - y")
    page.table("dz")

    page.step("Fully connected layer: dW = dz x^T,  db = dz,  dx = W^T dz")
    page.table("dW", "db", "dx")

    page.step(
        "Max pooling and ReLU: the gradient goes to where the maximum was (row, column), all else gets 0",
        "Both maxima are positive, so ReLU lets their gradients through.",
    )
    page.table("maximum of map 1", "maximum of map 2")
    page.matrices(dmap1=rounded["dmap 1"], dmap2=rounded["dmap 2"])

    page.step(
        "Convolution, the filters: the part of the image that each saw, times the gradient",
        "Only one place of each map has a gradient, so df is 2 5 / 4 0 times that.",
    )
    page.table("df1", "df2")

    page.step(
        "Convolution, the image: each filter times its map's gradient, added where the filter lay",
        "dX[2, 0] = f1[1, 0] dmap1[1, 0] + f2[1, 0] dmap2[1, 0] = 2 * 0.469 + 0 * -0.67 = 0.938",
    )
    page.matrices(dX=rounded["dX"])
    page.table("dX[2, 0]")
    page.mistake(
        "By hand it has this figure right, but its program turns the kernels by 180 degrees once too often:",
        f"that gives dX[2, 0] = {rounded['dX, flipped'][2, 0]:.2f}, where {rounded['dX'][2, 0]:.3f} is right."
        " Nobody noticed, for with one layer nobody uses dX;",
        "a second convolution before this one would learn from wrong gradients.",
    )


def _update(page: Page) -> None:
    print("\n\nUPDATE")
    page.step(f"Gradient descent: subtract {LEARNING_RATE} times the gradient from every parameter")
    page.table("new W", "new b", "new f1", "new f2")
    page.mistake(
        "Not in this example but in its training run, it divides dW and db by 10, the length of the one-hot vector,",
        "taken for the batch size, and does not divide the filter's gradient. Its real learning rates are 0.001 for",
        "W and b and 0.01 for the filter; examples/report_training.py repeats the run with exactly these.",
    )


if __name__ == "__main__":
    sys.exit(main())

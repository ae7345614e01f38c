"""The course in `docs/learn`: its programs print what its texts show, its solutions are right, and mistakes are seen.

The longer programs run if XCNN_ALL_CHAPTERS is set, as in the nox session `learn`.
"""

import contextlib
import importlib.util
import itertools
import os
import re
import runpy
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest

from xcnn import ops

COURSE = Path(__file__).parents[1] / "docs" / "learn"
TEXTS = sorted(COURSE.glob("[01]*.md"))
NUMBERS = [text.name[:2] for text in TEXTS]
LONG = ("05", "06", "07", "10")

pytestmark = pytest.mark.skipif(not COURSE.exists(), reason="runs away from the source tree, without docs/")


def blocks(text: Path) -> list[tuple[str, str]]:
    """Return the blocks of a text, as (kind, lines); the kind is `python` or `text`, perhaps with a condition."""
    return re.findall(r"^```(\w+(?: \w+)?)\n(.*?)^```$", text.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def program(number: str) -> Path:
    (path,) = COURSE.glob(f"{number}_*.py")
    return path


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run the program of a chapter in an empty folder; return what it prints, without spaces at the ends of lines."""
    pytest.importorskip("matplotlib")

    def run(number: str, *arguments: str) -> str:
        path = program(number)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        with np.printoptions(), contextlib.suppress(SystemExit):  # the programs set their own options
            runpy.run_path(str(path), run_name="__main__")
        return "\n".join(map(str.rstrip, capsys.readouterr().out.splitlines()))

    return run


def assert_shown(block: str, printed: str) -> None:
    """Check that the lines of a block are printed one after the other; `1e-07` may be up to ten times as large."""
    lines = [re.split(r"(\d(?:\.\d+)?e-\d+)", line.rstrip()) for line in block.splitlines()]
    pattern = "\n".join(
        "".join(r"(\de[+-]\d+|\d\.\de-\d+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
        for parts in lines
    )
    found = re.search(rf"^{pattern}$", printed, re.MULTILINE)
    assert found, f"not printed:\n{block}"
    small = [part for parts in lines for part in parts[1::2]]
    for came, quoted in zip(found.groups(), small, strict=True):
        assert float(came) <= 10 * float(quoted)


def check_chapter(number: str, printed: str, conditions: dict[str, bool]) -> None:
    (text,) = COURSE.glob(f"{number}_*.md")
    shown = 0
    for kind, block in blocks(text):
        kind, _, condition = kind.partition(" ")
        if kind == "text" and conditions.get(condition, condition == ""):
            assert_shown(block, printed)
            shown += 1
    assert shown


def words(picture: Path) -> list[str]:
    """Return the words and numbers of an SVG. Shapes differ from one version of Matplotlib to the next."""
    return [text.text for text in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_program_prints_what_its_text_shows(number, run, tmp_path):
    if number in LONG and "XCNN_ALL_CHAPTERS" not in os.environ:
        pytest.skip("takes seconds; set XCNN_ALL_CHAPTERS to run it")
    installed = {name: importlib.util.find_spec(name) is not None for name in ("torch", "array_api_strict")}
    check_chapter(number, run(number), installed)
    (text,) = COURSE.glob(f"{number}_*.md")
    shown = set(re.findall(r"^!\[.+\]\(pictures/(\w+\.svg)\)$", text.read_text("utf-8"), re.MULTILINE))
    assert shown <= {path.name for path in tmp_path.glob("pictures/*")}
    assert shown == {path.name for path in COURSE.glob(f"pictures/{number}_*")}
    if "XCNN_ALL_CHAPTERS" in os.environ:  # to renew them, run the program in docs/learn
        for name in shown:
            assert words(COURSE / "pictures" / name) == words(tmp_path / "pictures" / name), f"{name} is not current"


def test_the_run_of_the_report_is_what_the_text_shows(run, shared_data):
    if "XCNN_ALL_CHAPTERS" not in os.environ:
        pytest.skip("takes half a minute; set XCNN_ALL_CHAPTERS to run it")
    check_chapter("04", run("04", "--data-dir", str(shared_data)), {"": False, "mnist": True})


@pytest.mark.parametrize("text", TEXTS, ids=NUMBERS)
def test_code_in_a_text_is_code_of_its_program(text):
    source = program(text.name[:2]).read_text("utf-8")
    for kind, block in blocks(text):
        if kind == "python":
            there = any(textwrap.indent(block, " " * deep) in source for deep in range(0, 16, 4))
            assert there, f"{text.name} shows code that its program does not have:\n{block}"
    assert text.read_text("utf-8").count("\n```") == 2 * len(blocks(text))  # no block has another kind


def test_what_is_not_printed_is_seen():
    assert_shown("a 0.5\nb 2e-07\n", "first\na 0.5\nb 9e-07\nlast")
    for wrong in ("a 0.6\nb 2e-07\n", "a 0.5\n\nb 2e-07\n", "0.5\nb 2e-07\n", "a 0.5\nb 8e-08\n"):
        with pytest.raises(AssertionError):
            assert_shown(wrong, "first\na 0.5\nb 9e-07\nlast")


def test_every_chapter_is_listed_and_leads_to_the_next():
    listed = re.findall(r"\]\((\d\d_\w+\.md)\)", (COURSE / "README.md").read_text("utf-8"))
    names = [text.name for text in TEXTS]
    assert list(dict.fromkeys(listed)) == names
    assert [f"{number:02}" for number in range(1, 11)] == NUMBERS
    for text, following in itertools.pairwise(TEXTS):
        assert text.read_text("utf-8").rstrip().endswith(f"({following.name})")
    for text in (*TEXTS, COURSE / "README.md"):
        for link in re.findall(r"\]\(([\w./]+)\)", text.read_text("utf-8")):
            assert (COURSE / link).exists(), f"{text.name}: {link}"


# --- exercises -------------------------------------------------------------------------------------------------------


@pytest.fixture
def checker(monkeypatch) -> Iterator[ModuleType]:
    """The checker. The op that an exercise registers is forgotten afterwards."""
    before = dict(ops.OPS)
    monkeypatch.syspath_prepend(COURSE)
    spec = importlib.util.spec_from_file_location("check", COURSE / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    ops.OPS.clear()
    ops.OPS.update(before)


@pytest.mark.parametrize("number", NUMBERS)
def test_our_solutions_are_right(number, checker, capsys):
    assert checker.main([str(COURSE / "solutions" / f"{number}.py")]) == 0
    assert {line.split()[-1] for line in capsys.readouterr().out.splitlines()} == {"right"}


@pytest.mark.parametrize("number", NUMBERS)
def test_the_exercises_are_not_done_yet(number, checker, capsys):
    assert checker.main([str(COURSE / "exercises" / f"{number}.py")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == ["not done yet"] * len(checker.EXERCISES[number])
    exercise, solution = (
        re.sub(r'(?s)\A""".*?"""', "", (COURSE / folder / f"{number}.py").read_text("utf-8"))
        for folder in ("exercises", "solutions")
    )
    stubs = re.split(r"    raise NotImplementedError\n", exercise)
    at = 0
    for stub in stubs:  # the two differ in the bodies alone
        at = solution.index(stub.strip("\n"), at)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_text_names_every_exercise(number, checker):
    (text,) = COURSE.glob(f"{number}_*.md")
    exercises = text.read_text("utf-8").split("## Exercises")[1]
    assert set(checker.EXERCISES[number]) <= set(re.findall(r"`(\w+)`", exercises))


FLIPPED = """dimage, dkernel = np.zeros(image.shape), np.zeros(kernel.shape)
    for i, j in np.ndindex(*dy.shape):
        dimage[i : i + kernel.shape[0], j : j + kernel.shape[1]] += dy[i, j] * kernel[::-1, ::-1]
        dkernel += dy[i, j] * image[i : i + kernel.shape[0], j : j + kernel.shape[1]]
    return dimage, dkernel"""

TOGETHER = """normal = (x - x.mean()) / np.sqrt(x.var() + eps)
    return normal * weight[:, None, None] + bias[:, None, None]"""

APART = """normal = (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + eps)
    return normal * weight[:, None, None] + bias[:, None, None]"""

OUTSIDE = """spread = x.std((0, 2, 3), keepdims=True) + eps
    return (x - x.mean((0, 2, 3), keepdims=True)) / spread * weight[:, None, None] + bias[:, None, None]"""

PAD = """result = np.zeros((image.shape[0] + 2 * width, image.shape[1] + 2 * width))
    result[width:-width, width:-width] = image
    return result"""

WRONG = [
    ("01", "map_size", "return size - window", "map_size(size=3, window=2)\nmust be 2, but is 1"),
    ("01", "convolve", "return ops.conv2d(image[None], kernel[None, :, ::-1, ::-1])[0][0, 0]", "turned by 180 degrees"),
    ("01", "convolve", "return ops.conv2d(image[None, :1], kernel[None, :1])[0][0, 0]", "only the first channel"),
    ("01", "convolve", "return ops.conv2d(image[None], kernel[None])[0]", "the shape (1, 1), but has (1, 1, 1, 1)"),
    ("01", "bright_below", "return np.array([[1, 1, 1], [0, 0, 0], [-1, -1, -1]])", "answers must be above 0"),
    ("01", "bright_below", "return np.ones((3, 3))", "on an image that is grey everywhere"),
    ("01", "bright_below", "return np.zeros((3, 3))", "answers must be above 0"),
    ("01", "bright_below", "return np.array([[-1, -1, -1], [2, 2, 2], [-1, -1, -1]])", "answers must be above 0"),
    ("01", "bright_below", "return", "is there a `return`?"),
    ("02", "output_size", "return round((size - window + 2 * padding) / stride) + 1", "must be 14, but is 15"),
    ("02", "output_size", "return (size - window + padding) // stride + 1", "on both sides"),
    ("02", "output_size", "return -(-(size - window + 2 * padding) // stride) + 1", "left over"),
    ("02", "pad", "return np.pad(image, ((0, width), (0, width)))", "shape (3, 3), but has (2, 2)"),
    ("02", "pad", "return np.pad(image, width, mode='edge')", "must be [[0.0, 0.0, 0.0], [0.0, 5.0, 0.0]"),
    ("02", "pad", PAD, "pad(image=[[1.0, 2.0], [3.0, 4.0]], width=0)\nraised ValueError in line"),
    ("02", "max_pool", "return ops.max_pool2d(image[None, None], size, ceil_mode=True)[0][0, 0]", "not a whole window"),
    ("02", "max_pool", "return ops.avg_pool2d(image[None, None], size)[0][0, 0]", "the mean"),
    ("02", "max_pool", "return np.maximum(ops.max_pool2d(image[None, None], size)[0][0, 0], 0)", "below 0"),
    ("02", "max_pool", "return ops.max_pool2d(image[None, None], size, stride=1)[0][0, 0]", "shape"),
    ("03", "softmax", "return np.exp(z) / np.exp(z).sum()", "subtract the largest"),
    ("03", "softmax", "return z / z.sum()", "softmax(z=[0.0, 0.0])"),
    ("03", "cross_entropy", "return -np.log10(p[label])", "base-10"),
    ("03", "cross_entropy", "return -np.log(p)", "of the right class"),
    ("03", "relu_backward", "return dy", "must be [5.0, 0.0], but is [5.0, 5.0]"),
    ("03", "relu_backward", "return np.maximum(dy, 0) * (x > 0)", "dx at"),
    ("03", "linear_backward", "return W.T @ dz, np.outer(dz, x), None", "db must be an array, got None"),
    ("03", "linear_backward", "return W @ dz, np.outer(dz, x), dz", "dx"),
    ("03", "linear_backward", "return W.T @ dz, np.outer(dz, x) / 10, dz", "dW at [0, 0] must be"),
    ("03", "convolve_backward", FLIPPED, "dimage at"),
    ("04", "accuracy", "return (scores.argmax(axis=1) == labels).sum()", "not their share"),
    ("04", "mean_loss", "return len(labels) * ops.cross_entropy(scores, labels)[0]", "divide by the number of images"),
    ("04", "mean_loss_gradient", "return len(labels) * ops.cross_entropy(scores, labels)[1]()[0]", "divide by the"),
    (
        "04",
        "mean_loss_gradient",
        "return len(labels) / scores.shape[1] * ops.cross_entropy(scores, labels)[1]()[0]",
        "the report's mistake",
    ),
    ("04", "step", "return [w + rate * dw for w, dw in zip(weights, gradients)]", "uphill"),
    ("04", "mean_loss_gradient", "return ops.softmax(scores)[0] / len(labels)", "subtract 1"),
    ("04", "step", "return weights - rate * gradients", "step(weights=[[1.0]], gradients=[[2.0]], rate=0.1)\nraised"),
    ("04", "step", "weights[0] -= rate * gradients[0]", "is there a `return`?"),
    ("05", "terms", "return int(np.prod(shape))", "the number of filters does not matter"),
    ("05", "kaiming", "return rng.normal(0, 2 / np.prod(shape[1:]), shape)", "the variance"),
    ("05", "kaiming", "return rng.normal(0, np.sqrt(1 / np.prod(shape[1:])), shape)", "ReLU halves"),
    ("05", "kaiming", "return rng.normal(0, np.sqrt(2 / shape[1]), shape)", "rows and columns"),
    ("05", "kaiming", "return np.random.default_rng(0).normal(0, np.sqrt(2 / terms(shape)), shape)", "draw from"),
    ("05", "kaiming", "return np.random.normal(0, np.sqrt(2 / terms(shape)), shape)", "from rng alone"),
    ("05", "dead_share", "return (maps == 0).mean()", "share of zeros"),
    ("05", "dead_share", "return (maps == 0).all(axis=(2, 3)).mean()", "in all images"),
    ("06", "batch_norm", TOGETHER, "each has a mean of its own"),
    ("06", "batch_norm", APART, "each image"),
    ("06", "batch_norm", "return ops.batch_norm(x, None, None, None, None, True, 0.1, 1e-9)[0]", "must be"),
    ("06", "batch_norm", OUTSIDE, "must be -0.999995 at [0, 0, 0, 0], but is -0.99999\nHint: eps is added"),
    ("06", "update", "return momentum * average + (1 - momentum) * batch", "share of the new batch"),
    ("06", "batch_norm_after_training", "return (x - x.mean()) / x.std()", "must be"),
    ("06", "normalise_backward", "return dy / x.std()", "dx at"),
    ("06", "normalise_backward", "return (dy - dy.mean()) / x.std()", "dx at"),
    ("07", "best_epoch", "return int(np.argmin(losses))", "counted from 1"),
    ("07", "best_epoch", "return len(losses)", "must be 2, but is 3"),
    ("07", "move", "return np.roll(image, (down, right), (0, 1))", "came back"),
    ("07", "stop_epoch", "return 1 + int(np.argmin(losses))", "stop_epoch("),
    ("08", "recall", "return np.diag(confusion) / confusion.sum(axis=0)", "precision"),
    ("08", "most_confused", "return tuple(np.unravel_index(confusion.argmax(), confusion.shape))", "the diagonal"),
    ("08", "attack", "return x + epsilon * np.sign(dx)", "from 0 to 1"),
    ("08", "attack", "return np.clip(x - epsilon * np.sign(dx), 0, 1)", "smaller"),
    ("08", "attack", "return np.clip(x + epsilon * dx, 0, 1)", "use the sign"),
    ("09", "relative_error", "return float((came - exact).max() / np.abs(exact).max())", "no sign"),
    ("09", "careful_sum", "return np.cumsum(numbers, dtype=np.float32)[-1]", "within a millionth"),
    ("09", "careful_sum", "return float(numbers.sum(dtype=np.float64))", "must be a float32, but is float64"),
    ("10", "residual", "return body(x)", "the shortcut is missing"),
    ("10", "residual", "return body(x)[0] + x", "must return two results"),
    ("10", "residual", "y, backward = body(x)\n    return y + x, backward", "dx at"),
    ("10", "weights", "return outputs * inputs * window * window + bias * inputs", "must be"),
    ("10", "weights", "return outputs * (inputs * window + bias)", "rows and columns"),
    ("10", "seen", "return 1 + sum(window - 1 for window, stride in layers)", "2 steps in the image"),
]  # fmt: skip


@pytest.mark.parametrize(("number", "name", "body", "said"), WRONG, ids=[f"{n}-{name}" for n, name, _, _ in WRONG])
def test_a_wrong_answer_is_refused_and_explained(number, name, body, said, checker, tmp_path, capsys):
    source = (COURSE / "solutions" / f"{number}.py").read_text("utf-8")
    head, found, rest = re.split(rf"(def {name}\(.*?\n    \"\"\".*?\"\"\"\n)", source, maxsplit=1, flags=re.DOTALL)
    after = re.search(r"(?m)^(def |@)", rest)
    path = tmp_path / f"{number}.py"
    path.write_text(
        f"from xcnn import ops\n{head}{found}    {body}\n\n\n{rest[after.start() :] if after else ''}", "utf-8"
    )
    assert checker.main([str(path)]) == 1
    printed = capsys.readouterr().out
    results = dict(line.split(maxsplit=1) for line in printed.splitlines() if not line.startswith(" "))
    assert {key for key, result in results.items() if result == "wrong"} == {name}
    assert said in re.sub(r"(?m)^    ", "", printed)


def test_another_right_answer_is_right(checker, tmp_path):
    answers = {
        ("01", "bright_below"): "def bright_below():\n    return [[-1, -1, -1], [1, 1, 1], [0, 0, 0]]\n",
        ("09", "careful_sum"): "import numpy as np\n\n\ndef careful_sum(numbers):\n    total = lost = np.float32(0)\n"
        "    for number in numbers:\n        new = total + (number - lost)\n"
        "        total, lost = new, (new - total) - (number - lost)\n    return total\n",
    }
    for (number, name), answer in answers.items():
        path = tmp_path / f"{number}.py"
        path.write_text(answer, "utf-8")
        assert checker.check(checker.load(path), number)[name] == ""


def test_an_op_with_a_wrong_slope_or_of_one_library_is_refused(checker, tmp_path, capsys):
    path = tmp_path / "09.py"
    solution = (COURSE / "solutions" / "09.py").read_text("utf-8")
    for right, wrong, said in [
        ("dy / (1 + abs(x)) ** 2", "dy / (1 + abs(x))", "soft_step: sample 0 on numpy"),
        ("x / (1 + abs(x)), backward", "x / (1 + x * x), backward", "soft_step: sample 0"),
        ("(dy / (1 + abs(x)) ** 2 if needs[0] else None,)", "(dy / (1 + abs(x)) ** 2,)", "needs"),
    ]:
        assert right in solution
        path.write_text(solution.replace(right, wrong), "utf-8")
        assert checker.main([str(path)]) == 1
        assert said in capsys.readouterr().out


def test_errors_of_the_learner_are_told_in_a_line(checker, tmp_path, capsys):
    path = tmp_path / "01.py"
    path.write_text(
        "def map_size(size, window):\n    return size - windw\n\n\ndef convolve(image):\n    return image\n"
    )
    assert checker.main([str(path)]) == 1
    printed = capsys.readouterr().out
    assert "raised NameError in line 2: name 'windw' is not defined" in printed
    assert "raised TypeError: convolve() takes 1 positional argument but 2 were given" in printed
    assert "the file has no function bright_below" in printed
    path.write_text("def half(x):\n    return x / 0\n\n\ndef map_size(size, window):\n    return half(size)\n")
    assert checker.main([str(path)]) == 1
    assert "raised ZeroDivisionError in line 2: division by zero" in capsys.readouterr().out
    path.write_text("\nimport nmpy\n")
    assert checker.main([str(path)]) == 1
    assert capsys.readouterr().err.endswith("01.py raised ModuleNotFoundError in line 2: No module named 'nmpy'\n")
    path.write_text("def map_size(:\n")
    assert checker.main([str(path)]) == 1
    assert "01.py, line 1: " in capsys.readouterr().err


def test_the_checker_says_what_it_takes(checker, tmp_path, capsys):
    assert checker.main([]) == 2
    assert "docs/learn/exercises/01.py" in capsys.readouterr().out
    for name, said in (("11.py", "its name must be 01.py to 10.py"), ("03.py", "there is no such file")):
        assert checker.main([str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err


def test_the_readme_shows_what_the_checker_says(checker, tmp_path, capsys):
    source = (COURSE / "exercises" / "01.py").read_text("utf-8")
    bodies = [
        "return size - window + 1",
        "return ops.conv2d(image[None], kernel[None, :, ::-1, ::-1])[0][0, 0]",
        "raise NotImplementedError",
    ]
    for body in bodies:
        source = source.replace("    raise NotImplementedError", f"    {body}", 1)
    (tmp_path / "01.py").write_text(f"from xcnn import ops\n{source}", "utf-8")
    assert checker.main([str(tmp_path / "01.py")]) == 1
    shown = textwrap.indent(capsys.readouterr().out, "    ")
    assert shown in (COURSE / "README.md").read_text("utf-8")

"""What people add from outside: the examples of `docs/extending.md` run, section by section, and what they promise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
SECTIONS = [
    "An optimizer",
    "A schedule",
    "A loss",
    "A network for the command line",
    "A data set for the command line",
    "A kernel",
]


def blocks(title):
    """Return the blocks of a section of the page, as (language, text)."""
    section = re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(f"{title}\n")]
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def run(folder, *arguments):
    """Run Python in a folder; what it imports is found there first, as for a user's script."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )


def command(folder, line):
    """Run a command line as the installed script does, whose path has no current folder."""
    start = "import sys; sys.path.pop(0); from xcnn.cli import main; sys.exit(main(sys.argv[1:]))"
    return run(folder, "-c", start, *line.split()[1:])


@pytest.mark.skipif(not PAGE.exists(), reason="runs away from the source tree, without docs/")
@pytest.mark.parametrize("title", SECTIONS)
def test_an_example_runs(title, tmp_path):
    assert blocks(title)
    for number, (language, text) in enumerate(blocks(title)):
        assert len(text.splitlines()) <= 25
        assert not re.search(r"(?<!\w)_(?!_?init__)\w", text), "an underscore name"
        if language == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            script = tmp_path / (name[1] if name else f"block{number}.py")
            script.write_text(text, "utf-8")
            done = run(tmp_path, str(script))
            assert done.returncode == 0, done.stderr
        for line in text.splitlines() if language == "sh" else ():
            done = command(tmp_path, line)
            assert done.returncode == 0, f"{line}\n{done.stderr}"

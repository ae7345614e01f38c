"""Check your answers to the exercises of this course.

python docs/learn/check.py docs/learn/exercises/01.py

For each function of the file it says whether it is right, wrong or not done yet. For a wrong one it shows the smallest
case in which it is wrong: the call, what it must return, and what it returned. The exit code is 0 if all are right.
The file is run: check only files of your own.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from _cases import EXERCISES
from _comparing import raised

__all__ = ["check", "main"]


def load(path: Path) -> ModuleType:
    """Run a file of exercises and return it as a module."""
    spec = importlib.util.spec_from_file_location("exercises", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(module: ModuleType, number: str) -> dict[str, str]:
    """Check the functions of a file, and return what is wrong by name: an empty text if it is right."""
    found = {}
    for name, one in EXERCISES[number].items():
        try:
            function = getattr(module, name)
            one(function)
            found[name] = ""
        except AttributeError as error:
            missing = not hasattr(module, name)
            found[name] = f"the file has no function {name}" if missing else raised(error, module.__file__)
        except NotImplementedError:
            found[name] = "not done yet"
        except AssertionError as error:
            undone = isinstance(error.__cause__, NotImplementedError)
            found[name] = "not done yet" if undone else str(error)
        except Exception as error:
            found[name] = raised(error, module.__file__)
    return found


def main(arguments: list[str]) -> int:
    """Check the named files and return the exit code."""
    if not arguments:
        print(__doc__)
        return 2
    wrong = 0
    for path in map(Path, arguments):
        if path.stem not in EXERCISES or not path.is_file():
            known = "there is no such file" if path.stem in EXERCISES else "its name must be 01.py to 10.py"
            print(f"error: {path}: {known}", file=sys.stderr)
            return 2
        try:
            module = load(path)
        except SyntaxError as error:
            print(f"error: {path}, line {error.lineno}: {error.msg}", file=sys.stderr)
            return 1
        except Exception as error:
            print(f"error: {path} {raised(error, str(path))}", file=sys.stderr)
            return 1
        for name, problem in check(module, path.stem).items():
            undone = problem == "not done yet"
            print(f"{name:<26}", problem if undone else "wrong" if problem else "right")
            if problem and not undone:
                print("".join(f"    {line}\n" for line in problem.splitlines()), end="")
            wrong += bool(problem)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

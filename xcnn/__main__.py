"""`python -m xcnn` is the command `xcnn`."""

import sys

from xcnn.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())

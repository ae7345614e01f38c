"""Pages of HTML that need nothing but themselves: why a network answers as it does, and the report of a whole run.

Each is one file with its pictures inside. It loads nothing, runs no script, and reads well on a phone, on paper, in the
dark and with a screen reader. All text that comes from files is escaped.
"""

from xcnn.pages.explanation import Shown, explanation, methods_named
from xcnn.pages.report import report, require_run

__all__ = ["Shown", "explanation", "methods_named", "report", "require_run"]

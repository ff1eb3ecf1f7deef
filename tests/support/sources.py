"""Source files as syntax trees, for tests that read the package instead of running it."""

import ast
import gc
from pathlib import Path


def parsed(file: Path) -> ast.Module:
    """Return the tree of a file.

    The garbage collector waits: an object of an earlier test whose end prints a traceback has Python parse a line itself,
    and before 3.11.9 a parser that is interrupted by another fails (SystemError).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(file.read_text())
    finally:
        if was_enabled:
            gc.enable()

"""How a command ends: its exit codes, and what is said where it cannot do what it was asked to."""

import sys

PROGRAM = "lcp-gateway"
USAGE_ERROR = 2
RUNTIME_ERROR = 1
COMPLETION_VARIABLE = "_LCP_GATEWAY_COMPLETE"
"""Set by a shell that asks how a line may go on; see ``cli/completion.py``."""


class CommandFailed(Exception):
    """A command cannot do what it was asked to; each line says why, in words for the person who typed it."""

    def __init__(self, *lines: str, exit_code: int = RUNTIME_ERROR) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines
        self.exit_code = exit_code


def complain(*lines: str) -> None:
    """Write lines to standard error under the program's name."""
    for line in lines:
        sys.stderr.write(f"{PROGRAM}: {line}\n")

"""How a command speaks and ends: exit codes, messages, a question at the terminal, tables, pairs and JSON."""

import json
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress

import typer

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


def report(*lines: str) -> None:
    """Write lines to standard error under the program's name."""
    for line in lines:
        sys.stderr.write(f"{PROGRAM}: {line}\n")


def confirm(question: str, *, yes: bool) -> None:
    """Go on if ``yes`` was given with the command, or is answered.

    Raises:
        CommandFailed: nobody is there to be asked.
        typer.Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandFailed("nobody is there to confirm it: add --yes", exit_code=USAGE_ERROR)
    typer.confirm(question, abort=True)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at and how it is; ``advice`` says what to do and is empty where there is nothing to do."""

    name: str
    ok: bool
    text: str
    advice: str = ""


# Where nobody looks at the width of a line, nothing is folded.
_PIPE_COLUMNS = 400
_LONG_HEX = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24,}\b")


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    omitted: Collection[str] = (),
) -> None:
    """Print a table. In a pipe every row is one line, and whole.

    On a terminal long hexadecimal ids are shortened, columns of ``omitted`` left out, and cells that are still too long
    fold.
    """
    from rich import box  # noqa: PLC0415 - 60 ms that other commands do not pay
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    on_terminal = sys.stdout.isatty()
    table = Table(
        box=box.SIMPLE_HEAD if on_terminal else None,
        pad_edge=False,
        padding=(0, 0) if on_terminal else (0, 1),
        show_edge=not on_terminal,
    )
    shown = [not (on_terminal and heading in omitted) for heading in headings]
    for heading in compress(headings, shown):
        table.add_column(heading, overflow="fold", no_wrap=not on_terminal)
    for row in rows:
        cells = (printable(cell) for cell in compress(row, shown))
        # Text, because a value may hold what rich takes for markup.
        table.add_row(*(Text(shorten_ids(cell) if on_terminal else cell) for cell in cells))
    Console(width=None if on_terminal else _PIPE_COLUMNS).print(table)


def shorten_ids(text: str) -> str:
    """Give a text whose long hexadecimal ids are cut to what a person compares; commands take them like this."""
    return _LONG_HEX.sub(r"\1…", text)


def print_pairs(rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair to a line, for people and for ``grep`` alike."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        sys.stdout.write(f"{name:{width}}  {printable(value)}\n")


def print_json(value: object) -> None:
    """Print JSON for other programs."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def printable(text: str) -> str:
    """Give a text that may come from a peer or a client without what a terminal would obey."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)

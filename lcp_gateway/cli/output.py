"""The output of commands: exit codes, messages, a question at the terminal, tables, pairs and JSON."""

import json as json_format
import pwd
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import compress
from typing import TypeVar

import typer

PROGRAM = "lcp-gateway"
USAGE_ERROR = 2
RUNTIME_ERROR = 1
COMPLETION_VARIABLE = "_LCP_GATEWAY_COMPLETE"
"""Set by a shell that asks how a line may go on; see ``cli/completion.py``."""

T = TypeVar("T")
Columns = Mapping[str, Callable[[T], str]]
"""The columns of a table: how the cell under each heading is written."""

# A pipe has no width: no line is folded there.
_PIPE_COLUMNS = 400
_LONG_HEX = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24,}\b")


class CommandFailed(Exception):
    """A command failed; the lines are the reason for the operator."""

    def __init__(self, *lines: str, exit_code: int = RUNTIME_ERROR) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines
        self.exit_code = exit_code


def report(*lines: str) -> None:
    """Write lines to standard error under the program's name."""
    for line in lines:
        sys.stderr.write(f"{PROGRAM}: {line}\n")


def confirm(question: str, *, yes: bool) -> None:
    """Return if ``yes`` was given with the command, or is the answer at the terminal.

    Raises:
        CommandFailed: there is no terminal to ask at.
        typer.Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandFailed("this must be confirmed, and there is no terminal: add --yes", exit_code=USAGE_ERROR)
    typer.confirm(question, abort=True)


def print_list(
    items: Iterable[T],
    columns: Columns[T],
    document: Callable[[T], object],
    *,
    json: bool,
    omitted: Collection[str] = (),
) -> None:
    """Print items as a table, or as a JSON array of their documents."""
    if json:
        print_json([document(item) for item in items])
    else:
        rows = ([cell(item) for cell in columns.values()] for item in items)
        print_table([*columns], rows, omitted=omitted)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, omitted: Collection[str] = ()) -> None:
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
        # Text, because a value may hold characters that rich takes for markup.
        table.add_row(*(Text(shorten_ids(cell) if on_terminal else cell) for cell in cells))
    Console(width=None if on_terminal else _PIPE_COLUMNS).print(table)


def shorten_ids(text: str) -> str:
    """Cut long hexadecimal ids to the digits that a person compares; commands take them like this."""
    return _LONG_HEX.sub(r"\1…", text)


def print_pairs(rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair to a line."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        sys.stdout.write(f"{name:{width}}  {printable(value)}\n")


def print_json(value: object) -> None:
    """Print JSON for other programs."""
    sys.stdout.write(json_format.dumps(value, indent=2, ensure_ascii=False) + "\n")


def printable(text: str) -> str:
    """Return a text of a peer or a client without the control characters that a terminal interprets."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def format_time(at: datetime) -> str:
    """Write a time to the second, in UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def user_name(uid: int) -> str:
    """Return the name of a user of this machine, for a message."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user with the number {uid}"

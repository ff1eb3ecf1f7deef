"""Tables and JSON on standard output, readable on a terminal and whole in a pipe."""

import json
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from itertools import compress

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
        cells = (plain(cell) for cell in compress(row, shown))
        # Text, because a value may hold what rich takes for markup.
        table.add_row(*(Text(shortened(cell) if on_terminal else cell) for cell in cells))
    Console(width=None if on_terminal else _PIPE_COLUMNS).print(table)


def shortened(text: str) -> str:
    """Give a text whose long hexadecimal ids are cut to what a person compares; commands take them like this."""
    return _LONG_HEX.sub(r"\1…", text)


def print_pairs(rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair to a line, for people and for ``grep`` alike."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        sys.stdout.write(f"{name:{width}}  {plain(value)}\n")


def print_json(value: object) -> None:
    """Print JSON for other programs."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def plain(text: str) -> str:
    """Give a text that may come from a peer or a client without what a terminal would obey."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)

"""Tables and JSON on standard output, readable on a terminal and whole in a pipe."""

import json
import sys
from collections.abc import Iterable, Sequence

# Where nobody looks at the width of a line, nothing is folded.
_PIPE_COLUMNS = 400


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. On a terminal long cells fold; in a pipe every row is one line."""
    from rich import box  # noqa: PLC0415 - 60 ms that other commands do not pay
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    on_terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD if on_terminal else None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=not on_terminal)
    for row in rows:
        # Text, because a value may hold what rich takes for markup.
        table.add_row(*(Text(plain(cell)) for cell in row))
    Console(width=None if on_terminal else _PIPE_COLUMNS).print(table)


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

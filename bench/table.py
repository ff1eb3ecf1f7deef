"""Prints what was measured as plain tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.processes import Used
from bench.workload import Load

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """A number of clients: their results with the daemon directly and with the gateway, and the gateway's CPU and memory."""

    clients: int
    direct: Load
    ours: Load
    used: Used

    @property
    def errors(self) -> int:
        return self.direct.errors + self.ours.errors


@dataclass(frozen=True, slots=True)
class PacedRow(Row):
    """A row of streams whose tokens come one after the other, ``pause_s`` apart."""

    pause_s: float


def print_start(start_s: float, rss_bytes: int) -> None:
    print(f"from start to ready: {start_s:.2f} s (median)")
    print(f"resident before the load: {rss_bytes / _MIB:.0f} MiB")


def print_unary(rows: list[Row]) -> None:
    """One line for each number of clients."""
    print_table(
        "Unary (ms)",
        [
            ("clients", lambda row: f"{row.clients}"),
            ("direct/s", lambda row: _rate(row.direct.requests, row.direct)),
            ("gateway/s", lambda row: _rate(row.ours.requests, row.ours)),
            ("p50 direct", lambda row: _ms(row.direct.total_p50)),
            ("added", lambda row: _added(row.ours.total_p50, row.direct.total_p50)),
            ("p99 direct", lambda row: _ms(row.direct.total_p99)),
            ("added", lambda row: _added(row.ours.total_p99, row.direct.total_p99)),
            ("CPU us/request", lambda row: f"{_us_each(row, row.ours.requests):.0f}"),
            ("peak MiB", lambda row: f"{row.used.peak_rss_bytes / _MIB:.0f}"),
            ("errors", lambda row: f"{row.errors}"),
        ],
        rows,
    )


def print_streams(rows: list[Row]) -> None:
    """One line for each number of clients."""
    print_table(
        "Streams (ms)",
        [
            ("clients", lambda row: f"{row.clients}"),
            ("direct chunks/s", lambda row: _rate(row.direct.chunks, row.direct)),
            ("gateway chunks/s", lambda row: _rate(row.ours.chunks, row.ours)),
            ("streams/s", lambda row: _rate(row.ours.requests, row.ours)),
            ("first p50 direct", lambda row: _ms(row.direct.first_p50)),
            ("added", lambda row: _added(row.ours.first_p50, row.direct.first_p50)),
            ("first p99 added", lambda row: _added(row.ours.first_p99, row.direct.first_p99)),
            ("end p50 added", lambda row: _added(row.ours.total_p50, row.direct.total_p50)),
            ("end p99 added", lambda row: _added(row.ours.total_p99, row.direct.total_p99)),
            ("CPU us/chunk", lambda row: f"{_us_each(row, row.ours.chunks):.1f}"),
            ("peak MiB", lambda row: f"{row.used.peak_rss_bytes / _MIB:.0f}"),
            ("errors", lambda row: f"{row.errors}"),
        ],
        rows,
    )


def print_paced(rows: list[PacedRow]) -> None:
    """One line for each pace and number of streams."""
    print_table(
        "Paced streams (ms)",
        [
            ("ms/token", lambda row: f"{row.pause_s * 1000:.0f}"),
            ("streams", lambda row: f"{row.clients}"),
            ("tokens/s", lambda row: _rate(row.ours.chunks, row.ours)),
            ("CPU us/token", lambda row: f"{_us_each(row, row.ours.chunks):.1f}"),
            ("first p50 direct", lambda row: _ms(row.direct.first_p50)),
            ("added", lambda row: _added(row.ours.first_p50, row.direct.first_p50)),
            ("p99 added", lambda row: _added(row.ours.first_p99, row.direct.first_p99)),
            ("between p50 direct", lambda row: _ms(row.direct.gap_p50)),
            ("added", lambda row: _added(row.ours.gap_p50, row.direct.gap_p50)),
            ("p99 added", lambda row: _added(row.ours.gap_p99, row.direct.gap_p99)),
            ("peak MiB", lambda row: f"{row.used.peak_rss_bytes / _MIB:.0f}"),
            ("errors", lambda row: f"{row.errors}"),
        ],
        rows,
    )


def _rate(count: int, load: Load) -> str:
    return f"{count / load.seconds:,.0f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"


def _added(ours: float, direct: float) -> str:
    return f"{(ours - direct) * 1000:+.2f}"


def _us_each(row: Row, count: int) -> float:
    return row.used.cpu_s / max(1, count) * 1e6


def print_table(title: str, columns, rows: Sequence) -> None:
    """Print one line for each row; ``columns`` are names and functions from a row to its cell."""
    lines = [[name for name, _ in columns], *([cell(row) for _, cell in columns] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    print(f"\n{title}")
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))

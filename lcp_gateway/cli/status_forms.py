"""How the status of a gateway in the background is written, for people and for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from lcp_gateway.cli.journal import written_time
from lcp_gateway.cli.pid_file import Record
from lcp_gateway.cli.readiness import Readiness
from lcp_gateway.cli.spent_today import SpentToday
from lcp_gateway.purchase.money import Msat, format_sat

RUNNING, DEAD, STOPPED, FOREIGN, FOREGROUND = (
    "running",
    "dead",
    "stopped",
    "unknown",
    "running in the foreground",
)
"""The states. Dead is one that left its PID file behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How one gateway is. ``problem`` says what is wrong with its PID file, ``no_books`` why ``spent`` is not known."""

    state: str
    url: str
    now: datetime
    pid_file: Path | None = None
    record: Record | None = None
    readiness: Readiness | None = None
    spent: SpentToday | None = None
    no_books: str = ""
    problem: str = ""

    @property
    def uptime(self) -> timedelta | None:
        """How long it has been running."""
        return self.now - self.record.since if self.record is not None else None

    def as_rows(self) -> Sequence[tuple[str, str]]:
        """Give it as names and values, without those that nobody knows."""
        record = self.record
        rows = [("State", f"{self.state} ({self.problem})" if self.problem else self.state)]
        if record is not None and self.uptime is not None:
            rows += [
                ("PID", str(record.process.pid)),
                ("Address", self.url),
                ("Up", f"{_written(self.uptime)}, since {written_time(record.since)}"),
                ("Version", record.version),
            ]
        else:
            rows.append(("Address", self.url))
        rows += self._rows_when_running()
        if self.pid_file is not None:
            rows.append(("PID file", str(self.pid_file)))
        if record is not None:
            rows.append(("Log file", str(record.log_file)))
        return [row for row in rows if row[1]]

    def as_json(self) -> Mapping[str, object]:
        """Give it for programs; what nobody knows is null."""
        record, readiness, spent = self.record, self.readiness, self.spent
        return {
            "state": self.state,
            "problem": self.problem or None,
            "pid": record.process.pid if record else None,
            "address": self.url or None,
            "since": written_time(record.since) if record else None,
            "uptime_s": round(self.uptime.total_seconds()) if self.uptime else None,
            "version": record.version if record else None,
            "ready": readiness.ready if readiness else None,
            "reasons": list(readiness.reasons) if readiness else [],
            "peers": readiness.peers if readiness else None,
            "nodes": readiness.nodes if readiness else None,
            "jobs_in_flight": readiness.jobs_in_flight if readiness else None,
            "spent_today": {
                "purchases": spent.purchases,
                "settled_msat": spent.settled_msat,
                "unknown_msat": spent.unknown_msat,
            }
            if spent
            else None,
            "spent_today_problem": self.no_books or None,
            "pid_file": str(self.pid_file) if self.pid_file else None,
            "log_file": str(record.log_file) if record else None,
        }

    def _rows_when_running(self) -> Sequence[tuple[str, str]]:
        if self.state not in {RUNNING, FOREGROUND}:
            return []
        readiness = self.readiness
        if readiness is None:
            return [("Ready", "no: it does not answer"), ("Spent today", self._spent())]
        ready = "yes" if readiness.ready else f"no: {'; '.join(readiness.reasons)}"
        down = [name for name, up in readiness.nodes.items() if not up]
        nodes = f"{len(readiness.nodes) - len(down)} of {len(readiness.nodes)} up"
        return [
            ("Ready", ready),
            ("Peers", str(readiness.peers)),
            ("Nodes", nodes if readiness.nodes else ""),
            ("Jobs", str(readiness.jobs_in_flight)),
            ("Spent today", self._spent()),
        ]

    def _spent(self) -> str:
        if self.spent is None:
            return f"not known: {self.no_books}" if self.no_books else ""
        spent = self.spent
        unknown = (
            f", and {format_sat(Msat(spent.unknown_msat))} unknown" if spent.unknown_msat else ""
        )
        return f"{format_sat(Msat(spent.settled_msat))} in {spent.purchases} purchases{unknown}"


def _written(length: timedelta) -> str:
    """Write a length of time with its two largest units."""
    seconds = max(int(length.total_seconds()), 0)
    units = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))
    parts: list[str] = []
    for size, name in units:
        count, seconds = divmod(seconds, size)
        if count or parts or size == 1:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])

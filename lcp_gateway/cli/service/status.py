"""``lcp-gateway status``: whether a gateway runs in the background, and how it is.

The exit codes are those of the LSB: 0 it runs, 1 it is dead and left its PID file behind, 3 it does not run, 4 not known.
"""

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from lcp_gateway.cli.books.journal import JOURNAL_SETTINGS, format_time, opened_journal
from lcp_gateway.cli.gateway_client import Readiness, ask_readiness, url_of
from lcp_gateway.cli.options import JsonOption, partial_settings, setting_flags
from lcp_gateway.cli.output import CommandFailed, print_json, print_pairs, report
from lcp_gateway.cli.service.instances import (
    INSTANCE_SETTINGS,
    InstanceQuery,
    all_instances,
    find_instance,
    is_named_by_flag,
    read_query,
    running_elsewhere,
)
from lcp_gateway.cli.service.pid_file import Condition, InstanceRecord, PidFile
from lcp_gateway.config import Settings
from lcp_gateway.purchase.money import Msat, Period, format_sat
from lcp_gateway.store.journal.purchases import PurchaseFilter
from lcp_gateway.store.journal.queries import Books

_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class SpentToday:
    """What was spent since midnight (UTC), in msat; routing fees are in it."""

    purchases: int
    settled_msat: int
    unknown_msat: int


class SpendingUnknown(Exception):
    """The journal cannot be looked into; the message says why."""


def spent_today(record: InstanceRecord, environ: Mapping[str, str]) -> SpentToday:
    """Add up what the gateway has spent today.

    Raises:
        NoBooks: its journal is off, or cannot be read.
    """
    try:
        # Its flags and its journal may be named as they are seen from its folder.
        with contextlib.chdir(record.folder):
            settings = _settings_of(record, environ)
            return asyncio.run(asyncio.wait_for(_read(settings), _TIMEOUT_S))
    except CommandFailed as error:
        raise SpendingUnknown("; ".join(error.lines)) from None
    except TimeoutError:
        raise SpendingUnknown(f"the journal did not answer within {_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise SpendingUnknown(f"{record.folder}: {error.strerror}") from None


def _settings_of(record: InstanceRecord, environ: Mapping[str, str]) -> Settings:
    problem = "its settings cannot be read any more: see lcp-gateway config check"
    try:
        wanted = partial_settings(
            JOURNAL_SETTINGS, flags=record.flags, environ=environ, config=record.config
        )
    except ValueError:
        raise SpendingUnknown(problem) from None
    if wanted.problems:
        raise SpendingUnknown(problem)
    return wanted.settings


async def _read(settings: Settings) -> SpentToday:
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    async with opened_journal(settings) as database:
        found = await Books(database).spend(Period.DAY, PurchaseFilter(since=midnight))
    return SpentToday(
        purchases=sum(item.purchases for item in found),
        settled_msat=sum(item.settled_msat for item in found),
        unknown_msat=sum(item.unknown_msat for item in found),
    )


RUNNING, DEAD, STOPPED, FOREIGN, FOREGROUND = (
    "running",
    "dead",
    "stopped",
    "unknown",
    "running in the foreground",
)
"""The states. Dead is one that left its PID file behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStatus:
    """How one gateway is. ``problem`` says what is wrong with its PID file, ``no_books`` why ``spent`` is not known."""

    state: str
    url: str
    now: datetime
    pid_file: Path | None = None
    record: InstanceRecord | None = None
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
                ("Up", f"{_written(self.uptime)}, since {format_time(record.since)}"),
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
            "since": format_time(record.since) if record else None,
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


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

_EXIT_CODES = {RUNNING: 0, FOREGROUND: 0, DEAD: 1, STOPPED: 3, FOREIGN: 4}
_STATES = {Condition.RUNNING: RUNNING, Condition.STALE: DEAD, Condition.FOREIGN: FOREIGN}
_NOBODY_KNOWS = 4


@app.command()
@setting_flags(groups=(), also=INSTANCE_SETTINGS)
def status(
    config: Path | None,
    flags: Mapping[str, object],
    *,
    every: Annotated[bool, typer.Option("--all", help="Show every gateway that there is.")] = False,
    json: JsonOption = False,
) -> int:
    """Tell how the gateway in the background is. Ends with 0 if it runs, 1 if it is dead, 3 if it does not run, 4 if nobody knows."""
    try:
        question = read_query(flags, config)
    except CommandFailed as error:
        raise CommandFailed(*error.lines, exit_code=_NOBODY_KNOWS) from None
    question.complain_of_problems()
    try:
        found = None if every else find_instance(question)
    except CommandFailed:
        # Several, and none is named: they are shown.
        every = True
    if every:
        return _show_all([_status_of(one) for one in all_instances(question.settings)], json=json)
    return _show_one(question, found, json=json)


def _show_all(each: Sequence[GatewayStatus], *, json: bool) -> int:
    if json:
        print_json([one.as_json() for one in each])
    elif not each:
        typer.echo("no gateway runs in the background")
    for number, one in enumerate(each if not json else ()):
        if number:
            typer.echo()
        print_pairs(one.as_rows())
    return max((_EXIT_CODES[one.state] for one in each), default=_EXIT_CODES[STOPPED])


def _show_one(question: InstanceQuery, found: PidFile | None, *, json: bool) -> int:
    shown = _status_of(found) if found is not None else _without_pid_file(question)
    if json:
        print_json(shown.as_json())
    else:
        print_pairs(shown.as_rows())
    if shown.state == STOPPED:
        if is_named_by_flag(question):
            report(*running_elsewhere(question))
        if question.problems:
            # What the file says may name another place.
            return _NOBODY_KNOWS
    return _EXIT_CODES[shown.state]


def _status_of(found: PidFile) -> GatewayStatus:
    state, record, now = _STATES[found.condition], found.record, datetime.now(UTC)
    if (running := found.running) is None:
        return GatewayStatus(
            state=state,
            url=record.url if record else "",
            now=now,
            pid_file=found.path,
            problem=found.problem,
        )
    spent, no_books = None, ""
    try:
        spent = spent_today(running, os.environ)
    except SpendingUnknown as error:
        no_books = str(error)
    return GatewayStatus(
        state=state,
        url=running.url,
        now=now,
        pid_file=found.path,
        record=running,
        readiness=ask_readiness(running.url),
        spent=spent,
        no_books=no_books,
    )


def _without_pid_file(question: InstanceQuery) -> GatewayStatus:
    """Tell of the address alone: somebody may run it there without ``start``."""
    url, now = url_of(question.settings), datetime.now(UTC)
    readiness = ask_readiness(url)
    if readiness is None:
        return GatewayStatus(state=STOPPED, url=url, now=now)
    return GatewayStatus(state=FOREGROUND, url=url, now=now, readiness=readiness)

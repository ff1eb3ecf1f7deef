"""``lcp-gateway status``: whether a gateway runs in the background, and its state.

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

from lcp_gateway.cli.books.journal import JOURNAL_SETTINGS, opened_journal
from lcp_gateway.cli.books.spend import SpendTotal
from lcp_gateway.cli.gateway_client import Address, Readiness, ask_readiness
from lcp_gateway.cli.options import JsonOption, command_app, partial_settings, setting_flags
from lcp_gateway.cli.output import CommandFailed, format_time, print_json, print_pairs, report
from lcp_gateway.cli.service.instances import (
    INSTANCE_SETTINGS,
    InstanceQuery,
    all_instances,
    find_instance,
    read_query,
    running_elsewhere,
)
from lcp_gateway.cli.service.pid_file import Condition, InstanceRecord, PidFile
from lcp_gateway.config import Settings
from lcp_gateway.purchase.money import Msat, Period, format_sat
from lcp_gateway.purchase.records import PurchaseFilter
from lcp_gateway.store.journal.queries import Books

app = command_app()

RUNNING, FOREGROUND, STOPPED, FOREIGN = "running", "running in the foreground", "stopped", "unknown"
DEAD = "dead"
"""It left its PID file behind."""
_EXIT_CODES = {RUNNING: 0, FOREGROUND: 0, DEAD: 1, STOPPED: 3, FOREIGN: 4}
_STATES = {Condition.RUNNING: RUNNING, Condition.STALE: DEAD, Condition.FOREIGN: FOREIGN}
_NOT_KNOWN = 4
_JOURNAL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStatus:
    """The status of one gateway. ``problem`` is that of its PID file, ``spent_problem`` says why ``spent`` is not known."""

    state: str
    url: str
    now: datetime
    pid_file: Path | None = None
    record: InstanceRecord | None = None
    readiness: Readiness | None = None
    spent: SpendTotal | None = None
    spent_problem: str = ""
    problem: str = ""

    @property
    def uptime(self) -> timedelta | None:
        """The time that it has been running."""
        return self.now - self.record.since if self.record is not None else None

    def as_rows(self) -> Sequence[tuple[str, str]]:
        """Return it as names and values, without those that are not known."""
        record = self.record
        rows = [("State", f"{self.state} ({self.problem})" if self.problem else self.state)]
        if record is not None and self.uptime is not None:
            rows += [
                ("PID", str(record.process.pid)),
                ("Address", self.url),
                ("Up", f"{_write_duration(self.uptime)}, since {format_time(record.since)}"),
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
        """Return it for programs; null stands for a value that is not known."""
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
            "workers": dict(zip(("running", "of"), readiness.workers, strict=True))
            if readiness and readiness.workers
            else None,
            "jobs_in_flight": readiness.jobs_in_flight if readiness else None,
            "spent_today": {
                "purchases": spent.purchases,
                "settled_msat": spent.settled_msat,
                "unknown_msat": spent.unknown_msat,
            }
            if spent
            else None,
            "spent_today_problem": self.spent_problem or None,
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
        workers = "{} of {} serve".format(*readiness.workers) if readiness.workers else ""
        return [
            ("Ready", ready),
            ("Peers", str(readiness.peers)),
            ("Nodes", nodes if readiness.nodes else ""),
            ("Workers", workers),
            ("Jobs", str(readiness.jobs_in_flight)),
            ("Spent today", self._spent()),
        ]

    def _spent(self) -> str:
        if self.spent is None:
            return f"not known: {self.spent_problem}" if self.spent_problem else ""
        spent = self.spent
        unknown = f", and {format_sat(Msat(spent.unknown_msat))} unknown" if spent.unknown_msat else ""
        return f"{format_sat(Msat(spent.settled_msat))} in {spent.purchases} purchases{unknown}"


@app.command()
@setting_flags(groups=(), also=INSTANCE_SETTINGS)
def status(
    config: Path | None,
    flags: Mapping[str, object],
    *,
    every: Annotated[bool, typer.Option("--all", help="Show every gateway.")] = False,
    json: JsonOption = False,
) -> int:
    """Show the gateway in the background. Ends with 0 if it runs, 1 if it is dead, 3 if it does not run, 4 if that is not known."""
    try:
        query = read_query(flags, config)
    except CommandFailed as error:
        raise CommandFailed(*error.lines, exit_code=_NOT_KNOWN) from None
    report(*query.problems)
    try:
        found = None if every else find_instance(query)
    except CommandFailed:
        # Several, and none is named: they are shown.
        every = True
    if every:
        return _show_all([_status_of(one) for one in all_instances(query.settings)], json=json)
    return _show_one(query, found, json=json)


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


def _show_one(query: InstanceQuery, found: PidFile | None, *, json: bool) -> int:
    shown = _status_of(found) if found is not None else _without_pid_file(query)
    if json:
        print_json(shown.as_json())
    else:
        print_pairs(shown.as_rows())
    if shown.state == STOPPED:
        if query.is_named_by_flag:
            report(*running_elsewhere(query))
        if query.problems:
            # The file may name another place.
            return _NOT_KNOWN
    return _EXIT_CODES[shown.state]


def _status_of(found: PidFile) -> GatewayStatus:
    state, record, now = _STATES[found.condition], found.record, datetime.now(UTC)
    if (running := found.running) is None:
        return GatewayStatus(
            state=state, url=record.url if record else "", now=now, pid_file=found.path, problem=found.problem
        )
    spent, spent_problem = None, ""
    try:
        spent = spent_today(running, os.environ)
    except SpendingUnknown as error:
        spent_problem = str(error)
    return GatewayStatus(
        state=state,
        url=running.url,
        now=now,
        pid_file=found.path,
        record=running,
        readiness=ask_readiness(running.url),
        spent=spent,
        spent_problem=spent_problem,
    )


def _without_pid_file(query: InstanceQuery) -> GatewayStatus:
    """Return the status of the address alone: a gateway may run there that ``start`` did not start."""
    url, now = Address.of_settings(query.settings).url, datetime.now(UTC)
    readiness = ask_readiness(url)
    if readiness is None:
        return GatewayStatus(state=STOPPED, url=url, now=now)
    return GatewayStatus(state=FOREGROUND, url=url, now=now, readiness=readiness)


class SpendingUnknown(Exception):
    """The journal cannot be read; the message says why."""


def spent_today(record: InstanceRecord, environ: Mapping[str, str]) -> SpendTotal:
    """Add up the amounts that the gateway has spent since midnight (UTC), from the journal that it writes.

    Raises:
        SpendingUnknown: its journal is off, or cannot be read.
    """
    try:
        # Paths of its flags and settings are relative to the folder that it was started in.
        with contextlib.chdir(record.folder):
            settings = _journal_settings(record, environ)
            return asyncio.run(asyncio.wait_for(_read(settings), _JOURNAL_TIMEOUT_S))
    except CommandFailed as error:
        raise SpendingUnknown("; ".join(error.lines)) from None
    except TimeoutError:
        raise SpendingUnknown(f"the journal did not answer within {_JOURNAL_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise SpendingUnknown(f"{record.folder}: {error.strerror}") from None


def _journal_settings(record: InstanceRecord, environ: Mapping[str, str]) -> Settings:
    problem = "its settings cannot be read any more: see lcp-gateway config check"
    try:
        found = partial_settings(JOURNAL_SETTINGS, flags=record.flags, environ=environ, config=record.config)
    except ValueError:
        raise SpendingUnknown(problem) from None
    if found.problems:
        raise SpendingUnknown(problem)
    return found.settings


async def _read(settings: Settings) -> SpendTotal:
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    total = SpendTotal()
    async with opened_journal(settings) as database:
        for item in await Books(database).spend(Period.DAY, PurchaseFilter(since=midnight)):
            total.add(item)
    return total


def _write_duration(duration: timedelta) -> str:
    """Write a duration with its two largest units."""
    seconds = max(int(duration.total_seconds()), 0)
    units = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))
    parts: list[str] = []
    for size, name in units:
        count, seconds = divmod(seconds, size)
        if count or parts or size == 1:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])

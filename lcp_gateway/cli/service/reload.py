"""``lcp-gateway reload``: makes a gateway in the background read its settings again, and shows the result."""

import json
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from lcp_gateway.cli.options import command_app, setting_flags
from lcp_gateway.cli.output import CommandFailed, printable, report
from lcp_gateway.cli.service.instances import (
    INSTANCE_SETTINGS,
    InstanceQuery,
    find_instance,
    read_query,
    running_elsewhere,
)
from lcp_gateway.cli.service.logs import LogFollower
from lcp_gateway.cli.service.pid_file import Condition, InstanceRecord
from lcp_gateway.cli.service.processes import is_running, send

app = command_app()

_RELOADED = "configuration reloaded"
_REFUSED = "configuration not reloaded"
_TIMEOUT_S = 20.0
_PAUSE_S = 0.1


@app.command()
@setting_flags(groups=(), also=INSTANCE_SETTINGS)
def reload(config: Path | None, flags: Mapping[str, object]) -> int:
    """Make the gateway in the background read its settings again. No request is dropped."""
    query = read_query(flags, config)
    record = _running(query)
    with LogFollower(record.log_file) as log:
        try:
            sent = send(record.process, signal.SIGHUP)
        except OSError as error:
            raise CommandFailed(f"PID {record.process.pid} cannot be signalled: {error.strerror}") from None
        if not sent:
            raise CommandFailed("it has just ended")
        return _show(_answer(log, record), record)


def _running(query: InstanceQuery) -> InstanceRecord:
    found = find_instance(query)
    if found is not None and found.running is not None:
        return found.running
    if found is not None and found.condition is Condition.FOREIGN:
        raise CommandFailed(f"{found.path}: {found.problem}: that gateway is not yours to reload")
    if found is not None:
        raise CommandFailed(f"it does not run: {found.path} is stale, {found.problem}")
    query.fail_for_problems()
    raise CommandFailed(
        "no gateway runs in the background here; one that runs elsewhere takes SIGHUP", *running_elsewhere(query)
    )


def _answer(log: LogFollower, record: InstanceRecord) -> str:
    """Return the line of the log that reports the result."""
    deadline = time.monotonic() + _TIMEOUT_S
    for line in _lines(log, deadline):
        if _REFUSED in line or _RELOADED in line:
            return line
        if not is_running(record.process):
            raise CommandFailed("it ended in the meantime: see lcp-gateway logs")
    raise CommandFailed(
        f"it was sent SIGHUP, and its log shows no result within {_TIMEOUT_S:g} s: see lcp-gateway logs"
    )


def _lines(log: LogFollower, deadline: float) -> Iterator[str]:
    """Yield whole lines, and an empty one now and then, until the deadline."""
    rest = b""
    while time.monotonic() < deadline:
        *whole, rest = (rest + log.read()).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in whole)
        yield ""
        time.sleep(_PAUSE_S)


def _show(line: str, record: InstanceRecord) -> int:
    try:
        event: Any = json.loads(line)
    except ValueError:
        # A console log has the same words, not as JSON.
        sys.stdout.write(f"{printable(line)}\n")
        return 1 if _REFUSED in line else 0
    if event.get("event") == _REFUSED:
        report(*map(printable, _texts(event.get("problems"))), "not reloaded: the old settings stay in force")
        return 1
    changed = ", ".join(_texts(event.get("changed"))) or "nothing"
    typer.echo(f"Reloaded lcp-gateway at {record.url}; changed: {printable(changed)}")
    if restart := ", ".join(_texts(event.get("needs_restart"))):
        report(f"changed too, and in force after lcp-gateway restart only: {printable(restart)}")
    return 0


def _texts(found: object) -> Iterable[str]:
    return [str(item) for item in found] if isinstance(found, list) else []

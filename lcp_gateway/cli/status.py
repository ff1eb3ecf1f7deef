"""``lcp-gateway status``: whether a gateway runs in the background, and how it is.

The exit codes are those of the LSB: 0 it runs, 1 it is dead and left its PID file behind, 3 it does not run, 4 nobody knows.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from lcp_gateway.cli.flags import setting_flags
from lcp_gateway.cli.instances import (
    INSTANCE_SETTINGS,
    Question,
    all_instances,
    ask,
    is_named_by_flag,
    meant,
    others,
)
from lcp_gateway.cli.options import JsonOption
from lcp_gateway.cli.outcome import CommandFailed, complain
from lcp_gateway.cli.output import print_json, print_pairs
from lcp_gateway.cli.pid_file import Condition, PidFile
from lcp_gateway.cli.readiness import ask_readiness, url_of
from lcp_gateway.cli.spent_today import NoBooks, spent_today
from lcp_gateway.cli.status_forms import DEAD, FOREGROUND, FOREIGN, RUNNING, STOPPED, Status

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
        question = ask(flags, config)
    except CommandFailed as error:
        raise CommandFailed(*error.lines, exit_code=_NOBODY_KNOWS) from None
    question.complain_of_problems()
    try:
        found = None if every else meant(question)
    except CommandFailed:
        # Several, and none is named: they are shown.
        every = True
    if every:
        return _show_all([_status_of(one) for one in all_instances(question.settings)], json=json)
    return _show_one(question, found, json=json)


def _show_all(each: Sequence[Status], *, json: bool) -> int:
    if json:
        print_json([one.as_json() for one in each])
    elif not each:
        typer.echo("no gateway runs in the background")
    for number, one in enumerate(each if not json else ()):
        if number:
            typer.echo()
        print_pairs(one.as_rows())
    return max((_EXIT_CODES[one.state] for one in each), default=_EXIT_CODES[STOPPED])


def _show_one(question: Question, found: PidFile | None, *, json: bool) -> int:
    shown = _status_of(found) if found is not None else _without_pid_file(question)
    if json:
        print_json(shown.as_json())
    else:
        print_pairs(shown.as_rows())
    if shown.state == STOPPED:
        if is_named_by_flag(question):
            complain(*others(question))
        if question.problems:
            # What the file says may name another place.
            return _NOBODY_KNOWS
    return _EXIT_CODES[shown.state]


def _status_of(found: PidFile) -> Status:
    state, record, now = _STATES[found.condition], found.record, datetime.now(UTC)
    if (running := found.running) is None:
        return Status(
            state=state,
            url=record.url if record else "",
            now=now,
            pid_file=found.path,
            problem=found.problem,
        )
    spent, no_books = None, ""
    try:
        spent = spent_today(running, os.environ)
    except NoBooks as error:
        no_books = str(error)
    return Status(
        state=state,
        url=running.url,
        now=now,
        pid_file=found.path,
        record=running,
        readiness=ask_readiness(running.url),
        spent=spent,
        no_books=no_books,
    )


def _without_pid_file(question: Question) -> Status:
    """Tell of the address alone: somebody may run it there without ``start``."""
    url, now = url_of(question.settings), datetime.now(UTC)
    readiness = ask_readiness(url)
    if readiness is None:
        return Status(state=STOPPED, url=url, now=now)
    return Status(state=FOREGROUND, url=url, now=now, readiness=readiness)

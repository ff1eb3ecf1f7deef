"""``lcp-gateway purchases``: the journal of purchases, and the few things that an operator may change in it."""

import asyncio
import csv
import enum
import json as json_format
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from lcp_gateway.accounts.models import AccountError, InvalidText, RefundRecord
from lcp_gateway.cli.accounts.books import actor
from lcp_gateway.cli.books.journal import (
    JOURNAL_SETTINGS,
    opened_journal,
    read_age,
    read_job_id,
    read_job_prefix,
    read_only_settings,
    read_time,
)
from lcp_gateway.cli.books.purchase_fields import (
    COLUMNS,
    FIELDS,
    csv_cells,
    fields_of,
    written_field,
)
from lcp_gateway.cli.options import (
    JsonOption,
    YesOption,
    command_group,
    load_settings,
    parameters_of,
    setting_flags,
    text_option,
    with_parameters,
)
from lcp_gateway.cli.output import (
    USAGE_ERROR,
    CommandFailed,
    confirm,
    format_time,
    print_json,
    print_list,
    print_pairs,
    printable,
    report,
)
from lcp_gateway.config import Settings
from lcp_gateway.config.paths import state_folder
from lcp_gateway.purchase.money import REFUND_MESSAGES, Refund, RefundLimits
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.refunds import Refunds
from lcp_gateway.store.journal.purchases import (
    PurchaseCursor,
    PurchaseFilter,
    PurchaseRecord,
    StateChange,
)
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import NotUnknown, Resolved, resolve
from lcp_gateway.store.journal.retention import Forgotten, forget

app = command_group("Show and export the journal of purchases, and resolve what is open in it.")

_T = TypeVar("_T")
JobArgument = Annotated[str, typer.Argument(metavar="JOB_ID", show_default=False)]

_PAGE = 500
_LONGEST_REASON = 500
_RESOLVED_FROM = frozenset({State.UNKNOWN, State.SETTLED})
_RESOLUTIONS_FILE = "resolutions.jsonl"
"""Beside the gateway's state; lines are only ever added to it."""


class ExportFormat(enum.StrEnum):
    """The formats of an export."""

    JSONL = "jsonl"
    CSV = "csv"


class ResolvedState(enum.StrEnum):
    """The outcomes of a payment that an operator may have found out."""

    SETTLED = "settled"
    UNDELIVERED = "undelivered"
    NOT_PAID = "not_paid"


class Decision(enum.StrEnum):
    """The decisions on a refund that is withheld."""

    GRANT = "grant"
    DENY = "deny"


def _filter_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add to a command options that choose purchases; it is called with their filter as ``which``."""
    options = parameters_of(_filter)

    def run(**values: object) -> int:
        chosen = {option.name: values.pop(option.name) for option in options}
        # typer has read them by the types of `_filter`.
        return command(which=_filter(**chosen), **values)  # type: ignore[arg-type]

    return with_parameters(run, command, [*parameters_of(command, without=("which",)), *options])


def _filter(
    *,
    state: Annotated[
        list[State] | None,
        typer.Option("--state", metavar="STATE", help="In this state; may be repeated."),
    ] = None,
    model: Annotated[str | None, text_option(metavar="MODEL", help="Of this model.")] = None,
    peer: Annotated[str | None, text_option(metavar="PEER_ID", help="From this peer.")] = None,
    key: Annotated[str | None, text_option(metavar="KEY_ID", help="With this key.")] = None,
    refund: Annotated[
        list[Refund] | None,
        typer.Option(
            "--refund",
            metavar="given|withheld|granted|denied",
            help="Undelivered, with this state of the refund; may be repeated.",
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help='Not before: "2026-01-31", or "7d" for days ago.'),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="Before.")] = None,
) -> PurchaseFilter:
    now = datetime.now(UTC)
    return PurchaseFilter(
        states=state or None,
        model=model,
        peer_id=peer.lower() if peer else None,
        key_id=key,
        since=read_time(since, now),
        until=read_time(until, now),
        refunds=refund or None,
    )


@app.command("list")
@setting_flags(also=JOURNAL_SETTINGS, groups=())
@_filter_options
def list_purchases(
    which: PurchaseFilter,
    config: Path | None,
    flags: Mapping[str, object],
    *,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most N.")] = 50,
    json: JsonOption = False,
) -> int:
    """List purchases, the newest first. A fee in brackets is estimated, not known."""
    settings = read_only_settings(load_settings(flags, config).settings)

    async def read() -> tuple[list[PurchaseRecord], bool]:
        async with opened_journal(settings) as database:
            records = _records(Books(database), which)
            found = [record async for record in _first(records, limit + 1)]
        return found[:limit], len(found) > limit

    found, more = asyncio.run(read())
    print_list(found, COLUMNS, fields_of, json=json)
    if more:
        report(f"there are more; these are the newest {limit} (see --limit)")
    return 0


@app.command()
@setting_flags(also=JOURNAL_SETTINGS, groups=())
def show(
    job_id: JobArgument,
    config: Path | None,
    flags: Mapping[str, object],
    *,
    json: JsonOption = False,
) -> int:
    """Print all fields of one purchase."""
    wanted = read_job_prefix(job_id)
    record, steps = asyncio.run(
        one_purchase(read_only_settings(load_settings(flags, config).settings), wanted)
    )
    times = {step.state.value: format_time(step.at) for step in steps}
    fields = fields_of(record)
    if json:
        print_json(fields | {"times": times})
        return 0
    rows = [(name, written_field(value)) for name, value in fields.items()]
    print_pairs(rows + [(f"since {state}", at) for state, at in times.items()])
    return 0


@app.command()
@setting_flags(also=JOURNAL_SETTINGS, groups=())
@_filter_options
def export(
    which: PurchaseFilter,
    config: Path | None,
    flags: Mapping[str, object],
    *,
    form: Annotated[
        ExportFormat, typer.Option("--format", help="The format.")
    ] = ExportFormat.JSONL,
) -> int:
    """Write purchases to standard output, the newest first, as JSON Lines or CSV."""
    settings = read_only_settings(load_settings(flags, config).settings)
    write: Callable[[PurchaseRecord], object] = _json_line
    if form is ExportFormat.CSV:
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(FIELDS)
        write = _csv_line(table.writerow)

    async def copy() -> None:
        async with opened_journal(settings) as database:
            async for record in _records(Books(database), which):
                write(record)

    asyncio.run(copy())
    return 0


@app.command("resolve")
@setting_flags(also=JOURNAL_SETTINGS, groups=())
def resolve_purchase(
    job_id: JobArgument,
    evidence: Annotated[
        ResolvedState, typer.Argument(metavar="settled|undelivered|not_paid", show_default=False)
    ],
    config: Path | None,
    flags: Mapping[str, object],
    *,
    why: Annotated[
        str,
        text_option(metavar="TEXT", help="How you know."),
    ],
    yes: YesOption = False,
) -> int:
    """Enter the outcome of a purchase that is unknown, when you have found it out and the gateway cannot.

    A purchase that was paid, and whose answer did not come, ends undelivered: "settled" and "undelivered" are the same.
    One that a gateway left settled when it died can be resolved so as well.
    """
    wanted = read_job_id(job_id)
    if not why.strip() or len(why) > _LONGEST_REASON:
        raise CommandFailed(
            f"--why: say in 1 to {_LONGEST_REASON} characters how you know", exit_code=USAGE_ERROR
        )
    settings = load_settings(flags, config).settings
    record, _ = asyncio.run(one_purchase(settings, wanted.hex()))
    if record.state not in _RESOLVED_FROM:
        raise CommandFailed(f"the purchase is {record.state}, not unknown; nothing was changed")
    typer.echo(
        f"{format_time(record.paying_at)}  {printable(record.model)} from {record.peer_id}: "
        f"{record.price_msat} msat, payment hash "
        f"{record.payment_hash.hex() if record.payment_hash else 'not known'}"
    )
    confirm(f"Enter it as {evidence}, for good?", yes=yes)
    now = datetime.now(UTC)
    state = State(evidence.value)
    # Before the journal is changed.
    file = _record_reason(wanted, state, why.strip(), now)

    async def change() -> Resolved:
        async with opened_journal(settings) as database:
            limits = RefundLimits(settings.refund_account_day_msat, settings.refund_day_msat)
            return await resolve(database, wanted, state, now, refunds=limits)

    try:
        resolved = asyncio.run(change())
    except NotUnknown as error:
        raise CommandFailed(f"{error}; nothing was changed") from None
    typer.echo(f"entered as {resolved.state}; your reason is stored in {file}")
    if resolved.refund is not None:
        typer.echo(REFUND_MESSAGES[resolved.refund])
    return 0


@app.command("refund")
@setting_flags(also=JOURNAL_SETTINGS, groups=())
def refund_purchase(
    job_id: JobArgument,
    decision: Annotated[Decision, typer.Argument(metavar="grant|deny", show_default=False)],
    config: Path | None,
    flags: Mapping[str, object],
    *,
    why: Annotated[
        str,
        text_option(metavar="TEXT", help="Your reason."),
    ],
    yes: YesOption = False,
) -> int:
    """Decide on a refund that is withheld because a limit was reached: give the charge back, or keep it for good."""
    wanted = read_job_id(job_id)
    settings = load_settings(flags, config).settings
    record, _ = asyncio.run(one_purchase(settings, wanted.hex()))
    if record.charge is None or record.refund is None:
        raise CommandFailed(
            f"no refund of this purchase is withheld: it is {record.state}; nothing was changed"
        )
    typer.echo(
        f"{format_time(record.paying_at)}  {printable(record.model)} from {record.peer_id}, of "
        f"{record.charge.account_id}: {record.charge.amount_msat} msat"
    )
    doing = "Give it back" if decision is Decision.GRANT else "Keep it"
    confirm(f"{doing}, for good?", yes=yes)

    async def decide() -> tuple[RefundRecord, bool]:
        async with opened_journal(settings) as database:
            return await Refunds(database).decide(
                wanted,
                grant=decision is Decision.GRANT,
                reason=why,
                actor=actor(),
                at=datetime.now(UTC),
            )

    try:
        decided, is_new = asyncio.run(decide())
    except InvalidText as error:
        raise CommandFailed(f"--why: {error}", exit_code=USAGE_ERROR) from None
    except AccountError as error:
        raise CommandFailed(f"{error}; nothing was changed") from None
    typer.echo(
        REFUND_MESSAGES[decided.refund] if is_new else f"{REFUND_MESSAGES[decided.refund]} before"
    )
    return 0


@app.command("forget")
@setting_flags(also=JOURNAL_SETTINGS, groups=())
def forget_purchases(
    config: Path | None,
    flags: Mapping[str, object],
    *,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help='Such as "90d".', show_default=False)
    ],
    yes: YesOption = False,
) -> int:
    """Delete purchases that ended long ago. Open ones stay, however old, and so do budgets of periods that still run."""
    age = read_age(older_than)
    settings = load_settings(flags, config).settings
    try:
        before = datetime.now(UTC) - age
    except OverflowError:
        raise CommandFailed("--older-than: nothing is that old", exit_code=USAGE_ERROR) from None
    confirm(f"Delete all purchases that ended before {format_time(before)}, for good?", yes=yes)

    async def delete() -> Forgotten:
        async with opened_journal(settings) as database:
            return await forget(database, before)

    gone = asyncio.run(delete())
    typer.echo(f"deleted {gone.purchases} purchases and {gone.counters} ended budget counters")
    return 0


def _record_reason(job_id: bytes, state: State, why: str, at: datetime) -> Path:
    """Add a resolution and its reason to a file of such records, durably; returns the file."""
    path = state_folder(os.environ) / _RESOLUTIONS_FILE
    fields = {"at": at.isoformat(), "job_id": job_id.hex(), "state": state.value, "why": why}
    line = json_format.dumps(fields, ensure_ascii=False)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CommandFailed(
            f"{path}: the reason cannot be stored, so nothing was changed: {error.strerror}"
        ) from None
    return path


async def one_purchase(settings: Settings, job_id: str) -> tuple[PurchaseRecord, list[StateChange]]:
    """Read one purchase, by its job id or the beginning of that, and its changes of state."""
    async with opened_journal(settings) as database:
        books = Books(database)
        found = await books.beginning_with(job_id)
        if not found:
            raise CommandFailed("the journal has no purchase of this job id")
        if len(found) > 1:
            raise CommandFailed("several job ids begin like this: give more digits")
        return found[0], list(await books.steps(found[0].job_id))


async def _records(books: Books, which: PurchaseFilter) -> AsyncIterator[PurchaseRecord]:
    after: PurchaseCursor | None = None
    while True:
        page = await books.page(which, limit=_PAGE, after=after)
        for record in page.purchases:
            yield record
        after = page.after
        if after is None:
            return


async def _first(items: AsyncIterator[_T], count: int) -> AsyncIterator[_T]:
    async for item in items:
        yield item
        count -= 1
        if not count:
            return


def _json_line(record: PurchaseRecord) -> object:
    return sys.stdout.write(json_format.dumps(fields_of(record), ensure_ascii=False) + "\n")


def _csv_line(writerow: Callable[[list[str]], object]) -> Callable[[PurchaseRecord], object]:
    return lambda record: writerow(csv_cells(record))

"""``lcp-gateway purchases``: the books, and the few things that a person may change in them."""

import asyncio
import csv
import enum
import json as json_format
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from lcp_gateway.accounts.records import AccountError, BadText, RefundRecord
from lcp_gateway.cli.account_books import actor
from lcp_gateway.cli.confirming import confirm
from lcp_gateway.cli.flags import load_or_complain, setting_flags
from lcp_gateway.cli.groups import command_group
from lcp_gateway.cli.journal import (
    JOURNAL_SETTINGS,
    opened_journal,
    read_age,
    read_job_id,
    read_job_prefix,
    read_only_settings,
    written_time,
)
from lcp_gateway.cli.options import JsonOption, YesOption, a_text
from lcp_gateway.cli.outcome import USAGE_ERROR, CommandFailed, complain
from lcp_gateway.cli.output import plain, print_json, print_pairs, print_table
from lcp_gateway.cli.purchase_filter import purchase_filter
from lcp_gateway.cli.purchase_forms import (
    FIELDS,
    HEADINGS,
    csv_cells,
    fields_of,
    row_of,
    written_field,
)
from lcp_gateway.cli.resolutions import Resolution, write_down
from lcp_gateway.config import Settings
from lcp_gateway.purchase.refunds import WORDS, RefundLimits
from lcp_gateway.purchase.states import State
from lcp_gateway.store.queries import Books
from lcp_gateway.store.records import Cursor, Filter, PurchaseRecord, Step
from lcp_gateway.store.recovery import NotUnknown, Resolved, resolve
from lcp_gateway.store.refunds import Refunds
from lcp_gateway.store.retention import Forgotten, forget

_PAGE = 500
_LONGEST_WHY = 500

JobArgument = Annotated[str, typer.Argument(metavar="JOB_ID", show_default=False)]

_T = TypeVar("_T")

app = command_group("Look into the journal of purchases.")


class ExportFormat(enum.StrEnum):
    """What an export is written as."""

    JSONL = "jsonl"
    CSV = "csv"


class Evidence(enum.StrEnum):
    """What somebody may have found out about a payment."""

    SETTLED = "settled"
    UNDELIVERED = "undelivered"
    NOT_PAID = "not_paid"


class Decision(enum.StrEnum):
    """What may be decided on a refund that is withheld."""

    GRANT = "grant"
    DENY = "deny"


_RESOLVED_FROM = frozenset({State.UNKNOWN, State.SETTLED})


@app.command("list")
@setting_flags(also=JOURNAL_SETTINGS, groups=())
@purchase_filter
def list_purchases(
    which: Filter,
    config: Path | None,
    flags: Mapping[str, object],
    *,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many.")] = 50,
    json: JsonOption = False,
) -> int:
    """List purchases, the newest first. A fee in brackets is reckoned, not known."""
    settings = read_only_settings(load_or_complain(flags, config).settings)

    async def read() -> tuple[list[PurchaseRecord], bool]:
        async with opened_journal(settings) as database:
            records = _records(Books(database), which)
            found = [record async for record in _first(records, limit + 1)]
        return found[:limit], len(found) > limit

    found, more = asyncio.run(read())
    if json:
        print_json([fields_of(record) for record in found])
    else:
        print_table(HEADINGS, map(row_of, found))
    if more:
        complain(f"there are more; these are the newest {limit} (see --limit)")
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
    """Print everything that is known of one purchase."""
    wanted = read_job_prefix(job_id)
    record, steps = asyncio.run(
        one_purchase(read_only_settings(load_or_complain(flags, config).settings), wanted)
    )
    times = {step.state.value: written_time(step.at) for step in steps}
    fields = fields_of(record)
    if json:
        print_json(fields | {"times": times})
        return 0
    rows = [(name, written_field(value)) for name, value in fields.items()]
    print_pairs(rows + [(f"since {state}", at) for state, at in times.items()])
    return 0


@app.command()
@setting_flags(also=JOURNAL_SETTINGS, groups=())
@purchase_filter
def export(
    which: Filter,
    config: Path | None,
    flags: Mapping[str, object],
    *,
    form: Annotated[
        ExportFormat, typer.Option("--format", help="What to write.")
    ] = ExportFormat.JSONL,
) -> int:
    """Write purchases to standard output, the newest first, as JSON Lines or CSV."""
    settings = read_only_settings(load_or_complain(flags, config).settings)
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
        Evidence, typer.Argument(metavar="settled|undelivered|not_paid", show_default=False)
    ],
    config: Path | None,
    flags: Mapping[str, object],
    *,
    why: Annotated[
        str,
        typer.Option(metavar="TEXT", help="How you know.", show_default=False, callback=a_text),
    ],
    yes: YesOption = False,
) -> int:
    """Say what became of a purchase that is unknown, when you have found out where the gateway cannot.

    What was paid, and whose answer did not come, ends undelivered: "settled" and "undelivered" are the same. A purchase
    that a gateway left settled when it died can be resolved so as well.
    """
    wanted = read_job_id(job_id)
    if not why.strip() or len(why) > _LONGEST_WHY:
        raise CommandFailed(
            f"--why: say in 1 to {_LONGEST_WHY} characters how you know", exit_code=USAGE_ERROR
        )
    settings = load_or_complain(flags, config).settings
    record, _ = asyncio.run(one_purchase(settings, wanted.hex()))
    if record.state not in _RESOLVED_FROM:
        raise CommandFailed(f"the purchase is {record.state}, not unknown; nothing was changed")
    typer.echo(
        f"{written_time(record.paying_at)}  {plain(record.model)} from {record.peer_id}: "
        f"{record.price_msat} msat, payment hash "
        f"{record.payment_hash.hex() if record.payment_hash else 'not known'}"
    )
    confirm(f"Enter it as {evidence}, for good?", yes=yes)
    now = datetime.now(UTC)
    resolution = Resolution(wanted, State(evidence.value), why.strip(), now)
    kept = write_down(resolution)

    async def change() -> Resolved:
        async with opened_journal(settings) as database:
            limits = RefundLimits(settings.refund_account_day_msat, settings.refund_day_msat)
            return await resolve(database, wanted, resolution.state, now, refunds=limits)

    try:
        resolved = asyncio.run(change())
    except NotUnknown as error:
        raise CommandFailed(f"{error}; nothing was changed") from None
    typer.echo(f"entered as {resolved.state}; your reason is kept in {kept}")
    if resolved.refund is not None:
        typer.echo(WORDS[resolved.refund])
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
        typer.Option(metavar="TEXT", help="Your reason.", show_default=False, callback=a_text),
    ],
    yes: YesOption = False,
) -> int:
    """Decide on a refund that is withheld because a limit was reached: give the charge back, or keep it for good."""
    wanted = read_job_id(job_id)
    settings = load_or_complain(flags, config).settings
    record, _ = asyncio.run(one_purchase(settings, wanted.hex()))
    if record.charge is None or record.refund is None:
        raise CommandFailed(
            f"no refund of this purchase is withheld: it is {record.state}; nothing was changed"
        )
    typer.echo(
        f"{written_time(record.paying_at)}  {plain(record.model)} from {record.peer_id}, of "
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
    except BadText as error:
        raise CommandFailed(f"--why: {error}", exit_code=USAGE_ERROR) from None
    except AccountError as error:
        raise CommandFailed(f"{error}; nothing was changed") from None
    typer.echo(WORDS[decided.refund] if is_new else f"{WORDS[decided.refund]} before")
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
    """Delete what ended long ago. What is open stays, however old, and so do budgets of periods that still run."""
    age = read_age(older_than)
    settings = load_or_complain(flags, config).settings
    try:
        before = datetime.now(UTC) - age
    except OverflowError:
        raise CommandFailed("--older-than: nothing is that old", exit_code=USAGE_ERROR) from None
    confirm(f"Delete all that ended before {written_time(before)}, for good?", yes=yes)

    async def delete() -> Forgotten:
        async with opened_journal(settings) as database:
            return await forget(database, before)

    gone = asyncio.run(delete())
    typer.echo(f"deleted {gone.purchases} purchases and {gone.counters} ended budget counters")
    return 0


async def one_purchase(settings: Settings, job_id: str) -> tuple[PurchaseRecord, list[Step]]:
    """Read one purchase, by its job id or the beginning of that, and the states that it went through.

    Raises:
        CommandFailed: the journal cannot be used, has no such purchase, or has several.
    """
    async with opened_journal(settings) as database:
        books = Books(database)
        found = await books.beginning_with(job_id)
        if not found:
            raise CommandFailed("the journal has no purchase of this job id")
        if len(found) > 1:
            raise CommandFailed("several job ids begin like this: give more digits")
        return found[0], list(await books.steps(found[0].job_id))


async def _records(books: Books, which: Filter) -> AsyncIterator[PurchaseRecord]:
    after: Cursor | None = None
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

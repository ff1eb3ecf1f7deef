"""``lcp-gateway purchases``: the journal of purchases, and the few changes that an operator may make to it."""

import csv
import enum
import json as json_format
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from lcp_gateway.accounts.documents import csv_cell
from lcp_gateway.accounts.models import AccountError, InvalidText
from lcp_gateway.cli.accounts.books import actor
from lcp_gateway.cli.books.journal import (
    JobArgument,
    JobPrefixArgument,
    SinceOption,
    UntilOption,
    read_age,
    with_journal,
)
from lcp_gateway.cli.options import (
    JsonOption,
    YesOption,
    command_group,
    parameters_of,
    text_option,
    utf8_text,
    with_parameters,
)
from lcp_gateway.cli.output import (
    USAGE_ERROR,
    Columns,
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
from lcp_gateway.purchase.records import NotUnknown, PurchaseCursor, PurchaseFilter, PurchaseRecord, StateChange
from lcp_gateway.purchase.states import VERDICTS, State
from lcp_gateway.store.accounts.refunds import Refunds
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import resolve
from lcp_gateway.store.journal.retention import forget

app = command_group("Show and export the journal of purchases, and resolve open ones.")

T = TypeVar("T")

_PAGE = 500
_LONGEST_REASON = 500
_RESOLVED_FROM = frozenset({State.UNKNOWN, State.SETTLED})
_RESOLUTIONS_FILE = "resolutions.jsonl"
"""Beside the gateway's state; lines are only ever added to it."""
_FIELDS = (
    *("job_id", "state", "verdict", "kind", "task_kind", "model", "peer_id", "upstream", "key_id"),
    *("request_id", "price_msat", "fee_cap_msat", "fee_msat", "runner_up_msat", "terms_hash"),
    *("payment_request", "payment_hash", "preimage", "protocol_version"),
    *("request_sha256", "request_bytes", "stream", "result_sha256", "result_bytes"),
    *("expires_at", "paying_at", "ended_at", "updated_at"),
    *("account_id", "charge_msat", "charged_msat", "ended_by", "received", "provider_blamed"),
    "refund",
)
"""The fields of a purchase in the order in which they are written."""

_SHORT_PEER_CHARACTERS = 12

_PlainValue = str | int | bool | None

_COLUMNS: Columns[PurchaseRecord] = {
    "time": lambda record: format_time(record.paying_at),
    "state": lambda record: f"{record.state} (withheld)" if record.refund is Refund.WITHHELD else record.state.value,
    "price msat": lambda record: str(record.price_msat),
    # An estimated fee is written in brackets.
    "fee msat": lambda record: f"({record.fee_cap_msat})" if record.fee_msat is None else str(record.fee_msat),
    "model": lambda record: record.model,
    "peer": lambda record: record.peer_id[:_SHORT_PEER_CHARACTERS],
    "key": lambda record: record.key_id or "-",
    "job id": lambda record: record.job_id.hex(),
}


class ExportFormat(enum.StrEnum):
    """The formats of an export."""

    JSONL = "jsonl"
    CSV = "csv"


class ResolvedState(enum.StrEnum):
    """The outcomes of a payment that an operator may record."""

    SETTLED = "settled"
    UNDELIVERED = "undelivered"
    NOT_PAID = "not_paid"


class Decision(enum.StrEnum):
    """The decisions on a refund that is withheld."""

    GRANT = "grant"
    DENY = "deny"


def _filter_options(command: Callable[..., T]) -> Callable[..., T]:
    """Add to a command options that choose purchases; it is called with their filter as ``which``."""
    options = parameters_of(_filter)

    def run(**values: Any) -> T:
        chosen = {option.name: values.pop(option.name) for option in options}
        return command(which=_filter(**chosen), **values)

    return with_parameters(run, command, [*parameters_of(command, without=("which",)), *options])


def _filter(
    *,
    state: Annotated[
        list[State] | None, typer.Option("--state", metavar="STATE", help="In this state; may be repeated.")
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
    since: SinceOption = None,
    until: UntilOption = None,
) -> PurchaseFilter:
    return PurchaseFilter(
        states=state or None,
        model=model,
        peer_id=peer.lower() if peer else None,
        key_id=key,
        since=since,
        until=until,
        refunds=refund or None,
    )


@app.command("list")
@with_journal(reads_only=True)
@_filter_options
async def list_purchases(
    journal: Database,
    which: PurchaseFilter,
    *,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most N.")] = 50,
    json: JsonOption = False,
) -> None:
    """List purchases, the newest first. A fee in brackets is estimated, not known."""
    found: list[PurchaseRecord] = []
    async for record in _records(Books(journal), which):
        if len(found) == limit:
            report(f"there are more; these are the newest {limit} (see --limit)")
            break
        found.append(record)
    print_list(found, _COLUMNS, _fields_of, json=json)


@app.command()
@with_journal(reads_only=True)
async def show(journal: Database, job_id: JobPrefixArgument, *, json: JsonOption = False) -> None:
    """Print all fields of one purchase."""
    record, changes = await one_purchase(journal, job_id)
    times = {change.state.value: format_time(change.at) for change in changes}
    fields = _fields_of(record)
    if json:
        print_json(fields | {"times": times})
    else:
        rows = [(name, _written(value)) for name, value in fields.items()]
        print_pairs(rows + [(f"since {state}", at) for state, at in times.items()])


@app.command()
@with_journal(reads_only=True)
@_filter_options
async def export(
    journal: Database,
    which: PurchaseFilter,
    *,
    form: Annotated[ExportFormat, typer.Option("--format", help="The format.")] = ExportFormat.JSONL,
) -> None:
    """Write purchases to standard output, the newest first, as JSON Lines or CSV."""
    table = csv.writer(sys.stdout, lineterminator="\n")
    if form is ExportFormat.CSV:
        table.writerow(_FIELDS)
    async for record in _records(Books(journal), which):
        if form is ExportFormat.CSV:
            # In a form that a spreadsheet reads as text and numbers only.
            table.writerow(csv_cell(value) for value in _fields_of(record).values())
        else:
            line = json_format.dumps(_fields_of(record), ensure_ascii=False)
            sys.stdout.write(line + "\n")


def _evidence_text(param: typer.CallbackParam, why: str) -> str:
    utf8_text(param, why)
    if not why.strip() or len(why) > _LONGEST_REASON:
        raise CommandFailed(f"--why: say in 1 to {_LONGEST_REASON} characters how you know", exit_code=USAGE_ERROR)
    return why.strip()


def _ended_before(age: str) -> datetime:
    try:
        return datetime.now(UTC) - read_age(age)
    except OverflowError:
        raise CommandFailed("--older-than: nothing is that old", exit_code=USAGE_ERROR) from None


@app.command("resolve")
@with_journal()
async def resolve_purchase(
    journal: Database,
    settings: Settings,
    job_id: JobArgument,
    evidence: Annotated[ResolvedState, typer.Argument(metavar="settled|undelivered|not_paid", show_default=False)],
    *,
    why: Annotated[str, typer.Option(metavar="TEXT", help="The evidence for the outcome.", callback=_evidence_text)],
    yes: YesOption = False,
) -> None:
    """Record the outcome of an unknown purchase, when you have found it out and the gateway cannot.

    A purchase that was paid, and whose answer did not come, ends undelivered: "settled" and "undelivered" are the same.
    One that a gateway left settled when it died can be resolved so as well.
    """
    record, _ = await one_purchase(journal, job_id)
    if record.state not in _RESOLVED_FROM:
        raise CommandFailed(f"the purchase is {record.state}, not unknown; nothing was changed")
    typer.echo(
        f"{format_time(record.paying_at)}  {printable(record.model)} from {record.peer_id}: "
        f"{record.price_msat} msat, payment hash "
        f"{record.payment_hash.hex() if record.payment_hash else 'not known'}"
    )
    confirm(f"Record it as {evidence}, for good?", yes=yes)
    now = datetime.now(UTC)
    state = State(evidence.value)
    # Before the journal is changed.
    file = _record_reason(record.job_id, state, why, now)
    limits = RefundLimits(settings.refund_account_day_msat, settings.refund_day_msat)
    try:
        resolved = await resolve(journal, record.job_id, state, now, refunds=limits)
    except NotUnknown as error:
        raise CommandFailed(f"{error}; nothing was changed") from None
    typer.echo(f"recorded as {resolved.state}; your reason is stored in {file}")
    if resolved.refund is not None:
        typer.echo(REFUND_MESSAGES[resolved.refund])


@app.command("refund")
@with_journal()
async def refund_purchase(
    journal: Database,
    job_id: JobArgument,
    decision: Annotated[Decision, typer.Argument(metavar="grant|deny", show_default=False)],
    *,
    why: Annotated[str, text_option(metavar="TEXT", help="Your reason.")],
    yes: YesOption = False,
) -> None:
    """Decide on a refund that is withheld because a limit was reached: refund the charge, or keep it for good."""
    record, _ = await one_purchase(journal, job_id)
    if record.charge is None or record.refund is None:
        raise CommandFailed(f"no refund of this purchase is withheld: it is {record.state}; nothing was changed")
    typer.echo(
        f"{format_time(record.paying_at)}  {printable(record.model)} from {record.peer_id}, of "
        f"{record.charge.account_id}: {record.charge.amount_msat} msat"
    )
    grant = decision is Decision.GRANT
    confirm(f"{'Refund it' if grant else 'Keep it'}, for good?", yes=yes)
    try:
        decided, is_new = await Refunds(journal).decide(
            record.job_id, grant=grant, reason=why, actor=actor(), at=datetime.now(UTC)
        )
    except InvalidText as error:
        raise CommandFailed(f"--why: {error}", exit_code=USAGE_ERROR) from None
    except AccountError as error:
        raise CommandFailed(f"{error}; nothing was changed") from None
    message = REFUND_MESSAGES[decided.refund]
    typer.echo(message if is_new else f"{message} before")


@app.command("forget")
@with_journal()
async def forget_purchases(
    journal: Database,
    *,
    older_than: Annotated[
        datetime, typer.Option(metavar="AGE", help='Such as "90d".', show_default=False, parser=_ended_before)
    ],
    yes: YesOption = False,
) -> None:
    """Delete purchases that ended long ago. Open ones stay, however old, and so do budgets of periods that still run."""
    confirm(f"Delete all purchases that ended before {format_time(older_than)}, for good?", yes=yes)
    gone = await forget(journal, older_than)
    typer.echo(f"deleted {gone.purchases} purchases and {gone.counters} ended budget counters")


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
        raise CommandFailed(f"{path}: the reason cannot be stored, so nothing was changed: {error.strerror}") from None
    return path


async def one_purchase(journal: Database, job_id: str) -> tuple[PurchaseRecord, Sequence[StateChange]]:
    """Read one purchase, by its job id or the beginning of that, and its changes of state."""
    books = Books(journal)
    found = await books.beginning_with(job_id)
    if not found:
        raise CommandFailed("the journal has no purchase of this job id")
    if len(found) > 1:
        raise CommandFailed("several job ids begin like this: give more digits")
    return found[0], found[0].steps


async def _records(books: Books, which: PurchaseFilter) -> AsyncIterator[PurchaseRecord]:
    after: PurchaseCursor | None = None
    while True:
        page = await books.page(which, limit=_PAGE, after=after)
        for record in page.purchases:
            yield record
        after = page.after
        if after is None:
            return


def _fields_of(record: PurchaseRecord) -> dict[str, _PlainValue]:
    """Return the fields by name: hashes as hex, times in RFC 3339 and UTC, amounts in msat."""
    charge = record.charge
    values = {
        "verdict": VERDICTS[record.state],
        "account_id": None if charge is None else charge.account_id,
        "charge_msat": None if charge is None else charge.amount_msat,
        "charged_msat": None if charge is None else record.charged_msat,
        "provider_blamed": record.blames_provider if record.state is State.UNDELIVERED else None,
    }
    values.update((name, getattr(record, name)) for name in _FIELDS if name not in values)
    return {name: _plain(values[name]) for name in _FIELDS}


def _written(value: _PlainValue) -> str:
    """Write a field for display; a dash stands for no value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value in {None, ""} else str(value)


def _plain(value: object) -> _PlainValue:
    match value:
        case None | bool() | int():
            return value
        case bytes():
            return value.hex()
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case _:
            return str(value)

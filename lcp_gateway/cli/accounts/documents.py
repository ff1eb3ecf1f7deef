"""Accounts, keys, top-ups and statements as JSON, as pairs, as tables and as CSV. None holds a hash, a preimage or a key."""

import csv
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TypeVar

from lcp_gateway.accounts import documents
from lcp_gateway.accounts.documents import KEY_LIMITS, LINE_FIELDS, Document
from lcp_gateway.accounts.models import (
    Account,
    AdminAction,
    KeyRecord,
    Listing,
    StatementLine,
    Topup,
)
from lcp_gateway.cli.accounts.books import AccountBooks
from lcp_gateway.cli.books.journal import format_time
from lcp_gateway.cli.output import print_json, print_pairs, print_table, report
from lcp_gateway.purchase.money import Msat, format_sat

ACCOUNT_HEADINGS = ("id", "name", "balance msat", "held msat", "available", "created", "deleted")
KEY_HEADINGS = ("id", "account", "name", "kind", "begins", "scopes", "created", "state")
LINE_HEADINGS = ("id", "time", "amount msat", "amount", "balance msat", "balance", "cause", "of")
TOPUP_HEADINGS = (
    *("id", "status", "amount msat", "amount", "received msat"),
    *("created", "expires", "memo"),
)
ACT_HEADINGS = ("id", "time", "actor", "action", "target", "detail")

_NOTHING = "-"

account_document = partial(documents.account_document, time=format_time)
key_document = partial(documents.key_document, time=format_time)
line_document = partial(documents.line_document, time=format_time)
action_document = partial(documents.action_document, time=format_time)


def pairs(document: Mapping[str, object]) -> list[tuple[str, str]]:
    """Give a document's fields by name in words: amounts in sat as well, a dash for nothing."""
    return [(name, _words(name, value)) for name, value in document.items()]


def account_row(account: Account) -> tuple[str, ...]:
    """Give the cells under ``ACCOUNT_HEADINGS``."""
    balance = account.balance
    return (
        account.id,
        account.name or _NOTHING,
        str(balance.balance_msat),
        str(balance.held_msat),
        format_sat(balance.available_msat),
        format_time(account.created_at),
        _time(account.deleted_at) or _NOTHING,
    )


def key_row(record: KeyRecord, now: datetime) -> tuple[str, ...]:
    """Give the cells under ``KEY_HEADINGS``."""
    return (
        record.id,
        record.account_id,
        record.name or _NOTHING,
        record.kind.value,
        record.prefix,
        ", ".join(sorted(scope.value for scope in record.rules.scopes)) or _NOTHING,
        format_time(record.created_at),
        _state(record, now),
    )


def line_row(line: StatementLine) -> tuple[str, ...]:
    """Give the cells under ``LINE_HEADINGS``."""
    return (
        str(line.id),
        format_time(line.at),
        str(line.amount_msat),
        format_sat(line.amount_msat),
        str(line.balance_msat),
        format_sat(line.balance_msat),
        line.cause.value,
        line.cause_id,
    )


def topup_document(topup: Topup) -> Document:
    """Return a top-up with its account and its purpose."""
    more = {"account_id": topup.account_id, "purpose": topup.purpose.value}
    return {"id": topup.id, **more, **documents.topup_document(topup, format_time)}


def topup_row(topup: Topup) -> tuple[str, ...]:
    """Give the cells under ``TOPUP_HEADINGS``."""
    return (
        topup.id,
        topup.state.value,
        str(topup.amount_msat),
        format_sat(topup.amount_msat),
        _NOTHING if topup.received_msat is None else str(topup.received_msat),
        format_time(topup.created_at),
        format_time(topup.expires_at),
        topup.memo or _NOTHING,
    )


def act_row(act: AdminAction) -> tuple[str, ...]:
    """Give the cells under ``ACT_HEADINGS``."""
    detail = "; ".join(f"{name}: {_words(name, value)}" for name, value in act.detail.items())
    return (str(act.id), format_time(act.at), act.actor, act.action, act.target, detail)


def format_amount(amount_msat: int) -> str:
    """Write an amount for people."""
    return f"{amount_msat} msat ({format_sat(Msat(amount_msat))})"


def _words(name: str, value: object) -> str:
    match value:
        case None | "" | []:
            return _NOTHING
        case 0 if name in KEY_LIMITS:
            return "none of its own"
        case int() if name.endswith("_msat"):
            return format_amount(value)
        case list():
            return ", ".join(map(str, value))
        case _:
            return str(value)


def _time(at: datetime | None) -> str | None:
    return None if at is None else format_time(at)


def _state(record: KeyRecord, now: datetime) -> str:
    if record.revoked_at is not None:
        return f"revoked {format_time(record.revoked_at)}"
    expires_at = record.rules.expires_at
    if expires_at is None:
        return "good"
    return f"{'expired' if expires_at <= now else 'good until'} {format_time(expires_at)}"


T = TypeVar("T")


async def gather_pages(
    page: Callable[[int, str | None], Awaitable[Listing[T]]], limit: int, after: str | None
) -> Listing[T]:
    """Give up to ``limit`` items; ``page`` takes limit and after, and may give fewer at a time."""
    items: list[T] = []
    while True:
        found = await page(limit - len(items), after)
        items += found.items
        after = found.after
        if after is None or len(items) >= limit:
            return Listing(items, after)


def print_listing(
    found: Listing[T],
    headings: Sequence[str],
    row: Callable[[T], Sequence[str]],
    document: Callable[[T], object],
    *,
    json: bool,
) -> None:
    """Print what was found as a table, or as a JSON array, and say on standard error when there is more."""
    if json:
        print_json([document(item) for item in found.items])
    else:
        print_table(headings, map(row, found.items))
    report_more(found.after)


def print_document(document: Mapping[str, object], *, json: bool) -> None:
    """Print one document, in words or as a JSON object."""
    if json:
        print_json(document)
    else:
        print_pairs(pairs(document))


def report_more(after: str | None) -> None:
    """Say how to get at what follows, where something does."""
    if after is not None:
        report(f"there are more: see --limit, or go on with --after {after}")


_PAGE = 500


async def print_statement(
    books: AccountBooks, account_id: str, *, limit: int, after: int | None, json: bool
) -> None:
    """Print lines of an account's statement, the newest first, as a table or as JSON.

    Raises:
        NoSuchAccount: there never was one of this id.
    """
    await books.account(account_id)
    found = await gather_pages(
        lambda most, following: _page(books, account_id, most, following),
        limit,
        None if after is None else str(after),
    )
    print_listing(found, LINE_HEADINGS, line_row, line_document, json=json)


async def print_csv(
    books: AccountBooks, account_id: str, *, limit: int | None, after: int | None
) -> None:
    """Print the same as CSV, line by line: all of it where no limit is given.

    Raises:
        NoSuchAccount: as in ``print_statement``.
    """
    await books.account(account_id)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(LINE_FIELDS)
    left, following = limit, None if after is None else str(after)
    while True:
        most = _PAGE if left is None else min(left, _PAGE)
        found = await _page(books, account_id, most, following)
        table.writerows(line_document(line).values() for line in found.items)
        following = found.after
        left = None if left is None else left - len(found.items)
        if following is None or left == 0:
            break
    report_more(following)


async def _page(
    books: AccountBooks, account_id: str, limit: int, after: str | None
) -> Listing[StatementLine]:
    found = await books.ledger.statement(
        account_id, limit=limit, after=None if after is None else int(after)
    )
    return Listing(found.lines, None if found.after is None else str(found.after))

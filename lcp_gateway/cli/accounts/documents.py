"""Accounts, keys, top-ups and statements as JSON, as pairs, as tables and as CSV. None holds a hash, a preimage or a key."""

import csv
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from lcp_gateway.accounts.models import (
    Account,
    AdminAction,
    Audit,
    Balance,
    KeyRecord,
    Listing,
    StatementLine,
    Topup,
)
from lcp_gateway.cli.accounts.books import AccountBooks
from lcp_gateway.cli.books.journal import format_time
from lcp_gateway.cli.output import print_json, print_pairs, print_table, report
from lcp_gateway.purchase.money import Msat, format_sat

Document = dict[str, object]

ACCOUNT_HEADINGS = ("id", "name", "balance msat", "held msat", "available", "created", "deleted")
KEY_HEADINGS = ("id", "account", "name", "kind", "begins", "scopes", "created", "state")
LINE_HEADINGS = ("id", "time", "amount msat", "amount", "balance msat", "balance", "cause", "of")
TOPUP_HEADINGS = (
    *("id", "status", "amount msat", "amount", "received msat"),
    *("created", "expires", "memo"),
)
ACT_HEADINGS = ("id", "time", "actor", "action", "target", "detail")

LINE_FIELDS = ("id", "at", "amount_msat", "balance_msat", "cause", "cause_id")
"""The fields of a line of a statement in the order in which they are written."""

_NOTHING = "-"
_LIMITS = (
    *("max_price_msat", "requests_per_minute", "tokens_per_minute"),
    *("budget_hour_msat", "budget_day_msat", "budget_month_msat", "concurrent_jobs"),
)


def pairs(document: Mapping[str, object]) -> list[tuple[str, str]]:
    """Give a document's fields by name in words: amounts in sat as well, a dash for nothing."""
    return [(name, _words(name, value)) for name, value in document.items()]


def account_document(account: Account) -> Document:
    """Give an account by fields."""
    return {
        "id": account.id,
        "name": account.name,
        "created_at": format_time(account.created_at),
        "deleted_at": _time(account.deleted_at),
        **balance_document(account.balance),
    }


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


def balance_document(balance: Balance) -> Document:
    """Give a balance by fields."""
    return {
        "balance_msat": balance.balance_msat,
        "held_msat": balance.held_msat,
        "available_msat": balance.available_msat,
    }


def key_document(record: KeyRecord) -> Document:
    """Give a key by fields; a limit of 0 is none."""
    rules = record.rules
    return {
        "id": record.id,
        "account_id": record.account_id,
        "name": record.name,
        "kind": record.kind.value,
        "prefix": record.prefix,
        "scopes": sorted(scope.value for scope in rules.scopes),
        "models": sorted(rules.models),
        **{limit: getattr(rules, limit) for limit in _LIMITS},
        "expires_at": _time(rules.expires_at),
        "created_at": format_time(record.created_at),
        "revoked_at": _time(record.revoked_at),
    }


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


def line_document(line: StatementLine) -> Document:
    """Give a movement of a balance by ``LINE_FIELDS``."""
    return {
        "id": line.id,
        "at": format_time(line.at),
        "amount_msat": line.amount_msat,
        "balance_msat": line.balance_msat,
        "cause": line.cause.value,
        "cause_id": line.cause_id,
    }


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
    """Give a top-up by fields."""
    return {
        "id": topup.id,
        "account_id": topup.account_id,
        "status": topup.state.value,
        "purpose": topup.purpose.value,
        "amount_msat": topup.amount_msat,
        "received_msat": topup.received_msat,
        "memo": topup.memo,
        "created_at": format_time(topup.created_at),
        "expires_at": format_time(topup.expires_at),
        "settled_at": _time(topup.settled_at),
        "payment_request": topup.payment_request,
    }


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


def act_document(act: AdminAction) -> Document:
    """Give something that an administrator did by fields."""
    return {
        "id": act.id,
        "at": format_time(act.at),
        "actor": act.actor,
        "action": act.action,
        "target": act.target,
        "detail": dict(act.detail),
    }


def act_row(act: AdminAction) -> tuple[str, ...]:
    """Give the cells under ``ACT_HEADINGS``."""
    detail = "; ".join(f"{name}: {_words(name, value)}" for name, value in act.detail.items())
    return (str(act.id), format_time(act.at), act.actor, act.action, act.target, detail)


def audit_document(audit: Audit) -> Document:
    """Give what an audit found by fields."""
    return {
        "ok": audit.ok,
        "problems": list(audit.problems),
        "accounts": audit.totals.accounts,
        "balance_msat": audit.totals.balance_msat,
        "held_msat": audit.totals.held_msat,
        "books": dict(sorted(audit.books.items())),
        "entries": audit.entries,
        "purchases": audit.purchases,
    }


def format_amount(amount_msat: int) -> str:
    """Write an amount for people."""
    return f"{amount_msat} msat ({format_sat(Msat(amount_msat))})"


def _words(name: str, value: object) -> str:
    match value:
        case None | "" | []:
            return _NOTHING
        case 0 if name in _LIMITS:
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

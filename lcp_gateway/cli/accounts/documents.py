"""Accounts, keys, top-ups, statements and actions of administrators as commands print them: pairs, tables, JSON and CSV."""

import csv
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from lcp_gateway.accounts import documents
from lcp_gateway.accounts.documents import KEY_LIMITS, LINE_FIELDS, Document
from lcp_gateway.accounts.invites import Invite
from lcp_gateway.accounts.models import Account, AdminAction, KeyRecord, Listing, StatementLine, Topup
from lcp_gateway.accounts.withdrawals import Withdrawal
from lcp_gateway.cli.accounts.books import AccountBooks
from lcp_gateway.cli.output import Columns, format_time, print_json, print_list, print_pairs, report
from lcp_gateway.purchase.money import Msat, format_sat

T = TypeVar("T")

_NOTHING = "-"
_PAGE = 500


def _time(at: datetime | None) -> str:
    return _NOTHING if at is None else format_time(at)


def _key_state(record: KeyRecord) -> str:
    if record.revoked_at is not None:
        return f"revoked {format_time(record.revoked_at)}"
    expires_at = record.rules.expires_at
    if expires_at is None:
        return "good"
    is_over = expires_at <= datetime.now(UTC)
    return f"{'expired' if is_over else 'good until'} {format_time(expires_at)}"


ACCOUNT_COLUMNS: Columns[Account] = {
    "id": lambda account: account.id,
    "name": lambda account: account.name or _NOTHING,
    "balance msat": lambda account: str(account.balance.balance_msat),
    "held msat": lambda account: str(account.balance.held_msat),
    "available": lambda account: format_sat(account.balance.available_msat),
    "created": lambda account: format_time(account.created_at),
    "deleted": lambda account: _time(account.deleted_at),
}
KEY_COLUMNS: Columns[KeyRecord] = {
    "id": lambda key: key.id,
    "account": lambda key: key.account_id,
    "name": lambda key: key.name or _NOTHING,
    "kind": lambda key: key.kind.value,
    "begins": lambda key: key.prefix,
    "scopes": lambda key: ", ".join(sorted(scope.value for scope in key.rules.scopes)) or _NOTHING,
    "created": lambda key: format_time(key.created_at),
    "state": _key_state,
}
LINE_COLUMNS: Columns[StatementLine] = {
    "id": lambda line: str(line.id),
    "time": lambda line: format_time(line.at),
    "amount msat": lambda line: str(line.amount_msat),
    "amount": lambda line: format_sat(line.amount_msat),
    "balance msat": lambda line: str(line.balance_msat),
    "balance": lambda line: format_sat(line.balance_msat),
    "cause": lambda line: line.cause.value,
    "of": lambda line: line.cause_id,
}
TOPUP_COLUMNS: Columns[Topup] = {
    "id": lambda topup: topup.id,
    "status": lambda topup: topup.state.value,
    "amount msat": lambda topup: str(topup.amount_msat),
    "amount": lambda topup: format_sat(topup.amount_msat),
    "received msat": lambda topup: _NOTHING if topup.received_msat is None else str(topup.received_msat),
    "created": lambda topup: format_time(topup.created_at),
    "expires": lambda topup: format_time(topup.expires_at),
    "memo": lambda topup: topup.memo or _NOTHING,
}
WITHDRAWAL_COLUMNS: Columns[Withdrawal] = {
    "id": lambda it: it.id,
    "account": lambda it: it.account_id,
    "status": lambda it: it.state.value,
    "amount msat": lambda it: str(it.amount_msat),
    "amount": lambda it: format_sat(it.amount_msat),
    "fee msat": lambda it: _NOTHING if it.fee_msat is None else str(it.fee_msat),
    "reason": lambda it: it.reason or _NOTHING,
    "created": lambda it: format_time(it.created_at),
    "ended": lambda it: _time(it.ended_at),
}
INVITE_COLUMNS: Columns[Invite] = {
    "id": lambda invite: invite.id,
    "status": lambda invite: invite.status(datetime.now(UTC)).value,
    "note": lambda invite: invite.note or _NOTHING,
    "account": lambda invite: invite.account_id or _NOTHING,
    "created": lambda invite: format_time(invite.created_at),
    "expires": lambda invite: format_time(invite.expires_at),
}
ACTION_COLUMNS: Columns[AdminAction] = {
    "id": lambda action: str(action.id),
    "time": lambda action: format_time(action.at),
    "actor": lambda action: action.actor,
    "action": lambda action: action.action,
    "target": lambda action: action.target,
    "detail": lambda action: "; ".join(f"{name}: {_words(name, value)}" for name, value in action.detail.items()),
}


account_document = partial(documents.account_document, time=format_time)
key_document = partial(documents.key_document, time=format_time)
line_document = partial(documents.line_document, time=format_time)
invite_document = partial(documents.invite_document, time=format_time)
action_document = partial(documents.action_document, time=format_time)


def topup_document(topup: Topup) -> Document:
    """Return a top-up with its account and its purpose."""
    more = {"account_id": topup.account_id, "purpose": topup.purpose.value}
    return {"id": topup.id, **more, **documents.topup_document(topup, format_time)}


def withdrawal_document(withdrawal: Withdrawal) -> Document:
    """Return a withdrawal with its account, and without the preimage, which is the customer's."""
    document = documents.withdrawal_document(withdrawal, format_time)
    del document["preimage"]
    return {"id": withdrawal.id, "account_id": withdrawal.account_id, **document}


def pairs(document: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return the fields of a document by name, in words: amounts in sat as well, a dash for nothing."""
    return [(name, _words(name, value)) for name, value in document.items()]


def format_amount(amount_msat: int) -> str:
    """Write an amount for display."""
    return f"{amount_msat} msat ({format_sat(Msat(amount_msat))})"


def print_document(document: Mapping[str, object], *, json: bool) -> None:
    """Print one document, in words or as a JSON object."""
    if json:
        print_json(document)
    else:
        print_pairs(pairs(document))


async def print_listing(
    page: Callable[..., Awaitable[Listing[T]]],
    columns: Columns[T],
    document: Callable[[T], object],
    *,
    limit: int,
    after: str | int | None,
    json: bool,
) -> None:
    """Print up to ``limit`` items, and report on standard error when there are more.

    ``page`` is called with ``limit`` and ``after``, the id after which to continue; it may return fewer at a time.
    """
    items: list[T] = []
    following = None if after is None else str(after)
    while True:
        found = await page(limit=limit - len(items), after=following)
        items += found.items
        following = found.after
        if following is None or len(items) >= limit:
            break
    print_list(items, columns, document, json=json)
    _report_more(following)


async def print_statement(books: AccountBooks, account_id: str, *, limit: int, after: int | None, json: bool) -> None:
    """Print lines of an account's statement, the newest first, as a table or as JSON.

    Raises:
        AccountNotFound: there never was one of this id.
    """
    await books.account(account_id)
    page = partial(_statement_page, books, account_id)
    await print_listing(page, LINE_COLUMNS, line_document, limit=limit, after=after, json=json)


async def print_csv(books: AccountBooks, account_id: str, *, limit: int | None, after: int | None) -> None:
    """Print the same as CSV, line by line: all of it where no limit is given.

    Raises:
        AccountNotFound: as in ``print_statement``.
    """
    await books.account(account_id)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(LINE_FIELDS)
    left, following = limit, None if after is None else str(after)
    while True:
        most = _PAGE if left is None else min(left, _PAGE)
        found = await _statement_page(books, account_id, limit=most, after=following)
        table.writerows(line_document(line).values() for line in found.items)
        following = found.after
        left = None if left is None else left - len(found.items)
        if following is None or left == 0:
            break
    _report_more(following)


async def _statement_page(
    books: AccountBooks, account_id: str, *, limit: int, after: str | None
) -> Listing[StatementLine]:
    found = await books.ledger.statement(account_id, limit=limit, after=None if after is None else int(after))
    return Listing(found.lines, None if found.after is None else str(found.after))


def _report_more(after: str | None) -> None:
    if after is not None:
        report(f"there are more: see --limit, or continue with --after {after}")


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

"""Accounts, keys, top-ups and the ledger as plain dicts, for the HTTP API and the command line. None holds a hash or a key.

``time`` writes a time: as Unix seconds over HTTP, as text on the command line.
"""

import csv
import io
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from lcp_gateway.accounts.invites import Invite
from lcp_gateway.accounts.models import Account, AdminAction, Audit, Balance, KeyRecord, StatementLine, Topup
from lcp_gateway.accounts.withdrawals import REASON_MESSAGES, Withdrawal

Document = dict[str, object]
Time = Callable[[datetime], object]

KEY_LIMITS = (
    *("max_price_msat", "requests_per_minute", "tokens_per_minute"),
    *("budget_hour_msat", "budget_day_msat", "budget_month_msat", "concurrent_jobs"),
)
"""The limits that a key can have of its own; 0 is none."""
LINE_FIELDS = ("id", "at", "amount_msat", "balance_msat", "cause", "cause_id")
"""The fields of a line of a statement, in order."""


# A spreadsheet takes a text with one of these beginnings for a formula, and clients choose the texts.
_FORMULA_BEGINNINGS = ("=", "+", "-", "@", "\t", "\r")


def csv_cell(value: object) -> str:
    """Return a value in a form that a spreadsheet reads as text or number, and never as a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    is_harmless = isinstance(value, int) or not text.startswith(_FORMULA_BEGINNINGS)
    return text if is_harmless else f"'{text}"


def csv_line(values: Iterable[object]) -> bytes:
    """Return a line of CSV (RFC 4180)."""
    line = io.StringIO()
    csv.writer(line).writerow(map(csv_cell, values))
    return line.getvalue().encode()


def account_document(account: Account, time: Time) -> Document:
    """Return an account with its balance."""
    return {
        "id": account.id,
        "name": account.name,
        "created_at": time(account.created_at),
        "deleted_at": _optional(account.deleted_at, time),
        **balance_document(account.balance),
    }


def balance_document(balance: Balance) -> Document:
    """Return a balance, in msat."""
    return {
        "balance_msat": balance.balance_msat,
        "held_msat": balance.held_msat,
        "available_msat": balance.available_msat,
    }


def key_document(record: KeyRecord, time: Time) -> Document:
    """Return a key without its text."""
    rules = record.rules
    return {
        "id": record.id,
        "account_id": record.account_id,
        "name": record.name,
        "kind": record.kind.value,
        "prefix": record.prefix,
        "scopes": sorted(scope.value for scope in rules.scopes),
        "models": sorted(rules.models),
        **{limit: getattr(rules, limit) for limit in KEY_LIMITS},
        "expires_at": _optional(rules.expires_at, time),
        "created_at": time(record.created_at),
        "revoked_at": _optional(record.revoked_at, time),
    }


def line_document(line: StatementLine, time: Time) -> Document:
    """Return a movement of a balance by ``LINE_FIELDS``."""
    values = (line.id, time(line.at), line.amount_msat, line.balance_msat, line.cause.value)
    return dict(zip(LINE_FIELDS, (*values, line.cause_id), strict=True))


def topup_document(topup: Topup, time: Time) -> Document:
    """Return a top-up with its invoice."""
    return {
        "id": topup.id,
        "status": topup.state.value,
        "amount_msat": topup.amount_msat,
        "received_msat": topup.received_msat,
        "memo": topup.memo,
        "created_at": time(topup.created_at),
        "expires_at": time(topup.expires_at),
        "settled_at": _optional(topup.settled_at, time),
        "payment_request": topup.payment_request,
    }


def withdrawal_document(withdrawal: Withdrawal, time: Time) -> Document:
    """Return a withdrawal. ``preimage`` proves the payment, and is the customer's to have."""
    reason = withdrawal.reason
    return {
        "id": withdrawal.id,
        "status": withdrawal.state.value,
        "amount_msat": withdrawal.amount_msat,
        "fee_msat": withdrawal.fee_msat,
        "fee_limit_msat": withdrawal.fee_limit_msat,
        "held_msat": withdrawal.held_msat,
        "internal": withdrawal.topup_id is not None,
        "reason": None if reason is None else reason.value,
        "message": None if reason is None else REASON_MESSAGES[reason],
        "payment_hash": withdrawal.payment_hash.hex(),
        "preimage": None if withdrawal.preimage is None else withdrawal.preimage.hex(),
        "payment_request": withdrawal.payment_request,
        "created_at": time(withdrawal.created_at),
        "expires_at": time(withdrawal.expires_at),
        "ended_at": _optional(withdrawal.ended_at, time),
    }


def action_document(action: AdminAction, time: Time) -> Document:
    """Return an action of an administrator."""
    return {
        "id": action.id,
        "at": time(action.at),
        "actor": action.actor,
        "action": action.action,
        "target": action.target,
        "detail": dict(action.detail),
    }


def invite_document(invite: Invite, time: Time) -> Document:
    """Return an invite without its code."""
    return {
        "id": invite.id,
        "note": invite.note,
        "created_at": time(invite.created_at),
        "expires_at": time(invite.expires_at),
        "used_at": _optional(invite.used_at, time),
        "revoked_at": _optional(invite.revoked_at, time),
        "account_id": invite.account_id,
        "status": invite.status(datetime.now(UTC)).value,
    }


def audit_document(audit: Audit) -> Document:
    """Return the findings of an audit."""
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


def _optional(at: datetime | None, time: Time) -> object:
    return None if at is None else time(at)

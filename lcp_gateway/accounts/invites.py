"""Invites: codes with which a person may open an account by itself, once each. Only their hashes are stored."""

import enum
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from lcp_gateway.accounts.keys import hash_key
from lcp_gateway.accounts.models import AccountError

INVITE_PREFIX: Final = "lcpi_"
USUAL_LIFETIME: Final = timedelta(days=7)
UNFUNDED_FOR: Final = timedelta(days=7)
"""How long an account that was opened without an invite may stay without a top-up."""

_CODE_BYTES = 24


class InvalidInvite(AccountError):
    """An invite that never was, was used, revoked, or has expired; the message does not say which."""

    usual = "this invite is not valid: it may have been used or have expired; ask for another"


class InviteStatus(enum.StrEnum):
    """The state of an invite."""

    OPEN = "open"
    USED = "used"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Invite:
    """An invite as it is stored. ``account_id`` is the account that was opened with it."""

    id: str
    note: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    revoked_at: datetime | None = None
    account_id: str | None = None

    def status(self, now: datetime) -> InviteStatus:
        """Return the state at a time."""
        if self.used_at is not None:
            return InviteStatus.USED
        if self.revoked_at is not None:
            return InviteStatus.REVOKED
        return InviteStatus.OPEN if now < self.expires_at else InviteStatus.EXPIRED


@dataclass(frozen=True, slots=True)
class NewInvite:
    """An invite that was just made, with its code, which is shown once and stored nowhere."""

    record: Invite
    code: str = field(repr=False)


def generate_code() -> str:
    """Return a new code of 192 random bits."""
    return INVITE_PREFIX + secrets.token_urlsafe(_CODE_BYTES)


def hash_code(code: str) -> bytes:
    """Return the hash under which an invite is stored; any text has one."""
    return hash_key(code.strip())

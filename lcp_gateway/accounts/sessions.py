"""Sessions of the console: a browser that signed in with a key is that key's caller for a while.

The browser holds 256 random bits; the database holds only their hash, so that neither a copy of the database nor a log lets
anyone in. A session ends with its key: that of a customer's key when the key is revoked or expires, that of a key of the
settings when the settings no longer have it. For the latter the session keeps a proof, the HMAC of the key under the
browser's bits: it cannot be checked, nor the key guessed from it, without the browser.
"""

import enum
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from lcp_gateway.accounts.callers import Caller, Scope
from lcp_gateway.accounts.keys import KeysStale, hash_key
from lcp_gateway.clock import utc_now

if TYPE_CHECKING:
    from lcp_gateway.accounts.repositories import SessionRepository

MOST_SESSIONS: Final = 20
"""The sessions of one key; one more ends the oldest."""

_TOKEN_BYTES = 32
# A session that is used all the time is not written at each request.
_SEEN_EVERY = timedelta(minutes=1)


class Role(enum.StrEnum):
    """The part that a signed-in person has, which decides what the console shows and how long a session lasts."""

    LOCAL = "local"
    """The user of a gateway without customers."""
    CUSTOMER = "customer"
    """The holder of an account's key."""
    KEY = "key"
    """The holder of one of the operator's own keys, beside customers."""
    OPERATOR = "operator"
    """The administrator."""


class Lifetime(NamedTuple):
    """How long a session lasts without a request, and at most."""

    idle: timedelta
    most: timedelta


_LONG = Lifetime(timedelta(days=7), timedelta(days=30))
LIFETIMES: Final = MappingProxyType(
    {
        Role.LOCAL: _LONG,
        Role.CUSTOMER: _LONG,
        Role.KEY: _LONG,
        Role.OPERATOR: Lifetime(timedelta(hours=1), timedelta(hours=12)),
    }
)


@dataclass(frozen=True, slots=True)
class Session:
    """A session as it is stored. Times are aware UTC; it has ended at the earlier of ``idle_ends_at`` and ``ends_at``.

    ``token_hash`` is the SHA-256 of the browser's token. ``proof`` is that of a key of the settings, None for a
    customer's key.
    """

    token_hash: bytes = field(repr=False)
    role: Role
    account_id: str | None
    key_id: str
    proof: bytes | None = field(repr=False)
    created_at: datetime
    seen_at: datetime
    idle_ends_at: datetime
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A session that lives, and the caller that it stands for, by the rules that the key has now."""

    session: Session
    caller: Caller


class NewSession(NamedTuple):
    """A session that was just made, and its token, which goes to the browser and is stored nowhere else."""

    token: str
    signed_in: SignedIn

    def __repr__(self) -> str:
        return "NewSession(…)"


@dataclass(frozen=True, slots=True)
class _SettingsKey:
    digest: bytes = field(repr=False)
    role: Role
    caller: Caller


class SettingsKeys:
    """The keys of the settings that may sign in. A look takes the same work for every text: each key is compared."""

    def __init__(self, keys: Iterable[tuple[str, Role, Caller]]) -> None:
        self._keys = tuple(_SettingsKey(hash_key(text), role, caller) for text, role, caller in keys)

    def find(self, text: str) -> tuple[Role, Caller, bytes] | None:
        """Return the role, the caller and the digest of a key, None for an unknown one."""
        presented = hash_key(text)
        found: tuple[Role, Caller, bytes] | None = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, presented):
                found = key.role, key.caller, key.digest
        return found

    def of_session(self, token: str, session: Session) -> Caller | None:
        """Return the caller of the key that a session was begun with, None where the settings have it no more."""
        proof = session.proof or b""
        found: Caller | None = None
        for key in self._keys:
            if hmac.compare_digest(_proof(token, key.digest), proof) and key.role is session.role:
                found = key.caller
        return found


class ConsoleSessions:
    """Signs browsers in and out, and finds the caller of a session.

    Every method raises ``DatabaseUnavailable`` where the database cannot be reached.
    """

    def __init__(
        self,
        repository: "SessionRepository",
        *,
        settings_keys: SettingsKeys,
        find_key: Callable[[str], Caller | None] = lambda _text: None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """``find_key`` looks up a customer's key in the same time for all; it raises ``KeysStale``."""
        self._repository = repository
        self._settings_keys = settings_keys
        self._find_key = find_key
        self._now = now

    async def sign_in(self, key: str) -> NewSession | None:
        """Begin a session of the caller of a key; None, after the same work, for every text that is no valid key.

        Raises:
            KeysStale: customers' keys cannot be checked now, and it is no key of the settings.
        """
        of_settings = self._settings_keys.find(key)
        stale: KeysStale | None = None
        try:
            of_customer = self._find_key(key)
        except KeysStale as error:
            of_customer, stale = None, error
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        if of_settings is not None:
            role, caller, digest = of_settings
            return await self._begin(token, role, caller, _proof(token, digest))
        if stale is not None:
            raise stale
        if of_customer is None or of_customer.account_id is None:
            return None
        return await self._begin(token, role_of(of_customer, has_customers=True), of_customer, None)

    async def begin(self, caller: Caller) -> NewSession:
        """Begin a session of a customer's key that was just made."""
        return await self._begin(secrets.token_urlsafe(_TOKEN_BYTES), role_of(caller, has_customers=True), caller, None)

    async def find(self, token: str, *, extend: bool) -> SignedIn | None:
        """Return the session of a token, None where it never was or has ended.

        ``extend`` counts this as use: the session lasts for its idle time from now on.
        """
        now = self._now()
        found = await self._repository.find(hash_token(token), now)
        if found is None:
            return None
        session, caller = found
        if session.account_id is None:
            caller = self._settings_keys.of_session(token, session)
        elif caller is not None and role_of(caller, has_customers=True) is not session.role:
            # The key became an administrator's, or is one no more: other lifetimes apply.
            caller = None
        if caller is None:
            return None
        if extend and now - session.seen_at >= _SEEN_EVERY:
            idle_ends_at = min(now + LIFETIMES[session.role].idle, session.ends_at)
            await self._repository.extend(session.token_hash, seen_at=now, idle_ends_at=idle_ends_at)
            session = replace(session, seen_at=now, idle_ends_at=idle_ends_at)
        return SignedIn(session, caller)

    async def end(self, token: str) -> bool:
        """End the session of a token; return whether there was one."""
        return await self._repository.end(hash_token(token))

    async def end_all(self, caller: Caller) -> int:
        """End all sessions of a caller, on all its devices; return how many there were.

        Those of the whole account where the caller manages it, else those of its key.
        """
        if caller.account_id is not None and Scope.ACCOUNT in caller.rules.scopes:
            return await self._repository.end_all(account_id=caller.account_id)
        return await self._repository.end_all(account_id=caller.account_id, key_id=caller.key_id)

    async def _begin(self, token: str, role: Role, caller: Caller, proof: bytes | None) -> NewSession:
        now, lifetime = self._now(), LIFETIMES[role]
        session = Session(
            token_hash=hash_token(token),
            role=role,
            account_id=caller.account_id,
            key_id=caller.key_id,
            proof=proof,
            created_at=now,
            seen_at=now,
            idle_ends_at=now + lifetime.idle,
            ends_at=now + lifetime.most,
        )
        await self._repository.create(session, most=MOST_SESSIONS)
        return NewSession(token, SignedIn(session, caller))


def role_of(caller: Caller, *, has_customers: bool) -> Role:
    """Return the role of a caller; ``has_customers`` says whether the gateway keeps accounts."""
    if Scope.ADMIN in caller.rules.scopes:
        return Role.OPERATOR if has_customers else Role.LOCAL
    return Role.KEY if caller.account_id is None else Role.CUSTOMER


def hash_token(token: str) -> bytes:
    """Return the hash under which a session is stored; any text has one."""
    return hash_key(token)


def _proof(token: str, digest: bytes) -> bytes:
    return hmac.digest(hash_key(f"proof of {token}"), digest, hashlib.sha256)

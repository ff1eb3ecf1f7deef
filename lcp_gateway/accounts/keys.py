"""API keys: made once, kept as hashes, and checked in memory.

A key has 256 random bits, so a plain SHA-256 of it is as good as a slow hash: it cannot be guessed.
"""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple, NewType

from lcp_gateway.accounts.callers import Caller, KeyRules, Scope
from lcp_gateway.accounts.models import KeyRecord

API_KEY_PREFIX: Final = "lcpg_"
PREFIX_CHARS: Final = 10
"""The characters of a key that are stored, for display."""

SIGN_IN_RULES: Final = KeyRules(scopes=frozenset({Scope.ACCOUNT, Scope.WALLET, Scope.WITHDRAW}))
"""The rules of a sign-in key: it manages the account and pays out of it, and buys nothing."""

KeyHash = NewType("KeyHash", bytes)
"""The SHA-256 of a key's whole text."""

_KEY_BYTES = 32
# As in the ids of the drop-in's list of keys.
_NAME_CHARS = 12
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_NEVER = datetime.max.replace(tzinfo=UTC)


class KeysStale(Exception):
    """The keys were read from the store too long ago: one of them may have been revoked since."""

    def __init__(self, age_s: float, bound_s: float) -> None:
        super().__init__(f"the keys of accounts were last read {age_s:.0f} s ago, and are accepted for {bound_s:g} s")
        self.age_s = age_s


class GeneratedKey(NamedTuple):
    """A new key, with its text."""

    text: str
    hash: KeyHash
    prefix: str

    def __repr__(self) -> str:
        return "FreshKey(…)"


@dataclass(frozen=True, slots=True)
class _CachedKey:
    """The caller of a key, the end of its validity, and the change that it was read with."""

    caller: Caller
    until: datetime
    change: int


_UNKNOWN_KEY = _CachedKey(Caller("", None, KeyRules(scopes=frozenset())), _LONG_AGO, 0)


def generate_key() -> GeneratedKey:
    """Generate a key: its text to be shown once, its hash to be stored, and its first characters for display."""
    text = API_KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    return GeneratedKey(text, hash_key(text), text[:PREFIX_CHARS])


def hash_key(text: str) -> KeyHash:
    """Return the hash of a text that may be a key; any text has one."""
    try:
        written = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        written = text.encode("utf-8", "backslashreplace")
    return KeyHash(hashlib.sha256(written).digest())


class KeyCache:
    """Every key in memory, by its hash.

    ``static_keys`` are the operator's own, from the settings: they belong to no account, are named by their hash and
    stay whatever the store contains.

    A check does the same work for a key that is valid, expired, revoked, unknown or no key at all: one hash, two look-ups,
    one comparison of times. Its time depends on the length of the text alone. A look-up could leak something about
    neighbouring hashes only, which a client cannot choose.
    """

    def __init__(self, static_keys: Iterable[str] = (), static_rules: KeyRules | None = None) -> None:
        self._static_rules = static_rules or KeyRules()
        self._static: dict[KeyHash, _CachedKey] = {}
        self._stored: dict[KeyHash, _CachedKey] = {}
        self.use_static(static_keys)

    def __repr__(self) -> str:
        return f"KeyCache({self.count} keys)"

    @property
    def count(self) -> int:
        """How many keys are known, revoked and expired ones included."""
        return len(self._static.keys() | self._stored.keys())

    def use_static(self, static_keys: Iterable[str]) -> None:
        """Accept these static keys, and none of the earlier ones."""
        rules = self._static_rules
        self._static = {
            key_hash: _CachedKey(
                Caller(f"key_{key_hash.hex()[:_NAME_CHARS]}", None, rules), rules.expires_at or _NEVER, 0
            )
            for key_hash in map(hash_key, static_keys)
        }

    def replace_all(self, records: Iterable[KeyRecord], upto: int | None = None) -> None:
        """Cache these keys and the static ones, and of the others only those that changed after the records were read.

        ``upto`` is the last change that the records hold. With it no other key stays, not even one that seems to have
        changed later: the store was read whole, and decides.
        """
        known = {KeyHash(record.key_hash): _cached(record) for record in records}
        if upto is None:
            newest = max((key.change for key in known.values()), default=0)
            known.update((key, it) for key, it in self._stored.items() if it.change > newest)
        self._stored = known

    def apply(self, changes: Iterable[KeyRecord]) -> None:
        """Apply new, changed and revoked keys, in any order and however often: the latest change counts."""
        for record in changes:
            key_hash = KeyHash(record.key_hash)
            if record.change >= self._stored.get(key_hash, _UNKNOWN_KEY).change:
                self._stored[key_hash] = _cached(record)

    def check(self, text: str, now: datetime) -> Caller | None:
        """Return the caller that a key authenticates now, or None; without the reason."""
        key_hash = hash_key(text)
        stored = self._stored.get(key_hash, _UNKNOWN_KEY)
        cached = self._static.get(key_hash, stored)
        return cached.caller if now < cached.until else None


def _cached(record: KeyRecord) -> _CachedKey:
    until = record.rules.expires_at or _NEVER
    # A revoked key stays known, so that an older record of it, read before and applied after, changes nothing.
    return _CachedKey(record.caller, until if record.revoked_at is None else _LONG_AGO, record.change)

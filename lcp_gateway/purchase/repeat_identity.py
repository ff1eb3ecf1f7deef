"""What the journal recognises a repeated request by, after a restart and in other processes too.

A repeat key is an Idempotency-Key, or the id that a client keeps over the retries of one request: the journal refuses a
second purchase with the same one. A request without either that says it is a retry is recognised by its body instead.

Nothing here can be read back. A repeat key is hashed with a secret that is not in the database wherever it can be kept
outside, since short keys could be found by trying; a body's hash covers the credential and the body.
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class RepeatIdentity:
    """What a repeat of a request is recognised by.

    ``key`` is None where the client sent nothing that it keeps over its retries; it counts until ``until``. ``body``
    is the same for the same kind and body from the same credential. ``first_try_since`` is set for a retry whose first
    try is not known to this process: a purchase for the same body since then counts as that.
    """

    body: bytes
    key: bytes | None = None
    until: datetime | None = None
    first_try_since: datetime | None = None


class RepeatHashes:
    """Makes identities; two gateways with the same secret make the same ones."""

    def __init__(
        self, secret: bytes, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._secret = secret
        self._now = now

    def identity(
        self,
        *,
        key_id: str,
        kind: str,
        body_sha256: bytes,
        key: str | None,
        key_for_s: float,
        client_request_id: str | None,
        retry_for_s: float,
        looks_for_first_try: bool,
    ) -> RepeatIdentity:
        """Return the identity of a request.

        An Idempotency-Key counts for ``key_for_s`` whatever the body; a client's request id for ``retry_for_s`` and
        together with the body, and only where there is no key.
        """
        # For every purchase: one hash, of parts whose lengths are known or written before them.
        whole = b"%d %b %b %b" % (len(key_id), key_id.encode(), kind.encode(), body_sha256)
        body = hashlib.sha256(whole).digest()
        if key is None and client_request_id is None and not looks_for_first_try:
            return RepeatIdentity(body)
        now = self._now()
        retry_for = timedelta(seconds=retry_for_s)
        since = now - retry_for if looks_for_first_try and key is None else None
        if key is not None:
            name = _joined(b"key", key_id, key.encode("utf-8", "surrogateescape"))
            return RepeatIdentity(body, self._hash(name), now + timedelta(seconds=key_for_s))
        if client_request_id is not None:
            name = _joined(
                b"client", key_id, client_request_id.encode("utf-8", "surrogateescape"), body
            )
            return RepeatIdentity(body, self._hash(name), now + retry_for, since)
        return RepeatIdentity(body, first_try_since=since)

    def _hash(self, name: bytes) -> bytes:
        return hmac.digest(self._secret, name, "sha256")


def _joined(what: bytes, key_id: str, *parts: bytes) -> bytes:
    whole = (what, key_id.encode(), *parts)
    return b"".join([len(part).to_bytes(_LENGTH_BYTES) + part for part in whole])

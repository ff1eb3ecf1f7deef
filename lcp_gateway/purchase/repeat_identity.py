"""What the journal recognises a repeated request by, after a restart and in other processes too.

A repeat key is an Idempotency-Key, or the id that a client keeps over the retries of one request: the journal refuses a
second purchase with the same one. A request without either that says it is a retry is recognised by its body instead.

Nothing here can be read back. A repeat key is hashed with a secret that is not in the database wherever it can be kept
outside, since short keys could be found by trying; a body's hash covers the credential and the body.
"""

from dataclasses import dataclass
from datetime import datetime


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

"""The secret that L402's tokens are made with."""

import contextlib
import hashlib
import secrets
from pathlib import Path

from lcp_gateway.app.ledgers import LedgerError
from lcp_gateway.config import Settings, journal_place

_SECRET_BYTES = 32


def l402_secret(settings: Settings) -> bytes:
    """Give the secret that tokens are made with; the first time it is made, and kept beside the journal.

    Raises:
        LedgerError: there is none, and none can be made.
    """
    if settings.l402_secret:
        return hashlib.sha256(settings.l402_secret.encode()).digest()
    place = journal_place(settings)
    if not isinstance(place, Path):
        raise LedgerError(
            "l402 with a database server needs l402_secret, the same for all gateways"
        )
    file = place.with_suffix(".l402")
    with contextlib.suppress(FileExistsError):
        file.touch(mode=0o600, exist_ok=False)
        file.write_bytes(secrets.token_bytes(_SECRET_BYTES))
    secret = file.read_bytes()
    if len(secret) < _SECRET_BYTES:
        # Another gateway is just writing it, or one ended in the middle of that.
        raise LedgerError(f"{file} holds no secret for L402: start again, or delete it")
    return secret

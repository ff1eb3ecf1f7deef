"""Names and seals for what gateways keep in a place that others may read: nothing of it says what it is of."""

import hashlib
import hmac
import os
from typing import Final

from lcp_gateway.accounts.shared.outage import RedisNotInstalled

LEAST_SECRET_BYTES: Final = 16
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12


class DecryptionFailed(Exception):
    """It was made with another secret, or for something else, or altered."""


class Seals:
    """Makes names that only the holders of a secret can make, and seals that only they can open.

    AES-256-GCM, each time with a key of its own, derived (HKDF) from the secret and the name of what is sealed.

    Raises:
        ValueError: the secret is too short to be one.
        RedisNotInstalled: the library for it is part of the extra, and is not there.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < LEAST_SECRET_BYTES:
            raise ValueError(f"the secret needs {LEAST_SECRET_BYTES} bytes at least")
        try:
            from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - an optional extra
            from cryptography.hazmat.primitives.ciphers.aead import (  # noqa: PLC0415 - an optional extra
                AESGCM,
            )
            from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - an optional extra
            from cryptography.hazmat.primitives.kdf.hkdf import (  # noqa: PLC0415 - an optional extra
                HKDF,
            )
        except ImportError:
            raise RedisNotInstalled(
                "shared answers need the extra: pip install 'lcp-gateway[redis]'"
            ) from None
        self._aes = AESGCM
        self._invalid = InvalidTag

        def derive(purpose: bytes) -> bytes:
            return HKDF(SHA256(), _KEY_BYTES, salt=None, info=b"lcp-gateway " + purpose).derive(
                secret
            )

        self._derive = derive
        self._name_key = derive(b"names")

    def name(self, *parts: bytes) -> bytes:
        """Give the name of something; without the secret nobody can tell what of, not even by trying."""
        whole = b"".join(len(part).to_bytes(4) + part for part in parts)
        return hmac.digest(self._name_key, whole, hashlib.sha256)

    def close(self, name: bytes, content: bytes, belongs_to: bytes) -> bytes:
        """Seal something; it opens only for the same name, and for what it belongs to."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aes(self._derive(b"seal " + name)).encrypt(nonce, content, belongs_to)

    def open(self, name: bytes, sealed: bytes, belongs_to: bytes) -> bytes:
        """Open it.

        Raises:
            BrokenSeal: it is not what it should be.
        """
        nonce, closed = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._aes(self._derive(b"seal " + name)).decrypt(nonce, closed, belongs_to)
        except (self._invalid, ValueError):
            raise DecryptionFailed from None

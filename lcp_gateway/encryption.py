"""Keyed names and encryption of what is kept where others may read it: in a Redis, in a node's database."""

import hashlib
import hmac
import os
from typing import Final

MIN_SECRET_BYTES: Final = 16
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12


class EncryptionNotInstalled(Exception):
    """The library ``cryptography`` is missing: it comes with the extras that need it."""


class DecryptionFailed(Exception):
    """The ciphertext was made with another secret, name or context, or was altered."""


class Encryption:
    """Names and ciphertexts that only the holders of one secret can make and read.

    AES-256-GCM, each time with a key of its own, derived (HKDF) from the secret and the name. ``context`` is authenticated
    with the content: a ciphertext decrypts in the same context only.

    Raises:
        ValueError: the secret is too short.
        EncryptionNotInstalled: the library for it is part of an extra, which is missing.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < MIN_SECRET_BYTES:
            raise ValueError(f"the secret needs {MIN_SECRET_BYTES} bytes at least")
        try:
            from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - an optional extra
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - an optional extra
        except ImportError:
            raise EncryptionNotInstalled(
                "encryption needs the library cryptography, a part of lcp-gateway[redis] and of lcp-gateway[lnd]"
            ) from None
        self._aes = AESGCM
        self._invalid = InvalidTag

        # HKDF (RFC 5869) without a salt, extracted once; the library's would extract again for each key.
        self._extracted = hmac.digest(bytes(_KEY_BYTES), secret, hashlib.sha256)
        self._name_key = self._derive(b"names")

    def _derive(self, purpose: bytes) -> bytes:
        """Return the key for a purpose: HKDF's first block, which is as long as a key."""
        return hmac.digest(self._extracted, b"lcp-gateway " + purpose + b"\x01", hashlib.sha256)

    def keyed_name(self, *parts: bytes) -> bytes:
        """Return a name for some parts; without the secret it reveals nothing about them, even to a guess."""
        whole = b"".join(len(part).to_bytes(4) + part for part in parts)
        return hmac.digest(self._name_key, whole, hashlib.sha256)

    def encrypt(self, name: bytes, content: bytes, context: bytes) -> bytes:
        """Encrypt content under a name."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aes(self._derive(b"seal " + name)).encrypt(nonce, content, context)

    def decrypt(self, name: bytes, ciphertext: bytes, context: bytes) -> bytes:
        """Decrypt what ``encrypt`` made.

        Raises:
            DecryptionFailed: the name, the context or the secret is another, or the ciphertext was altered.
        """
        nonce, encrypted = ciphertext[:_NONCE_BYTES], ciphertext[_NONCE_BYTES:]
        try:
            return self._aes(self._derive(b"seal " + name)).decrypt(nonce, encrypted, context)
        except (self._invalid, ValueError):
            raise DecryptionFailed from None

"""Bearer keys: who may ask."""

import hashlib
import hmac
from collections.abc import Iterable

from lcp_gateway.http.errors import ApiError

# Enough of a key's SHA-256 to tell keys apart, and nothing that lets anyone in.
_NAME_CHARS = 12


class BearerKeys:
    """A list of keys, any of which lets a request in; an empty list lets everyone in."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, authorization: str | None) -> str:
        """Let an ``Authorization`` header pass; gives the key's name, which is not the key, or "" without keys.

        The time taken does not tell which key came close: digests of equal length are compared, and all of them.

        Raises:
            ApiError: 401.
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        name = self.find(key.strip())
        if not name or scheme.lower() != "bearer":
            raise ApiError(
                401,
                "a valid API key is needed: Authorization: Bearer <key>",
                code="invalid_api_key",
                reason="auth",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return name

    def find(self, key: str) -> str:
        """Give the name of a key, or "" for one that is none of these; in the same time for all."""
        presented = _digest(key)
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(digest, presented)
        return f"key_{presented.hex()[:_NAME_CHARS]}" if found else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

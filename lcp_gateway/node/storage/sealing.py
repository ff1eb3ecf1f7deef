"""Encryption of requests, results and preimages in a node's database, with a key for each job derived from the key file's."""

import sqlite3
from pathlib import Path

from lcp_gateway.encryption import DecryptionFailed, Encryption, EncryptionNotInstalled
from lcp_gateway.node.storage.files import StoreUnavailable, make_key, read_key

_CHECK = b"key check"
_ANY_SEALED = """
    SELECT EXISTS (SELECT 1 FROM sales WHERE sealed_body IS NOT NULL OR sealed_preimage IS NOT NULL)
        OR EXISTS (SELECT 1 FROM sent) OR EXISTS (SELECT 1 FROM purchases WHERE sealed_params IS NOT NULL)
"""


def open_encryption(connection: sqlite3.Connection, key_path: Path, *, seals: bool) -> Encryption | None:
    """Return the encryption of what a database seals; None where nothing is sealed (``seals``) and nothing was.

    A key is made where there is none and nothing that was sealed depends on another.

    Raises:
        StoreUnavailable: what is sealed cannot be read with the key file, or the library for it is missing.
    """
    (holds_sealed,) = connection.execute(_ANY_SEALED).fetchone()
    if not seals and not holds_sealed:
        return None
    key = read_key(key_path)
    if key is None and holds_sealed:
        raise StoreUnavailable(
            f"{key_path}: missing: it is the key of the requests and results that the database keeps: restore it, or move the "
            "database away to begin with an empty one"
        )
    try:
        encryption = Encryption(make_key(key_path) if key is None else key)
    except EncryptionNotInstalled as error:
        raise StoreUnavailable(f"{error}; or set store.at_rest to memory") from error
    found = connection.execute("SELECT value FROM facts WHERE name = 'key_check'").fetchone()
    if found is None or not _opens(encryption, found[0]):
        if holds_sealed:
            raise StoreUnavailable(f"{key_path}: not the key of the requests and results that the database keeps")
        check_value = encryption.encrypt(_CHECK, b"", _CHECK)
        connection.execute("INSERT OR REPLACE INTO facts VALUES ('key_check', ?)", (check_value,))
    return encryption


def _opens(encryption: Encryption, check_value: bytes) -> bool:
    """Return whether the key is the one that made the value."""
    try:
        encryption.decrypt(_CHECK, check_value, _CHECK)
    except DecryptionFailed:
        return False
    return True

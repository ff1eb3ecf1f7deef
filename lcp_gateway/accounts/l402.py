"""L402: a macaroon and the preimage of the invoice that came with it, which together prove a payment (bLIP 26).

Macaroons are in the second binary format of libmacaroons, as lnd and its tools write it: an identifier, caveats as text, and
a chain of HMACs over them that begins with a key which only the gateway has. The identifier holds the payment hash, so a
client that knows the preimage has paid. Nothing has to be stored to check one.

A caveat only ever restricts: any holder of a macaroon may add one. That is why the gateway names the account in the first
caveat and the end in the second, under a key of the macaroon's own; the same caveats further behind can only narrow these.
Unknown caveats are ignored, as bLIP 26 asks.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

HASH_BYTES: Final = 32
TOKEN_ID_BYTES: Final = 32
MIN_SECRET_BYTES: Final = 32

MAX_MACAROON_BYTES: Final = 1_024
MAX_CAVEATS: Final = 16
MAX_AUTHORIZATION_CHARS: Final = 2_048
MAX_INVOICE_CHARS: Final = 7_089

_ACCOUNT = "account"
_EXPIRES_AT = "expires_at"

_ID_VERSION = (0).to_bytes(2, "big")
_ID_BYTES = len(_ID_VERSION) + HASH_BYTES + TOKEN_ID_BYTES
_ROOT_KEY_LABEL = b"lcp-gateway L402 root key\0"
_CHAIN_LABEL = b"macaroons-key-generator"

_FORMAT = 2
_END = 0
_LOCATION = 1
_IDENTIFIER = 2
_SIGNATURE = 6
_VARINT_MORE = 0x80
_VARINT_BITS = 7
_MAX_VARINT_BYTES = 2

_SCHEMES = frozenset({"l402", "lsat"})
_PREIMAGE = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_SECONDS = re.compile(r"[0-9]{1,11}", re.ASCII)
_INVOICE = re.compile(r"[a-z0-9]+", re.ASCII)
_URL_SAFE_TO_STANDARD = str.maketrans("-_", "+/")


class L402Error(Exception):
    """A credential that proves no payment. The message holds no part of it."""


class Malformed(L402Error):
    """It cannot be read."""


class NotProven(L402Error):
    """It is another service's, was changed, or comes with another payment's preimage; the message does not say which."""

    def __init__(self) -> None:
        super().__init__("the L402 credential is not valid")


class Expired(L402Error):
    """It was valid, and has expired."""

    def __init__(self) -> None:
        super().__init__("the L402 credential has expired")


@dataclass(frozen=True, slots=True)
class Macaroon:
    """A macaroon with first-party caveats: the bytes that are signed, which ``repr`` does not show."""

    identifier: bytes = field(repr=False)
    caveats: tuple[bytes, ...] = field(repr=False)
    signature: bytes = field(repr=False)
    location: bytes | None = field(default=None, repr=False)

    def with_caveat(self, name: str, value: str) -> "Macaroon":
        """Return a more restricted macaroon; any holder can make one."""
        caveat = f"{name}={value}".encode()
        signature = _hmac(self.signature, caveat)
        return Macaroon(self.identifier, (*self.caveats, caveat), signature, self.location)

    def to_bytes(self) -> bytes:
        """Return the second binary format."""
        parts = [bytes([_FORMAT])]
        if self.location is not None:
            parts.append(_field(_LOCATION, self.location))
        parts += [_field(_IDENTIFIER, self.identifier), bytes([_END])]
        for caveat in self.caveats:
            parts += [_field(_IDENTIFIER, caveat), bytes([_END])]
        parts += [bytes([_END]), _field(_SIGNATURE, self.signature)]
        return b"".join(parts)

    def to_text(self) -> str:
        """Return base64, as headers carry it."""
        return base64.b64encode(self.to_bytes()).decode("ascii")


@dataclass(frozen=True, slots=True)
class Credentials:
    """The contents of an ``Authorization`` header, not proven yet."""

    macaroon: Macaroon
    preimage: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class L402Token:
    """A proven credential: its account, its payment, and all caveats in their order.

    ``expires_at`` is the earliest end that a caveat names.
    """

    token_id: bytes = field(repr=False)
    payment_hash: bytes
    account_id: str
    expires_at: datetime
    caveats: tuple[str, ...] = field(repr=False)


def mint(root_key: bytes, payment_hash: bytes, token_id: bytes, caveats: Sequence[tuple[str, str]]) -> Macaroon:
    """Make a macaroon that commits to a payment, with caveats as names and values.

    Raises:
        ValueError: a hash or an id is not of 32 bytes.
    """
    macaroon = _bare(root_key, _identifier(payment_hash, token_id))
    for name, value in caveats:
        macaroon = macaroon.with_caveat(name, value)
    return macaroon


def parse(text: str) -> Macaroon:
    """Read a macaroon from base64, standard or URL-safe, padded or not.

    Raises:
        Malformed: it is not one, is too large, or has third-party caveats.
    """
    if len(text) > MAX_AUTHORIZATION_CHARS:
        raise Malformed("the macaroon is too long")
    bare = text.rstrip("=").translate(_URL_SAFE_TO_STANDARD)
    try:
        data = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("the macaroon is not base64") from None
    return from_bytes(data)


def from_bytes(data: bytes) -> Macaroon:
    """Read a macaroon in the second binary format.

    Raises:
        Malformed: as for ``parse``.
    """
    if len(data) > MAX_MACAROON_BYTES:
        raise Malformed("the macaroon is too large")
    if not data or data[0] != _FORMAT:
        raise Malformed("the macaroon is not of the second binary format")
    reader = _Reader(data)
    kind, value = reader.next()
    location = None
    if kind == _LOCATION:
        location = value
        kind, value = reader.next()
    if kind != _IDENTIFIER or reader.next()[0] != _END:
        raise Malformed("the macaroon has no identifier")
    identifier = value
    caveats = tuple(_read_caveats(reader))
    kind, signature = reader.next()
    if kind != _SIGNATURE or len(signature) != HASH_BYTES:
        raise Malformed("the macaroon has no signature")
    if not reader.is_at_end:
        raise Malformed("something follows the macaroon")
    return Macaroon(identifier, caveats, signature, location)


def challenge_header(macaroon: Macaroon, payment_request: str) -> str:
    """Return the value of ``WWW-Authenticate`` that asks for a payment.

    Raises:
        ValueError: the payment request is not one, and could end its quoted string.
    """
    if len(payment_request) > MAX_INVOICE_CHARS or not _INVOICE.fullmatch(payment_request):
        raise ValueError("not a payment request in lower case")
    return f'L402 macaroon="{macaroon.to_text()}", invoice="{payment_request}"'


def parse_authorization(value: str) -> Credentials | None:
    """Read the value of ``Authorization``; None when its scheme is neither L402 nor LSAT, its old name.

    Raises:
        Malformed: it is of the scheme, and not one macaroon, a colon, and 64 digits.
    """
    scheme, _, rest = value.strip().partition(" ")
    if scheme.lower() not in _SCHEMES:
        return None
    if len(value) > MAX_AUTHORIZATION_CHARS:
        raise Malformed("the L402 credential is too long")
    text, _, preimage = rest.strip().partition(":")
    if not _PREIMAGE.fullmatch(preimage):
        raise Malformed("the L402 credential has no preimage of 64 hexadecimal digits")
    return Credentials(parse(text), bytes.fromhex(preimage))


class Issuer:
    """Makes the gateway's macaroons and verifies them, from one secret and without storing them."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < MIN_SECRET_BYTES:
            raise ValueError(f"the secret needs at least {MIN_SECRET_BYTES} bytes")
        self._secret = secret

    def issue(
        self, payment_hash: bytes, account_id: str, expires_at: datetime, token_id: bytes | None = None
    ) -> Macaroon:
        """Make the macaroon for an invoice: once that is paid, it authenticates the account until ``expires_at``.

        Raises:
            ValueError: the payment hash or the token id is not of 32 bytes, or the time is without a zone.
        """
        if expires_at.tzinfo is None:
            raise ValueError("a time without a zone")
        token_id = token_id or secrets.token_bytes(TOKEN_ID_BYTES)
        root_key = self._root_key(_identifier(payment_hash, token_id))
        seconds = str(int(expires_at.timestamp()))
        return mint(root_key, payment_hash, token_id, [(_ACCOUNT, account_id), (_EXPIRES_AT, seconds)])

    def verify(self, macaroon: Macaroon, preimage: bytes, now: datetime) -> L402Token:
        """Verify that the gateway made the macaroon, unchanged, that its invoice was paid, and that it has not expired.

        All steps are done before any refusal, and comparisons take constant time.

        Raises:
            NotProven: it is another service's, was changed, or the preimage is another payment's.
            Expired: it was valid once.
        """
        expected = _bare(self._root_key(macaroon.identifier), macaroon.identifier).signature
        for caveat in macaroon.caveats:
            expected = _hmac(expected, caveat)
        identifier, end_of_version = macaroon.identifier, len(_ID_VERSION)
        end_of_hash = end_of_version + HASH_BYTES
        # Of an identifier of another form, the bytes at their places.
        payment_hash, token_id = identifier[end_of_version:end_of_hash], identifier[end_of_hash:]
        is_ours = hmac.compare_digest(expected, macaroon.signature)
        is_paid = hmac.compare_digest(hashlib.sha256(preimage).digest(), payment_hash)
        has_form = len(macaroon.identifier) == _ID_BYTES and macaroon.identifier.startswith(_ID_VERSION)
        if not (is_ours & is_paid & has_form):
            raise NotProven
        account_id, ends = _meaning(macaroon.caveats)
        expires_at = datetime.fromtimestamp(ends, UTC)
        if now >= expires_at:
            raise Expired
        caveats = tuple(caveat.decode("utf-8", "replace") for caveat in macaroon.caveats)
        return L402Token(token_id, payment_hash, account_id, expires_at, caveats)

    def _root_key(self, identifier: bytes) -> bytes:
        return _hmac(self._secret, _ROOT_KEY_LABEL + identifier)


def _meaning(caveats: Sequence[bytes]) -> tuple[str, int]:
    """Return the account and the earliest end, in Unix seconds, that proven caveats name.

    Raises:
        NotProven: the first two are not the gateway's, or a later one contradicts them or cannot be read.
    """
    pairs = [_split(caveat) for caveat in caveats]
    if [name for name, _ in pairs[:2]] != [_ACCOUNT, _EXPIRES_AT]:
        raise NotProven
    accounts = {value for name, value in pairs if name == _ACCOUNT}
    ends = [value for name, value in pairs if name == _EXPIRES_AT]
    if len(accounts) != 1 or not all(_SECONDS.fullmatch(end) for end in ends):
        raise NotProven
    return accounts.pop(), min(map(int, ends))


def _split(caveat: bytes) -> tuple[str, str]:
    """Return name and value of a caveat, without the blanks that some clients write around the sign."""
    name, _, value = caveat.decode("utf-8", "replace").partition("=")
    return name.strip(), value.strip()


def _identifier(payment_hash: bytes, token_id: bytes) -> bytes:
    if len(payment_hash) != HASH_BYTES or len(token_id) != TOKEN_ID_BYTES:
        raise ValueError("a payment hash and a token id have 32 bytes each")
    return _ID_VERSION + payment_hash + token_id


def _bare(root_key: bytes, identifier: bytes) -> Macaroon:
    """Begin the chain: the root key is hashed with a label before it signs the identifier."""
    return Macaroon(identifier, (), _hmac(_hmac(_CHAIN_LABEL, root_key), identifier))


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _field(kind: int, value: bytes) -> bytes:
    length = len(value)
    written = bytearray([kind])
    while length >= _VARINT_MORE:
        written.append(length & (_VARINT_MORE - 1) | _VARINT_MORE)
        length >>= _VARINT_BITS
    written.append(length)
    return bytes(written) + value


def _read_caveats(reader: "_Reader") -> Iterator[bytes]:
    """Read caveats up to the mark after the last.

    Raises:
        Malformed: one is of a third party, or there are too many.
    """
    for _ in range(MAX_CAVEATS + 1):
        kind, value = reader.next()
        if kind == _END:
            return
        if kind != _IDENTIFIER or reader.next()[0] != _END:
            raise Malformed("the macaroon has a caveat of a third party")
        yield value
    raise Malformed("the macaroon has too many caveats")


class _Reader:
    """Reads the fields after the first byte."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 1

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._data)

    def next(self) -> tuple[int, bytes]:
        """Return the next field's kind and value; the end mark has no value.

        Raises:
            Malformed: there is none, or it is cut.
        """
        (kind,) = self._take(1)
        if kind == _END:
            return kind, b""
        return kind, self._take(self._length())

    def _length(self) -> int:
        """Read a number, seven bits a byte; no field of a macaroon that is small enough needs more than two bytes."""
        number = 0
        for turn in range(_MAX_VARINT_BYTES):
            (byte,) = self._take(1)
            number |= (byte & (_VARINT_MORE - 1)) << (turn * _VARINT_BITS)
            if byte < _VARINT_MORE:
                return number
        raise Malformed("a length in the macaroon is wrong")

    def _take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._data):
            raise Malformed("the macaroon ends too early")
        taken = self._data[self._at : end]
        self._at = end
        return taken

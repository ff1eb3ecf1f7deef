"""BOLT11 invoices: read strictly and fast, and written with a signature.

The format is BOLT 11 of the Lightning specification. Where it leaves a choice, this reads as lnd does, since lnd
pays: of a field that comes twice the first counts, and a hash or key of the wrong length is skipped.
"""

from hashlib import sha256
from typing import Final

from coincurve import PrivateKey, PublicKey, verify_signature
from coincurve.ecdsa import cdata_to_der, deserialize_recoverable, recoverable_convert

from lcp_gateway.lightning import bech32
from lcp_gateway.values import value

MAX_INVOICE_CHARACTERS: Final = 7089
"""Longer invoices are refused, as by lnd: a QR code holds no more."""

DEFAULT_EXPIRY_S: Final = 3600
DEFAULT_MIN_FINAL_CLTV: Final = 18
DEFAULT_FEATURES: Final = 1 << 8 | 1 << 14 | 1 << 17 | 1 << 25
"""The bits that lnd 0.20 sets: onion TLVs and payment secret required, multi-path and blinded paths supported."""

_MSAT_PER_BTC = 100_000_000_000
_MSAT_PER_UNIT = {b"m": 100_000_000, b"u": 100_000, b"n": 100}
_MAX_MSAT = 21_000_000 * _MSAT_PER_BTC
_NETWORKS = (b"bcrt", b"tbs", b"bc", b"tb", b"sb")
_TIMESTAMP_SYMBOLS = 7
_SIGNATURE_SYMBOLS = 104
_HASH_SYMBOLS = 52
_KEY_SYMBOLS = 53
_MAX_NUMBER_SYMBOLS = 13
_MAX_FIELD_SYMBOLS = 1023
_MAX_RECOVERY_ID = 3

_PAYMENT_HASH = 1
_FEATURES = 5
_EXPIRY = 6
_DESCRIPTION = 13
_PAYMENT_SECRET = 16
_PAYEE = 19
_DESCRIPTION_HASH = 23
_MIN_FINAL_CLTV = 24
_EXACT_LENGTH = {
    _PAYMENT_HASH: _HASH_SYMBOLS,
    _PAYMENT_SECRET: _HASH_SYMBOLS,
    _DESCRIPTION_HASH: _HASH_SYMBOLS,
    _PAYEE: _KEY_SYMBOLS,
}


class InvoiceError(ValueError):
    """A payment request is not a BOLT11 invoice, or cannot be made into one."""


@value
class Invoice:
    """An invoice, its signature checked.

    ``network`` is the prefix ("bc", "tb", "tbs", "bcrt", "sb"), ``amount_msat`` None when the payer chooses,
    ``timestamp`` Unix seconds, ``payee`` 66 lower-case hex digits, hashes and secret 32 bytes, ``features`` a
    bit field. Exactly one of ``description`` and ``description_hash`` is set.
    """

    network: str
    amount_msat: int | None
    timestamp: int
    payment_hash: bytes
    payee: str
    expiry_s: int = DEFAULT_EXPIRY_S
    description: str | None = None
    description_hash: bytes | None = None
    min_final_cltv: int = DEFAULT_MIN_FINAL_CLTV
    payment_secret: bytes | None = None
    features: int = 0

    @property
    def expires_at(self) -> int:
        """Unix seconds of the last moment at which it may be paid."""
        return self.timestamp + self.expiry_s


def decode(payment_request: str) -> Invoice:
    """Read an invoice, in lower or upper case, and check its checksum and signature.

    Expiry and payee are for the caller to check.

    Raises:
        InvoiceError: it is malformed, or its signature does not hold. No other error is raised.
    """
    if len(payment_request) > MAX_INVOICE_CHARACTERS:
        raise InvoiceError("the invoice is too long")
    if not payment_request.isascii():
        raise InvoiceError("the invoice has characters outside ASCII")
    text = payment_request.encode("ascii")
    if text != text.lower():
        if text != text.upper():
            raise InvoiceError("the invoice mixes upper and lower case")
        text = text.lower()
    try:
        prefix, symbols = bech32.split(text)
    except ValueError as error:
        raise InvoiceError(f"the invoice is not bech32: {error}") from None
    network, amount_msat = _read_prefix(prefix)
    end = len(symbols) - _SIGNATURE_SYMBOLS
    if end < _TIMESTAMP_SYMBOLS:
        raise InvoiceError("the invoice is too short")
    signed, signature = symbols[:end], symbols[end:]
    fields = _read_fields(signed)
    payee = _check_signature(
        sha256(prefix + bech32.to_padded_bytes(signed)).digest(), bech32.to_bytes(signature), fields.get(_PAYEE)
    )
    payment_hash = _read_bytes(fields.get(_PAYMENT_HASH), "payment hash")
    if payment_hash is None:
        raise InvoiceError("the invoice has no payment hash")
    description = _read_description(fields.get(_DESCRIPTION))
    description_hash = _read_bytes(fields.get(_DESCRIPTION_HASH), "description hash")
    if (description is None) == (description_hash is None):
        raise InvoiceError("the invoice must have a description or its hash, and not both")
    return Invoice(
        network,
        amount_msat,
        bech32.to_int(symbols[:_TIMESTAMP_SYMBOLS]),
        payment_hash,
        payee,
        _read_number(fields.get(_EXPIRY), DEFAULT_EXPIRY_S, "expiry"),
        description,
        description_hash,
        _read_number(fields.get(_MIN_FINAL_CLTV), DEFAULT_MIN_FINAL_CLTV, "final CLTV delta"),
        _read_bytes(fields.get(_PAYMENT_SECRET), "payment secret"),
        bech32.to_int(fields.get(_FEATURES, b"")),
    )


def encode(
    key: PrivateKey,
    *,
    network: str,
    timestamp: int,
    payment_hash: bytes,
    payment_secret: bytes,
    amount_msat: int | None = None,
    description: str | None = None,
    description_hash: bytes | None = None,
    expiry_s: int = DEFAULT_EXPIRY_S,
    min_final_cltv: int = DEFAULT_MIN_FINAL_CLTV,
    features: int = DEFAULT_FEATURES,
) -> str:
    """Make an invoice and sign it with the payee's key; fields stand in the order in which lnd writes them.

    ``key`` is made once by the caller, since deriving its public key costs more than signing.

    Raises:
        InvoiceError: a value does not fit its field, or there is not exactly one description.
    """
    if (description is None) == (description_hash is None):
        raise InvoiceError("an invoice needs a description or its hash, and not both")
    if network.encode() not in _NETWORKS:
        raise InvoiceError("the network is unknown")
    if not 0 <= timestamp < 1 << 5 * _TIMESTAMP_SYMBOLS:
        raise InvoiceError("the timestamp does not fit")
    fields = [
        bech32.from_int(timestamp).rjust(_TIMESTAMP_SYMBOLS, b"\0"),
        _field(_PAYMENT_HASH, _hash_symbols(payment_hash)),
        _field(_DESCRIPTION, bech32.from_bytes(description.encode()))
        if description is not None
        else _field(_DESCRIPTION_HASH, _hash_symbols(description_hash or b"")),
        _field(_MIN_FINAL_CLTV, _number_symbols(min_final_cltv)),
        _field(_EXPIRY, _number_symbols(expiry_s)),
        _field(_PAYMENT_SECRET, _hash_symbols(payment_secret)),
    ]
    if features:
        fields.append(_field(_FEATURES, bech32.from_int(features)))
    signed = b"".join(fields)
    prefix = b"ln" + network.encode() + _write_amount(amount_msat)
    digest = sha256(prefix + bech32.to_padded_bytes(signed)).digest()
    signature = bech32.from_bytes(key.sign_recoverable(digest, hasher=None))
    text = bech32.join(prefix, signed + signature)
    if len(text) > MAX_INVOICE_CHARACTERS:
        raise InvoiceError("the invoice is too long")
    return text.decode("ascii")


def with_signature(payment_request: str, signature: bytes) -> str:
    """Return a lower-case invoice with another signature (64 bytes and a recovery id), valid or not; for simulated faults.

    Raises:
        InvoiceError: there is no room for a signature, or it has not 65 bytes.
    """
    try:
        prefix, symbols = bech32.split(payment_request.encode())
    except ValueError as error:
        raise InvoiceError(f"the invoice is not bech32: {error}") from None
    replacement = bech32.from_bytes(signature)
    if len(replacement) != _SIGNATURE_SYMBOLS or len(symbols) < _SIGNATURE_SYMBOLS:
        raise InvoiceError("there is no room for the signature")
    return bech32.join(prefix, symbols[:-_SIGNATURE_SYMBOLS] + replacement).decode("ascii")


def _read_prefix(prefix: bytes) -> tuple[str, int | None]:
    if not prefix.startswith(b"ln"):
        raise InvoiceError("the invoice does not begin with ln")
    rest = prefix[2:]
    for network in _NETWORKS:
        amount = rest.removeprefix(network)
        if len(amount) < len(rest) and (not amount or amount[:1].isdigit()):
            return network.decode("ascii"), _read_amount(amount) if amount else None
    raise InvoiceError("the invoice's network is unknown")


def _read_amount(amount: bytes) -> int:
    digits, unit = (amount, b"") if amount.isdigit() else (amount[:-1], amount[-1:])
    # Twenty digits hold every valid amount, and bound the work on a hostile prefix.
    if not digits.isdigit() or len(digits) > 20 or digits.startswith(b"0"):  # noqa: PLR2004 - said above
        raise InvoiceError("the invoice's amount is malformed")
    number = int(digits)
    if not unit:
        msat = number * _MSAT_PER_BTC
    elif unit == b"p":
        msat, fraction = divmod(number, 10)
        if fraction:
            raise InvoiceError("the invoice's amount is a fraction of a millisatoshi")
    elif unit in _MSAT_PER_UNIT:
        msat = number * _MSAT_PER_UNIT[unit]
    else:
        raise InvoiceError("the invoice's amount has an unknown multiplier")
    if msat > _MAX_MSAT:
        raise InvoiceError("the invoice's amount is more than there is")
    return msat


def _write_amount(amount_msat: int | None) -> bytes:
    if amount_msat is None:
        return b""
    if not 0 < amount_msat <= _MAX_MSAT:
        raise InvoiceError("the amount must be above zero and no more than there is")
    for unit, msat in ((b"", _MSAT_PER_BTC), *_MSAT_PER_UNIT.items()):
        if amount_msat % msat == 0:
            return b"%d%b" % (amount_msat // msat, unit)
    return b"%dp" % (amount_msat * 10)


def _read_fields(signed: bytes) -> dict[int, bytes]:
    """Return the symbols of each field by its type; the first of each counts."""
    fields: dict[int, bytes] = {}
    at, end = _TIMESTAMP_SYMBOLS, len(signed)
    while at < end:
        if at + 3 > end:
            raise InvoiceError("the invoice ends inside a field")
        kind = signed[at]
        start = at + 3
        at = start + (signed[at + 1] << 5 | signed[at + 2])
        if at > end:
            raise InvoiceError("the invoice ends inside a field")
        if kind not in fields and _EXACT_LENGTH.get(kind, at - start) == at - start:
            fields[kind] = signed[start:at]
    return fields


def _read_bytes(symbols: bytes | None, name: str) -> bytes | None:
    if symbols is None:
        return None
    try:
        return bech32.to_bytes(symbols)
    except ValueError:
        raise InvoiceError(f"the invoice's {name} is malformed") from None


def _read_number(symbols: bytes | None, default: int, name: str) -> int:
    if symbols is None:
        return default
    if len(symbols) > _MAX_NUMBER_SYMBOLS:
        raise InvoiceError(f"the invoice's {name} is too large")
    return bech32.to_int(symbols)


def _read_description(symbols: bytes | None) -> str | None:
    raw = _read_bytes(symbols, "description")
    try:
        return raw if raw is None else raw.decode()
    except UnicodeDecodeError:
        raise InvoiceError("the invoice's description is not UTF-8") from None


def _check_signature(digest: bytes, signature: bytes, stated: bytes | None) -> str:
    """Return the payee's key as hex: the stated one, else the one that the signature reveals."""
    if signature[64] > _MAX_RECOVERY_ID:
        raise InvoiceError("the invoice's recovery id is out of range")
    payee = _read_bytes(stated, "payee")
    try:
        if payee is None:
            key = PublicKey.from_signature_and_message(signature, digest, hasher=None)
            return key.format().hex()
        der = cdata_to_der(recoverable_convert(deserialize_recoverable(signature)))
        holds = verify_signature(der, digest, payee, hasher=None)
    except Exception:  # noqa: BLE001 - coincurve raises plain Exception for a signature it cannot use
        holds = False
    if not holds or payee is None:
        raise InvoiceError("the invoice's signature does not hold")
    return payee.hex()


def _field(kind: int, symbols: bytes) -> bytes:
    if len(symbols) > _MAX_FIELD_SYMBOLS:
        raise InvoiceError("a field of the invoice is too long")
    return bytes((kind, len(symbols) >> 5, len(symbols) & 31)) + symbols


def _hash_symbols(value: bytes) -> bytes:
    if len(value) != 32:  # noqa: PLR2004 - SHA-256
        raise InvoiceError("hashes and secrets of an invoice are 32 bytes")
    return bech32.from_bytes(value)


def _number_symbols(number: int) -> bytes:
    if not 0 <= number < 1 << 5 * _MAX_NUMBER_SYMBOLS:
        raise InvoiceError("a number of the invoice does not fit")
    return bech32.from_int(number)

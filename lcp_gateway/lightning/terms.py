"""The hash that binds a quote's terms to its invoice.

The layout is the Lightning Compute Protocol's, version 2: a sequence of TLV records (type, BigSize length,
value) in ascending order of type, hashed with SHA-256. The invoice carries the hash as its description hash.
"""

from hashlib import sha256

CONTENT_TYPE = b"application/json; charset=utf-8"
"""Content type of every request in protocol version 2."""

CONTENT_ENCODING = b"identity"
"""Content encoding of every request in protocol version 2."""

_CONTENT_RECORDS = (
    b"\x35" + bytes([len(CONTENT_TYPE)]) + CONTENT_TYPE
    + b"\x36" + bytes([len(CONTENT_ENCODING)]) + CONTENT_ENCODING
)  # fmt: skip
_U16_MAX = 0xFFFF
_U32_MAX = 0xFFFF_FFFF
_U64_MAX = 0xFFFF_FFFF_FFFF_FFFF
_ONE_BYTE_BIGSIZE = 0xFD


def terms_hash(
    *,
    protocol_version: int,
    job_id: bytes,
    price_msat: int,
    quote_expiry: int,
    task_kind: str,
    request: bytes,
    model: str,
) -> bytes:
    """Hash a quote's terms; 32 bytes.

    ``quote_expiry`` is Unix seconds, ``task_kind`` the protocol's name of the task ("openai.chat_completions.v1"
    or "openai.responses.v1"), ``request`` the body exactly as it was sent.

    Raises:
        ValueError: a number does not fit the field it belongs in, or ``model`` is not valid Unicode.
    """
    return hash_terms(
        protocol_version=protocol_version,
        job_id=job_id,
        price_msat=price_msat,
        quote_expiry=quote_expiry,
        task_kind=task_kind,
        request_sha256=sha256(request).digest(),
        request_bytes=len(request),
        model=model,
    )


def hash_terms(
    *,
    protocol_version: int,
    job_id: bytes,
    price_msat: int,
    quote_expiry: int,
    task_kind: str,
    request_sha256: bytes,
    request_bytes: int,
    model: str,
) -> bytes:
    """Hash a quote's terms as ``terms_hash`` does, from the hash and the length of the request in place of its bytes."""
    if not 0 <= protocol_version <= _U16_MAX:
        raise ValueError("protocol_version must fit 16 bits")
    kind = task_kind.encode()
    name = model.encode()
    price = tu64(price_msat)
    expiry = tu64(quote_expiry)
    length = tu64(request_bytes)
    return sha256(
        b"".join((
            b"\x01\x02", protocol_version.to_bytes(2, "big"),
            b"\x02", bigsize(len(job_id)), job_id,
            b"\x03", bytes((len(price),)), price,
            b"\x04", bytes((len(expiry),)), expiry,
            b"\x14", bigsize(len(kind)), kind,
            b"\x32\x20", request_sha256,
            b"\x33\x20", sha256(b"\x01" + bigsize(len(name)) + name).digest(),
            b"\x34", bytes((len(length),)), length,
            _CONTENT_RECORDS,
        ))
    ).digest()  # fmt: skip


def tu64(number: int) -> bytes:
    """Encode an unsigned 64-bit number without its leading zero bytes; zero is empty."""
    if not 0 <= number <= _U64_MAX:
        raise ValueError("a number in the terms must fit 64 bits")
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def bigsize(number: int) -> bytes:
    """Encode a length as BOLT 1 does, in the fewest bytes."""
    if number < _ONE_BYTE_BIGSIZE:
        return bytes((number,))
    if number <= _U16_MAX:
        return b"\xfd" + number.to_bytes(2, "big")
    if number <= _U32_MAX:
        return b"\xfe" + number.to_bytes(4, "big")
    return b"\xff" + number.to_bytes(8, "big")

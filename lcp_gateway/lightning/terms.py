"""The hash that binds a quote's terms to its invoice, in versions 2 and 3 of the Lightning Compute Protocol.

Terms are a sequence of TLV records (type, BigSize length, value) in ascending order of type, hashed with SHA-256. The
invoice carries the hash as its description hash.
"""

from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from types import MappingProxyType
from typing import Final

from lcp_gateway.values import value

CONTENT_TYPE: Final = "application/json; charset=utf-8"
"""Content type of every request of the OpenAI kinds."""

CONTENT_ENCODING: Final = "identity"
"""Content encoding of every request of the OpenAI kinds."""

PROTOCOL_VERSIONS: Final = frozenset({2, 3})
"""The versions whose terms are known here."""

_U16_MAX = 0xFFFF
_U32_MAX = 0xFFFF_FFFF
_U64_MAX = 0xFFFF_FFFF_FFFF_FFFF
_ONE_BYTE_BIGSIZE = 0xFD
_HASH_BYTES = 32
# The types of the records that differ: price and expiry stand before the kind in version 2, after it in version 3.
_PRICE_TYPES: Final[Mapping[int, tuple[int, int]]] = MappingProxyType({2: (3, 4), 3: (30, 31)})


@value
class Terms:
    """What both sides have agreed on. ``quote_expiry`` is Unix seconds; hashes and ids are 32 bytes.

    ``task_kind`` is version 3's method ("openai.chat_completions.v1", for example). ``request_bytes`` is the length of the
    request. ``params_sha256`` is that of the request's params as they were sent, of no bytes where there were none.
    """

    protocol_version: int
    job_id: bytes
    price_msat: int
    quote_expiry: int
    task_kind: str
    request_sha256: bytes
    request_bytes: int
    params_sha256: bytes
    content_type: str = CONTENT_TYPE
    content_encoding: str = CONTENT_ENCODING
    response_content_type: str | None = None
    """Version 3 only, and only together with ``response_content_encoding``: both are the quote's."""
    response_content_encoding: str | None = None


def hash_terms(protocol: int, terms: Terms) -> bytes:
    """Hash terms as version ``protocol`` lays them out; 32 bytes. ``terms.protocol_version`` is one of the terms itself.

    Raises:
        ValueError: a term does not fit the record it belongs in, or ``protocol`` is unknown.
    """
    if protocol not in PROTOCOL_VERSIONS:
        raise ValueError(f"the terms of protocol version {protocol} are not known")
    if not 0 <= terms.protocol_version <= _U16_MAX:
        raise ValueError("protocol_version (type 1) must fit 16 bits")
    job_id, request_sha256, params_sha256 = terms.job_id, terms.request_sha256, terms.params_sha256
    if not len(job_id) == len(request_sha256) == len(params_sha256) == _HASH_BYTES:
        raise ValueError("job_id (type 2) and the hashes (types 50 and 51) must be 32 bytes each")
    # Written out in place of a function a record: it is made for every purchase.
    price, expiry, length = tu64(terms.price_msat), tu64(terms.quote_expiry), tu64(terms.request_bytes)
    price_type, expiry_type = _PRICE_TYPES[protocol]
    prices = bytes((price_type, len(price))) + price + bytes((expiry_type, len(expiry))) + expiry
    kind = _text(20, "task_kind", terms.task_kind)
    records = b"".join((
        b"\x01\x02", terms.protocol_version.to_bytes(2, "big"),
        b"\x02\x20", job_id,
        *((prices, kind) if protocol == 2 else (kind, prices)),  # noqa: PLR2004 - a version
        b"\x32\x20", request_sha256,
        b"\x33\x20", params_sha256,
        b"\x34", bytes((len(length),)), length,
        _text(53, "content_type", terms.content_type),
        _text(54, "content_encoding", terms.content_encoding),
        *_response(protocol, terms),
    ))  # fmt: skip
    return sha256(records).digest()


def _response(protocol: int, terms: Terms) -> tuple[bytes, ...]:
    content_type, content_encoding = terms.response_content_type, terms.response_content_encoding
    if content_type is None and content_encoding is None:
        return ()
    if content_type is None or content_encoding is None:
        raise ValueError("response_content_type (type 55) and response_content_encoding (type 56) come together")
    if protocol == 2:  # noqa: PLR2004 - a version
        raise ValueError("response_content_type (type 55) is not part of the terms of version 2")
    return _text(55, "response_content_type", content_type), _text(56, "response_content_encoding", content_encoding)


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
    """Hash the terms of a request of an OpenAI kind, whose body is ``request``; raises as ``hash_terms`` does."""
    terms = Terms(
        protocol_version=protocol_version,
        job_id=job_id,
        price_msat=price_msat,
        quote_expiry=quote_expiry,
        task_kind=task_kind,
        request_sha256=sha256(request).digest(),
        request_bytes=len(request),
        params_sha256=hash_model_params(model),
    )
    return hash_terms(protocol_version, terms)


def model_params(model: str) -> bytes:
    """Return the params of the OpenAI kinds: one record of type 1, the model.

    Raises:
        ValueError: ``model`` is not valid Unicode.
    """
    return _record(1, model.encode())


@lru_cache(maxsize=256)
def hash_model_params(model: str) -> bytes:
    """Hash the params of a model, of which few are bought; raises as ``model_params`` does."""
    return sha256(model_params(model)).digest()


def _record(kind: int, value: bytes) -> bytes:
    # Every type of the terms is below 0xfd, so that it is one byte.
    return bytes((kind,)) + bigsize(len(value)) + value


# Nearly all terms have the same types and kinds.
@lru_cache(maxsize=64)
def _text(kind: int, name: str, value: str) -> bytes:
    if not value:
        raise ValueError(f"{name} (type {kind}) must not be empty")
    encoded = value.encode()
    if len(encoded) < _ONE_BYTE_BIGSIZE:
        # As nearly all are.
        return bytes((kind, len(encoded))) + encoded
    return _record(kind, encoded)


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

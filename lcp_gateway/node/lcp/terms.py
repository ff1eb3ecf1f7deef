"""The terms of a quote: their canonical bytes in both versions, and the hash that the invoice commits to."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from lcp_gateway.node.lcp.layout import Field, Layout
from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.lcp.tlv import B32, TEXT, TU64, U16, WireError, read_records

V02: Final = Protocol.V02
V03: Final = Protocol.V03


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What both sides have agreed on. ``quote_expiry`` is Unix seconds; hashes and ids are 32 bytes.

    ``params_sha256`` is ``hash_params``; ``request_bytes`` is the length of the input.
    """

    protocol_version: int
    job_id: bytes
    price_msat: int
    quote_expiry: int
    task_kind: str
    request_sha256: bytes
    params_sha256: bytes
    request_bytes: int
    content_type: str
    content_encoding: str
    response_content_type: str | None = None
    """0.3 only: comes with ``response_content_encoding`` or not at all."""
    response_content_encoding: str | None = None


def _check(terms: Terms) -> None:
    if (terms.response_content_type is None) != (terms.response_content_encoding is None):
        raise WireError("terms: response_content_type (type 55) and response_content_encoding (type 56) come together")


_ROWS: Final = (
    Field(1, "protocol_version", U16),
    Field(2, "job_id", B32),
    Field(3, "price_msat", TU64, only=V02),
    Field(4, "quote_expiry", TU64, only=V02),
    Field(20, "task_kind", TEXT, filled=True),
    Field(30, "price_msat", TU64, only=V03),
    Field(31, "quote_expiry", TU64, only=V03),
    Field(50, "request_sha256", B32),
    Field(51, "params_sha256", B32),
    Field(52, "request_bytes", TU64),
    Field(53, "content_type", TEXT, filled=True),
    Field(54, "content_encoding", TEXT, filled=True),
    Field(55, "response_content_type", TEXT, required=False, filled=True, only=V03),
    Field(56, "response_content_encoding", TEXT, required=False, filled=True, only=V03),
)
_LAYOUTS: Final = {protocol: Layout("terms", Terms, _ROWS, protocol, check=_check) for protocol in Protocol}


def hash_params(protocol: Protocol, params: bytes | None) -> bytes:
    """Hash a request's params; absent and empty ones hash alike.

    Raises:
        WireError: version 0.2, and they are no TLV stream. (0.3 does not look into them.)
    """
    if params and protocol is V02:
        # Version 0.2 hashes the params decoded and encoded again: the same bytes, as each record has one encoding only.
        read_records(params)
    return sha256(params or b"").digest()


def encode_terms(protocol: Protocol, terms: Terms) -> bytes:
    """Return the canonical bytes of the terms.

    Raises:
        WireError: a term has no valid bytes in that version.
    """
    return _LAYOUTS[protocol].write(terms)


def hash_terms(protocol: Protocol, terms: Terms) -> bytes:
    """Return the terms hash, 32 bytes.

    Raises:
        WireError: as ``encode_terms`` does.
    """
    return sha256(encode_terms(protocol, terms)).digest()

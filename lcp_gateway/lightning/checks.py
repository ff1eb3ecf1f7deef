"""Checks of a quote before it is paid: its terms are for this task, and its invoice is for these terms.

Everything that can be recomputed is recomputed. The rules are those of the daemon, plus two that it does not check: the
network and the terms themselves.
"""

import enum
from collections.abc import Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final

from lcp_gateway.lightning.bolt11 import Invoice, InvoiceError, decode
from lcp_gateway.lightning.terms import (
    CONTENT_ENCODING,
    CONTENT_TYPE,
    PROTOCOL_VERSIONS,
    Terms,
    hash_model_params,
    hash_terms,
)
from lcp_gateway.purchase.errors import Refused
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.quote import Quote

EXPIRY_SLACK_S: Final = 5
"""How much longer than its quote an invoice may be payable, as the protocol's own daemon allows."""


class Mismatch(enum.StrEnum):
    """Why a quote is not valid. The value is fit for a metric's label."""

    PROTOCOL_VERSION = "protocol_version"
    TERMS_HASH = "terms_hash"
    MALFORMED = "malformed"
    SIGNATURE = "signature"
    NETWORK = "network"
    PAYEE = "payee"
    AMOUNT = "amount"
    DESCRIPTION_HASH = "description_hash"
    EXPIRY = "expiry"
    EXPIRED = "expired"


MISMATCH_TEXTS: Final[Mapping[Mismatch, str]] = MappingProxyType(
    {
        Mismatch.PROTOCOL_VERSION: "its protocol version is unknown",
        Mismatch.TERMS_HASH: "its terms hash is not that of this request and these terms",
        Mismatch.MALFORMED: "its invoice cannot be read",
        Mismatch.SIGNATURE: "its invoice's signature does not hold",
        Mismatch.NETWORK: "its invoice is for another network",
        Mismatch.PAYEE: "its invoice pays another node",
        Mismatch.AMOUNT: "its invoice asks another amount than the price",
        Mismatch.DESCRIPTION_HASH: "its invoice is for other terms",
        Mismatch.EXPIRY: "its invoice stays payable after the quote has ended",
        Mismatch.EXPIRED: "its invoice has expired",
    }
)
"""Each mismatch as text, to follow "the quote was refused: "."""


class QuoteMismatch(Refused):
    """A quote failed a check; nothing was paid. ``reason`` names the check."""

    code = "quote_mismatch"

    def __init__(self, reason: Mismatch, *, quote: Quote) -> None:
        super().__init__(f"the quote was refused: {MISMATCH_TEXTS[reason]}; nothing was paid", quote=quote)
        self.reason = reason


def check_quote(task: Task, quote: Quote, now: datetime, *, network: str | None = None) -> Invoice:
    """Check a quote against the task's own bytes, and its invoice against the quote; return the invoice.

    ``now`` is aware UTC; ``network`` is an invoice's prefix ("bc", "tb", "tbs", "bcrt", "sb"), or None to accept any.

    Raises:
        QuoteMismatch: something does not fit; nothing may be paid.
    """
    quote_expiry = int(quote.expires_at.timestamp())
    if quote.protocol_version not in PROTOCOL_VERSIONS:
        raise QuoteMismatch(Mismatch.PROTOCOL_VERSION, quote=quote)
    recomputed = recompute_terms_hash(quote, task.kind, task.model, task.body_sha256, len(task.body))
    if recomputed != quote.terms_hash:
        raise QuoteMismatch(Mismatch.TERMS_HASH, quote=quote)
    try:
        invoice = decode(quote.payment_request)
    except InvoiceError as error:
        raise QuoteMismatch(mismatch_of(error), quote=quote) from None
    for mismatch in mismatches(
        invoice,
        payee=quote.peer_id,
        price_msat=quote.price_msat,
        terms_hash=recomputed,
        quote_expiry=quote_expiry,
        network=network,
    ):
        raise QuoteMismatch(mismatch, quote=quote)
    if now.timestamp() >= invoice.expires_at:
        raise QuoteMismatch(Mismatch.EXPIRED, quote=quote)
    return invoice


def recompute_terms_hash(
    quote: Quote, kind: TaskKind, model: str, request_sha256: bytes, request_bytes: int
) -> bytes | None:
    """Return the hash of a quote's terms for a request; None where they have none, since a term does not fit its field."""
    try:
        terms = Terms(
            quote.protocol_version,
            quote.job_id,
            quote.price_msat,
            int(quote.expires_at.timestamp()),
            kind,
            request_sha256,
            request_bytes,
            hash_model_params(model),
            CONTENT_TYPE,
            CONTENT_ENCODING,
            quote.response_content_type,
            quote.response_content_encoding,
        )
        return hash_terms(quote.protocol_version, terms)
    except ValueError:
        return None


def mismatches(
    invoice: Invoice,
    *,
    payee: str,
    price_msat: int,
    terms_hash: bytes | None,
    quote_expiry: int,
    network: str | None = None,
) -> Iterator[Mismatch]:
    """Yield each check that an invoice fails against its terms, at any time; none when it fits.

    ``payee`` is 66 lower-case hex digits, ``quote_expiry`` Unix seconds, ``network`` a prefix or None for any. No invoice
    fits a ``terms_hash`` of None.
    """
    if network is not None and invoice.network != network:
        yield Mismatch.NETWORK
    if invoice.payee != payee:
        yield Mismatch.PAYEE
    # An invoice without an amount lets the payer choose, and the daemon has no amount to pay.
    if invoice.amount_msat != price_msat:
        yield Mismatch.AMOUNT
    if terms_hash is None or invoice.description_hash != terms_hash:
        yield Mismatch.DESCRIPTION_HASH
    if invoice.expires_at > quote_expiry + EXPIRY_SLACK_S:
        yield Mismatch.EXPIRY


def mismatch_of(error: InvoiceError) -> Mismatch:
    """Return whether an invoice's signature fails, or it cannot be read at all."""
    return Mismatch.SIGNATURE if "signature does not hold" in str(error) else Mismatch.MALFORMED

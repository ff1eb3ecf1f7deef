"""The verification of a receipt, without asking anybody: all that can be recomputed is.

Whoever has the request or the result besides can hold it against the receipt's hashes.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType

from lcp_gateway.lightning.bolt11 import InvoiceError, decode
from lcp_gateway.lightning.checks import PROTOCOL_VERSIONS, WORDS, Mismatch, mismatch_of, mismatches
from lcp_gateway.lightning.receipt_form import Receipt, ReceiptError, document, read
from lcp_gateway.lightning.terms import CONTENT_ENCODING, CONTENT_TYPE
from lcp_gateway.purchase.states import State, Verdict

__all__ = [
    "Finding",
    "Outcome",
    "Receipt",
    "ReceiptError",
    "Subject",
    "document",
    "holds",
    "read",
    "verify",
]

_ONE_BYTE_BIGSIZE = 0xFD
_TWO_BYTE_BIGSIZE = 0x1_0000


class Subject(enum.StrEnum):
    """What a finding is about."""

    SHAPE = "shape"
    VERDICT = "verdict"
    TERMS_HASH = "terms_hash"
    INVOICE = "invoice"
    PAYEE = "payee"
    AMOUNT = "amount"
    DESCRIPTION_HASH = "description_hash"
    EXPIRY = "expiry"
    PAYMENT_HASH = "payment_hash"
    PREIMAGE = "preimage"
    REQUEST = "request"
    RESULT = "result"


class Outcome(enum.StrEnum):
    """What a check came to."""

    OK = "ok"
    FAILED = "failed"
    UNPROVEN = "unproven"
    """The receipt may be right, and holds nothing that would show it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check, in words for people."""

    subject: Subject
    outcome: Outcome
    words: str


_IN_ORDER = MappingProxyType(
    {
        Mismatch.PAYEE: (Subject.PAYEE, "the invoice pays the peer"),
        Mismatch.AMOUNT: (Subject.AMOUNT, "the invoice asks exactly the price"),
        Mismatch.DESCRIPTION_HASH: (Subject.DESCRIPTION_HASH, "the invoice is for these terms"),
        Mismatch.EXPIRY: (Subject.EXPIRY, "the invoice ends with the quote"),
    }
)


def verify(
    fields: Mapping[str, object], *, request: bytes | None = None, result: bytes | None = None
) -> list[Finding]:
    """Recompute everything in a receipt that can be recomputed; never raises for what the document holds.

    ``request`` and ``result`` are the bytes themselves, for whoever has them.
    """
    try:
        receipt = read(fields)
    except ReceiptError as error:
        return [Finding(Subject.SHAPE, Outcome.FAILED, str(error))]
    findings = [Finding(Subject.SHAPE, Outcome.OK, "the document is a receipt")]
    findings += _about_verdict(receipt, fields.get("verdict"))
    findings += _about_terms(receipt)
    if request is not None:
        right = (sha256(request).digest(), len(request)) == (
            receipt.request_sha256,
            receipt.request_bytes,
        )
        findings.append(
            _finding(
                Subject.REQUEST, right, "these are the request's bytes", "it is another request"
            )
        )
    findings += _about_result(receipt, result)
    return findings


def holds(findings: Sequence[Finding]) -> bool:
    """Tell whether nothing in a receipt was found to be wrong."""
    return all(finding.outcome is not Outcome.FAILED for finding in findings)


def _about_verdict(receipt: Receipt, stated: object) -> Iterator[Finding]:
    yield _finding(
        Subject.VERDICT,
        stated == receipt.verdict.value,
        f"a purchase that is {receipt.state} has the verdict {receipt.verdict}",
        f"the verdict of a purchase that is {receipt.state} is {receipt.verdict}",
    )


def _about_terms(receipt: Receipt) -> Iterator[Finding]:
    quote = receipt.quote
    recomputed = _terms_hash(receipt)
    known = quote.protocol_version in PROTOCOL_VERSIONS
    yield _finding(
        Subject.TERMS_HASH,
        known and recomputed == quote.terms_hash,
        "the terms hash is that of these terms and this request",
        "the terms hash is not that of these terms and this request"
        if known
        else f"terms of protocol version {quote.protocol_version} cannot be recomputed",
    )
    try:
        invoice = decode(quote.payment_request)
    except InvoiceError as error:
        words = WORDS[mismatch_of(error)].removeprefix("its ")
        yield Finding(Subject.INVOICE, Outcome.FAILED, f"the {words}")
        return
    yield Finding(
        Subject.INVOICE, Outcome.OK, f"the invoice is signed, on the network {invoice.network}"
    )
    found = set(
        mismatches(
            invoice,
            payee=quote.peer_id,
            price_msat=quote.price_msat,
            terms_hash=recomputed,
            quote_expiry=int(quote.expires_at.timestamp()),
        )
    )
    for mismatch, (subject, words) in _IN_ORDER.items():
        wrong = "the " + WORDS[mismatch].removeprefix("its ")
        yield _finding(subject, mismatch not in found, words, wrong)
    if receipt.payment_hash is not None:
        yield _finding(
            Subject.PAYMENT_HASH,
            receipt.payment_hash == invoice.payment_hash,
            "the payment hash is the invoice's",
            "the payment hash is not the invoice's",
        )
    yield from _about_preimage(receipt, invoice.payment_hash)


def _about_preimage(receipt: Receipt, payment_hash: bytes) -> Iterator[Finding]:
    if receipt.preimage is None:
        if receipt.verdict is Verdict.SETTLED:
            words = "there is no preimage: that the invoice was paid is the gateway's word"
            yield Finding(Subject.PREIMAGE, Outcome.UNPROVEN, words)
    elif sha256(receipt.preimage).digest() != payment_hash:
        yield Finding(
            Subject.PREIMAGE, Outcome.FAILED, "the preimage is not that of the payment hash"
        )
    elif receipt.verdict is Verdict.SETTLED:
        yield Finding(Subject.PREIMAGE, Outcome.OK, "the preimage proves that the invoice was paid")
    else:
        yield Finding(
            Subject.PREIMAGE,
            Outcome.FAILED,
            f"the preimage proves a payment, and the verdict is {receipt.verdict}",
        )


def _about_result(receipt: Receipt, result: bytes | None) -> Iterator[Finding]:
    stated = (receipt.result_sha256, receipt.result_bytes)
    if receipt.state is State.DELIVERED and None in stated:
        yield Finding(
            Subject.RESULT, Outcome.FAILED, "it was delivered, and the result is not described"
        )
    elif result is not None:
        yield _finding(
            Subject.RESULT,
            (sha256(result).digest(), len(result)) == stated,
            "these are the result's bytes",
            "it is another result",
        )


def _finding(subject: Subject, right: bool, words: str, otherwise: str) -> Finding:
    return Finding(
        subject,
        Outcome.OK if right else Outcome.FAILED,
        words if right else otherwise,
    )


def _terms_hash(receipt: Receipt) -> bytes:
    """Hash the terms as ``terms.terms_hash`` does, from the request's hash and length in place of its bytes."""
    quote = receipt.quote
    return sha256(
        b"".join(
            (
                # A version of more than 16 bits is none that is known, whatever its hash.
                _record(1, (quote.protocol_version & 0xFFFF).to_bytes(2, "big")),
                _record(2, quote.job_id),
                _record(3, _shortest(quote.price_msat)),
                _record(4, _shortest(int(quote.expires_at.timestamp()))),
                _record(20, receipt.kind.value.encode()),
                _record(50, receipt.request_sha256),
                _record(51, sha256(_record(1, receipt.model.encode())).digest()),
                _record(52, _shortest(receipt.request_bytes)),
                _record(53, CONTENT_TYPE),
                _record(54, CONTENT_ENCODING),
            )
        )
    ).digest()


def _record(kind: int, value: bytes) -> bytes:
    """Write a TLV record whose type is below 253."""
    length = len(value)
    if length < _ONE_BYTE_BIGSIZE:
        return bytes((kind, length)) + value
    if length < _TWO_BYTE_BIGSIZE:
        return bytes((kind, 0xFD)) + length.to_bytes(2, "big") + value
    return bytes((kind, 0xFE)) + length.to_bytes(4, "big") + value


def _shortest(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")

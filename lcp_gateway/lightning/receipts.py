"""The receipt of one purchase: its JSON document, and its verification by recomputing all that can be recomputed.

A receipt holds no prompt and no output: hashes and sizes stand for them. With the request or the result besides, their
hashes are compared too.
"""

import enum
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from types import MappingProxyType
from typing import Final, TypeVar

from lcp_gateway.lightning.bolt11 import InvoiceError, decode
from lcp_gateway.lightning.checks import MISMATCH_TEXTS, Mismatch, mismatch_of, mismatches, recompute_terms_hash
from lcp_gateway.lightning.terms import PROTOCOL_VERSIONS
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import VERDICTS, State, Verdict

OBJECT: Final = "lcp.receipt"
VERSION: Final = 1

_U64_MAX = 0xFFFF_FFFF_FFFF_FFFF
_LAST_SECOND = 253_402_300_799
_MAX_SHOWN_CHARS = 40
_PEER_ID = re.compile(r"0[23][0-9a-f]{64}")
_HASH = re.compile(r"[0-9a-f]{64}")
_FIELDS = frozenset(
    {
        *("object", "version", "job_id", "peer_id", "model", "task_kind", "price_msat", "fee_msat"),
        *("terms", "terms_hash", "payment_request", "payment_hash", "preimage"),
        *("result_sha256", "result_bytes", "state", "verdict", "times"),
    }
)
_TERMS_FIELDS = frozenset({"protocol_version", "quote_expiry", "params", "request_sha256", "request_bytes"})
# In version 3 only, and there only where the quote states them.
_RESPONSE_FIELDS = frozenset({"response_content_type", "response_content_encoding"})

_Choice = TypeVar("_Choice", bound=enum.StrEnum)


class ReceiptError(ValueError):
    """A document is not a receipt; the message names the field."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """One purchase.

    Hashes and the preimage are 32 bytes, unknown fields None. ``times`` holds when each state was reached, in aware UTC.
    """

    quote: Quote
    kind: TaskKind
    model: str
    request_sha256: bytes
    request_bytes: int
    state: State
    times: Mapping[State, datetime]
    payment_hash: bytes | None = None
    preimage: bytes | None = None
    fee_msat: Msat | None = None
    result_sha256: bytes | None = None
    result_bytes: int | None = None

    @property
    def verdict(self) -> Verdict:
        """The verdict on the money."""
        return VERDICTS[self.state]


def document(receipt: Receipt) -> dict[str, object]:
    """Return the receipt as a JSON object: hashes as lower-case hex, amounts in msat, times in RFC 3339 and UTC."""
    quote = receipt.quote
    terms: dict[str, object] = {
        "protocol_version": quote.protocol_version,
        "quote_expiry": int(quote.expires_at.timestamp()),
        "params": {"model": receipt.model},
        "request_sha256": receipt.request_sha256.hex(),
        "request_bytes": receipt.request_bytes,
    }
    if quote.response_content_type is not None:
        terms["response_content_type"] = quote.response_content_type
        terms["response_content_encoding"] = quote.response_content_encoding
    return {
        "object": OBJECT,
        "version": VERSION,
        "job_id": quote.job_id.hex(),
        "peer_id": quote.peer_id,
        "model": receipt.model,
        "task_kind": receipt.kind.value,
        "price_msat": quote.price_msat,
        "fee_msat": receipt.fee_msat,
        "terms": terms,
        "terms_hash": quote.terms_hash.hex(),
        "payment_request": quote.payment_request,
        "payment_hash": _hex(receipt.payment_hash),
        "preimage": _hex(receipt.preimage),
        "result_sha256": _hex(receipt.result_sha256),
        "result_bytes": receipt.result_bytes,
        "state": receipt.state.value,
        "verdict": receipt.verdict.value,
        "times": {
            state.value: at.astimezone(UTC).isoformat().replace("+00:00", "Z") for state, at in receipt.times.items()
        },
    }


def read_receipt(fields: Mapping[str, object]) -> Receipt:
    """Read a receipt's document strictly; the opposite of ``document``.

    Raises:
        ReceiptError: a field is missing, unknown or malformed.
    """
    if fields.get("object") != OBJECT:
        raise ReceiptError(f"object: this is no {OBJECT}")
    if type(version := fields.get("version")) is not int or version != VERSION:
        raise ReceiptError(f"version: only version {VERSION} is known")
    _check_names(fields, _FIELDS, "")
    terms = _object(fields, "terms")
    states_response = not _RESPONSE_FIELDS.isdisjoint(terms)
    _check_names(terms, _TERMS_FIELDS | _RESPONSE_FIELDS if states_response else _TERMS_FIELDS, "terms.")
    params = _object(terms, "params")
    model = _text(fields, "model")
    if dict(params) != {"model": model}:
        raise ReceiptError("terms.params: it must hold the model and nothing else")
    if not _PEER_ID.fullmatch(peer_id := _text(fields, "peer_id")):
        raise ReceiptError("peer_id: it must be a compressed key in lower-case hex")
    fee_msat = _optional_number(fields, "fee_msat")
    return Receipt(
        quote=Quote(
            peer_id=peer_id,
            job_id=_hash(fields, "job_id"),
            price_msat=Msat(_number(fields, "price_msat")),
            expires_at=_unix_time(terms, "quote_expiry"),
            terms_hash=_hash(fields, "terms_hash"),
            payment_request=_text(fields, "payment_request"),
            protocol_version=_number(terms, "protocol_version"),
            response_content_type=_text(terms, "response_content_type") if states_response else None,
            response_content_encoding=_text(terms, "response_content_encoding") if states_response else None,
        ),
        kind=_choice(TaskKind, fields.get("task_kind"), "task_kind"),
        model=model,
        request_sha256=_hash(terms, "request_sha256"),
        request_bytes=_number(terms, "request_bytes"),
        state=_choice(State, fields.get("state"), "state"),
        times={
            _choice(State, state, "times"): _time(at, f"times.{state}")
            for state, at in _object(fields, "times").items()
        },
        payment_hash=_optional_hash(fields, "payment_hash"),
        preimage=_optional_hash(fields, "preimage"),
        fee_msat=None if fee_msat is None else Msat(fee_msat),
        result_sha256=_optional_hash(fields, "result_sha256"),
        result_bytes=_optional_number(fields, "result_bytes"),
    )


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def _check_names(fields: Mapping[str, object], expected: frozenset[str], where: str) -> None:
    for name in sorted(expected - fields.keys()):
        raise ReceiptError(f"{where}{name}: it is missing")
    for name in fields.keys() - expected:
        raise ReceiptError(f"{where}{str(name)[:_MAX_SHOWN_CHARS]!r}: it does not belong here")


def _object(fields: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = fields.get(name)
    if not isinstance(value, Mapping):
        raise ReceiptError(f"{name}: it must be an object")
    return value


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ReceiptError(f"{name}: it must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ReceiptError(f"{name}: it is not valid Unicode") from None
    return value


def _number(fields: Mapping[str, object], name: str) -> int:
    value = fields.get(name)
    # A bool is an int to Python, and 1.0 equals 1; neither is a number of the terms.
    if type(value) is not int or not 0 <= value <= _U64_MAX:
        raise ReceiptError(f"{name}: it must be a whole number of at most 64 bits")
    return value


def _optional_number(fields: Mapping[str, object], name: str) -> int | None:
    return None if fields.get(name) is None else _number(fields, name)


def _hash(fields: Mapping[str, object], name: str) -> bytes:
    value = fields.get(name)
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ReceiptError(f"{name}: it must be 32 bytes in lower-case hex")
    return bytes.fromhex(value)


def _optional_hash(fields: Mapping[str, object], name: str) -> bytes | None:
    return None if fields.get(name) is None else _hash(fields, name)


def _choice(words: type[_Choice], value: object, name: str) -> _Choice:
    try:
        return words(value if isinstance(value, str) else "")
    except ValueError:
        raise ReceiptError(f"{name}: it must be one of {', '.join(words)}") from None


def _unix_time(fields: Mapping[str, object], name: str) -> datetime:
    seconds = _number(fields, name)
    if seconds > _LAST_SECOND:
        raise ReceiptError(f"{name}: it is beyond the calendar")
    return datetime.fromtimestamp(seconds, UTC)


def _time(value: object, name: str) -> datetime:
    try:
        at = datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        raise ReceiptError(f"{name}: it must be a time in RFC 3339") from None
    if at.tzinfo is None:
        raise ReceiptError(f"{name}: it must say its time zone")
    return at


class FindingSubject(enum.StrEnum):
    """The subject of a finding."""

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


class FindingOutcome(enum.StrEnum):
    """The outcome of a check."""

    OK = "ok"
    FAILED = "failed"
    UNPROVEN = "unproven"
    """The receipt may be right, and contains no proof."""


@dataclass(frozen=True, slots=True)
class ReceiptFinding:
    """The outcome of one check, with a sentence for the reader."""

    subject: FindingSubject
    outcome: FindingOutcome
    words: str


_INVOICE_FINDINGS = MappingProxyType(
    {
        Mismatch.PAYEE: (FindingSubject.PAYEE, "the invoice pays the peer"),
        Mismatch.AMOUNT: (FindingSubject.AMOUNT, "the invoice asks exactly the price"),
        Mismatch.DESCRIPTION_HASH: (FindingSubject.DESCRIPTION_HASH, "the invoice is for these terms"),
        Mismatch.EXPIRY: (FindingSubject.EXPIRY, "the invoice ends with the quote"),
    }
)


def verify_receipt(
    fields: Mapping[str, object], *, request: bytes | None = None, result: bytes | None = None
) -> list[ReceiptFinding]:
    """Recompute everything in a receipt that can be recomputed; never raises, whatever the document holds.

    ``request`` and ``result`` are the bytes themselves, where the caller has them.
    """
    try:
        receipt = read_receipt(fields)
    except ReceiptError as error:
        return [ReceiptFinding(FindingSubject.SHAPE, FindingOutcome.FAILED, str(error))]
    findings = [ReceiptFinding(FindingSubject.SHAPE, FindingOutcome.OK, "the document is a receipt")]
    findings += _about_verdict(receipt, fields.get("verdict"))
    findings += _about_terms(receipt)
    if request is not None:
        right = (sha256(request).digest(), len(request)) == (receipt.request_sha256, receipt.request_bytes)
        findings.append(
            _finding(FindingSubject.REQUEST, right, "these are the request's bytes", "it is another request")
        )
    findings += _about_result(receipt, result)
    return findings


def is_sound(findings: Sequence[ReceiptFinding]) -> bool:
    """Return whether no check of a receipt failed."""
    return all(finding.outcome is not FindingOutcome.FAILED for finding in findings)


def _about_verdict(receipt: Receipt, stated: object) -> Iterator[ReceiptFinding]:
    yield _finding(
        FindingSubject.VERDICT,
        stated == receipt.verdict.value,
        f"a purchase that is {receipt.state} has the verdict {receipt.verdict}",
        f"the verdict of a purchase that is {receipt.state} is {receipt.verdict}",
    )


def _about_terms(receipt: Receipt) -> Iterator[ReceiptFinding]:
    quote = receipt.quote
    recomputed = recompute_terms_hash(quote, receipt.kind, receipt.model, receipt.request_sha256, receipt.request_bytes)
    known = quote.protocol_version in PROTOCOL_VERSIONS
    yield _finding(
        FindingSubject.TERMS_HASH,
        recomputed == quote.terms_hash,
        "the terms hash is that of these terms and this request",
        "the terms hash is not that of these terms and this request"
        if known
        else f"terms of protocol version {quote.protocol_version} cannot be recomputed",
    )
    try:
        invoice = decode(quote.payment_request)
    except InvoiceError as error:
        words = MISMATCH_TEXTS[mismatch_of(error)].removeprefix("its ")
        yield ReceiptFinding(FindingSubject.INVOICE, FindingOutcome.FAILED, f"the {words}")
        return
    yield ReceiptFinding(
        FindingSubject.INVOICE, FindingOutcome.OK, f"the invoice is signed, on the network {invoice.network}"
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
    for mismatch, (subject, words) in _INVOICE_FINDINGS.items():
        wrong = "the " + MISMATCH_TEXTS[mismatch].removeprefix("its ")
        yield _finding(subject, mismatch not in found, words, wrong)
    if receipt.payment_hash is not None:
        yield _finding(
            FindingSubject.PAYMENT_HASH,
            receipt.payment_hash == invoice.payment_hash,
            "the payment hash is the invoice's",
            "the payment hash is not the invoice's",
        )
    yield from _about_preimage(receipt, invoice.payment_hash)


def _about_preimage(receipt: Receipt, payment_hash: bytes) -> Iterator[ReceiptFinding]:
    if receipt.preimage is None:
        if receipt.verdict is Verdict.SETTLED:
            words = "there is no preimage: only the gateway states that the invoice was paid"
            yield ReceiptFinding(FindingSubject.PREIMAGE, FindingOutcome.UNPROVEN, words)
    elif sha256(receipt.preimage).digest() != payment_hash:
        yield ReceiptFinding(
            FindingSubject.PREIMAGE, FindingOutcome.FAILED, "the preimage is not that of the payment hash"
        )
    elif receipt.verdict is Verdict.SETTLED:
        yield ReceiptFinding(
            FindingSubject.PREIMAGE, FindingOutcome.OK, "the preimage proves that the invoice was paid"
        )
    else:
        yield ReceiptFinding(
            FindingSubject.PREIMAGE,
            FindingOutcome.FAILED,
            f"the preimage proves a payment, and the verdict is {receipt.verdict}",
        )


def _about_result(receipt: Receipt, result: bytes | None) -> Iterator[ReceiptFinding]:
    stated = (receipt.result_sha256, receipt.result_bytes)
    if receipt.state is State.DELIVERED and None in stated:
        yield ReceiptFinding(
            FindingSubject.RESULT, FindingOutcome.FAILED, "it was delivered, and the result is not described"
        )
    elif result is not None:
        yield _finding(
            FindingSubject.RESULT,
            (sha256(result).digest(), len(result)) == stated,
            "these are the result's bytes",
            "it is another result",
        )


def _finding(subject: FindingSubject, right: bool, words: str, otherwise: str) -> ReceiptFinding:
    return ReceiptFinding(subject, FindingOutcome.OK if right else FindingOutcome.FAILED, words if right else otherwise)

"""The receipt of one purchase, and the JSON document that it is handed out as.

A receipt holds no prompt and no output: hashes and sizes stand for them.
"""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import VERDICTS, State, Verdict
from lcp_gateway.purchase.task import TaskKind

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
_TERMS_FIELDS = frozenset(
    {"protocol_version", "quote_expiry", "params", "request_sha256", "request_bytes"}
)

_Word = TypeVar("_Word", bound=enum.StrEnum)


class ReceiptError(ValueError):
    """A document is no receipt; the message names the field."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is known of one purchase.

    Hashes and the preimage are 32 bytes; what is not known is None. ``times`` gives when each state was reached, in
    aware UTC.
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
        """What happened to the money."""
        return VERDICTS[self.state]


def document(receipt: Receipt) -> dict[str, object]:
    """Give the receipt as a JSON object: hashes as lower-case hex, amounts in msat, times in RFC 3339 and UTC."""
    quote = receipt.quote
    return {
        "object": OBJECT,
        "version": VERSION,
        "job_id": quote.job_id.hex(),
        "peer_id": quote.peer_id,
        "model": receipt.model,
        "task_kind": receipt.kind.value,
        "price_msat": quote.price_msat,
        "fee_msat": receipt.fee_msat,
        "terms": {
            "protocol_version": quote.protocol_version,
            "quote_expiry": int(quote.expires_at.timestamp()),
            "params": {"model": receipt.model},
            "request_sha256": receipt.request_sha256.hex(),
            "request_bytes": receipt.request_bytes,
        },
        "terms_hash": quote.terms_hash.hex(),
        "payment_request": quote.payment_request,
        "payment_hash": _hex(receipt.payment_hash),
        "preimage": _hex(receipt.preimage),
        "result_sha256": _hex(receipt.result_sha256),
        "result_bytes": receipt.result_bytes,
        "state": receipt.state.value,
        "verdict": receipt.verdict.value,
        "times": {
            state.value: at.astimezone(UTC).isoformat().replace("+00:00", "Z")
            for state, at in receipt.times.items()
        },
    }


def read(fields: Mapping[str, object]) -> Receipt:
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
    _check_names(terms, _TERMS_FIELDS, "terms.")
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
        ),
        kind=_word(TaskKind, fields.get("task_kind"), "task_kind"),
        model=model,
        request_sha256=_hash(terms, "request_sha256"),
        request_bytes=_number(terms, "request_bytes"),
        state=_word(State, fields.get("state"), "state"),
        times={
            _word(State, state, "times"): _time(at, f"times.{state}")
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
        raise ReceiptError(f"{name}: it must be text")
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


def _word(words: type[_Word], value: object, name: str) -> _Word:
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

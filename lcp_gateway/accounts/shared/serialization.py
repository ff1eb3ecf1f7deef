"""The facts of a result as bytes and back, so that another gateway can replay it."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

import orjson

from lcp_gateway.purchase.errors import PaymentFailed, PurchaseError, Undelivered, UpstreamError
from lcp_gateway.purchase.money import Charge, Markup, Msat, Refund
from lcp_gateway.purchase.order import Order, Task, TaskKind
from lcp_gateway.purchase.outcome import EndedBy, Ending, Received
from lcp_gateway.purchase.purchase import Interrupted, InterruptReason, Purchase
from lcp_gateway.purchase.quote import Candidate, ProviderSource, Quote
from lcp_gateway.purchase.result_buffer import ResultBuffer, ResultHead
from lcp_gateway.purchase.shared_purchases import BoughtElsewhere
from lcp_gateway.purchase.states import PurchaseEvent, State, Verdict

_WAYS: Final[Mapping[State, tuple[PurchaseEvent, ...]]] = MappingProxyType(
    {
        State.QUOTED: (),
        State.REFUSED: (PurchaseEvent.REFUSE,),
        State.EXPIRED: (PurchaseEvent.EXPIRE,),
        State.PAYING: (PurchaseEvent.PAY,),
        State.NOT_PAID: (PurchaseEvent.PAY, PurchaseEvent.FAIL_PAYMENT),
        State.UNKNOWN: (PurchaseEvent.PAY, PurchaseEvent.LOSE_SIGHT),
        State.SETTLED: (PurchaseEvent.PAY, PurchaseEvent.SETTLE),
        State.DELIVERED: (PurchaseEvent.PAY, PurchaseEvent.SETTLE, PurchaseEvent.DELIVER),
        State.UNDELIVERED: (PurchaseEvent.PAY, PurchaseEvent.SETTLE, PurchaseEvent.FAIL_DELIVERY),
    }
)


class FailedElsewhere(PurchaseError):
    """Another gateway failed after it had paid, by an error that it did not expect."""

    def __init__(self, quote: Quote, verdict: Verdict) -> None:
        super().__init__("the gateway that bought this failed", quote=quote)
        self.verdict = verdict


def serialize(answer: ResultBuffer, purchase: Purchase, *, is_kept: bool) -> bytes:
    """Return the facts of an answer without its bytes; ``is_kept`` says whether those are stored too."""
    quote, task, charge = purchase.quote, purchase.order.task, purchase.charge
    facts = {
        "state": purchase.state,
        "quote": quote_facts(quote),
        "task": [task.kind, task.model, task.stream],
        "charged_msat": purchase.charged_msat,
        "ending": purchase.ending and [*purchase.ending],
        "refund": purchase.refund,
        "runner_up_msat": purchase.runner_up_msat,
        "charge": None
        if charge is None
        else [
            charge.account_id,
            charge.amount_msat,
            charge.markup.ppm,
            charge.markup.fixed_msat,
            charge.refund_undelivered,
        ],
        "provider_id": purchase.candidate.provider_id,
        "adapter": purchase.candidate.adapter,
        "routing": purchase.candidate.routing,
        "head": answer.head and [answer.head.content_type, answer.head.content_encoding],
        "error": None if answer.error is None else _error(answer.error),
        "kept": is_kept,
        "given_id": answer.given_id,
    }
    return orjson.dumps(facts, default=plain)


class SerializedResult:
    """The facts that ``serialize`` wrote."""

    def __init__(self, packed: bytes) -> None:
        self._facts: dict[str, Any] = orjson.loads(packed)

    @property
    def is_kept(self) -> bool:
        """Whether its bytes were stored too, for a time."""
        return bool(self._facts["kept"])

    @property
    def has_body(self) -> bool:
        """Whether there were any bytes: an answer that failed before its head has none."""
        return self._facts["head"] is not None

    def bought(self, order: Order, body: bytes) -> BoughtElsewhere:
        """Return the result for an order of the same."""
        purchase = self.purchase(order)
        head, error = self._facts["head"], self._facts["error"]
        return BoughtElsewhere(
            purchase,
            None if head is None else ResultHead(*head),
            body,
            None if error is None else _error_of(error, purchase),
            # Missing where a gateway of an earlier release wrote them.
            self._facts.get("given_id", ""),
        )

    def purchase(self, order: Order) -> Purchase:
        """Return the purchase, in the state that it ended in."""
        facts = self._facts
        kind, model, stream = facts["task"]
        # Without a body: it was bought for the task that a provider got, which may be another than the order's.
        task = Task(TaskKind(kind), model, b"", stream=stream)
        purchase = Purchase(
            replace(order, task=task),
            # It is paid, or must not be paid.
            quote_of(facts["quote"], payment_request=""),
            runner_up_msat=facts["runner_up_msat"],
            candidate=Candidate(facts["provider_id"], adapter=facts["adapter"], routing=facts["routing"]),
        )
        if (charge := facts["charge"]) is not None:
            account_id, amount_msat, ppm, fixed_msat, refund_undelivered = charge
            purchase.charge = Charge(account_id, Msat(amount_msat), Markup(ppm, Msat(fixed_msat)), refund_undelivered)
        purchase.charged_msat = facts["charged_msat"]
        for event in _WAYS[State(facts["state"])]:
            purchase.apply(event)
        # Missing where a gateway of an earlier release wrote them.
        if (ending := facts.get("ending")) is not None:
            purchase.ending = Ending(EndedBy(ending[0]), Received(ending[1]))
        if (refund := facts.get("refund")) is not None:
            purchase.refund = Refund(refund)
        return purchase


def quote_facts(quote: Quote) -> dict[str, object]:
    """Return what every gateway has to know of a quote, as plain values."""
    return {
        "peer_id": quote.peer_id,
        "job_id": quote.job_id.hex(),
        "price_msat": quote.price_msat,
        "expires_at": quote.expires_at.isoformat(),
        "terms_hash": quote.terms_hash.hex(),
        "protocol_version": quote.protocol_version,
        "source": quote.source,
    }


def quote_of(facts: Mapping[str, Any], **others: Any) -> Quote:
    """Return the quote of ``quote_facts``; ``others`` are the fields that are not among them."""
    return Quote(
        peer_id=facts["peer_id"],
        job_id=bytes.fromhex(facts["job_id"]),
        price_msat=Msat(facts["price_msat"]),
        expires_at=datetime.fromisoformat(facts["expires_at"]),
        terms_hash=bytes.fromhex(facts["terms_hash"]),
        protocol_version=facts["protocol_version"],
        source=ProviderSource(facts["source"]),
        **others,
    )


def _error(error: Exception) -> Mapping[str, object]:
    match error:
        case PaymentFailed():
            return {
                "kind": "payment_failed",
                "message": error.message,
                "status": error.status,
                "code": error.code,
                "is_away": error.is_away,
            }
        case Undelivered():
            return {
                "kind": "undelivered",
                "message": error.message,
                "received": error.received,
                "is_told": error.is_told,
            }
        case Interrupted():
            return {"kind": "interrupted", "reason": error.code}
        case _:
            return {"kind": "failed"}


def _error_of(facts: Mapping[str, Any], purchase: Purchase) -> PurchaseError:
    quote, verdict = purchase.quote, purchase.verdict
    match facts["kind"]:
        case "payment_failed":
            # A gateway of an earlier version does not say whether anything was reached.
            away = facts.get("is_away", False)
            cause = UpstreamError(facts["status"], facts["message"], code=facts["code"], is_away=away)
            return PaymentFailed(cause, verdict, quote=quote)
        case "undelivered":
            # A gateway of an earlier version records no more than that.
            return Undelivered(
                facts["message"],
                quote=quote,
                verdict=verdict,
                received=Received(facts.get("received", Received.PART)),
                is_told=facts.get("is_told", False),
            )
        case "interrupted":
            return Interrupted(InterruptReason(facts["reason"]), purchase)
        case _:
            return FailedElsewhere(quote, verdict)


def plain(value: object) -> object:
    """Convert a mapping that is no dict; the JSON library takes none."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError

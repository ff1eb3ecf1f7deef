"""The errors of a purchase: a small tree, raised where known and mapped to an HTTP response once."""

from lcp_gateway.purchase.outcome import Received
from lcp_gateway.purchase.payment_evidence import PaymentReport
from lcp_gateway.purchase.quote import Candidate, Quote
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstream_status import UpstreamStatus


class PurchaseError(Exception):
    """A purchase failed. The message is fit for the client: it holds no prompt and no output."""

    verdict: Verdict = Verdict.NONE

    def __init__(self, message: str, *, quote: Quote | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.quote = quote


class UpstreamError(PurchaseError):
    """A call to an upstream failed.

    ``status`` is the gRPC status code that the adapter maps its error to. ``retryable``: another try may succeed. ``evidence`` is
    the adapter's own knowledge of the money after the call that may pay; None leaves it to ``verdict_of_failure``.
    ``code`` is the provider's own error code, in OpenAI's sense, where it sent one. ``is_away`` says that the
    provider could not be reached. ``retry_after_s`` is how long the provider asks the gateway to wait. ``payment`` is the
    report of the program that pays, which is the evidence where there is one.
    """

    def __init__(
        self,
        status: UpstreamStatus,
        message: str,
        *,
        retryable: bool = False,
        quote: Quote | None = None,
        evidence: Verdict | None = None,
        code: str | None = None,
        is_away: bool = False,
        retry_after_s: float | None = None,
        payment: PaymentReport | None = None,
    ) -> None:
        super().__init__(message, quote=quote)
        self.status = UpstreamStatus(status)
        self.payment = payment
        self.retry_after_s = retry_after_s
        self.is_away = is_away
        self.retryable = retryable
        self.evidence = payment.verdict if payment is not None else evidence
        self.code = code


class PaymentFailed(PurchaseError):
    """The call that may pay ended in an error; ``verdict`` says whether the evidence shows a payment."""

    def __init__(self, cause: UpstreamError, verdict: Verdict, *, quote: Quote) -> None:
        super().__init__(cause.message, quote=quote)
        self.status = cause.status
        self.is_away = cause.is_away
        self.retry_after_s = cause.retry_after_s
        self.code = cause.code
        self.verdict = verdict


class Undelivered(PurchaseError):
    """Paid, but no whole and valid result came; ``received`` classifies it. A free node is not paid at all.

    ``is_told`` says that the client gets the provider's own error within the result, and needs no second one.
    """

    def __init__(
        self,
        message: str,
        *,
        quote: Quote | None = None,
        verdict: Verdict = Verdict.SETTLED,
        received: Received = Received.PART,
        is_told: bool = False,
    ) -> None:
        super().__init__(message, quote=quote)
        self.verdict = verdict
        self.received = received
        self.is_told = is_told


class Refused(PurchaseError):
    """A check failed before anything was paid.

    ``may_pass_later`` says that the quote itself is good, and can be taken once the limit allows it.
    """

    code = "refused"
    may_pass_later = False
    candidate: Candidate | None = None
    """Whose quote was refused, where it was asked for on the way."""


class PriceLimitExceeded(Refused):
    """The quote asks more than the limit; ``fee_msat`` is the estimated fee where the limit is for both together."""

    code = "price_limit_exceeded"
    may_pass_later = True

    def __init__(self, quote: Quote, limit_msat: int, *, fee_msat: int | None = None) -> None:
        asked = f"{quote.price_msat} msat"
        if fee_msat is not None:
            asked += f" and about {fee_msat} msat of routing fees"
        super().__init__(f"the quote asks {asked}, the limit is {limit_msat} msat; nothing was paid", quote=quote)
        self.price_msat = quote.price_msat
        self.limit_msat = limit_msat


class ChargeLimitExceeded(Refused):
    """A customer would be charged more than its key or its request allows."""

    code = "price_limit_exceeded"
    may_pass_later = True

    def __init__(self, quote: Quote, charge_msat: int, limit_msat: int) -> None:
        super().__init__(
            f"this is charged at {charge_msat} msat, the limit is {limit_msat} msat; nothing was paid", quote=quote
        )
        self.price_msat = charge_msat
        self.limit_msat = limit_msat


class QuoteExpired(Refused):
    """The quote ran out before it was taken. ``was_named`` says that the client had asked for this very quote."""

    code = "quote_expired"

    def __init__(self, message: str, *, quote: Quote, was_named: bool = False) -> None:
        super().__init__(message, quote=quote)
        self.was_named = was_named


class PeerNotTrusted(Refused):
    """The peer has been paid for too much that it did not deliver."""

    code = "peer_not_trusted"

"""What a seller offers for a request whose input is whole: the price, how long it holds, and the terms that the invoice commits to."""

from hashlib import sha256

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.lightning.terms import Terms, hash_terms
from lcp_gateway.node.lcp.judging import RequestRefused, SoldModel, judge_input
from lcp_gateway.node.lcp.messages import IDENTITY, JSON, Protocol, QuoteRequest
from lcp_gateway.node.lcp.pricing import PriceTooHigh, price_msat
from lcp_gateway.node.lcp.selling_events import SaleTerms
from lcp_gateway.node.lcp.table import hash_params
from lcp_gateway.values import value


@value
class Offered:
    """An offer; ``quote_expiry`` is Unix seconds, ``stream`` whether the result is wanted as a stream."""

    price_msat: int
    quote_expiry: int
    terms_hash: bytes
    stream: bool


def offer(
    protocol: Protocol,
    request: QuoteRequest,
    body: bytes,
    *,
    model: str,
    sold: SoldModel,
    terms: SaleTerms,
    inflight: int,
    now: float,
) -> Offered:
    """Return the offer for an input, while ``inflight`` other jobs are quoted or run.

    Raises:
        RequestRefused: the input is no request for that model, or has no price.
    """
    judged = judge_input(request.task_kind, model, sold, body)
    try:
        price = price_msat(
            sold.price,
            request_bytes=len(body),
            output_tokens=judged.output_tokens,
            inflight=inflight,
            surge=terms.surge,
        )
    except PriceTooHigh:
        raise RequestRefused(ErrorCode.RATE_LIMITED, "price overflow") from None
    if price < 1:
        raise RequestRefused(ErrorCode.PAYMENT_REQUIRED, "price must be > 0")
    expiry = int(now) + terms.ttl_s
    agreed = Terms(
        protocol_version=request.protocol_version,
        job_id=request.job_id,
        price_msat=price,
        quote_expiry=expiry,
        task_kind=request.task_kind,
        request_sha256=sha256(body).digest(),
        params_sha256=hash_params(protocol, request.params),
        request_bytes=len(body),
        content_type=JSON,
        content_encoding=IDENTITY,
    )
    return Offered(price, expiry, hash_terms(protocol, agreed), judged.stream)

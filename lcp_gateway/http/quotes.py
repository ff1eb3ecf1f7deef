"""The quote as an answer: what ``X-Lcp-Quote-Only`` gives."""

import orjson
from aiohttp import web

from lcp_gateway.http.errors import quote_headers
from lcp_gateway.purchase.book import HeldQuote
from lcp_gateway.purchase.limits import SpendingLimits


def quote_response(held: HeldQuote, limits: SpendingLimits) -> web.Response:
    """Give a quote that can be taken with ``X-Lcp-Quote-Id``; nothing was paid."""
    offer = held.offer
    quote = offer.quote
    document: dict[str, object] = {
        "object": "lcp.quote",
        "id": held.id,
        "model": offer.order.task.model,
        "source": quote.source.value,
        "peer_id": quote.peer_id,
        "job_id": quote.job_id.hex(),
        "price_msat": quote.price_msat,
        "max_fee_msat": limits.fee.fee_for(quote),
        "runner_up_msat": offer.runner_up_msat,
        "expires_at": int(quote.expires_at.timestamp()),
        "terms_hash": quote.terms_hash.hex(),
    }
    if charge := limits.charge_for(offer.order, quote):
        document["charge_msat"] = charge.amount_msat
    if offer.candidate.routing is not None:
        document["routing_info"] = {**offer.candidate.routing, "price_msat": quote.price_msat}
    return web.Response(
        body=orjson.dumps(document),
        content_type="application/json",
        headers=quote_headers(quote),
    )

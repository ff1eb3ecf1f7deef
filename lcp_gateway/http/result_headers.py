"""The headers of an answer that was bought: of what it is, from whom, and what it came to."""

from lcp_gateway.http.errors import PAYMENT_HEADER, quote_headers
from lcp_gateway.http.relay import safe_header
from lcp_gateway.purchase.answers import Head
from lcp_gateway.purchase.purchase import Purchase

JSON = "application/json; charset=utf-8"
EVENTS = "text/event-stream; charset=utf-8"

STREAMING = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""What keeps proxies from holding a stream up."""


def purchase_headers(purchase: Purchase) -> dict[str, str]:
    """Give the headers that tell of a purchase."""
    headers = {
        # Every head is that of a purchase that was paid, or that is free; a stream's goes out before it is whole.
        PAYMENT_HEADER: purchase.verdict.value,
        **quote_headers(purchase.quote),
        "X-Lcp-Price-Msat": str(purchase.cost_msat),
    }
    if purchase.runner_up_msat is not None:
        headers["X-Lcp-Runner-Up-Msat"] = str(purchase.runner_up_msat)
    return headers


def result_headers(purchase: Purchase, head: Head, otherwise: str) -> dict[str, str]:
    """Give the headers of a result; ``otherwise`` is its type where the provider names none that can be sent."""
    headers = {
        "Content-Type": safe_header(head.content_type, otherwise),
        # A provider chooses the type of its bytes, and no browser shall guess another.
        "X-Content-Type-Options": "nosniff",
        **purchase_headers(purchase),
    }
    encoding = safe_header(head.content_encoding, "identity")
    if encoding.lower() != "identity":
        headers["Content-Encoding"] = encoding
    return headers

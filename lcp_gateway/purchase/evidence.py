"""Was it paid? Reads the end of the one call that may pay, and believes only what was seen on a real network."""

import re

from lcp_gateway.purchase.states import Verdict

# Each row was observed with a real daemon, lnd and payment network; whatever is in none of them is unknown.
_PEER_SPOKE_AFTER_PAYMENT = re.compile(r"\blcp_error code=\d+")
_PAID_EARLIER = re.compile(r"invoice is already paid")
_REFUSED_BEFORE_PAYMENT = re.compile(
    r"payment failed: FAILURE_REASON_NO_ROUTE\b"  # no route, or below the channel's smallest HTLC
    r"|\bquote\b.*\bexpired\b"
    r"|\binvoice\b"  # the daemon's own check of the invoice
    r"|\bjob\b.*\bnot found\b|\bunknown job\b",
    re.IGNORECASE | re.DOTALL,
)


def verdict_of_failure(status: str, message: str) -> Verdict:
    """Judge a failed ``AcceptAndExecute*`` by its gRPC status name and message.

    ``NONE`` and ``SETTLED`` are given on evidence only; a deadline, a broken connection or an unknown text is
    ``UNKNOWN``, since lnd goes on paying after its caller is gone.
    """
    if _PEER_SPOKE_AFTER_PAYMENT.search(message) or _PAID_EARLIER.search(message):
        return Verdict.SETTLED
    if status in {"FAILED_PRECONDITION", "NOT_FOUND"} and _REFUSED_BEFORE_PAYMENT.search(message):
        return Verdict.NONE
    return Verdict.UNKNOWN

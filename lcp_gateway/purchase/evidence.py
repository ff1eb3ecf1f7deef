"""Was it paid? Reads the end of the one call that may pay, and believes only what was seen on a real network."""

import re

from lcp_gateway.purchase.states import Verdict

# Each row was observed with a real daemon, lnd and payment network; whatever is in none of them is unknown.
_PEER_SPOKE_AFTER_PAYMENT = re.compile(r"\blcp_error code=\d+")
_PAID_EARLIER = re.compile(r"invoice is already paid")
_NO_ROUTE = (
    "payment failed: FAILURE_REASON_NO_ROUTE"  # also for what is below the channel's smallest HTLC
)
_REFUSED_BEFORE_PAYMENT = re.compile(
    r"\bquote\b.*\bexpired\b"
    r"|\bjob\b.*\bnot found\b|\bunknown job\b"
    # the daemon's own check of the invoice
    r"|\bdecode invoice\b|\binvoice\b.*\b(?:mismatch|does not match|invalid|expire[sd])\b",
    re.IGNORECASE | re.DOTALL,
)
# Whoever speaks of paying had begun to, whatever else the text says of quote or invoice.
_SPEAKS_OF_PAYING = re.compile(r"\bpa(?:y|id|ying|yment|yments)\b", re.IGNORECASE)


def verdict_of_failure(status: str, message: str) -> Verdict:
    """Judge a failed ``AcceptAndExecute*`` by its gRPC status name and message.

    ``NONE`` and ``SETTLED`` are given on evidence only; a deadline, a broken connection or an unknown text is
    ``UNKNOWN``, since lnd goes on paying after its caller is gone.
    """
    if _PEER_SPOKE_AFTER_PAYMENT.search(message) or _PAID_EARLIER.search(message):
        return Verdict.SETTLED
    if status not in {"FAILED_PRECONDITION", "NOT_FOUND"}:
        return Verdict.UNKNOWN
    if re.search(rf"{_NO_ROUTE}\b", message):
        return Verdict.NONE
    if _REFUSED_BEFORE_PAYMENT.search(message) and not _SPEAKS_OF_PAYING.search(message):
        return Verdict.NONE
    return Verdict.UNKNOWN

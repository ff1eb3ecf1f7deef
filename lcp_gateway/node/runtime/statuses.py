"""The statuses of failed calls: those of lcpd-grpcd, with its texts."""

from typing import Final

from lcp_gateway.node.lcp.buying_events import Ended, Outcome
from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.runtime.calls import CallFailed, PaymentReport, PaymentState
from lcp_gateway.upstream_status import UpstreamStatus

NOTHING_PAID: Final = PaymentReport(state=PaymentState.NONE)

_EXHAUSTED: Final = {Protocol.V02: frozenset({6, 7}), Protocol.V03: frozenset({7, 8, 13})}
_KNOWN_CODES: Final = {Protocol.V02: frozenset(range(1, 13)), Protocol.V03: frozenset(range(1, 14))}


def not_found(what: str) -> CallFailed:
    """Return the failure of a call about a peer or a job that is not known."""
    return CallFailed(UpstreamStatus.NOT_FOUND, f"{what} not found", payment=NOTHING_PAID)


def refused(details: str) -> CallFailed:
    """Return the failure of a call that cannot be served in this state; nothing was paid by it."""
    return CallFailed(UpstreamStatus.FAILED_PRECONDITION, details, payment=NOTHING_PAID)


def unavailable(details: str, payment: PaymentReport = NOTHING_PAID) -> CallFailed:
    """Return the failure of a call that the Lightning node, the disk or a stop of this node hinders."""
    return CallFailed(UpstreamStatus.UNAVAILABLE, details, payment=payment)


def of_end(protocol: Protocol, ended: Ended, payment: PaymentReport, *, quoted: bool) -> CallFailed:
    """Return the failure that an end of a job is to its caller; ``quoted`` says whether a quote had come before.

    An error of the peer that came after the quote and before the payment ends the job unpaid. lcpd-grpcd pays in this case, and
    its clients take the text of such an error for a sign of that: so it is told as the end of the quote.
    """
    match ended.outcome:
        case Outcome.ERROR if quoted and not ended.paid:
            status, details = UpstreamStatus.FAILED_PRECONDITION, f"quote expired: the peer sent error {ended.number}"
        case Outcome.ERROR:
            status, details = _of_code(protocol, ended.number or 0), f"lcp_error code={ended.number}"
            if text := ended.message.strip():
                details += f": {text}"
        case Outcome.SILENT:
            status, details = UpstreamStatus.DEADLINE_EXCEEDED, "deadline exceeded waiting for peer response"
        case Outcome.NOT_PAID:
            status, details = UpstreamStatus.FAILED_PRECONDITION, f"payment failed: {ended.message}"
        case Outcome.CANCELLED:
            status, details = UpstreamStatus.CANCELLED, ended.message or "the job was cancelled"
        case Outcome.NOT_ASKED:
            status, details = UpstreamStatus.RESOURCE_EXHAUSTED, ended.message
        case _:
            status, details = UpstreamStatus.FAILED_PRECONDITION, ended.message
    return CallFailed(status, details, payment=payment)


def _of_code(protocol: Protocol, number: int) -> UpstreamStatus:
    if number in _EXHAUSTED[protocol]:
        return UpstreamStatus.RESOURCE_EXHAUSTED
    return UpstreamStatus.FAILED_PRECONDITION if number in _KNOWN_CODES[protocol] else UpstreamStatus.INTERNAL

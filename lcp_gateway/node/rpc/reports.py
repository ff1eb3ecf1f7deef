"""What this node says beyond lcpd-grpcd: itself, and the payment of each purchase."""

from typing import Final, overload

from lcp_gateway.__about__ import __version__
from lcp_gateway._gen.lcpd import extensions_pb2 as pb
from lcp_gateway.node.runtime.calls import PaymentReport, PaymentState

PAYMENT_TRAILER: Final = "x-lcp-payment-bin"
"""The trailer of a failed call that pays: a ``PaymentReport``."""
MAX_PRICE: Final = "x-lcp-max-price-msat"
FEE_LIMIT: Final = "x-lcp-fee-limit-msat"
"""The names of the request metadata of the calls that pay: the most that the price, and the routing fee, may be."""

SOFTWARE: Final = pb.NodeSoftware(
    name="lcp-gateway", version=__version__, features=("payment-report", "purchase-limits", "payment-lookup")
)

_STATES: Final = {
    PaymentState.NONE: pb.PaymentReport.STATE_NONE,
    PaymentState.SETTLED: pb.PaymentReport.STATE_SETTLED,
    PaymentState.UNKNOWN: pb.PaymentReport.STATE_UNKNOWN,
    PaymentState.NO_RECORD: pb.PaymentReport.STATE_NO_RECORD,
}


@overload
def report_message(payment: PaymentReport) -> pb.PaymentReport: ...
@overload
def report_message(payment: None) -> None: ...
def report_message(payment: PaymentReport | None) -> pb.PaymentReport | None:
    """Return the message that reports a payment; None where nothing is reported."""
    if payment is None:
        return None
    return pb.PaymentReport(
        state=_STATES[payment.state],
        payment_hash=payment.payment_hash or b"",
        preimage=payment.preimage or b"",
        fee_msat=payment.fee_msat,
    )

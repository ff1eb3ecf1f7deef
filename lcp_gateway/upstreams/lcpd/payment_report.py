"""The payment of a purchase as a node of lcp-gateway reports it, beyond lcpd-grpcd; and the limits that such a node obeys."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from lcp_gateway._gen.lcpd import extensions_pb2 as pb
from lcp_gateway.lightning.lnd.records import PaymentRecord, PaymentState
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.payment_evidence import PaymentReport
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstreams.lcpd.dialect import read
from lcp_gateway.upstreams.lcpd.transport import RpcError

GET_PAYMENT: Final = "/lcpgateway.v1.NodeService/GetPayment"
PAYMENT_LOOKUP: Final = "payment-lookup"
"""The feature of a node that serves ``GET_PAYMENT``."""

_TRAILER: Final = "x-lcp-payment-bin"
_LARGEST_FEE_MSAT: Final = 1 << 53
_VERDICTS: Final = {
    pb.PaymentReport.STATE_NONE: Verdict.NONE,
    pb.PaymentReport.STATE_SETTLED: Verdict.SETTLED,
    pb.PaymentReport.STATE_UNKNOWN: Verdict.UNKNOWN,
}
_PAST_STATES: Final = {
    # Nothing was paid and nothing will be: as if the payment had failed for good.
    pb.PaymentReport.STATE_NONE: PaymentState.FAILED,
    pb.PaymentReport.STATE_SETTLED: PaymentState.SETTLED,
    pb.PaymentReport.STATE_UNKNOWN: PaymentState.IN_FLIGHT,
}
_MAX_NAME_CHARS: Final = 64
_MAX_FEATURES: Final = 32


@dataclass(frozen=True, slots=True)
class Software:
    """The program behind a daemon's port, and its features; all empty where it does not say."""

    name: str = ""
    version: str = ""
    features: frozenset[str] = frozenset()

    @property
    def limits_fees(self) -> bool:
        """Whether it obeys the fee limit of the calls that pay, and a setting of its own."""
        return "purchase-limits" in self.features

    @property
    def looks_payments_up(self) -> bool:
        """Whether it answers ``GET_PAYMENT``."""
        return PAYMENT_LOOKUP in self.features


def read_report(message: pb.PaymentReport) -> PaymentReport | None:
    """Return the report in a message; None in one of lcpd-grpcd, or where it says nothing that is known here."""
    verdict = _VERDICTS.get(message.state)
    if verdict is None:
        return None
    fee_msat = Msat(message.fee_msat) if message.HasField("fee_msat") and message.fee_msat < _LARGEST_FEE_MSAT else None
    return PaymentReport(verdict=verdict, fee_msat=fee_msat, preimage=message.preimage or None)


def report_of_failure(error: RpcError) -> PaymentReport | None:
    """Return the report that came with a failure of the call that pays."""
    written = error.trailers.get(_TRAILER)
    if written is None:
        return None
    try:
        return read_report(pb.PaymentReport.FromString(written))
    except DecodeError:
        return None


def read_software(message: pb.NodeSoftware) -> Software:
    """Return the program that serves a daemon's port; lcpd-grpcd does not name itself."""
    return Software(
        message.name[:_MAX_NAME_CHARS], message.version[:_MAX_NAME_CHARS], frozenset(message.features[:_MAX_FEATURES])
    )


def payment_request(job_id: bytes, payment_hash: bytes) -> bytes:
    """Write the request of ``GET_PAYMENT``."""
    return pb.GetPaymentRequest(job_id=job_id, payment_hash=payment_hash).SerializeToString()


def read_payment(answer: bytes, payment_hash: bytes) -> PaymentRecord | None:
    """Return the payment in an answer of ``GET_PAYMENT``; None where it is no evidence.

    Raises:
        UpstreamError: the bytes are no such answer.
    """
    message = read(pb.PaymentReport, answer)
    state = _PAST_STATES.get(message.state)
    if state is None:
        return None
    report = read_report(message)
    return PaymentRecord(
        message.payment_hash or payment_hash,
        state,
        fee_msat=report.fee_msat if report else None,
        preimage=report.preimage if report else None,
    )


def limits_metadata(max_price_msat: int, fee_limit_msat: int) -> Sequence[tuple[str, str]]:
    """Return the metadata that limits a purchase; lcpd-grpcd lets it be. A fee limit of 0 leaves that to the node."""
    price = ("x-lcp-max-price-msat", str(max_price_msat))
    return (price, ("x-lcp-fee-limit-msat", str(fee_limit_msat))) if fee_limit_msat else (price,)

"""The payment of a purchase as a node of lcp-gateway reports it, beyond lcpd-grpcd; and the limits that such a node obeys."""

from collections.abc import Sequence
from typing import Final

from google.protobuf.message import DecodeError

from lcp_gateway._gen.lcpd import extensions_pb2 as pb
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.payment_evidence import PaymentReport
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstreams.lcpd.transport import RpcError

_TRAILER: Final = "x-lcp-payment-bin"
_LARGEST_FEE_MSAT: Final = 1 << 53
_VERDICTS: Final = {
    pb.PaymentReport.STATE_NONE: Verdict.NONE,
    pb.PaymentReport.STATE_SETTLED: Verdict.SETTLED,
    pb.PaymentReport.STATE_UNKNOWN: Verdict.UNKNOWN,
}


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


def limits_metadata(max_price_msat: int, fee_limit_msat: int) -> Sequence[tuple[str, str]]:
    """Return the metadata that limits a purchase; lcpd-grpcd lets it be. A fee limit of 0 leaves that to the node."""
    price = ("x-lcp-max-price-msat", str(max_price_msat))
    return (price, ("x-lcp-fee-limit-msat", str(fee_limit_msat))) if fee_limit_msat else (price,)

"""The simulated wallet of our own node's customer: pays the node's invoices, and makes invoices that the node can pay.

No real money moves. A real lnd would refuse the calls, which are sent in the clear and without a macaroon.
"""

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from lcp_gateway.lightning.lnd.channel import LndAddress, lnd_errors, open_channel
from lcp_gateway.lightning.lnd.records import LndError
from lcp_gateway.lightning.lnd.stubs import load_stubs
from lcp_gateway.purchase.money import Msat
from lcp_gateway.upstream_status import UpstreamStatus

_ADD_INVOICE: Final = "/lcpgateway.Demo/AddInvoice"
"""A call that only our own node serves; its messages are those of lnd's AddInvoice."""


class DemoPaymentFailed(Exception):
    """The payment failed; ``reason`` is in lnd's terms ("invoice is already paid", "no_route", …)."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the invoice was not paid: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class DemoPayment:
    """A payment that was made; hash and preimage are 32 bytes."""

    payment_hash: bytes
    preimage: bytes = field(repr=False)
    amount_msat: Msat


async def pay(target: str, payment_request: str, *, amount_msat: int = 0, timeout_s: float = 60.0) -> DemoPayment:
    """Pay an invoice at a node (``host:port`` or ``unix:/path``); ``amount_msat`` is for one that names no amount.

    Raises:
        LndNotInstalled: the extra is missing.
        LndError: the invoice cannot be paid (expired, malformed, another network), or no answer came in time, and it
            may be paid nevertheless.
        DemoPaymentFailed: it was paid before, or cannot be.
    """
    stubs = load_stubs()
    async with open_channel(LndAddress(target)) as channel:
        stub = stubs.lightning_grpc.LightningStub(channel)
        request = stubs.lightning.SendRequest(payment_request=payment_request, amt_msat=amount_msat)
        async with lnd_errors():
            answer = await stub.SendPaymentSync(request, timeout=timeout_s)
    if answer.payment_error:
        raise DemoPaymentFailed(answer.payment_error)
    if sha256(answer.payment_preimage).digest() != answer.payment_hash:
        raise LndError(UpstreamStatus.INTERNAL, "the preimage does not fit the payment hash", retryable=False)
    return DemoPayment(
        payment_hash=answer.payment_hash,
        preimage=answer.payment_preimage,
        amount_msat=Msat(answer.payment_route.total_amt_msat),
    )


async def make_invoice(target: str, amount_msat: int, *, timeout_s: float = 10.0) -> str:
    """Make an invoice of the customer's at a node, and return it; without an amount, the payer chooses.

    Raises:
        LndNotInstalled: the extra is missing.
        LndError: there is no such node, or it refuses the amount.
    """
    messages = load_stubs().lightning
    async with open_channel(LndAddress(target)) as channel:
        add = channel.unary_unary(
            _ADD_INVOICE,
            request_serializer=messages.Invoice.SerializeToString,
            response_deserializer=messages.AddInvoiceResponse.FromString,
        )
        async with lnd_errors():
            answer = await add(messages.Invoice(value_msat=amount_msat, memo="withdrawal"), timeout=timeout_s)
    return str(answer.payment_request)

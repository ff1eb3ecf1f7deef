"""Peers that lie: messages that a peer of ours would never send, in any place of a job."""

import random
from dataclasses import fields, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from lcp_gateway.lightning import bolt11
from lcp_gateway.node.lcp.messages import (
    CHAT,
    Cancel,
    Error,
    JobMessage,
    Protocol,
    QuoteResponse,
    Result,
    Status,
    StreamKind,
)
from lcp_gateway.node.lcp.table import read_message, write_message
from lcp_gateway.node.lcp.tlv import WireError
from lcp_gateway.node.ports import InvoiceState, LightningAway
from lcp_gateway.node.runtime.calls import CallFailed, PaymentState
from tests.support import virtual_time
from tests.support.lcp_nodes import RESULT, Pair, bought, settle

CAP_MSAT = 1_000_000
VALUES = {
    int: [0, 1, 2, 3, 2**32 - 1, 2**40],
    bytes: [b"", b"x", b"j" * 32, b"\x00" * 32, bytes(600)],
    str: ["", "x", "identity", CHAT, "application/json; charset=utf-8", "lnbcrt1"],
}


def _changed(message, choice):
    """Return a message with one field changed; which and how follows from a number."""
    dice = random.Random(choice)
    field = dice.choice([one.name for one in fields(message)])
    value = getattr(message, field)
    if isinstance(value, Status | StreamKind):
        other = dice.choice(list(type(value)))
    elif value is None:
        other = dice.choice([b"j" * 32, 5, "x", None])
    else:
        other = dice.choice([*VALUES.get(type(value), [value]), None])
    return replace(message, **{field: other})


class Liar:
    """The transport of a node whose n-th message is changed, left out, or followed by another."""

    def __init__(self, transport, lies):
        self._transport, self._lies, self._count = transport, lies, 0

    def __getattr__(self, name):
        return getattr(self._transport, name)

    async def send(self, peer_id, message_type, payload):
        self._count += 1
        lie, choice = self._lies.get(self._count, ("true", 0))
        for one in self._told(lie, choice, message_type, payload):
            try:
                await self._transport.send(peer_id, *one)
            except LightningAway:
                if lie == "true":
                    raise

    def _told(self, lie, choice, message_type, payload):
        protocol, message = read_message(message_type, payload)
        if lie == "silence":
            return []
        if lie == "bytes":
            at = choice % len(payload)
            return [(message_type, payload[:at] + bytes([payload[at] ^ (1 + choice % 255)]) + payload[at + 1 :])]
        if lie == "field" or (lie == "more" and not isinstance(message, JobMessage)):
            return self._written(protocol, _changed(message, choice))
        if lie == "more":
            envelope = {
                "protocol_version": protocol.value,
                "job_id": message.job_id,
                "msg_id": choice.to_bytes(32, "big"),
                "expiry": message.expiry,
            }
            more = (
                Error(**envelope, code=1 + choice % 12, message="lie"),
                Result(**envelope, status=Status.FAILED, message="lie"),
                Result(**envelope, status=Status.CANCELLED),
                Cancel(**envelope),
                QuoteResponse(
                    **envelope,
                    price_msat=CAP_MSAT * 2,
                    quote_expiry=message.expiry,
                    terms_hash=b"t" * 32,
                    payment_request="lnbcrt1",
                ),
            )
            return [(message_type, payload), *self._written(protocol, more[choice % len(more)])]
        return [(message_type, payload)]

    @staticmethod
    def _written(protocol, message):
        try:
            return [write_message(protocol, message)]
        except (WireError, AttributeError, TypeError, ValueError):
            return []


LIES = st.dictionaries(
    st.integers(1, 14),
    st.tuples(st.sampled_from(["field", "field", "bytes", "silence", "more"]), st.integers(0, 10_000)),
    min_size=1,
    max_size=4,
)


async def _deal(side, lies, protocol, stream):
    pair = Pair()
    liar = getattr(pair, side)
    liar.settings["transport"] = Liar(liar.lightning.transport, lies)
    honest = pair.seller if side == "buyer" else pair.buyer
    failure, data, quote = None, b"", None
    async with pair:
        try:
            quote = await pair.quote(protocol, stream=stream)
            _, data, delivered = await bought(pair.accept(quote, max_price_msat=CAP_MSAT))
            data = data if delivered.result.status is Status.OK else None
        except CallFailed as error:
            failure = error
        await settle(2_000)
        invoices = pair.seller.lightning.invoices._invoices
        settled = [key for key, one in invoices.items() if one.state is InvoiceState.SETTLED]
        assert pair.buyer.lightning.payments.begun <= 1
        # An honest seller has computed nothing unpaid, and an honest buyer has what it paid for or is told.
        assert len(pair.compute.runs) <= len(settled)
        if side == "seller":
            assert data is None or failure or data == RESULT
            if quote is not None:
                paid = bolt11.decode(quote.payment_request).payment_hash in settled if settled else False
                state = failure.payment.state if failure else PaymentState.SETTLED
                assert state is (PaymentState.SETTLED if paid else PaymentState.NONE)
        assert not [error for _, error in honest.seen.problems if not isinstance(error, LightningAway)]
        await settle(1_000)
        node = honest.node
        assert not node._purchases._live and not node._sales._sales and not node._sales._tally._all_bytes
        assert node.figures().queued_messages == 0


@settings(max_examples=60, deadline=None)
@given(LIES, st.sampled_from(Protocol), st.booleans())
def test_a_seller_that_lies_is_paid_once_at_most_and_its_buyer_has_the_result_or_is_told(lies, protocol, stream):
    virtual_time.run(_deal("seller", lies, protocol, stream))


@settings(max_examples=60, deadline=None)
@given(LIES, st.sampled_from(Protocol), st.booleans())
def test_a_buyer_that_lies_has_nothing_computed_unpaid_and_leaves_nothing(lies, protocol, stream):
    virtual_time.run(_deal("buyer", lies, protocol, stream))

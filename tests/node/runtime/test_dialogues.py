"""The recorded dialogues of a hand-written requester with a real seller, held again with a node of ours.

All dialogues of a file run in one session, at the recorded times: the node has to answer each message as the daemon did, by
kind, and errors by code and text. ``tests/node/lcp`` compares the bytes; here it is the order of the checks around a job: versions,
expiry, repeats, manifests, unknown jobs. Where the node answers otherwise on purpose, ``OTHERWISE`` says so.
"""

import asyncio

import pytest

from lcp_gateway.lightning import bolt11
from lcp_gateway.node.lcp.judging import SoldModel
from lcp_gateway.node.lcp.messages import Error, Manifest, Protocol, QuoteResponse, Result
from lcp_gateway.node.lcp.pricing import TokenPrice
from lcp_gateway.node.lcp.table import read_message
from lcp_gateway.node.memory.network import Network
from lcp_gateway.node.ports import MessageReceived
from tests.support import lcp_vectors, virtual_time
from tests.support.lcp_nodes import ScriptedCompute, Side, settle

SOLD = SoldModel(TokenPrice(1_000_000, 2_000_000), 200)
OK, CANCELLED, QUOTE = ("result", "OK"), ("result", "CANCELLED"), ("quote",)
DELIVERED = [("begin",), ("chunk",), ("end",), OK]
OTHERWISE = {
    "job before manifests": lambda theirs: theirs[:1],
    "stream without a request": lambda theirs: theirs[:1],
    "cancel after the quote, request again, pay": lambda _: [QUOTE, CANCELLED, QUOTE, CANCELLED],
    "its manifest lists tasks, and asks for another": lambda theirs: theirs[1:],
    # The daemon did not hear of the payment.
    "pays the first invoice ever of the provider's lnd at once": lambda theirs: [*theirs, *DELIVERED],
}
"""A job that was refused gets one error; a cancelled one is answered, and stays so; the requester's own list is not looked at."""

LEFT_OUT = {
    # Of backends.
    "hand requester: upstream 400 with a long body",
    "hand requester: asks a daemon that does not sell",
    # Its first request is not in the recording.
    "hand requester: request repeated, other params",
}


def _sessions(protocol):
    for dialogue in lcp_vectors.dialogues(protocol)["dialogues"]:
        if dialogue["name"].startswith("hand requester: ") and dialogue["name"] not in LEFT_OUT:
            yield dialogue["name"].removeprefix("hand requester: "), dialogue


def _kind(message_type, payload):
    """Return what a message says, as far as it is compared; None for a manifest."""
    message = read_message(message_type, payload)[1]
    match message:
        case Manifest():
            return None
        case Error(code=code, message=text):
            return ("error", code, text)
        case QuoteResponse():
            return QUOTE
        case Result(status=status):
            return ("result", status.name)
        case _:
            return (type(message).__name__.removeprefix("Stream").lower(),)


def _whole(kinds):
    """Return kinds with each run of chunks as one: the daemon cuts otherwise."""
    return [kind for number, kind in enumerate(kinds) if kind != ("chunk",) or kinds[number - 1 : number] != [kind]]


class Session:
    """A node of ours that sells, and the hand that talks to it."""

    def __init__(self, protocol):
        self.protocol = protocol
        self.at = 0.0
        self.network = Network(clock=self.clock)
        self.hand = self.network.node("hand")
        self.said, self.quotes, self.paid = [], {}, {}
        self.seller = Side(
            self.network.node("seller"),
            models={"model-a": SOLD, "model-b": SOLD},
            compute=ScriptedCompute([b"x" * 100, b"y" * 100]),
            clock=self.clock,
        )

    def clock(self):
        return self.at + asyncio.get_running_loop().time()

    async def listen(self):
        async for event in self.hand.transport.events():
            if isinstance(event, MessageReceived):
                self.said.append((event.message_type, event.payload))
                message = read_message(event.message_type, event.payload)[1]
                if isinstance(message, QuoteResponse):
                    self.quotes[message.job_id] = message.payment_request

    async def hold(self, dialogue):
        """Say what the hand said, and return the node's answers by kind, beside the daemon's."""
        self.said.clear()
        theirs, started = [], dialogue["messages"][0]["t"]
        # The virtual clock goes on by itself: what is added is the distance between the two.
        self.at = dialogue["unix_time"] - asyncio.get_running_loop().time()
        begun = asyncio.get_running_loop().time()
        for recorded in dialogue["messages"]:
            due = begun + recorded["t"] - started
            await settle(max(0.0001, due - asyncio.get_running_loop().time()))
            if "settled" in recorded:
                await self._pay(recorded["settled"])
            elif "hex" in recorded:
                payload = bytes.fromhex(recorded["hex"])
                if recorded["frm"] == "hand":
                    await self.hand.transport.send(self.seller.node_id, recorded["type"], payload)
                else:
                    theirs.append((recorded["type"], payload))
                    self._remember(recorded["type"], payload)
        await settle(0.5)
        return self._kinds(self.said), self._kinds(theirs)

    def _remember(self, message_type, payload):
        message = read_message(message_type, payload)[1]
        if isinstance(message, QuoteResponse):
            self.paid[bolt11.decode(message.payment_request).payment_hash.hex()] = message.job_id

    async def _pay(self, payment_hash):
        invoice = bolt11.decode(self.quotes[self.paid[payment_hash]])
        await self.seller.lightning.invoices.take(invoice.payment_hash, invoice.amount_msat)

    @staticmethod
    def _kinds(messages):
        return _whole([kind for one in messages if (kind := _kind(*one)) is not None])


async def _compare(protocol):
    session = Session(protocol)
    dialogues = list(_sessions(protocol))
    session.at = dialogues[0][1]["unix_time"]
    await session.seller.start()
    session.network.connect(session.hand, session.seller.lightning)
    listening = asyncio.create_task(session.listen())
    await settle()
    different = {}
    try:
        for name, dialogue in dialogues:
            ours, theirs = await session.hold(dialogue)
            expected = OTHERWISE.get(name, list)(theirs)
            if ours != expected:
                different[name] = (ours, expected)
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        await session.seller.stop()
    return different, len(dialogues)


@pytest.mark.parametrize("protocol", Protocol)
def test_a_node_answers_a_requester_as_the_daemon_did(protocol):
    different, count = virtual_time.run(_compare(protocol))
    assert different == {}
    assert count > 25

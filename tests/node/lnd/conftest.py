"""Two lnds that are each other's peers."""

import pytest

from lcp_gateway.lightning.lnd import channel
from lcp_gateway.node.lnd import permissions, transport
from lcp_gateway.node.lnd.invoices import LndJobInvoices
from lcp_gateway.node.lnd.payments import LndJobPayments
from lcp_gateway.node.lnd.transport import LndTransport
from tests.support.lnd_network import LndNetwork
from tests.support.patient_grpc import connects_within_a_minute


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """Give an lnd a minute where a test says nothing else: on a busy machine its answers, pings and handshakes can take seconds."""
    for kind in (LndTransport, LndJobInvoices, LndJobPayments):
        for limit in ("timeout_s", "keepalive_s"):
            monkeypatch.setitem(kind.__init__.__kwdefaults__, limit, 60.0)
    for module, limit in ((channel, "_PING_ANSWER_S"), (permissions, "_TIMEOUT_S"), (transport, "_SEND_TIMEOUT_S")):
        monkeypatch.setattr(module, limit, 60.0)
    monkeypatch.setattr(channel, "_OPTIONS", connects_within_a_minute(channel._OPTIONS))


@pytest.fixture
async def network(tmp_path):
    made = LndNetwork(tmp_path)
    await made.add("buyer")
    await made.add("seller")
    made.connect(*made.by_identity.values())
    yield made
    for node in made.by_identity.values():
        if node._running:
            await node.stop()


@pytest.fixture
def buyer(network):
    return next(iter(network.by_identity.values()))


@pytest.fixture
def seller(network):
    return list(network.by_identity.values())[1]

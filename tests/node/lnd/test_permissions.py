"""A node's macaroon is checked before the node starts, by calls that change nothing."""

import pytest

from lcp_gateway.lightning.lnd.channel import LndAddress
from lcp_gateway.lightning.lnd.permissions import NODE_LISTENING
from lcp_gateway.node.lnd.permissions import NotPermitted, check_permissions, needed
from lcp_gateway.node.ports import LightningAway

EVERYTHING = needed(buys=True, sells=True, holds=True, connects=True)


def names(permissions):
    return {it.call.split(".")[1] for it in permissions}


def address_with(node, macaroon):
    return LndAddress(node.address.target, node.address.tls_cert, macaroon)


@pytest.mark.parametrize(
    "role",
    [
        {"buys": True, "sells": False, "holds": False},
        {"buys": False, "sells": True, "holds": False},
        {"buys": True, "sells": True, "holds": False},
        {"buys": False, "sells": True, "holds": True},
        {"buys": True, "sells": False, "holds": False, "connects": True},
    ],
)
async def test_a_macaroon_for_exactly_the_calls_of_a_role_is_enough(buyer, seller, role):
    await check_permissions(address_with(buyer, buyer.bake("exact", *names(needed(**role)))), **role)
    assert not buyer.invoices and not buyer.payments and not buyer.network.sent
    assert buyer.network.peers(buyer) == [seller]


@pytest.mark.parametrize("without", EVERYTHING, ids=lambda it: it.call)
async def test_the_call_that_a_macaroon_does_not_allow_is_named(buyer, without):
    macaroon = buyer.bake("less", *(names(EVERYTHING) - names([without])))
    with pytest.raises(NotPermitted) as refused:
        await check_permissions(address_with(buyer, macaroon), buys=True, sells=True, holds=True, connects=True)
    text = str(refused.value)
    assert f"the macaroon {macaroon} does not allow {without.call} ({without.takes}: {without.purpose});" in text
    assert all(it.uri in text for it in EVERYTHING)


async def test_a_macaroon_of_another_node_is_said_to_be_none_of_this_one(buyer, tmp_path):
    strange = tmp_path / "strange.macaroon"
    strange.write_bytes(b"of another node")
    with pytest.raises(NotPermitted, match=r"does not accept the macaroon .*strange\.macaroon"):
        await check_permissions(address_with(buyer, strange))


async def test_an_lnd_that_is_away_is_no_matter_of_permissions(buyer):
    await buyer.stop()
    with pytest.raises(LightningAway):
        await check_permissions(buyer.address)


def test_the_uris_are_those_that_lncli_takes():
    assert [it.uri for it in NODE_LISTENING] == [
        "uri:/lnrpc.Lightning/GetInfo",
        "uri:/lnrpc.Lightning/ListPeers",
        "uri:/lnrpc.Lightning/SubscribePeerEvents",
        "uri:/lnrpc.Lightning/SubscribeCustomMessages",
        "uri:/lnrpc.Lightning/SendCustomMessage",
        "uri:/lnrpc.Lightning/ListChannels",
        "uri:/lnrpc.Lightning/DisconnectPeer",
    ]
    assert "uri:/invoicesrpc.Invoices/CancelInvoice" in [it.uri for it in needed(buys=False, sells=True, holds=False)]
    assert "uri:/routerrpc.Router/SendPaymentV2" in [it.uri for it in needed(buys=True, sells=False, holds=False)]

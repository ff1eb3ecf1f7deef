"""A node keeps its lnd connected with the peers that its file names, whatever restarts."""

from contextlib import suppress

import grpc
import pytest

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway.node.lnd.permissions import needed
from tests.support.gateway import run_command
from tests.support.lnd_network import in_a_thread
from tests.support.node_program import SELLER_TOML, lnd_flags, node_program
from tests.support.node_thread import eventually
from tests.system.node.test_node_program import quote_request, stub

CONNECTS = {"buys": True, "sells": False, "holds": False, "connects": True}


@pytest.fixture
def network(tmp_path):
    """Two lnds without a channel: neither connects with the other by itself."""
    with in_a_thread(tmp_path, "buyer", "seller") as made:
        buyer, seller = made.by_identity.values()

        async def part():
            made.disconnect(buyer, seller, forever=True)

        made.run(part())
        yield made


@pytest.mark.slow
def test_a_peer_without_a_channel_comes_back_when_either_lnd_has_restarted(network, tmp_path):
    buyer, seller = network.by_identity.values()
    macaroon = str(buyer.bake("connects", *(it.call.split(".")[1] for it in needed(**CONNECTS))))
    peers = f'peers = ["{seller.identity}@127.0.0.1:9735"]\n'
    with (
        node_program(seller, tmp_path / "s", config=SELLER_TOML),
        node_program(buyer, tmp_path / "b", "--macaroon", macaroon, config=peers) as program,
    ):
        node = stub(program.address)

        def buys():
            quotes = []

            def quoted():
                with suppress(grpc.RpcError):
                    quotes.append(node.RequestQuote(quote_request(seller.identity), timeout=60).terms)
                return quotes

            eventually(quoted)
            (terms,) = quotes
            request = pb.AcceptAndExecuteRequest(peer_id=seller.identity, job_id=terms.job_id, pay_invoice=True)
            assert node.AcceptAndExecute(request, timeout=60).result.status == pb.Result.STATUS_OK

        buys()
        assert not network.wanted
        for lnd in (buyer, seller):
            network.run(lnd.restart())
            eventually(lambda lnd=lnd: network.peers(lnd))
            buys()


def test_a_macaroon_that_does_not_allow_it_is_named_at_the_start(network, tmp_path):
    buyer, seller = network.by_identity.values()
    config = tmp_path / "node.toml"
    config.write_text(f'peers = ["{seller.identity}@127.0.0.1:9735"]\n')
    macaroon = buyer.bake("less", *(it.call.split(".")[1] for it in needed(**CONNECTS | {"connects": False})))
    ended = run_command("node", *lnd_flags(buyer), "--macaroon", str(macaroon), "--config", str(config))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert f"the macaroon {macaroon} does not allow Lightning.ConnectPeer (peers:write" in line
    assert "uri:/lnrpc.Lightning/ConnectPeer" in line

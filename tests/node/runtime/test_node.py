import hashlib

import pytest

from lcp_gateway.node.lcp.messages import JSON, SSE, Protocol, Status
from lcp_gateway.node.runtime.calls import CallFailed
from lcp_gateway.upstream_status import UpstreamStatus
from tests.support import virtual_time
from tests.support.lcp_nodes import RESULT, Pair, order, settle


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("padding", [0, 300_000])
def test_a_job_is_bought_and_sold(protocol, stream, padding):
    async def scenario():
        async with Pair() as pair:
            content_type, data, delivered = await pair.buy(protocol, stream=stream, padding=padding)

            assert (content_type, data) == (SSE if stream else JSON, RESULT)
            assert delivered.result.status is Status.OK
            assert delivered.result.sha256 == hashlib.sha256(RESULT).digest()
            payment = delivered.payment
            assert payment.state == "settled" and payment.fee_msat == 0
            assert hashlib.sha256(payment.preimage).digest() == payment.payment_hash
            assert pair.buyer.lightning.payments.begun == 1
            assert pair.seller.seen.earned_msat == pair.buyer.seen.spent_msat > 0
            assert pair.buyer.seen.ended == [("buyer", "delivered")]
            assert pair.seller.seen.ended == [("seller", "delivered")]
            await settle()
            assert await pair.buyer.store.purchases() == []
            assert not pair.buyer.seen.problems and not pair.seller.seen.problems

    virtual_time.run(scenario())


def test_a_node_that_does_not_buy_sells_and_shows_no_peers():
    async def scenario():
        async with Pair(seller={"buys": False}) as pair:
            for protocol in Protocol:
                assert pair.seller.node.ready_peers(protocol) == []
                with pytest.raises(CallFailed) as refused:
                    await pair.seller.node.request_quote(protocol, pair.buyer.node_id, order())
                assert refused.value.status is UpstreamStatus.FAILED_PRECONDITION
                assert refused.value.details == "this node does not buy (buy.enabled)"
                _, data, _ = await pair.buy(protocol)
                assert data == RESULT

    virtual_time.run(scenario())


def test_ready_peers_are_listed_with_their_manifests():
    async def scenario():
        async with Pair() as pair:
            for protocol in Protocol:
                (peer,) = pair.buyer.node.ready_peers(protocol)
                assert (peer.peer_id, peer.address) == (pair.seller.node_id, "10.0.0.2:9735")
                assert len(peer.manifest.tasks) == 2
                info = await pair.seller.node.local_info(protocol)
                assert info.node_id == pair.seller.node_id and info.manifest == peer.manifest
                (peer,) = pair.seller.node.ready_peers(protocol)
                assert peer.peer_id == pair.buyer.node_id and not peer.manifest.tasks

    virtual_time.run(scenario())

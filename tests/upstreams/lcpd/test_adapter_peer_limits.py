"""Data from peers is limited: their ids, their models, and the size of their messages."""

import pytest

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.ports import StreamBegin
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstreams.lcpd.adapter import LcpdUpstream
from lcp_gateway.upstreams.lcpd.transport import LcpdAddress
from tests.support.scripted_daemon import Daemon, serving
from tests.upstreams.lcpd.test_adapter import PEER, TASK

OTHER = "03" + "ab" * 32
KIB = 1024
MIB = 1024 * KIB


def peer(peer_id=PEER, models=("m",), **manifest):
    templates = [
        {"kind": pb.LCP_TASK_KIND_OPENAI_CHAT_COMPLETIONS_V1, "openai_chat_completions_v1": {"model": model}}
        for model in models
    ]
    return pb.LCPPeer(peer_id=peer_id, remote_manifest={"supported_tasks": templates, **manifest})


class Listed:
    """A daemon with these peers, and an upstream that has listed them."""

    def __init__(self, *peers):
        self.peers = peers
        self.odd = []

    async def __aenter__(self):
        self._serving = serving(Daemon())
        self.daemon = await self._serving.__aenter__()
        self.daemon.answers["ListLCPPeers"] = [pb.ListLCPPeersResponse(peers=self.peers)]
        self.upstream = LcpdUpstream(LcpdAddress(self.daemon.address), on_odd_peer=lambda *told: self.odd.append(told))
        self.providers = await self.upstream.list_peers(60)
        return self

    async def __aexit__(self, *error):
        await self.upstream.close()
        await self._serving.__aexit__(*error)


@pytest.mark.parametrize(
    "peer_id", ["", "02ab", "zz" * 33, "04" + "ab" * 32, PEER + "00", PEER.upper(), "node:a", "\n"]
)
async def test_a_peer_whose_id_is_no_public_key_is_left_out(peer_id):
    """Regression: it was counted, and its id appeared in labels and responses."""
    async with Listed(peer(peer_id), peer(OTHER)) as listed:
        assert [provider.peer_id for provider in listed.providers] == [OTHER]
        assert [told[0] for told in listed.odd] == [""]
        # Logged once, and not with each refresh.
        await listed.upstream.list_peers(60)
        assert len(listed.odd) == 1


async def test_a_peer_has_so_many_models_and_no_more():
    """Regression: 100 peers with 3,000 names each blocked the gateway for half a minute."""
    names = [f"model-{number}" for number in range(3_000)]
    async with Listed(peer(models=["x" * 257, *names])) as listed:
        (provider,) = listed.providers
        assert next(iter(provider.models.values())) == tuple(names[:512])
        assert sorted(problem for _, problem in listed.odd) == [
            "models after the first 512 are left out",
            "models with names above 256 characters are left out",
        ]


LIMITS = {
    "of its jobs": {"max_job_bytes": MIB, "max_stream_bytes": 4 * MIB},
    "of its streams": {"max_job_bytes": 4 * MIB, "max_stream_bytes": MIB},
    "of the one that it names": {"max_stream_bytes": MIB},
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS.keys())
async def test_a_result_is_held_to_the_limits_of_its_peer(limits):
    async with Listed(peer(**limits)) as listed:
        quote = await listed.upstream.request_quote(TASK, PEER, 60)
        for size in (MIB, MIB + 1):
            whole = pb.AcceptAndExecuteResponse(result={"status": pb.Result.STATUS_OK, "result": bytes(size)})
            listed.daemon.answers["AcceptAndExecute"] = [whole]
            if size == MIB:
                assert len((await listed.upstream.execute(quote, TASK, 60)).body) == MIB
                continue
            with pytest.raises(UpstreamError) as caught:
                await listed.upstream.execute(quote, TASK, 60)
            assert caught.value.evidence is Verdict.SETTLED
            assert str(MIB) in caught.value.message


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS.keys())
async def test_a_stream_is_held_to_the_limits_of_its_peer(limits):
    event = pb.AcceptAndExecuteStreamResponse
    chunk = event(result_chunk={"data": bytes(256 * KIB)})
    begin = event(result_begin={"content_type": "text/event-stream"})
    async with Listed(peer(**limits)) as listed:
        quote = await listed.upstream.request_quote(TASK, PEER, 60)
        listed.daemon.answers["AcceptAndExecuteStream"] = [begin, *[chunk] * 6]
        taken = 0
        with pytest.raises(UpstreamError) as caught:
            async for part in listed.upstream.execute_stream(quote, TASK, 60):
                taken += 0 if isinstance(part, StreamBegin) else len(part)
        assert taken == MIB
        assert (caught.value.status, caught.value.evidence) == ("DATA_LOSS", Verdict.SETTLED)


@pytest.mark.parametrize("size", [33 * MIB - 8, 40 * MIB])
async def test_a_result_that_is_too_large_for_any_peer_was_paid(size):
    """Regression: a result of 110 MB was "unknown", and the customer's hold stayed."""
    async with Listed(peer()) as listed:
        quote = await listed.upstream.request_quote(TASK, PEER, 60)
        whole = pb.AcceptAndExecuteResponse(result={"status": pb.Result.STATUS_OK, "result": bytes(size)})
        listed.daemon.answers["AcceptAndExecute"] = [whole]
        with pytest.raises(UpstreamError) as caught:
            await listed.upstream.execute(quote, TASK, 60)
    assert caught.value.evidence is Verdict.SETTLED

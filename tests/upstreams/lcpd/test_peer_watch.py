import asyncio

import pytest

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway.upstreams.lcpd.adapter import LcpdUpstream
from lcp_gateway.upstreams.lcpd.peer_watch import PeerWatch
from lcp_gateway.upstreams.lcpd.transport import LcpdAddress
from tests.support.scripted_daemon import PEER, Daemon, serving


@pytest.fixture
async def daemon(tmp_path):
    made = Daemon()
    made.answers["ListLCPPeers"] = [pb.ListLCPPeersResponse(peers=[{"peer_id": PEER}])]
    made.address = f"unix:{tmp_path}/lcpd.sock"
    return made


@pytest.fixture
async def watch(daemon):
    upstream = LcpdUpstream(LcpdAddress(daemon.address))
    yield PeerWatch(upstream, refresh_s=0.05, timeout_s=60, miss_after_s=0.0)
    await upstream.close()


async def test_before_it_has_asked_it_says_so(watch):
    assert watch.problem is not None
    assert watch.catalog.providers == ()


async def test_requests_that_miss_together_share_one_refresh(daemon, watch):
    async with serving(daemon, daemon.address):
        await asyncio.gather(*(watch.refresh_if_stale() for _ in range(20)))
    assert len(daemon.requests["ListLCPPeers"]) == 1
    assert watch.catalog.peer(PEER)


async def test_a_daemon_that_restarts_is_noticed_and_its_peers_stay_known(daemon, watch):
    running = asyncio.create_task(watch.run())
    async with asyncio.timeout(60):
        async with serving(daemon, daemon.address):
            while watch.problem is not None:
                await asyncio.sleep(0.01)
        # A call that runs when the daemon stops may end as CANCELLED.
        while watch.problem is None or watch.problem.status != "UNAVAILABLE":
            await asyncio.sleep(0.01)
        assert watch.catalog.peer(PEER), "the last snapshot stays"
        async with serving(daemon, daemon.address):
            while watch.problem is not None:
                await asyncio.sleep(0.01)
    running.cancel()
    assert len(daemon.requests["GetLocalInfo"]) >= 2, "it may be another daemon now"


async def test_a_refresh_that_is_wanted_does_not_wait_for_its_time(daemon):
    upstream = LcpdUpstream(LcpdAddress(daemon.address))
    watch = PeerWatch(upstream, refresh_s=3_600, timeout_s=30)
    running = asyncio.create_task(watch.run())
    async with asyncio.timeout(60), serving(daemon, daemon.address):
        watch.refresh_soon()
        while watch.problem is not None:
            await asyncio.sleep(0.01)
        asked = len(daemon.requests["ListLCPPeers"])
        watch.refresh_soon()
        while len(daemon.requests["ListLCPPeers"]) == asked:
            await asyncio.sleep(0.01)
    running.cancel()
    await upstream.close()


async def test_a_daemon_of_another_version_is_not_used(daemon, watch):
    daemon.version = 4
    async with serving(daemon, daemon.address):
        await watch.refresh()
    assert "version 4" in watch.problem.message


async def test_a_refresh_that_is_wanted_once_the_snapshot_is_there_is_another_one(daemon):
    upstream, wanted = LcpdUpstream(LcpdAddress(daemon.address)), []

    def want(_catalog):
        if not wanted:
            # The first step after the one in which the snapshot is there.
            asyncio.get_running_loop().call_soon(watch.refresh_soon)
            wanted.append(len(daemon.requests["ListLCPPeers"]))

    watch = PeerWatch(upstream, refresh_s=3_600, timeout_s=30, on_refresh=want)
    async with asyncio.timeout(60), serving(daemon, daemon.address):
        running = asyncio.create_task(watch.run())
        while not wanted or len(daemon.requests["ListLCPPeers"]) == wanted[0]:
            await asyncio.sleep(0.01)
    running.cancel()
    await upstream.close()

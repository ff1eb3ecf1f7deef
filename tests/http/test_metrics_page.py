"""The address for metrics of a node over lnd; that of a gateway is tested with the gateway."""

import socket

import aiohttp
import pytest

from lcp_gateway.http.metrics_page import serve_node_metrics
from lcp_gateway.http.server.listener import CannotListen
from lcp_gateway.node.runtime.observer import NodeFigures
from lcp_gateway.telemetry.node_metrics import NodeMetrics


@pytest.fixture
async def page():
    asked = []

    def figures():
        asked.append(1)
        return NodeFigures(lightning_up=True, queued_messages=len(asked))

    async with (
        serve_node_metrics("127.0.0.1", 0, NodeMetrics(), figures) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
    ):
        yield client


async def test_each_scrape_has_the_figures_of_now(page):
    for scrape in (1, 2):
        async with page.get("/metrics") as response:
            assert response.status == 200
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert f"lcpgateway_lcp_queue_messages {scrape}.0" in await response.text()


async def test_it_says_that_it_is_alive(page):
    async with page.get("/healthz") as response:
        assert await response.json() == {"status": "ok"}


async def test_a_page_under_another_name_reads_nothing(page):
    async with page.get("/metrics", headers={"Host": "evil.example"}) as response:
        assert response.status == 421
        assert "lcpgateway_" not in await response.text()
    async with page.get("/metrics", headers={"Origin": "https://evil.example"}) as response:
        assert response.status == 403


async def test_an_address_that_is_taken_is_a_clear_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CannotListen, match="cannot listen on 127"):
            async with serve_node_metrics(
                "127.0.0.1", taken.getsockname()[1], NodeMetrics(), lambda: NodeFigures(lightning_up=True)
            ):
                pass

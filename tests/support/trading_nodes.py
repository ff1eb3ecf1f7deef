"""Two nodes over a simulated Lightning network in a thread of their own, one of which keeps buying from the other; and their metrics."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

from lcp_gateway.http.metrics_page import serve_node_metrics
from lcp_gateway.node.compute.echo import EchoBackend
from lcp_gateway.node.lcp.buying_events import Order
from lcp_gateway.node.lcp.judging import SoldModel
from lcp_gateway.node.lcp.messages import CHAT, Protocol
from lcp_gateway.node.lcp.pricing import TokenPrice
from lcp_gateway.node.lcp.table import write_params
from lcp_gateway.node.memory.network import Network
from lcp_gateway.node.memory.store import MemoryStore
from lcp_gateway.node.runtime.node import LcpNode
from lcp_gateway.telemetry.node_metrics import NodeMetrics

MODEL = "echo-1"
ORDER = Order(
    task_kind=CHAT,
    params=write_params(MODEL),
    request=b'{"model":"echo-1","max_tokens":200,"messages":[{"role":"user","content":"hello"}]}',
)
PAUSE_S = 0.2


async def buy(buyer: LcpNode, seller_id: str) -> None:
    quote = await buyer.request_quote(Protocol.V02, seller_id, ORDER)
    async for _ in buyer.accept(seller_id, quote.job_id):
        pass


async def trade(started: list[str], is_started: threading.Event, ended: asyncio.Event) -> None:
    network = Network()
    lightning = {name: network.node(name) for name in ("seller", "buyer")}
    async with AsyncExitStack() as stack:
        nodes = {}
        for name, it in lightning.items():
            metrics = NodeMetrics(models=(MODEL,))
            sells = {"compute": EchoBackend(), "models": {MODEL: SoldModel(TokenPrice(2_000_000, 14_000_000), 4_096)}}
            nodes[name] = LcpNode(
                transport=it.transport,
                payments=it.payments,
                invoices=it.invoices,
                store=MemoryStore(),
                observer=metrics,
                **(sells if name == "seller" else {}),
            )
            await nodes[name].start()
            stack.push_async_callback(nodes[name].stop)
            port = await stack.enter_async_context(serve_node_metrics("127.0.0.1", 0, metrics, nodes[name].figures))
            started.append(f"127.0.0.1:{port}")
        network.connect(lightning["seller"], lightning["buyer"])
        seller_id, _ = await lightning["seller"].transport.identity()
        async with asyncio.timeout(60):
            while not nodes["buyer"].ready_peers(Protocol.V02):
                await asyncio.sleep(0.01)
        is_started.set()
        # A quote that is not taken stays open.
        await nodes["buyer"].request_quote(Protocol.V02, seller_id, ORDER)
        while not ended.is_set():
            await buy(nodes["buyer"], seller_id)
            await asyncio.sleep(PAUSE_S)


@contextmanager
def trading_nodes() -> Iterator[list[str]]:
    """Let the nodes trade for the block; yield the addresses of the seller's and the buyer's metrics."""
    addresses: list[str] = []
    is_started, failures = threading.Event(), []
    loop, ended = asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(trade(addresses, is_started, ended))
        except BaseException as error:  # noqa: BLE001 - shown by the test's thread
            failures.append(error)
        finally:
            is_started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        assert is_started.wait(120)
        assert not failures, failures
        yield addresses
    finally:
        if not failures:
            loop.call_soon_threadsafe(ended.set)
        thread.join(60)
    assert not failures, failures

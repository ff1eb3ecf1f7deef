"""The program under test of ``bench.node``: a buyer and a seller of ours over a simulated Lightning network, and the buyer's gRPC port.

``python -m bench.node_pair ADDRESS [FOLDER]``; with a folder both keep what they must in SQLite there, else in memory.
"""

import asyncio
import signal
import sys
from pathlib import Path

from lcp_gateway.node.compute.echo import EchoBackend
from lcp_gateway.node.lcp.judging import SoldModel
from lcp_gateway.node.lcp.pricing import TokenPrice
from lcp_gateway.node.memory.network import MemoryNode, Network
from lcp_gateway.node.memory.store import MemoryStore
from lcp_gateway.node.ports import Store
from lcp_gateway.node.rpc.server import RpcServer, ServerOptions
from lcp_gateway.node.runtime.node import LcpNode
from lcp_gateway.node.storage.store import SqliteStore

MODEL = "echo-1"
SOLD = {MODEL: SoldModel(TokenPrice(2_000_000, 14_000_000), 4_096)}


async def _store(folder: str, name: str) -> Store:
    return await SqliteStore.open(Path(folder) / f"{name}.db") if folder else MemoryStore()


async def make_node(lightning: MemoryNode, folder: str, name: str, **settings: object) -> LcpNode:
    """Return a node that has started."""
    node = LcpNode(
        transport=lightning.transport,
        payments=lightning.payments,
        invoices=lightning.invoices,
        store=await _store(folder, name),
        **settings,
    )
    await node.start()
    return node


async def _main(address: str, folder: str) -> None:
    network = Network()
    buyer, seller = network.node("buyer"), network.node("seller")
    nodes = [
        await make_node(seller, folder, "seller", compute=EchoBackend(), models=SOLD),
        await make_node(buyer, folder, "buyer"),
    ]
    network.connect(buyer, seller)
    server = RpcServer(nodes[1], ServerOptions(listen=address), on_bug=print)
    await server.start()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    await server.stop(0.0)
    for node in nodes:
        await node.stop()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""))

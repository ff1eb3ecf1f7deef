"""The network in which simulated Lightning nodes meet: links between them, messages on the links, payments."""

import asyncio
import time
from collections.abc import Callable

from coincurve import PrivateKey

from lcp_gateway.node.config import derive_key
from lcp_gateway.node.memory.hooks import Hooks, PassingMessage
from lcp_gateway.node.memory.invoices import MemoryInvoices
from lcp_gateway.node.memory.payments import MemoryPayments
from lcp_gateway.node.memory.transport import MemoryTransport


class MemoryNode:
    """One Lightning node of a network, with the three ports of a compute node.

    It lives as long as the network: a compute node that restarts finds its links, invoices and payments again.
    """

    def __init__(self, network: "Network", key: PrivateKey, address: str) -> None:
        self.address = address
        self.key = key
        self.invoices = MemoryInvoices(key, network.prefix, network.clock)
        self.node_id = self.invoices.node_id
        self.transport = MemoryTransport(network, self.node_id)
        self.payments = MemoryPayments(network, self.node_id)

    def stop(self) -> None:
        """Take the Lightning node away: its links end, its streams break, its calls fail. Payments that were begun go on."""
        self.transport.stop()
        self.invoices.stop()
        self.payments.is_away = True

    def start(self) -> None:
        """Bring the Lightning node back; its links have to be connected again."""
        self.transport.is_away = self.invoices.is_away = self.payments.is_away = False


class Network:
    """A simulated Lightning network. ``prefix`` is that of its invoices, ``clock`` returns Unix seconds."""

    def __init__(
        self, *, prefix: str = "bcrt", clock: Callable[[], float] = time.time, hooks: Hooks | None = None
    ) -> None:
        self.prefix = prefix
        self.clock = clock
        self.hooks = hooks or Hooks()
        self.nodes: dict[str, MemoryNode] = {}
        # Each link by its two ids; the number tells a link from an earlier one between the same nodes.
        self._links: dict[frozenset[str], int] = {}
        self._link_count = 0

    def node(self, seed: str, address: str = "", *, name: str = "node") -> MemoryNode:
        """Add a node; its id follows from ``seed`` and ``name``."""
        made = MemoryNode(self, derive_key(seed, name), address)
        if made.node_id in self.nodes:
            raise ValueError("the network has a node of this seed already")
        self.nodes[made.node_id] = made
        return made

    def connect(self, one: MemoryNode, other: MemoryNode) -> None:
        """Link two nodes; two that are linked already stay so."""
        pair = frozenset({one.node_id, other.node_id})
        if pair in self._links or one.transport.is_away or other.transport.is_away:
            return
        self._link_count += 1
        self._links[pair] = self._link_count
        one.transport.connected(other.node_id, other.address)
        other.transport.connected(one.node_id, one.address)

    def disconnect(self, one: str, other: str) -> None:
        """End the link of two nodes, by their ids; messages that have not arrived are lost."""
        if self._links.pop(frozenset({one, other}), None) is None:
            return
        for node_id, peer_id in ((one, other), (other, one)):
            self.nodes[node_id].transport.disconnected(peer_id)

    def peers(self, node_id: str) -> list[str]:
        """Return the ids of the nodes that are linked with a node."""
        return [other for pair in self._links if node_id in pair for other in pair if other != node_id]

    def are_linked(self, one: str, other: str) -> bool:
        """Return whether two nodes are linked, by their ids."""
        return frozenset({one, other}) in self._links

    def carry(self, message: PassingMessage) -> bool:
        """Take a message to the other end of a link; False where there is none."""
        link = self._links.get(frozenset({message.sender, message.receiver}))
        if link is None:
            return False
        for delay_s in self.hooks.deliveries(message):
            if delay_s <= 0:
                self.nodes[message.receiver].transport.arrived(message)
            else:
                asyncio.get_running_loop().call_later(delay_s, self._arrive, message, link)
        return True

    def _arrive(self, message: PassingMessage, link: int) -> None:
        if self._links.get(frozenset({message.sender, message.receiver})) == link:
            self.nodes[message.receiver].transport.arrived(message)

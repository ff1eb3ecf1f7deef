"""The hub of the nodes that dialled in: admits them, keeps what they offer in the catalog, and disconnects dead ones."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from lcp_gateway.clock import utc_now
from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.node_protocol.gateway_side import GatewaySide
from lcp_gateway.node_protocol.messages import Goodbye, Hello, Offered, ProtocolError, Receipt, Refused
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import State
from lcp_gateway.routing.catalog import Provider
from lcp_gateway.upstreams.dialin.connection import HELLO_WITHIN_S, ConnectionRules, NodeConnection, NodeSocket
from lcp_gateway.upstreams.dialin.grants import Grant, NodeTerms, NotAdmitted
from lcp_gateway.upstreams.dialin.offers import DescribeModel, offered_models, provider_of
from lcp_gateway.upstreams.dialin.probe import ProbeRules, probe

TICK_S: Final = 0.5
_MOST_JOBS = 10_000
_MOST_LEFT = 1_000
_REPLACED_AFTER_S = -1.0


@dataclass(frozen=True, slots=True)
class HubRules:
    """How the hub admits and keeps nodes.

    ``max_nodes`` bounds those of accounts; the settings name the operator's own. ``taken_names`` are those of virtual nodes;
    ``describe`` says which kinds a model takes.
    """

    connection: ConnectionRules = field(default_factory=ConnectionRules)
    probe: ProbeRules = field(default_factory=ProbeRules)
    max_nodes: int = 1_000
    taken_names: frozenset[str] = frozenset()
    describe: DescribeModel = lambda _model, kinds: kinds


@dataclass(frozen=True, slots=True)
class DialinState:
    """The state of a node: here (``up``), or gone since ``since``. ``problem`` says why it is gone, or offers nothing."""

    up: bool
    since: datetime
    models: int
    running: int
    account_id: str | None
    agent: str
    problem: str
    delivered: int


class NodeHub:
    """All nodes that dialled in. One thread, one event loop.

    ``start`` starts a short task. ``on_change`` gets a node's terms and whether it is up, with the reason where it is not.
    """

    def __init__(
        self,
        rules: HubRules,
        *,
        start: Callable[[Coroutine[Any, Any, None]], None],
        on_change: Callable[[NodeTerms, bool, str], None] = lambda _terms, _up, _reason: None,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules = rules
        self._start = start
        self._on_change = on_change
        self._now = now
        self._clock = clock
        self._nodes: dict[str, NodeConnection] = {}
        self._since: dict[str, datetime] = {}
        self._left: OrderedDict[str, DialinState] = OrderedDict()
        self._providers: tuple[Provider, ...] = ()
        self._by_id: dict[str, Provider] = {}
        self._jobs: OrderedDict[bytes, tuple[NodeConnection, int]] = OrderedDict()
        self._draining = False

    # -- for routing and purchases ------------------------------------------------------------------

    @property
    def providers(self) -> tuple[Provider, ...]:
        """The nodes that offer a model; the same object while nothing has changed."""
        return self._providers

    @property
    def states(self) -> Mapping[str, DialinState]:
        """The state of each node that is here, and of those that left, by its id."""
        here = {node_id: self._state(node_id, node) for node_id, node in self._nodes.items()}
        return MappingProxyType({**self._left, **here})

    @property
    def own_states(self) -> Mapping[str, DialinState]:
        """The states of the operator's own nodes."""
        return MappingProxyType({name: one for name, one in self.states.items() if one.account_id is None})

    @property
    def connected(self) -> int:
        """How many nodes are here."""
        return len(self._nodes)

    def has_place(self, grant: Grant) -> bool:
        """Whether a further node may come with this grant."""
        return not self._draining and self._has_place(grant.account_id)

    def connection(self, provider_id: str) -> NodeConnection | None:
        """Return the connection of a provider, None where it is not here."""
        return self._nodes.get(provider_id.removeprefix(NODE_PREFIX))

    def offers(self, provider_id: str, kind: TaskKind, model: str) -> bool:
        """Whether a node offers a model for tasks of a kind now, by its word, the operator's terms and its probes."""
        provider = self._by_id.get(provider_id.removeprefix(NODE_PREFIX))
        return provider is not None and provider.offers(kind, model)

    def bought(self, quote: Quote, node: NodeConnection, request_id: int) -> None:
        """Remember which request a purchase is, for its receipt."""
        self._jobs[quote.job_id] = node, request_id
        if len(self._jobs) > _MOST_JOBS:
            self._jobs.popitem(last=False)

    def ended(self, purchase: Purchase) -> None:
        """Send the receipt of a purchase that has ended."""
        found = self._jobs.pop(purchase.quote.job_id, None)
        if found is None:
            return
        node, request_id = found
        price_msat = purchase.cost_msat if purchase.state is State.DELIVERED else 0
        payee = purchase.quote.payee
        earned_msat = price_msat if payee is None else payee.earned_msat(price_msat)
        node.send_receipt(request_id, Receipt(purchase.state.value, price_msat, earned_msat))

    # -- connections --------------------------------------------------------------------------------

    async def serve(self, socket: NodeSocket, grant: Grant) -> None:
        """Serve a node for as long as it is connected."""
        side = GatewaySide()
        try:
            node = await self._admit(socket, side, grant)
        except NotAdmitted as error:
            after_s = _REPLACED_AFTER_S if error.is_final else 0.0
            socket.post(side.goodbye(Goodbye(error.reason, error.message, after_s)))
            await socket.close()
            return
        except ProtocolError as error:
            socket.post(side.goodbye(Goodbye(error.code, error.message, _REPLACED_AFTER_S)))
            await socket.close()
            return
        if node is None:
            socket.abort()
            return
        reason = "lost"
        try:
            reason = await node.run()
        finally:
            node.closed(reason)
            self._remove(node)
        await socket.close()

    async def run(self) -> None:
        """Keep the connections until cancelled: heartbeats, tokens that were revoked, probes."""
        while True:
            await asyncio.sleep(TICK_S)
            for node in tuple(self._nodes.values()):
                if node.is_revoked:
                    node.leave(Goodbye("revoked", "the token or the terms of this node have changed"))
                    node.cut("revoked")
                    continue
                node.tick()
                self._probe_if_due(node)

    def use(self, rules: HubRules) -> None:
        """Keep nodes by other rules from now on; connections keep the heartbeat and window that they began with."""
        self._rules = rules
        for node in tuple(self._nodes.values()):
            self._collect(node)

    def drain(self) -> None:
        """Say goodbye to all: the gateway shuts down, and they are to dial in again."""
        self._draining = True
        for node in tuple(self._nodes.values()):
            node.leave(Goodbye("shutting_down"))

    async def close(self) -> None:
        """Cut all connections."""
        for node in tuple(self._nodes.values()):
            node.cut("shutting_down")

    async def _admit(self, socket: NodeSocket, side: GatewaySide, grant: Grant) -> NodeConnection | None:
        """Wait for the hello, and admit the node; None where the connection ended instead.

        Raises:
            NotAdmitted, ProtocolError: it is not welcome.
        """
        try:
            async with asyncio.timeout(HELLO_WITHIN_S):
                frame = await socket.receive()
        except TimeoutError:
            raise ProtocolError("no_hello", "no hello came in time") from None
        if frame is None:
            return None
        hello = side.receive(frame)
        if not isinstance(hello, Hello):
            raise ProtocolError("no_hello", "the first frame of a node is its hello")
        terms = await grant.terms(hello.name)
        self._check(terms, hello)
        node = NodeConnection(
            socket, side, hello, grant, terms, self._rules.connection, on_change=self._collect, clock=self._clock
        )
        if (before := self._nodes.get(terms.node_id)) is not None:
            # Of two connections the newest is the one that works: the other may be half open.
            before.leave(Goodbye("replaced", "another connection of this node is here", _REPLACED_AFTER_S))
            before.cut("replaced")
            self._remove(before)
        node.welcome()
        self._nodes[terms.node_id] = node
        self._since[terms.node_id] = self._now()
        self._left.pop(terms.node_id, None)
        self._collect(node)
        self._on_change(terms, True, "")
        self._probe_if_due(node)
        return node

    def _check(self, terms: NodeTerms, hello: Hello) -> None:
        if terms.node_id in self._rules.taken_names:
            raise NotAdmitted("name_taken", "a virtual node of the gateway has this name")
        if self._draining:
            raise NotAdmitted("shutting_down", "the gateway shuts down", is_final=False)
        before = self._nodes.get(terms.node_id)
        is_same = before is not None and before.hello.instance == hello.instance
        if is_same and self._rules.connection.worker in hello.held:
            raise NotAdmitted("already_here", "this worker has a connection of the node", is_final=False)
        if before is None and not self._has_place(terms.account_id):
            message = "the gateway has as many nodes as it takes, or half as many of this account: dial again later"
            raise NotAdmitted("too_many_nodes", message, is_final=False)

    def _has_place(self, account_id: str | None) -> bool:
        if account_id is None:
            # The settings name the operator's own: no account can keep them out.
            return True
        owners = [owner for node in self._nodes.values() if (owner := node.terms.account_id) is not None]
        most = self._rules.max_nodes
        # Half of the places at most: one account alone cannot keep the others out.
        return len(owners) < most and 2 * owners.count(account_id) < most

    def _remove(self, node: NodeConnection) -> None:
        node_id = node.terms.node_id
        if self._nodes.get(node_id) is not node:
            return
        del self._nodes[node_id]
        self._since.pop(node_id, None)
        self._left[node_id] = self._state(node_id, node, up=False)
        if len(self._left) > _MOST_LEFT:
            self._left.popitem(last=False)
        self._collect(node)
        self._on_change(node.terms, False, node.closed_for)

    def _state(self, node_id: str, node: NodeConnection, *, up: bool = True) -> DialinState:
        provider = self._by_id.get(node_id)
        models = 0 if provider is None else len({name for names in provider.models.values() for name in names})
        problem = node.closed_for if not up else next(iter(node.failed.values()), "")
        return DialinState(
            up=up,
            since=self._since.get(node_id) or self._now(),
            models=models,
            running=node.running if up else 0,
            account_id=node.terms.account_id,
            agent=node.hello.agent,
            problem=problem,
            delivered=node.delivered,
        )

    # -- offers -------------------------------------------------------------------------------------

    def _collect(self, node: NodeConnection) -> None:
        """Make the provider of one node anew; the providers stay the same object where it is the same."""
        node_id = node.terms.node_id
        if node.closed_for and self._nodes.get(node_id) is not node and node_id in self._nodes:
            # Another connection is the node now.
            return
        provider = None
        if self._nodes.get(node_id) is node and node.is_usable:
            rules = self._rules
            offered, refused = offered_models(node, needs_probe=rules.probe.is_on, describe=rules.describe)
            node.tell_offered(Offered(tuple(offered), tuple(Refused(*one) for one in refused.items())))
            provider = provider_of(node, offered) if offered else None
        if provider == self._by_id.get(node_id):
            return
        if provider is None:
            del self._by_id[node_id]
        else:
            self._by_id[node_id] = provider
        self._providers = tuple(self._by_id.values())

    def _probe_if_due(self, node: NodeConnection) -> None:
        rules = self._rules.probe
        if not rules.is_on or node.is_probing or not node.is_usable:
            return
        age_s = self._clock() - node.probed_at
        if age_s == float("inf") or (rules.interval_s and age_s >= rules.interval_s):
            self._start(self._probe(node, rules))

    async def _probe(self, node: NodeConnection, rules: ProbeRules) -> None:
        node.is_probing, node.probed_at = True, self._clock()
        try:
            for name in tuple(node.models):
                if name not in node.models:
                    continue
                problem = await probe(node, name, rules)
                if not node.is_usable:
                    # It leaves, or its key cannot be checked now: the model did not fail, and is probed again after that.
                    node.probed_at = -float("inf")
                    return
                if problem:
                    node.passed.discard(name)
                    node.failed[name] = problem
                else:
                    node.failed.pop(name, None)
                    node.passed.add(name)
                self._collect(node)
        finally:
            node.is_probing = False

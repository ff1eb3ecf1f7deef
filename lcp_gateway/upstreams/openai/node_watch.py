"""Watches the virtual nodes: which are up, with which models. A node that is down is removed from the catalog."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from lcp_gateway.adapters.model_list import ListedModel
from lcp_gateway.clock import utc_now
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.ports import StartTask, start_unsupervised
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.routing.catalog import ModelFacts, Provider, merge_kinds
from lcp_gateway.upstreams.openai.adapter import NoModelList, OpenAIHttpUpstream
from lcp_gateway.upstreams.openai.connections import VirtualNode

NOT_PROBED: Final = "the node has not been probed yet"


@dataclass(frozen=True, slots=True)
class NodeState:
    """The state of a node: ``problem`` is empty while it is up, ``models`` counts those it offers."""

    up: bool
    problem: str
    models: int
    since: datetime


class WatchedNode:
    """One node, with the answers to its probes."""

    def __init__(self, node: VirtualNode, started: datetime) -> None:
        self.node = node
        self.state = NodeState(up=False, problem=NOT_PROBED, models=0, since=started)
        self.listed: tuple[ListedModel, ...] | None = None
        self.provider: Provider | None = None
        self.probing: asyncio.Task[None] | None = None
        self.reported = asyncio.Event()
        self.reports = 0
        self.failures = 0
        self.asked_at = -math.inf
        self.told = False

    def described_as(self, node: VirtualNode) -> "WatchedNode":
        """Return the same node with changed settings, with its state unchanged until it is probed."""
        other = WatchedNode(node, self.state.since)
        other.state, other.told = self.state, self.told
        other.listed, other.provider = self.listed, self.provider
        return other

    def facts_of(self, listed: Iterable[ListedModel]) -> Iterable[tuple[str, ModelFacts]]:
        """Yield the facts of each model once.

        Some servers return the time of the request as the time of creation; the first one stays, or each list would
        look like a new one.
        """
        known = {} if self.provider is None else self.provider.facts
        seen = set()
        for model in listed:
            if model.id in seen:
                continue
            seen.add(model.id)
            before = known.get(model.id)
            created = model.created if before is None else before.created
            yield model.id, ModelFacts(model.context_length, created, model.capabilities)


_RETRY_S = 1.0
# A request that finds no provider probes nodes whose last probe is older than this, and waits so long.
_MISS_AFTER_S = 1.0
_MISS_TIMEOUT_S = 0.5
_NO_LIST = "the node has no list of models; its models must be named in the configuration"


class NodeWatch:
    """Probes every node each ``refresh_s`` by asking for its models, and one that is down more often at first.

    One failure takes a node out of the catalog, so that requests go elsewhere.
    """

    def __init__(
        self,
        upstream: OpenAIHttpUpstream,
        nodes: Sequence[VirtualNode],
        *,
        refresh_s: float,
        timeout_s: float,
        describe: Callable[[str, VirtualNode], frozenset[TaskKind]],
        retry_s: float = _RETRY_S,
        on_change: Callable[[str, bool], None] = lambda _name, _up: None,
        on_gone: Callable[[str], None] = lambda _name: None,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
        start_task: StartTask = start_unsupervised,
    ) -> None:
        """``describe`` returns the kinds of task that a model takes on a node.

        ``on_change`` gets a node's name and whether it is up: at first, and whenever that changes. ``on_gone`` gets the
        name of one that is no longer watched. ``start_task`` starts the background task that probes one node.
        """
        self._start_task = start_task
        self._upstream = upstream
        self._refresh_s = refresh_s
        self._retry_s = retry_s
        self._timeout_s = timeout_s
        self._describe = describe
        self._on_change = on_change
        self._on_gone = on_gone
        self._now = now
        self._clock = clock
        started = now()
        self._watched = {node.provider_id: WatchedNode(node, started) for node in nodes}
        self._providers: tuple[Provider, ...] = ()
        self._exchanged = asyncio.Event()

    def use(
        self,
        nodes: Sequence[VirtualNode],
        *,
        refresh_s: float,
        timeout_s: float,
        describe: Callable[[str, VirtualNode], frozenset[TaskKind]],
    ) -> None:
        """Watch these nodes from now on; the upstream must know them already.

        An unchanged one keeps its state. One with changed settings keeps its state until its probe, which is at once.
        """
        self._refresh_s, self._timeout_s, self._describe = refresh_s, timeout_s, describe
        before = self._watched
        self._watched = {}
        for node in nodes:
            found = before.get(node.provider_id)
            if found is None:
                found = WatchedNode(node, self._now())
            elif found.node != node:
                found = found.described_as(node)
            self._watched[node.provider_id] = found
            if found.listed is not None:
                found.provider = self._provider(found, found.listed)
        self._collect()
        for name, watched in before.items():
            if name not in self._watched:
                self._on_gone(watched.node.name)
        for watched in self._watched.values():
            # The pause before each next probe is recomputed.
            watched.reported.set()
        self._exchanged.set()

    @property
    def providers(self) -> tuple[Provider, ...]:
        """The nodes that are up, in the configuration's order. The same object as before while nothing changed."""
        return self._providers

    @property
    def states(self) -> Mapping[str, NodeState]:
        """The state of each node, by its name."""
        return MappingProxyType({w.node.name: w.state for w in self._watched.values()})

    async def refresh(self) -> None:
        """Probe every node now; callers share a probe that is under way. Never raises for a node that is away."""
        await asyncio.gather(*(self._probe(watched) for watched in self._watched.values()))

    async def refresh_if_stale(self) -> None:
        """Probe the nodes that were not probed within the last second, and wait half a second for them at most.

        For a request that found no provider: it should find a node that is just up, and not wait for one that hangs.
        """
        now = self._clock()
        stale = [
            watched
            for watched in self._watched.values()
            if watched.probing is not None or now - watched.asked_at >= _MISS_AFTER_S
        ]
        if stale:
            probes = [asyncio.create_task(self._probe(watched)) for watched in stale]
            await asyncio.wait(probes, timeout=_MISS_TIMEOUT_S)

    async def run(self) -> None:
        """Probe until cancelled."""
        probing: dict[WatchedNode, asyncio.Task[None]] = {}
        try:
            while True:
                self._exchanged.clear()
                watched_now = tuple(self._watched.values())
                for watched in set(probing).difference(watched_now):
                    probing.pop(watched).cancel()
                for watched in watched_now:
                    if watched not in probing:
                        # A task for each: an error of one node must not end the probes of the others.
                        probing[watched] = self._start_task(partial(self._keep_probing, watched))
                await self._exchanged.wait()
        finally:
            for task in probing.values():
                task.cancel()
            if probing:
                await asyncio.wait(probing.values())
            for watched in self._watched.values():
                if watched.probing is not None:
                    watched.probing.cancel()

    def down(self, provider_id: str) -> None:
        """Mark a node as down at once, since a task could not connect; it is probed again soon."""
        watched = self._watched.get(provider_id)
        if watched is None:
            return
        watched.reports += 1
        watched.failures = 0
        self._take_out(watched, "no connection to the node could be made for a task")
        watched.reported.set()

    async def _keep_probing(self, watched: WatchedNode) -> None:
        while True:
            await self._probe(watched)
            # Only these count: probes that requests start must not delay its return.
            watched.failures = 0 if watched.state.up else watched.failures + 1
            await self._pause(watched)

    async def _pause(self, watched: WatchedNode) -> None:
        """Wait until the node is to be probed again; a report in between restarts the wait."""
        while True:
            watched.reported.clear()
            delay_s = self._refresh_s
            if not watched.state.up:
                # No power of more than this is needed to reach any refresh time.
                doublings = min(max(watched.failures - 1, 0), 20)
                delay_s = min(self._retry_s * 2**doublings, self._refresh_s)
            try:
                async with asyncio.timeout(delay_s):
                    await watched.reported.wait()
            except TimeoutError:
                return

    async def _probe(self, watched: WatchedNode) -> None:
        if watched.probing is None:
            watched.probing = asyncio.create_task(self._ask(watched))
        # A caller that gives up must not cancel the probe of the others.
        await asyncio.shield(watched.probing)

    async def _ask(self, watched: WatchedNode) -> None:
        node, reports = watched.node, watched.reports
        watched.asked_at = self._clock()
        listed: tuple[ListedModel, ...] = ()
        problem = ""
        try:
            listed = await self._upstream.list_models(node.name, self._timeout_s)
        except NoModelList:
            problem = "" if node.models else _NO_LIST
        except UpstreamError as error:
            problem = error.message
        except Exception:
            if self._watched.get(node.provider_id) is watched:
                self._take_out(watched, "its answer could not be understood; see the gateway's log")
            raise
        finally:
            watched.probing = None
        if self._watched.get(node.provider_id) is not watched:
            # It was removed, or its settings changed, during the probe.
            return
        if problem:
            self._take_out(watched, problem)
        elif reports == watched.reports:
            # Else a task could not connect during the probe, whose answer may be older than that.
            self._succeeded(watched, listed)

    def _succeeded(self, watched: WatchedNode, listed: tuple[ListedModel, ...]) -> None:
        watched.listed = listed
        provider = self._provider(watched, listed)
        if provider != watched.provider:
            watched.provider = provider
            self._collect()
        models = len({model for names in provider.models.values() for model in names})
        self._set_state(watched, up=True, problem="", models=models)

    def _take_out(self, watched: WatchedNode, problem: str) -> None:
        watched.listed = None
        if watched.provider is not None:
            watched.provider = None
            self._collect()
        self._set_state(watched, up=False, problem=problem, models=0)

    def _collect(self) -> None:
        found = (watched.provider for watched in self._watched.values())
        self._providers = tuple(provider for provider in found if provider is not None)

    def _set_state(self, watched: WatchedNode, *, up: bool, problem: str, models: int) -> None:
        before = watched.state
        changed = up != before.up
        watched.state = NodeState(up, problem, models, self._now() if changed else before.since)
        if changed or not watched.told:
            watched.told = True
            self._on_change(watched.node.name, up)

    def _provider(self, watched: WatchedNode, listed: tuple[ListedModel, ...]) -> Provider:
        node = watched.node
        names = dict.fromkeys(node.models or (model.id for model in listed))
        return Provider(
            peer_id=node.provider_id,
            address=_without_credentials(node.base_url),
            protocol_version=0,
            models=merge_kinds(
                (kind, name)
                for name in names
                # In the enumeration's order: a set has none to keep.
                for kind in sorted(self._describe(name, node), key=list(TaskKind).index)
            ),
            source=ProviderSource.NODE,
            owned_by=node.owned_by or node.name,
            facts=MappingProxyType(dict(watched.facts_of(m for m in listed if m.id in names))),
            list_price_msat=node.price.list_price_msat(),
            price_list=node.price.by_size(node.timeout_s),
        )


def _without_credentials(url: str) -> str:
    """Return the address without its credentials, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))

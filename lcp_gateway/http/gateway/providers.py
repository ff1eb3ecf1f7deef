"""/api/providers: peers and nodes with their models, speed, price, trust and record; for the operator."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from aiohttp import web

from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.http.fields import json_response
from lcp_gateway.http.gateway.health import NodeState
from lcp_gateway.http.openai.models import badges_of
from lcp_gateway.http.queries import Query
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.records import PeerTotals, PurchaseBooks
from lcp_gateway.routing.catalog import Catalog, Provider
from lcp_gateway.routing.measurements import Measurements, Mode
from lcp_gateway.routing.peer_trust import PeerTrust, TrustStatus

_HELD_S: Final = 10.0
_SHORT_ID: Final = 12
_MODES: Final = (Mode.STREAM, Mode.WHOLE, Mode.EMBEDDING)


class KnownNode(NodeState, Protocol):
    """The state of a virtual node; ``problem`` is empty while it is up."""

    @property
    def problem(self) -> str:
        """Why it does not answer."""
        ...


@dataclass(frozen=True, slots=True)
class ProviderSources:
    """What is known of providers. ``books`` is None without a journal."""

    catalog: Callable[[], Catalog]
    nodes: Callable[[], Mapping[str, KnownNode]]
    daemon_problem: Callable[[], UpstreamError | None]
    measurements: Measurements
    trust: PeerTrust
    books: PurchaseBooks | None
    openclaw_id: str | None


class ProviderRoutes:
    """Serves the operator."""

    def __init__(self, sources: ProviderSources, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` is monotonic, in seconds."""
        self._sources = sources
        self._clock = clock
        self._held: tuple[float, Mapping[str, PeerTotals]] | None = None

    async def list(self, request: web.Request) -> web.Response:
        """Serve GET /api/providers: peers and nodes, those that are away included."""
        Query(request, ())
        sources = self._sources
        totals = await self._totals()
        there = {provider.peer_id: provider for provider in sources.catalog().providers}
        nodes = {NODE_PREFIX + name: state for name, state in sources.nodes().items()}
        known: Iterable[str] = dict.fromkeys([*there, *nodes, *(totals or ()), *sources.trust.peers()])
        problem = sources.daemon_problem()
        return json_response(
            {
                "object": "list",
                "after": None,
                "daemon": {
                    "reachable": problem is None,
                    "problem": None if problem is None else f"{problem.status}: {problem.message}",
                },
                "data": [
                    self._document(
                        provider_id,
                        there.get(provider_id),
                        nodes.get(provider_id),
                        None if totals is None else totals.get(provider_id),
                    )
                    # A node that was taken out of the settings is no provider any more.
                    for provider_id in known
                    if provider_id in there or provider_id in nodes or not provider_id.startswith(NODE_PREFIX)
                ],
            }
        )

    async def _totals(self) -> Mapping[str, PeerTotals] | None:
        """Return the totals of the journal, which take long to add up; None without one."""
        if self._sources.books is None:
            return None
        held, now = self._held, self._clock()
        if held is None or now - held[0] > _HELD_S:
            totals = {peer.peer_id: peer for peer in await self._sources.books.peers()}
            held = self._held = (now, totals)
        return held[1]

    def _document(
        self, provider_id: str, provider: Provider | None, node: KnownNode | None, totals: PeerTotals | None
    ) -> dict[str, object]:
        sources = self._sources
        trust = sources.trust.standing(provider_id)
        source = ProviderSource.of(provider_id)
        is_node = source is ProviderSource.NODE
        models = [] if provider is None else _models(provider)
        first_byte_s, tokens_per_s = self._speed(provider_id, models)
        price_msat = None if provider is None else provider.list_price_msat
        if price_msat is None:
            asked = [sources.measurements.last_price_msat(model, (provider_id,)) for model in models]
            price_msat = min((price for price in asked if price is not None), default=None)
        return {
            "object": "lcp.provider",
            "id": provider_id,
            "name": provider_id.removeprefix(NODE_PREFIX) if is_node else provider_id[:_SHORT_ID],
            "kind": source.value,
            "badges": [source.value] if provider is None else sorted(badges_of(provider, sources.openclaw_id)),
            "up": provider is not None,
            "problem": node.problem or None if node is not None and not node.up else None,
            "ready": provider is not None and bool(sources.trust.readiness(provider_id)),
            "models": models,
            "list_price_msat": None if provider is None else provider.list_price_msat,
            "price_msat": price_msat,
            "first_byte_s": first_byte_s,
            "tokens_per_s": tokens_per_s,
            "in_flight": sources.measurements.in_flight(provider_id),
            **_totals(totals, is_known=sources.books is not None),
            "exposure_msat": trust.out_msat + trust.undelivered_msat,
            "exposure_limit_msat": trust.limit_msat,
            "breaker": _breaker(trust),
            "resting_s": round(trust.resting_s, 3),
        }

    def _speed(self, provider_id: str, models: Sequence[str]) -> tuple[float | None, float | None]:
        """Return the measured time to the first byte and the pace, of the fastest model; None where nothing was measured."""
        first: list[float] = []
        pace: list[float] = []
        for mode in _MODES:
            for view in self._sources.measurements.views([(provider_id, model) for model in models], mode):
                first_byte_s, tokens_per_s = view.measured()
                if first_byte_s is not None:
                    first.append(first_byte_s)
                if tokens_per_s is not None:
                    pace.append(tokens_per_s)
        return min(first, default=None), max(pace, default=None)


def _models(provider: Provider) -> Sequence[str]:
    return sorted({model for models in provider.models.values() for model in models})


def _breaker(trust: TrustStatus) -> str:
    if trust.resting_s:
        return "open"
    return "trial" if trust.on_trial else "closed"


def _totals(totals: PeerTotals | None, *, is_known: bool) -> dict[str, int | None]:
    names = (
        *("delivered", "delivered_msat", "undelivered", "undelivered_msat", "lost_msat"),
        *("not_paid", "unknown", "unknown_msat"),
    )
    if totals is None:
        return dict.fromkeys(names, 0 if is_known else None)
    return {name: getattr(totals, name) for name in names}

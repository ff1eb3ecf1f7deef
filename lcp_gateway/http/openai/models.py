"""GET /v1/models, /v1/models/{id} and /api/models: the offered models, each once."""

import asyncio
import enum
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import orjson
from aiohttp import web

from lcp_gateway.accounts.callers import view_of
from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.fields import json_response
from lcp_gateway.routing.catalog import Catalog, Provider
from lcp_gateway.routing.explicit import RoutingRules
from lcp_gateway.routing.measurements import Measurements
from lcp_gateway.routing.model_registry import AUTO, ModelRegistry, Traits, is_auto
from lcp_gateway.routing.offers import Offers
from lcp_gateway.routing.route_query import ENDPOINT_NAMES, endpoints_of

# A list of a thousand models takes some milliseconds to write: requests within a second share one.
_HELD_S = 1.0
_AT_ONCE = 64


class _Readers(enum.Enum):
    """The readers of a list, who see different fields."""

    CLIENTS = enum.auto()
    OPERATORS = enum.auto()
    CUSTOMERS = enum.auto()


def badges_of(provider: Provider, openclaw_id: str | None) -> frozenset[str]:
    """Return the badges of a provider: where it comes from, and whether it is OpenClaw or free."""
    badges = {provider.source.value}
    if provider.peer_id == openclaw_id:
        badges.add("openclaw")
    if provider.list_price_msat == 0:
        badges.add("free")
    return frozenset(badges)


@dataclass(slots=True, eq=False, kw_only=True)
class ModelRoutes:
    """Serves the list of models.

    ``is_ready`` returns whether a provider, by its id, may be asked now.

    ``charge`` returns a customer's charge for a model at a price, in msat; None where there are no customers.
    ``openclaw_id`` is the id of the OpenClaw node, if there is one. ``lists_auto`` puts ``auto`` into the list; ``started`` (Unix seconds) is the creation time of a model whose
    providers name none.
    """

    catalog: Callable[[], Catalog]
    offers: Callable[[], Offers]
    rules: RoutingRules
    registry: ModelRegistry
    records: Measurements
    is_ready: Callable[[str], bool]
    charge: Callable[[str, int], int] | None = None
    lists_auto: bool = False
    openclaw_id: str | None = None
    started: int = 0
    clock: Callable[[], float] = time.monotonic
    _held: dict[_Readers, tuple[tuple[Provider, ...], float, bytes]] = field(init=False, default_factory=dict)
    _writing: dict[_Readers, asyncio.Task[bytes]] = field(init=False, default_factory=dict)

    async def list(self, _request: web.Request) -> web.Response:
        """Serve GET /v1/models: the models on offer."""
        return await self._list(_Readers.CLIENTS)

    async def list_with_badges(self, request: web.Request) -> web.Response:
        """Serve GET /api/models: the models on offer with their badges; customers see their charges and no prices."""
        sees_cost = view_of(request[CONTEXT].caller).sees_cost
        return await self._list(_Readers.OPERATORS if sees_cost else _Readers.CUSTOMERS)

    async def _list(self, readers: "_Readers") -> web.Response:
        catalog, now = self.catalog(), self.clock()
        held = self._held.get(readers)
        if held is not None and held[0] is catalog.providers and now - held[1] <= _HELD_S:
            return web.Response(body=held[2], content_type="application/json")
        writing = self._writing.get(readers)
        if writing is None:
            writing = self._writing[readers] = asyncio.create_task(self._write(catalog, now, readers))
            writing.add_done_callback(lambda _task: self._writing.pop(readers))
        # A client that leaves must not take the list from the others that wait for it.
        body = await asyncio.shield(writing)
        return web.Response(body=body, content_type="application/json")

    async def _write(self, catalog: Catalog, now: float, readers: "_Readers") -> bytes:
        """Write the list, a few models at a time, so that no other request waits for thousands of them."""
        there = {p.peer_id: self.is_ready(p.peer_id) for p in catalog.providers}
        offers = self.offers()
        written: list[tuple[str, bytes]] = []
        for number, (name, providers) in enumerate(self._usable(offers).items(), start=1):
            document = self._model(name, name, providers, offers, there)
            written.append((name, orjson.dumps(self._shown(document, providers, readers))))
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        if self.lists_auto and written:
            document = self._auto(AUTO, offers, there)
            written.append((AUTO, orjson.dumps(self._shown(document, (), readers))))
            written.sort(key=itemgetter(0))
        body = b'{"object":"list","data":[%b]}' % b",".join(text for _, text in written)
        self._held[readers] = (catalog.providers, now, body)
        return body

    def _shown(self, document: dict[str, Any], providers: tuple[Provider, ...], readers: "_Readers") -> dict[str, Any]:
        if readers is not _Readers.CLIENTS:
            lcp = document["lcp"]
            lcp["badges"] = sorted({badge for one in providers for badge in badges_of(one, self.openclaw_id)})
            if readers is _Readers.CUSTOMERS:
                del lcp["price_msat"]
        return document

    async def get(self, request: web.Request) -> web.Response:
        """Serve GET /v1/models/{id}; ids may hold slashes, encoded or not. Aliases and ``auto`` are models too."""
        name = request.match_info["model"]
        real = self.registry.resolve(name)
        catalog = self.catalog()
        there = {p.peer_id: self.is_ready(p.peer_id) for p in catalog.providers}
        if is_auto(real):
            return json_response(self._auto(name, self.offers(), there))
        offers = self.offers()
        providers = self._usable(offers).get(real)
        if providers is None:
            raise ApiError(
                404,
                "no connected provider offers that model",
                code="model_not_found",
                param="model",
                reason="model_not_found",
            )
        return json_response(self._model(name, real, providers, offers, there))

    def _usable(self, offers: Offers) -> Mapping[str, tuple[Provider, ...]]:
        models = offers.providers
        allowed = self.rules.allowlist
        if allowed and not self.rules.allow_unlisted:
            # Named by the operator, so usable even while no provider advertises them.
            return {name: models.get(name, ()) for name in sorted(allowed)}
        return models

    def _model(
        self, shown_as: str, name: str, providers: tuple[Provider, ...], offers: Offers, there: Mapping[str, bool]
    ) -> dict[str, object]:
        traits = offers.traits.get(name) or self.registry.traits(name)
        created = [p.facts[name].created for p in providers if name in p.facts]
        ids = [provider.peer_id for provider in providers]
        lcp: dict[str, Any] = {
            "providers": ids,
            "endpoints": endpoints_of(offers, name),
            "context_length": traits.context_length or None,
            "capabilities": sorted(traits.capabilities),
            "params_b": traits.params_b,
            "price_msat": self._price_msat(name, providers),
            "ready": any(there[provider_id] for provider_id in ids),
        }
        if self.charge is not None:
            price_msat = lcp["price_msat"]
            charged = None if price_msat is None else self.charge(name, price_msat)
            lcp["charge_msat"] = charged
        if traits.dimensions:
            lcp["dimensions"] = traits.dimensions
        if shown_as != name:
            lcp["alias_of"] = name
        return {
            "id": shown_as,
            "object": "model",
            "created": min((at for at in created if at), default=self.started),
            "owned_by": _owner(traits, providers),
            "lcp": lcp,
        }

    def _auto(self, name: str, offers: Offers, there: Mapping[str, bool]) -> dict[str, object]:
        """Return the entry of ``auto``; fields that depend on the chosen model are null."""
        lcp: dict[str, object] = {
            "providers": [*there],
            "endpoints": [ENDPOINT_NAMES[kind] for kind, entries in offers.by_kind.items() if entries],
            "context_length": None,
            "capabilities": sorted(offers.capabilities),
            "params_b": None,
            "price_msat": None,
            "ready": any(there.values()),
            "alias_of": AUTO,
        }
        if self.charge is not None:
            lcp["charge_msat"] = None
        return {"id": name, "object": "model", "created": self.started, "owned_by": "lcp", "lcp": lcp}

    def _price_msat(self, name: str, providers: tuple[Provider, ...]) -> int | None:
        """Return the lowest known price of an ordinary request, None where no provider has quoted one yet."""
        prices = {p.peer_id: p.listed_msat(name) for p in providers}
        listed = [price for price in prices.values() if price is not None]
        unlisted = (peer_id for peer_id, price in prices.items() if price is None)
        asked = self.records.last_price_msat(name, unlisted)
        return min([*listed, *([] if asked is None else [asked])], default=None)


def _owner(traits: Traits, providers: tuple[Provider, ...]) -> str:
    if traits.owned_by:
        return traits.owned_by
    return providers[0].owned_by if providers else "lcp"

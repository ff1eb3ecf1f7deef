"""GET /v1/models and /v1/models/{id}: what the connected peers advertise."""

import orjson
from aiohttp import web

from lcp_gateway.http.catalog_source import CatalogSource
from lcp_gateway.http.errors import ApiError
from lcp_gateway.routing.catalog import Provider
from lcp_gateway.routing.choice import RoutingRules


class Models:
    """Serves the list of models."""

    def __init__(self, catalog: CatalogSource, rules: RoutingRules) -> None:
        self._catalog = catalog
        self._rules = rules

    async def list(self, _request: web.Request) -> web.Response:
        """Serve GET /v1/models."""
        found = [_model(name, providers) for name, providers in self._usable().items()]
        return _json({"object": "list", "data": found})

    async def get(self, request: web.Request) -> web.Response:
        """Serve GET /v1/models/{id}; ids may hold slashes, encoded or not."""
        name = request.match_info["model"]
        providers = self._usable().get(name)
        if providers is None:
            raise ApiError(
                404,
                "no connected peer offers that model",
                code="model_not_found",
                param="model",
                reason="model_not_found",
            )
        return _json(_model(name, providers))

    def _usable(self) -> dict[str, tuple[Provider, ...]]:
        models = dict(sorted(self._catalog.catalog.models().items()))
        allowed = self._rules.allowlist
        if allowed and not self._rules.allow_unlisted:
            # Named by the operator, so usable even while nobody advertises them.
            return {name: models.get(name, ()) for name in sorted(allowed)}
        return models


def _model(name: str, providers: tuple[Provider, ...]) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "lcp",
        "lcp": {"providers": [provider.peer_id for provider in providers]},
    }


def _json(document: object) -> web.Response:
    return web.Response(body=orjson.dumps(document), content_type="application/json")

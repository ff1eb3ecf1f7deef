"""POST /api/models/route: the models that fit a query, ranked, with the reasons. Spends nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

from aiohttp import web

from lcp_gateway.http.fields import json_response, read_object
from lcp_gateway.routing.route_query import RouteQuery, read_query


@dataclass(frozen=True, slots=True)
class RankingRoutes:
    """Serves queries to the router.

    ``why_nothing`` returns the reasons where no model fits a query.
    """

    answer: Callable[[RouteQuery], Sequence[Mapping[str, object]]]
    _: KW_ONLY
    read_timeout_s: float
    why_nothing: Callable[[RouteQuery], Sequence[str]] = lambda _query: ()

    async def rank(self, request: web.Request) -> web.Response:
        """Serve POST /api/models/route; an empty body asks for the best of all."""
        query = read_query(await read_object(request, self.read_timeout_s))
        found = self.answer(query)
        body: dict[str, object] = {"object": "list", "data": found}
        if not found and (reasons := self.why_nothing(query)):
            body["reasons"] = reasons
        return json_response(body)

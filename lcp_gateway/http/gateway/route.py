"""POST /api/models/route: the models that fit a query, ranked, with the reasons. Spends nothing."""

from collections.abc import Callable, Mapping, Sequence

from aiohttp import web

from lcp_gateway.http.fields import json_response, read_object
from lcp_gateway.routing.route_query import RouteQuery, read_query


class RankingRoutes:
    """Serves queries to the router."""

    def __init__(
        self,
        answer: Callable[[RouteQuery], Sequence[Mapping[str, object]]],
        *,
        read_timeout_s: float,
        why_nothing: Callable[[RouteQuery], Sequence[str]] = lambda _query: (),
    ) -> None:
        """``why_nothing`` returns the reasons where no model fits a query."""
        self._answer = answer
        self._why_nothing = why_nothing
        self._read_timeout_s = read_timeout_s

    async def rank(self, request: web.Request) -> web.Response:
        """Serve POST /api/models/route; an empty body asks for the best of all."""
        query = read_query(await read_object(request, self._read_timeout_s))
        found = self._answer(query)
        body: dict[str, object] = {"object": "list", "data": found}
        if not found and (reasons := self._why_nothing(query)):
            body["reasons"] = reasons
        return json_response(body)

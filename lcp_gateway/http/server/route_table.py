"""A look-up of the routes without variables, before aiohttp's own: nearly every request is for one of them."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from aiohttp import hdrs, web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RouteTable:
    """Passes requests to an application as aiohttp does, with one look-up and no scan of its resources.

    Requests that it does not know (routes with variables, unknown paths and methods, an ``Expect`` header) go aiohttp's way.
    """

    def __init__(self, app: web.Application, server: web.Server) -> None:
        """``server`` is that of the application's runner, set up: no route is added any more."""
        self.request_factory = server.request_factory
        self._otherwise = server.request_handler
        self._plain: Mapping[tuple[str, str], tuple[web.UrlMappingMatchInfo, Handler]] = _plain_routes(app)

    def request_handler(self, request: web.Request) -> Awaitable[web.StreamResponse]:
        """Return the application's response."""
        # A path with an escape is none of these, whatever it stands for.
        found = self._plain.get((request.method, request.rel_url.raw_path))
        if found is None or hdrs.EXPECT in request.headers:
            return self._otherwise(request)
        request._match_info, handler = found  # noqa: SLF001 - as aiohttp's application does it
        return handler(request)


def _plain_routes(app: web.Application) -> dict[tuple[str, str], tuple[web.UrlMappingMatchInfo, Handler]]:
    """Return the matches of routes without variables by method and path, each with its handler inside the middlewares."""
    found: dict[tuple[str, str], tuple[web.UrlMappingMatchInfo, Handler]] = {}
    for resource in app.router.resources():
        if isinstance(resource, web.PlainResource):
            for route in resource:
                handler: Handler = route.handler
                for middleware in reversed(app.middlewares):
                    handler = partial(middleware, handler=handler)
                match = web.UrlMappingMatchInfo({}, route)
                match.add_app(app)
                match.freeze()
                # Of two for the same path the first counts, as with aiohttp.
                found.setdefault((route.method, resource.canonical), (match, handler))
    return found

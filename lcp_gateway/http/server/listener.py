"""The addresses listened on, each with an application that a reload can replace."""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

from aiohttp import hdrs, web

from lcp_gateway.http.error_mapping import map_http_exception
from lcp_gateway.http.server.connection import GatewayConnection
from lcp_gateway.http.server.proxies import TrustedProxies
from lcp_gateway.telemetry.logs import get_logger

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# However slow a line is, a handshake is a few packets.
_HANDSHAKE_S = 10.0
_BACKLOG: Final = 1024
# How long the rest of a refused body is read, so that its sender can read the response.
_LINGER_S = 2.0
# The application drains its jobs before it is cleaned up, so nothing is left to wait for here.
_SHUTDOWN_S = 1.0


class CannotListen(Exception):
    """An address cannot be listened on; the message says why."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How connections are served. ``trusted_proxies`` are addresses or networks."""

    head_timeout_s: float
    keepalive_s: float
    max_header_bytes: int
    trusted_proxies: Sequence[str] = ()


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


class GatewayServer(web.Server):
    """Makes a ``GatewayConnection`` for each connection, and passes each request to the present application."""

    def __init__(self, application: RouteTable, options: ServerOptions) -> None:
        super().__init__(self._answer, request_factory=self._request, handler_cancellation=True)
        self.use(application, options)

    def __call__(self) -> web.RequestHandler:
        """Return the protocol for a new connection."""
        return GatewayConnection(self, loop=self._loop, **self._connection_options)

    def use(self, application: RouteTable, options: ServerOptions) -> None:
        """Pass later requests to this application, and make connections with these options.

        Requests under way end in the application that they came to.
        """
        self._application = application
        self._proxies = TrustedProxies(options.trusted_proxies)
        self._connection_options: Mapping[str, Any] = {
            "head_timeout_s": options.head_timeout_s,
            "keepalive_timeout": options.keepalive_s,
            "lingering_time": _LINGER_S,
            "max_line_size": options.max_header_bytes,
            "max_field_size": options.max_header_bytes,
            # The request's bytes go on as they came; compressed ones are refused, not unpacked.
            "auto_decompress": False,
            "access_log": None,
            "logger": get_logger("http"),
        }

    def _request(self, *parts: Any) -> web.BaseRequest:
        return self._proxies.seen_through(self._application.request_factory(*parts))

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._application.request_handler(cast("web.Request", request))
        except web.HTTPException as error:
            # Raised outside the middlewares: an Expect header that cannot be met.
            return map_http_exception(error).response()


class _Site(web.TCPSite):
    """An address that is listened on; a handshake that takes longer than ``_HANDSHAKE_S`` is cut off.

    ``opened`` is a socket that listens on it already.
    """

    __slots__ = ("_opened",)

    def __init__(self, *arguments: Any, opened: socket.socket | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._opened = opened

    async def start(self) -> None:
        """Listen as aiohttp does, which lets a handshake take a minute."""
        await web.BaseSite.start(self)
        assert self._runner.server is not None  # noqa: S101 - the runner was set up
        where: dict[str, Any] = {"host": self._host, "port": self._port}
        self._server = await asyncio.get_running_loop().create_server(
            self._runner.server,
            **(where if self._opened is None else {"sock": self._opened}),
            ssl=self._ssl_context,
            backlog=self._backlog,
            ssl_handshake_timeout=_HANDSHAKE_S if self._ssl_context else None,
        )

    def stop_accepting(self) -> None:
        """Accept no more connections; open ones go on."""
        if self._server is not None:
            self._server.close()


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that is listened on."""

    port: int
    server: GatewayServer
    _runner: web.ServerRunner
    _tls: ssl.SSLContext | None
    _sites: list[_Site]
    _for_others: dict[int, list[_Site]] = field(default_factory=dict)

    async def accept_for(self, place: int, descriptors: Sequence[int]) -> None:
        """Accept connections of these inherited sockets too, under a name."""
        if place not in self._for_others:
            self._for_others[place] = await _accept(self._runner, descriptors, self._tls)

    async def accept_no_more_for(self, place: int) -> None:
        """Accept no more connections of the sockets of that name; open ones go on."""
        for site in self._for_others.pop(place, ()):
            site.stop_accepting()

    def stop(self) -> None:
        """Accept no more connections; open ones go on."""
        for sites in (self._sites, *self._for_others.values()):
            for site in sites:
                site.stop_accepting()


async def _accept(runner: web.ServerRunner, descriptors: Sequence[int], tls: ssl.SSLContext | None) -> list[_Site]:
    """Serve on inherited sockets, whose descriptors stay open."""
    sites = []
    for descriptor in descriptors:
        opened = socket.socket(fileno=os.dup(descriptor))
        site = _Site(runner, port=opened.getsockname()[1], backlog=_BACKLOG, ssl_context=tls, opened=opened)
        await site.start()
        sites.append(site)
    return sites


async def prepare_application(app: web.Application) -> RouteTable:
    """Return an application in the form in which a ``GatewayServer`` takes it."""
    runner = web.AppRunner(app)
    await runner.setup()
    assert runner.server is not None  # noqa: S101 - made by the setup
    return RouteTable(app, runner.server)


@contextlib.asynccontextmanager
async def listen(
    app: web.Application,
    host: str,
    port: int,
    options: ServerOptions,
    tls: ssl.SSLContext | None = None,
    descriptors: Sequence[int] | None = None,
) -> AsyncIterator[Listener]:
    """Serve on an address for the block. An empty ``host`` is all addresses; for port 0 the system chooses one.

    ``descriptors`` are inherited sockets that listen there already.

    Raises:
        CannotListen: the address is taken, or not one of this machine.
    """
    server = GatewayServer(await prepare_application(app), options)
    runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        if descriptors is None:
            site = _Site(runner, host=host or None, port=port, backlog=_BACKLOG, ssl_context=tls)
            try:
                await site.start()
            except OSError as error:
                shown = f"[{host}]" if ":" in host else host
                raise CannotListen(f"cannot listen on {shown}:{port}: {error.strerror or error}") from error
            sites = [site]
        else:
            sites = await _accept(runner, descriptors, tls)
        yield Listener(runner.addresses[0][1], server, runner, tls, sites)
    finally:
        await runner.cleanup()

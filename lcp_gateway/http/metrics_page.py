"""An address of its own for metrics: that of a gateway (``metrics_addr``), or that of a node over lnd."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

from aiohttp import web

from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.cors import Cors
from lcp_gateway.http.errors import PAGE_HEADERS, ApiError
from lcp_gateway.http.server.listener import ServerOptions, listen
from lcp_gateway.telemetry.node_metrics import Figures, NodeMetrics

# A scraper sends a head of a few hundred bytes at once, and keeps its connection from one scrape to the next.
_OPTIONS: Final = ServerOptions(head_timeout_s=10.0, keepalive_s=75.0, max_header_bytes=8_190)


class Monitoring(Protocol):
    """The routes of an address for metrics."""

    async def expose_metrics(self, request: web.Request) -> web.Response:
        """Serve GET /metrics."""
        ...

    async def healthz(self, request: web.Request) -> web.Response:
        """Serve GET /healthz."""
        ...

    def refused(self, error: ApiError) -> web.Response:
        """Return the response that refuses a request for the metrics."""
        ...


def build_metrics_application(monitoring: Monitoring, guard: BrowserGuard) -> web.Application:
    """Return the application of the separate address for metrics: without a key, but closed to web pages."""

    async def metrics(request: web.Request) -> web.Response:
        try:
            guard.check(request)
        except ApiError as error:
            return monitoring.refused(error)
        return await monitoring.expose_metrics(request)

    async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(PAGE_HEADERS)

    app = web.Application()
    app.on_response_prepare.append(add_headers)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", monitoring.healthz)
    return app


class _NodeMonitoring:
    """The metrics of a node over lnd; ``figures`` returns its state of now."""

    def __init__(self, metrics: NodeMetrics, figures: Callable[[], Figures]) -> None:
        self._metrics = metrics
        self._figures = figures

    async def expose_metrics(self, request: web.Request) -> web.Response:
        self._metrics.set_figures(self._figures())
        body, content_type = await self._metrics.expose(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def healthz(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    def refused(self, error: ApiError) -> web.Response:
        return error.response()


@contextlib.asynccontextmanager
async def serve_node_metrics(
    host: str, port: int, metrics: NodeMetrics, figures: Callable[[], Figures]
) -> AsyncIterator[int]:
    """Serve a node's /metrics and /healthz for the block, and yield the port. For port 0 the system chooses one.

    Raises:
        CannotListen: the address is taken, or not one of this machine.
    """
    app = build_metrics_application(_NodeMonitoring(metrics, figures), BrowserGuard(Cors(())))
    async with listen(app, host, port, _OPTIONS) as listener:
        yield listener.port

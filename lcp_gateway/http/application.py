"""Puts the routes, the edge and the limits together into one aiohttp application."""

from dataclasses import dataclass

from aiohttp import hdrs, web

from lcp_gateway.http.edge import Edge
from lcp_gateway.http.health import Health
from lcp_gateway.http.inference import Inference
from lcp_gateway.http.models import Models
from lcp_gateway.http.ranking import Ranking
from lcp_gateway.http.receipts import Receipts


@dataclass(frozen=True, slots=True)
class Routes:
    """The families of routes."""

    inference: Inference
    models: Models
    ranking: Ranking
    health: Health
    receipts: Receipts


def build_application(
    routes: Routes, edge: Edge, *, max_body_bytes: int, with_metrics: bool
) -> web.Application:
    """Give the application of the main address; ``with_metrics`` puts /metrics on it too."""
    app = web.Application(middlewares=[edge.middleware()], client_max_size=max_body_bytes)
    app.on_response_prepare.append(edge.on_response_prepare)
    add = app.router.add_route
    add("POST", "/v1/chat/completions", routes.inference.chat_completions, expect_handler=_expect)
    add("POST", "/v1/responses", routes.inference.responses, expect_handler=_expect)
    add("POST", "/v1/completions", routes.inference.completions, expect_handler=_expect)
    add("POST", "/v1/embeddings", routes.inference.embeddings, expect_handler=_expect)
    app.router.add_post("/api/models/route", routes.ranking.rank)
    app.router.add_get("/v1/models", routes.models.list)
    app.router.add_get("/v1/models/{model:.+}", routes.models.get)
    app.router.add_get("/v1/receipts/{job_id}", routes.receipts.get)
    app.router.add_get("/healthz", routes.health.healthz)
    app.router.add_get("/readyz", routes.health.readyz)
    if with_metrics:
        app.router.add_get("/metrics", routes.health.metrics)
    return app


def build_metrics_application(health: Health) -> web.Application:
    """Give the application of the metrics' own address, which asks for no key."""
    app = web.Application()
    app.router.add_get("/metrics", health.metrics)
    app.router.add_get("/healthz", health.healthz)
    return app


async def _expect(request: web.Request) -> None:
    """Answer ``Expect: 100-continue``, unless the body that it announces is too large anyway."""
    expected = request.headers.get(hdrs.EXPECT, "")
    if expected.lower() != "100-continue":
        raise web.HTTPExpectationFailed
    announced = request.content_length or 0
    if request.version >= (1, 1) and announced <= request.client_max_size:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # Interim bytes are no part of the answer whose size aiohttp watches.
        request.writer.output_size = 0

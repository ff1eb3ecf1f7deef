"""GET /healthz, /readyz and /metrics: alive, able to serve, and the numbers."""

from collections.abc import Callable, Iterable, Mapping

import orjson
from aiohttp import web

from lcp_gateway.http.catalog_source import CatalogSource
from lcp_gateway.http.jobs import Jobs
from lcp_gateway.telemetry.metrics import Metrics


class Health:
    """Serves what monitoring asks."""

    def __init__(
        self,
        *,
        catalog: CatalogSource,
        jobs: Jobs,
        metrics: Metrics,
        stale_s: float,
        other_reasons: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """A snapshot of the peers older than ``stale_s`` is no longer believed.

        ``other_reasons`` gives what else keeps the gateway from buying now, in words.
        """
        self._other_reasons = other_reasons
        self.lnd_report: Callable[[], Mapping[str, object]] | None = None
        self._catalog = catalog
        self._stale_s = stale_s
        self._jobs = jobs
        self._metrics = metrics

    async def healthz(self, _request: web.Request) -> web.Response:
        """Serve GET /healthz: the process is alive."""
        return web.Response(body=b'{"status":"ok"}', content_type="application/json")

    async def readyz(self, _request: web.Request) -> web.Response:
        """Serve GET /readyz: 200 when a request could be bought now, else 503 with the reasons."""
        problem = self._catalog.problem
        peers = len(self._catalog.catalog.providers)
        reasons = []
        if self._jobs.draining:
            reasons.append("the gateway is shutting down")
        if problem is not None:
            reasons.append(f"the daemon cannot be used: {problem.status}: {problem.message}")
        elif not peers:
            reasons.append("no peers are connected")
        if self._catalog.age_s > self._stale_s:
            reasons.append(f"the list of peers is {self._catalog.age_s:.0f} s old")
        reasons.extend(self._other_reasons())
        report: dict[str, object] = {
            "status": "unavailable" if reasons else "ready",
            "reasons": reasons,
            "daemon": {"reachable": problem is None},
            "peers": peers,
            "snapshot_age_s": round(self._catalog.age_s, 3),
            "jobs_in_flight": len(self._jobs),
        }
        if self.lnd_report is not None:
            # Told, and no reason of its own: the daemon may pay through another node, or before lnd has caught up.
            report["lnd"] = self.lnd_report()
        return web.Response(
            status=503 if reasons else 200,
            body=orjson.dumps(report),
            content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    async def metrics(self, request: web.Request) -> web.Response:
        """Serve GET /metrics in the format that the scraper asks for."""
        body, content_type = await self._metrics.expose(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

"""GET /healthz, /readyz and /metrics: alive, able to serve, and the metrics."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import orjson
from aiohttp import web

from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.openai.admission import JobsInFlight
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.routing.catalog import Catalog
from lcp_gateway.telemetry.merged_metrics import Snapshot
from lcp_gateway.telemetry.metrics import Metrics

READY: Final = "ready"


class CatalogSource(Protocol):
    """The snapshots of the catalog."""

    @property
    def catalog(self) -> Catalog:
        """The last snapshot."""
        ...

    @property
    def problem(self) -> UpstreamError | None:
        """Why the last refresh failed, or None."""
        ...

    @property
    def age_s(self) -> float:
        """How old the snapshot is."""
        ...


class NodeState(Protocol):
    """The state of a node."""

    @property
    def up(self) -> bool:
        """Whether it answers."""
        ...

    @property
    def models(self) -> int:
        """How many models it offers."""
        ...


class Overview(Protocol):
    """The workers that serve, of how many, and the jobs under way at all of them."""

    @property
    def running(self) -> int:
        """How many serve."""
        ...

    @property
    def of(self) -> int:
        """How many there should be."""
        ...

    @property
    def jobs(self) -> int:
        """Their jobs under way."""
        ...


class Workers(Protocol):
    """The workers of a gateway that has several."""

    async def scrape(self) -> Snapshot | None:
        """Return the metrics of all; None where they cannot be had."""
        ...

    async def overview(self) -> Overview | None:
        """Return the state of all; None where it cannot be had."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRoutes:
    """Serves monitoring.

    A snapshot of the peers older than ``stale_s`` is stale.

    ``transport`` names the transport to the daemon, ``protocol_version`` returns the version of the protocol that it speaks, None while
    that is not known. ``daemon_problem`` returns why the daemon cannot be used, ``nodes`` the state of
    each virtual node, ``other_reasons`` further reasons why the gateway cannot buy now, ``tasks`` the state of each background task, ``lnd_report`` that of
    lnd, where one is configured. ``workers`` are those of the gateway, where this process is one of several.
    """

    catalog: CatalogSource
    jobs: JobsInFlight
    metrics: Metrics
    stale_s: float
    daemon_problem: Callable[[], UpstreamError | None]
    transport: str
    protocol_version: Callable[[], int | None] = lambda: None
    nodes: Callable[[], Mapping[str, NodeState]] = dict
    other_reasons: Callable[[], Iterable[str]] = tuple
    tasks: Callable[[], Mapping[str, object]] = dict
    lnd_report: Callable[[], Mapping[str, object]] | None = None
    workers: Workers | None = None

    async def healthz(self, _request: web.Request) -> web.Response:
        """Serve GET /healthz: the process is alive."""
        return web.Response(body=b'{"status":"ok"}', content_type="application/json")

    async def readyz(self, request: web.Request) -> web.Response:
        """Serve GET /readyz: 200 when a request could be bought now, else 503 with the reasons.

        A load balancer reaches it by any name and needs the status only; the details are not for a page of another name.
        """
        report = await self.report()
        is_ready = report["status"] == READY
        if not request[CONTEXT].may_read_details:
            report = {"status": report["status"]}
        return web.Response(
            status=200 if is_ready else 503,
            body=orjson.dumps(report),
            content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    def reasons(self) -> list[str]:
        """Return why nothing could be bought now; empty where all is well."""
        problem = self.catalog.problem
        reasons = []
        if self.jobs.draining:
            reasons.append("the gateway is shutting down")
        if problem is not None:
            reasons.append(f"the daemon cannot be used: {problem.status}: {problem.message}")
        elif not self.catalog.catalog.providers:
            reasons.append("no peers are connected")
        if self.catalog.age_s > self.stale_s:
            reasons.append(f"the list of peers is {self.catalog.age_s:.0f} s old")
        reasons.extend(self.other_reasons())
        return reasons

    async def report(self) -> dict[str, object]:
        """Return the state of the gateway, as /readyz shows it."""
        reasons = self.reasons()
        peers = sum(provider.source is ProviderSource.LCP for provider in self.catalog.catalog.providers)
        report: dict[str, object] = {
            "status": "unavailable" if reasons else READY,
            "reasons": reasons,
            "daemon": {
                "reachable": self.daemon_problem() is None,
                "transport": self.transport,
                "protocol_version": self.protocol_version(),
            },
            "peers": peers,
            "snapshot_age_s": round(self.catalog.age_s, 3),
            "jobs_in_flight": len(self.jobs),
        }
        overview = None if self.workers is None else await self.workers.overview()
        if overview is not None:
            report["jobs_in_flight"] = overview.jobs
            report["workers"] = {"running": overview.running, "of": overview.of}
        if tasks := self.tasks():
            report["tasks"] = tasks
        if nodes := self.nodes():
            report["nodes"] = {name: {"up": node.up, "models": node.models} for name, node in nodes.items()}
        if self.lnd_report is not None:
            # Reported, but not a reason: the daemon may pay through another node, or before lnd has caught up.
            report["lnd"] = self.lnd_report()
        return report

    def refused(self, error: ApiError) -> web.Response:
        """Return the response that refuses a request for the metrics, and count it."""
        self.metrics.refusal(error.reason)
        return error.response()

    async def expose_metrics(self, request: web.Request) -> web.Response:
        """Serve GET /metrics in the format that the scraper asks for."""
        accept = request.headers.get("Accept", "")
        # Where the supervisor does not answer, this worker's own are better than none.
        of_all = None if self.workers is None else await self.workers.scrape()
        body, content_type = await self.metrics.expose(accept, of_all)
        return web.Response(body=body, headers={"Content-Type": content_type})

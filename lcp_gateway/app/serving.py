"""The addresses on which the gateway listens, and the exchange of its applications at a reload."""

import contextlib
import os
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass

from lcp_gateway.app.gateway import Gateway
from lcp_gateway.config import Settings, parse_host_port
from lcp_gateway.http.server.listener import Listener, ServerOptions, listen, prepare_application
from lcp_gateway.http.server.tls import Tls
from lcp_gateway.supervisor.link import WorkerLink
from lcp_gateway.telemetry.logs import set_log_level


@dataclass(frozen=True, slots=True)
class Serving:
    """A gateway that listens; ``metrics`` is the listener of ``metrics_addr``, if that is set.

    ``link`` has the sockets of all workers, where there are several.
    """

    gateway: Gateway
    main: Listener
    metrics: Listener | None
    tls: Tls | None
    link: WorkerLink | None = None

    @property
    def port(self) -> int:
        """The port of the main address."""
        return self.main.port

    @property
    def scheme(self) -> str:
        """The scheme of the main address."""
        return "http" if self.tls is None else "https"

    async def accept_for(self, place: int) -> None:
        """Accept the connections of another worker, by its place, in addition."""
        for listener, by_place in self._by_place():
            await listener.accept_for(place, by_place[place])

    async def accept_no_more_for(self, place: int) -> None:
        """Leave new connections to that worker again."""
        for listener, _ in self._by_place():
            await listener.accept_no_more_for(place)

    def _by_place(self) -> Iterable[tuple[Listener, Sequence[Sequence[int]]]]:
        if self.link is not None:
            yield self.main, self.link.boot.sockets
            if self.metrics is not None:
                yield self.metrics, self.link.boot.metrics_sockets

    def stop_listening(self) -> None:
        """Accept no more connections, and free the addresses; open connections go on."""
        self.main.stop()
        if self.metrics is not None:
            self.metrics.stop()
        for _, by_place in self._by_place():
            for descriptors in by_place:
                for descriptor in descriptors:
                    os.close(descriptor)

    async def renew(self, settings: Settings) -> Collection[str]:
        """Serve by other settings from now on; return the names of those whose files have changed.

        Everything that may fail comes first, so that no change is left half done.

        Raises:
            WiringError, BadCertificate: they cannot be used, and nothing has changed.
        """
        configured = self.gateway.configure(settings)
        app = await prepare_application(configured.app)
        metrics_app = await prepare_application(configured.metrics_app)
        renewed = set()
        if (
            self.tls is not None
            and settings.http_tls_cert is not None
            and self.tls.use(settings.http_tls_cert, settings.http_tls_key)
        ):
            renewed.add("http_tls_cert")
        self.gateway.use(configured)
        options = server_options(settings)
        self.main.server.use(app, options)
        if self.metrics is not None:
            self.metrics.server.use(metrics_app, options)
        set_log_level(log_level(settings))
        # New nodes are asked at once, so that the next request finds them.
        await self.gateway.runtime.nodes.watch.refresh_if_stale()
        return renewed


@contextlib.asynccontextmanager
async def open_serving(settings: Settings, gateway: Gateway, link: WorkerLink | None = None) -> AsyncIterator[Serving]:
    """Listen for as long as the block lasts; as a worker, on the sockets that the supervisor opened.

    Raises:
        CannotListen: an address cannot be listened on.
        BadCertificate: HTTPS is asked for, and its files cannot be used.
    """
    tls = None
    if settings.http_tls_cert is not None:
        tls = Tls(settings.http_tls_cert, settings.http_tls_key)
    configured = gateway.configured
    async with contextlib.AsyncExitStack() as stack:
        context = None if tls is None else tls.context
        options = server_options(settings)
        where = parse_host_port(settings.http_addr)
        own = None if link is None else link.boot.sockets[link.boot.place]
        main = await stack.enter_async_context(listen(configured.app, where.host, where.port, options, context, own))
        metrics = None
        if settings.metrics_addr:
            # Without TLS: a scraper beside the gateway does not call it by the name in the certificate.
            where = parse_host_port(settings.metrics_addr)
            own = None if link is None else link.boot.metrics_sockets[link.boot.place]
            metrics = await stack.enter_async_context(
                listen(configured.metrics_app, where.host, where.port, options, None, own)
            )
        yield Serving(gateway, main, metrics, tls, link)


def server_options(settings: Settings) -> ServerOptions:
    """Return how connections are served as the settings say."""
    return ServerOptions(
        head_timeout_s=settings.request_read_timeout_s,
        keepalive_s=settings.keepalive_timeout_s,
        max_header_bytes=settings.max_header_bytes,
        trusted_proxies=settings.trusted_proxies,
    )


def log_level(settings: Settings) -> str:
    """Return the least severe level that is logged."""
    return "debug" if settings.verbose else settings.log_level

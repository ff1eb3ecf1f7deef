"""The addresses on which the gateway listens, and the exchange of its applications at a reload."""

import contextlib
from collections.abc import AsyncIterator, Collection

from lcp_gateway.app.gateway import Gateway
from lcp_gateway.app.listening import Listener, listening
from lcp_gateway.config import Settings
from lcp_gateway.http.server.connection import prepare_application
from lcp_gateway.http.server.tls import Tls
from lcp_gateway.telemetry.logs import set_log_level


class Serving:
    """A gateway that listens; ``metrics`` is the listener of ``metrics_addr``, if that is set."""

    def __init__(
        self, gateway: Gateway, main: Listener, metrics: Listener | None, tls: Tls | None
    ) -> None:
        self._gateway = gateway
        self._main = main
        self._metrics = metrics
        self._tls = tls

    @property
    def port(self) -> int:
        """The port of the main address."""
        return self._main.port

    @property
    def scheme(self) -> str:
        """The scheme of the main address."""
        return "http" if self._tls is None else "https"

    async def renew(self, settings: Settings) -> Collection[str]:
        """Serve by other settings from now on; return the names of those whose files have changed.

        All that may fail comes first, so that nothing is half done.

        Raises:
            WiringError, BadCertificate: they cannot be used, and nothing has changed.
        """
        configured = self._gateway.configure(settings)
        app = await prepare_application(configured.app)
        metrics_app = await prepare_application(configured.metrics_app)
        renewed = set()
        if (
            self._tls is not None
            and settings.http_tls_cert is not None
            and self._tls.use(settings.http_tls_cert, settings.http_tls_key)
        ):
            renewed.add("http_tls_cert")
        self._gateway.use(configured)
        self._main.use(app, settings)
        if self._metrics is not None:
            self._metrics.use(metrics_app, settings)
        set_log_level(log_level(settings))
        # New nodes are asked at once, so that the next request finds them.
        await self._gateway.runtime.nodes.watch.refresh_if_stale()
        return renewed


@contextlib.asynccontextmanager
async def open_serving(settings: Settings, gateway: Gateway) -> AsyncIterator[Serving]:
    """Listen for as long as the block lasts.

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
        main = await stack.enter_async_context(
            listening(configured.app, settings.http_addr, settings, context)
        )
        metrics = None
        if settings.metrics_addr:
            # Without TLS: it is for a scraper beside us, not for the name that the certificate is made out to.
            metrics = await stack.enter_async_context(
                listening(configured.metrics_app, settings.metrics_addr, settings)
            )
        yield Serving(gateway, main, metrics, tls)


def log_level(settings: Settings) -> str:
    """Return the least severe level that is logged."""
    return "debug" if settings.verbose else settings.log_level

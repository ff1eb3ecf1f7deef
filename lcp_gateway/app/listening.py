"""The addresses that are listened on, each with an application that can be exchanged for another."""

import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from lcp_gateway.config import Settings, parse_host_port
from lcp_gateway.http.server.connection import GatewayServer, GatewaySite, prepare_application
from lcp_gateway.http.server.proxies import TrustedProxies
from lcp_gateway.telemetry.logs import get_logger

# However slow a line is, a handshake is a few packets.
_HANDSHAKE_S = 10.0
_BACKLOG: Final = 1024
# How long the rest of a refused body is read, so that its sender can read the answer.
_LINGER_S = 2.0
# The application drains its jobs before it is cleaned up, so nothing is left to wait for here.
_SHUTDOWN_S = 1.0


class CannotListen(Exception):
    """An address cannot be listened on; the message says why."""


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that is listened on."""

    port: int
    server: GatewayServer

    def use(self, application: web.Server, settings: Settings) -> None:
        """Give the requests that come from now on to this application."""
        self.server.use(
            application, _protocol_options(settings), TrustedProxies(settings.trusted_proxies)
        )


@contextlib.asynccontextmanager
async def listening(
    app: web.Application, address: str, settings: Settings, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Listener]:
    """Serve on an address for the block; its port may have been left to the system.

    Raises:
        CannotListen: it is taken, or not ours.
    """
    server = GatewayServer(
        await prepare_application(app),
        _protocol_options(settings),
        TrustedProxies(settings.trusted_proxies),
    )
    runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        where = parse_host_port(address)
        site = GatewaySite(
            runner,
            host=where.host or None,
            port=where.port,
            backlog=_BACKLOG,
            ssl_context=tls,
            handshake_timeout_s=_HANDSHAKE_S,
        )
        try:
            await site.start()
        except OSError as error:
            raise CannotListen(f"cannot listen on {address}: {error.strerror or error}") from error
        yield Listener(runner.addresses[0][1], server)
    finally:
        await runner.cleanup()


def _protocol_options(settings: Settings) -> Mapping[str, Any]:
    return {
        "head_timeout_s": settings.request_read_timeout_s,
        "keepalive_timeout": settings.keepalive_timeout_s,
        "lingering_time": _LINGER_S,
        "max_line_size": settings.max_header_bytes,
        "max_field_size": settings.max_header_bytes,
        # The request's bytes go on as they came; compressed ones are refused, not unpacked.
        "auto_decompress": False,
        "access_log": None,
        "logger": get_logger("http"),
        "on_refused": lambda _status: None,
    }

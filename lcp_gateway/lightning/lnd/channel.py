"""The gRPC channel to an lnd: its address, TLS and macaroon, and its errors as ``LndError``."""

import codecs
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio

from lcp_gateway.lightning.lnd.records import LndError
from lcp_gateway.lightning.lnd.stubs import load_stubs
from lcp_gateway.upstream_status import UpstreamStatus

_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # A restarted lnd is found within seconds; it takes longer than that to start.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)
KEEPALIVE_S: Final = 60.0
"""How often a connection is checked. With ``_PING_ANSWER_S`` it bounds how long one may live whose other end vanished."""
_PING_ANSWER_S: Final = 20.0
_MAX_MESSAGE_CHARS = 300
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")
NOT_READY: Final = re.compile(r"wallet locked|wallet not created|starting up|not yet ready", re.IGNORECASE)
"""lnd's texts while it starts or waits for its wallet to be unlocked: it has checked no macaroon yet."""
NOT_ALLOWED: Final = re.compile(
    r"permission denied|verification failed|cannot get macaroon|expected 1 macaroon|data format of binary-encoded macaroon"
)
"""lnd's texts for a call that the macaroon does not allow."""


@dataclass(frozen=True, slots=True)
class LndAddress:
    """An lnd's address (``host:port``), its own TLS certificate (PEM), and a macaroon for the calls.

    Without a certificate the connection is in the clear: for our own node, on this machine, which needs neither.
    """

    target: str
    tls_cert: Path | None = None
    macaroon: Path | None = None
    proxy: bool = False
    """Whether the proxy that the environment names may be used."""

    def __post_init__(self) -> None:
        """Keep a macaroon from being sent in the clear."""
        if self.tls_cert is None and self.macaroon is not None:
            raise ValueError("a macaroon is sent over TLS only: name lnd's certificate")


def open_channel(address: LndAddress, *, keepalive_s: float = KEEPALIVE_S) -> grpc.aio.Channel:
    """Open a channel. It connects on first use, and again by itself after lnd was away.

    ``keepalive_s`` is how often the connection is checked while calls are open; lnd allows a ping every 5 seconds.

    Raises:
        OSError: the certificate cannot be read.
    """
    options = (*_OPTIONS, ("grpc.enable_http_proxy", int(address.proxy)))
    if address.tls_cert is None:
        # No keepalive: our own node, as every gRPC server by default, closes a quiet stream that is pinged each minute.
        return grpc.aio.insecure_channel(address.target, options=options)
    answer_ms = round(min(keepalive_s, _PING_ANSWER_S) * 1_000)
    keepalive = (
        ("grpc.keepalive_time_ms", round(keepalive_s * 1_000)),
        ("grpc.keepalive_timeout_ms", answer_ms),
        # gRPC pings for its own measurements too, and while one of those is not answered, keepalive waits for it.
        ("grpc.http2.ping_timeout_ms", answer_ms),
        # A subscription may be quiet for days: without this, gRPC stops to ping after the second time.
        ("grpc.http2.max_pings_without_data", 0),
    )
    return grpc.aio.secure_channel(
        address.target,
        grpc.ssl_channel_credentials(address.tls_cert.read_bytes().removeprefix(codecs.BOM_UTF8)),
        options=(*options, *keepalive),
    )


class LndChannel:
    """A channel to one lnd, closed at the end of an ``async with`` block. Made and used in one event loop.

    It connects on the first call, and again by itself after lnd was away; an answer comes within ``timeout_s``, or none does.

    Raises:
        LndNotInstalled: the extra is missing.
        OSError: the certificate or the macaroon cannot be read.
    """

    def __init__(self, address: LndAddress, *, timeout_s: float = 5.0, keepalive_s: float = KEEPALIVE_S) -> None:
        self._stubs = load_stubs()
        self._timeout_s = timeout_s
        macaroon = address.macaroon
        self._metadata = () if macaroon is None else (("macaroon", macaroon.read_bytes().hex()),)
        self._channel = open_channel(address, keepalive_s=keepalive_s)
        self._lightning = self._stubs.lightning_grpc.LightningStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel. Open calls are cancelled, and none may follow."""
        await self._channel.close()

    async def _ask(self, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        async with lnd_errors():
            return await method(request, timeout=self._timeout_s, metadata=self._metadata)


@asynccontextmanager
async def lnd_errors() -> AsyncIterator[None]:
    """Raise ``LndError`` in place of gRPC's own error; lnd's text is bounded and made printable."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        status = UpstreamStatus[error.code().name]
        text = _UNPRINTABLE.sub(" ", error.details() or "").strip()[:_MAX_MESSAGE_CHARS]
        retryable = status.may_pass and not NOT_ALLOWED.search(text)
        raise LndError(status, text or "no reason given", retryable=retryable) from error

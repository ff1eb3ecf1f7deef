"""The gRPC channel to a daemon: address forms, TLS, keepalive, reconnecting, and its errors as the gateway's."""

import codecs
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.upstream_status import UpstreamStatus

MAX_RECEIVE_BYTES = 33 * 1024 * 1024
"""The largest message that is accepted: a whole result, and a little around it."""
_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.max_send_message_length", -1),
    # grpc-go's servers close a connection that pings more often than every 5 minutes, and a quiet stream that has been
    # paid for would end with it. A daemon that is gone is noticed sooner by the refresh of the peers.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Reconnects start at once and slow down to one every 2 s, so that a restarted daemon is found quickly.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # No retries in gRPC: a call that may pay goes out once.
    ("grpc.enable_retries", 0),
    # Fixed, small windows: a client that stops reading must hold the daemon back, not fill memory.
    ("grpc.http2.bdp_probe", 0),
    # A channel of our own even if another to the same address exists in this process.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """TLS to the daemon: PEM files; without ``ca`` the system's roots are trusted."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class LcpdAddress:
    """Where a daemon listens: ``host:port`` or ``unix:/path``; metadata goes with every call (a macaroon, say)."""

    target: str
    tls: TlsFiles | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    proxy: bool = False
    """Whether the proxy that the environment names may be used; prompts and macaroons pass it."""


def open_channel(address: LcpdAddress) -> grpc.aio.Channel:
    """Open a channel. It connects on first use, and again by itself after a failure.

    Raises:
        OSError: a TLS file cannot be read.
    """
    options = [*_OPTIONS, ("grpc.enable_http_proxy", int(address.proxy))]
    if address.tls is None:
        return grpc.aio.insecure_channel(address.target, options=options)
    if address.tls.server_name:
        options.append(("grpc.ssl_target_name_override", address.tls.server_name))
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(address.tls.ca),
        private_key=_read(address.tls.key),
        certificate_chain=_read(address.tls.certificate),
    )
    return grpc.aio.secure_channel(address.target, credentials, options=options)


def _read(path: Path | None) -> bytes | None:
    # OpenSSL takes no byte order mark.
    return None if path is None else path.read_bytes().removeprefix(codecs.BOM_UTF8)


_MAX_MESSAGE_CHARS = 500
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff\ue000-\ufffd]+")

DAEMON_AWAY = "the daemon that Lightning peers are reached through cannot be reached"
"""The sentence for every text in which gRPC says that it has no connection."""

# The texts of gRPC's own library about a connection; a daemon's about its lnd begin otherwise.
_CONNECTION = re.compile(
    r"failed to connect to all addresses|connections to all backends failing|empty address list"
    r"|DNS (?:resolution|query)|.{0,40}name resolution"
    r"|Socket closed|(?:recvmsg|sendmsg|read|write)\b.{0,60}(?:reset|pipe|closed|refused|timed out)"
    r"|Connection (?:reset|refused|closed|dropped)|Broken pipe|GOAWAY|Endpoint clos|Stream removed"
    r"|(?:keepalive|ping)\b.{0,20}time ?out|Handshake|Ssl handshake|Too many pings",
    re.IGNORECASE,
)
_ADDRESS = re.compile(
    r"\b(?:ipv4|ipv6|unix|unix-abstract|dns|vsock):[^\s,;)\"]+"
    r"|(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?(?![\w.])"
    r"|\[[0-9a-fA-F:.%]{2,}\](?::\d{1,5})?"
    r"|\b(?:localhost|[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}):\d{2,5}\b"
    r"|(?<=dial tcp )\S+|(?<=dial unix )\S+"
)
_SOMEWHERE = "[address]"

# A daemon that has just started, or a peer that is reconnecting.
_NOT_READY_YET = re.compile(r"lcp_error code=10\b|manifest not exchanged|not (?:connected|ready)")
_TOO_LARGE = re.compile(r"lcp_error code=6\b|too large|larger than max")


def upstream_error(error: grpc.aio.AioRpcError, *, for_client: bool = True) -> UpstreamError:
    """Return the gateway's error for one of gRPC's; the daemon's text is bounded and made printable.

    With ``for_client`` the text names no address. The call that pays needs the text as it is, for it is evidence.
    """
    status = UpstreamStatus[error.code().name]
    text = _UNPRINTABLE.sub(" ", error.details() or "").strip()[:_MAX_MESSAGE_CHARS]
    message = text or f"the daemon answered {status}"
    retryable = is_retryable(status, message)
    if not for_client:
        return UpstreamError(status, message, retryable=retryable)
    if status == UpstreamStatus.UNAVAILABLE and _CONNECTION.match(text):
        return UpstreamError(status, DAEMON_AWAY, retryable=retryable, is_away=True)
    return UpstreamError(status, _ADDRESS.sub(_SOMEWHERE, message), retryable=retryable)


def is_retryable(status: UpstreamStatus, message: str) -> bool:
    """Return whether asking again for a quote may succeed (a payment is never repeated)."""
    if status == UpstreamStatus.RESOURCE_EXHAUSTED and _TOO_LARGE.search(message):
        return False
    if status == UpstreamStatus.FAILED_PRECONDITION:
        return bool(_NOT_READY_YET.search(message))
    return status.may_pass


def is_transient(error: BaseException) -> bool:
    """Return whether a try in the next half second is likely to succeed."""
    return isinstance(error, UpstreamError) and (
        error.status == UpstreamStatus.UNAVAILABLE
        or (error.status == UpstreamStatus.FAILED_PRECONDITION and error.retryable)
    )

"""The gRPC channel to a daemon: address forms, TLS, metadata, keepalive and reconnecting."""

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

MAX_RECEIVE_BYTES = 33 * 1024 * 1024
"""The largest message that is taken: a whole result, and a little around it."""
_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.max_send_message_length", -1),
    # grpc-go's servers close a connection that pings more often than every 5 minutes, and a quiet stream that has been
    # paid for would die with it. A daemon that is gone is noticed sooner by the refresh of the peers.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Reconnects start at once and slow down to one every 2 s, so that a restarted daemon is found quickly.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # No retry below us: a call that may pay goes out once.
    ("grpc.enable_retries", 0),
    # Fixed, small windows: a client that stops reading must stop the daemon, not fill our memory.
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

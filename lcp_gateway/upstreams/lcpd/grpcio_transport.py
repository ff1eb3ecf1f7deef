"""The transport over grpcio's asyncio channel."""

import asyncio
import codecs
from pathlib import Path
from typing import Any

import grpc.aio

from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.lcpd.transport import (
    CONNECTION_ENDED,
    MAX_RECEIVE_BYTES,
    LcpdAddress,
    MessageSink,
    Metadata,
    RpcError,
)

_State = grpc.ChannelConnectivity

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


class GrpcioTransport:
    """Calls through one ``grpc.aio.Channel``."""

    name = "grpcio"

    def __init__(self, address: LcpdAddress) -> None:
        """Connects on first use.

        Raises:
            OSError: a TLS file cannot be read.
        """
        self._channel = _open_channel(address)
        self._unary: dict[str, Any] = {}
        self._stream: dict[str, Any] = {}
        self._state = _State.IDLE
        self._token = object()
        self._changed = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    @property
    def connection(self) -> None:
        """The channel's state has to be asked for each time."""
        return

    async def connect(self, timeout_s: float) -> object:
        """Return a token of the channel's connection; connect if there is none.

        grpcio reconnects by itself, and no call can be bound to a connection. The token changes once this process has seen
        the connection end: a call after that is not sent. One that begins in the moment between may be.
        """
        if self._watching is None or self._watching.done():
            self._state, self._token = self._channel.get_state(), object()
            self._watching = asyncio.create_task(self._watch())
        try:
            async with asyncio.timeout(timeout_s):
                while (
                    state := self._channel.get_state(try_to_connect=True)
                ) is not self._state or state is not _State.READY:
                    if state is _State.TRANSIENT_FAILURE:
                        raise RpcError(UpstreamStatus.UNAVAILABLE, "failed to connect to all addresses")
                    await self._changed.wait()
        except TimeoutError:
            raise RpcError(UpstreamStatus.DEADLINE_EXCEEDED, "Deadline Exceeded", not_processed=True) from None
        return self._token

    async def _watch(self) -> None:
        """Follow the channel's state: only this task changes what is known of it."""
        while True:
            await self._channel.wait_for_state_change(self._state)
            self._state = self._channel.get_state()
            # Also from ready to ready: the state in between came and went unseen.
            self._token = object()
            self._changed.set()
            self._changed.clear()

    def _has_ended(self, on: object | None) -> bool:
        return on is not None and (on is not self._token or self._channel.get_state() is not _State.READY)

    async def unary(
        self, path: str, request: bytes, timeout_s: float, metadata: Metadata, *, on: object | None = None
    ) -> bytes:
        """Make a call with one answer."""
        if self._has_ended(on):
            raise _connection_ended()
        call = self._unary.get(path)
        if call is None:
            call = self._unary[path] = self._channel.unary_unary(path)
        try:
            answer: bytes = await call(request, timeout=timeout_s, metadata=metadata or None)
        except grpc.aio.AioRpcError as error:
            raise _rpc_error(error) from error
        return answer

    def stream(
        self, path: str, request: bytes, timeout_s: float, metadata: Metadata, *, on: object | None = None
    ) -> "_GrpcioStream":
        """Start a call with many messages."""
        if self._has_ended(on):
            return _GrpcioStream(None)
        call = self._stream.get(path)
        if call is None:
            call = self._stream[path] = self._channel.unary_stream(path)
        return _GrpcioStream(call(request, timeout=timeout_s, metadata=metadata or None))

    async def close(self) -> None:
        """End all calls and the channel."""
        if self._watching is not None:
            self._watching.cancel()
        await self._channel.close()


class _GrpcioStream:
    """A call with many messages; None is one for a connection which has ended, that was not sent."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def read(self) -> list[bytes]:
        if self._call is None:
            raise _connection_ended()
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _rpc_error(error) from error
        return [] if message is grpc.aio.EOF else [message]

    def hand_to(self, sink: MessageSink) -> None:
        """Leave all messages to ``read``: grpcio hands them to a task."""

    def cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()


def _connection_ended() -> RpcError:
    return RpcError(UpstreamStatus.UNAVAILABLE, CONNECTION_ENDED, not_processed=True)


def _rpc_error(error: grpc.aio.AioRpcError) -> RpcError:
    trailers = {name: value for name, value in error.trailing_metadata() or () if isinstance(value, bytes)}
    return RpcError(UpstreamStatus[error.code().name], error.details() or "", trailers=trailers)


def _open_channel(address: LcpdAddress) -> grpc.aio.Channel:
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

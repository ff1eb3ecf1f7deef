"""LCPDService on a port: TLS, a token, and the statuses of calls that fail."""

import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final, NoReturn

import grpc

from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.rpc.reports import PAYMENT_TRAILER, report_message
from lcp_gateway.node.rpc.service import RpcService
from lcp_gateway.node.runtime.calls import CallFailed, NodeCalls
from lcp_gateway.upstream_status import UpstreamStatus

Context = grpc.aio.ServicerContext[bytes, bytes]

MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
"""The largest request that is accepted, as at lcpd-grpcd; a peer takes no longer input either."""
MAX_DETAILS_BYTES: Final = 1_365
"""The longest text of a failure: each byte may take three on the wire, and clients take 8 KiB of trailers."""
_MAX_WAITING_CALLS: Final = 100_000
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", -1),
    # Otherwise a second node would share the port without an error.
    ("grpc.so_reuseport", 0),
    # gRPC's C core cancels some of more than a thousand waiting calls at random, also ones that pay.
    ("grpc.server.max_pending_requests", _MAX_WAITING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", _MAX_WAITING_CALLS),
    # It also cancels those that waited for half a minute, on a machine that is busy for so long: a client ends a call itself.
    ("grpc.server_max_unrequested_time_in_server", 24 * 3600),
)
_SCHEME: Final = "Bearer "


class CannotServe(Exception):
    """The port cannot be served; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How the port is served: ``host:port`` or ``unix:/path``, the version, PEM certificate and key, and the token of clients.

    ``allow_insecure`` allows an address beyond this machine without TLS or without a token.
    """

    listen: str = "127.0.0.1:50051"
    protocol: Protocol = Protocol.V02
    certificate: bytes = b""
    key: bytes = field(default=b"", repr=False)
    token: str = field(default="", repr=False)
    allow_insecure: bool = False

    def check(self) -> None:
        """Refuse to offer payments to everyone who reaches the address.

        Raises:
            CannotServe: the address is not on this machine only, and TLS or the token is missing.
        """
        if bool(self.certificate) != bool(self.key):
            raise CannotServe("grpc: tls_cert and tls_key go together: set both or neither")
        if self.allow_insecure or is_loopback(self.listen):
            return
        missing = [
            name
            for name, there in (("TLS (tls_cert, tls_key)", self.certificate), ("a token (token_file)", self.token))
            if not there
        ]
        if missing:
            raise CannotServe(
                f"grpc: {self.listen} can be reached from other machines, and its clients spend this node's money: set "
                f"{' and '.join(missing)}, listen on 127.0.0.1, or allow it with allow_insecure"
            )


def is_loopback(listen: str) -> bool:
    """Return whether an address to listen on is reached from this machine only."""
    if listen.startswith("unix:"):
        return True
    host = listen.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class RpcServer:
    """Serves a node's calls, and those of other ``handlers``, on one port. Start it once.

    ``on_bug`` gets the name of a call and the error that it ended in where that is none of its own.
    """

    def __init__(
        self,
        calls: NodeCalls,
        options: ServerOptions,
        *,
        on_bug: Callable[[str, BaseException], None],
        handlers: Sequence[grpc.GenericRpcHandler] = (),
    ) -> None:
        self._options = options
        self._others = tuple(handlers)
        self._handler = _Handler(RpcService(calls, options.protocol), options.token, on_bug)
        self._server: grpc.aio.Server | None = None

    async def start(self) -> str:
        """Listen, and return the address as a client would dial it.

        Raises:
            CannotServe: the address cannot be listened on, the TLS files are wrong, or the address needs them.
        """
        options = self._options
        options.check()
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((self._handler, *self._others))
        try:
            if options.certificate:
                pair = (options.key, options.certificate)
                port = server.add_secure_port(options.listen, grpc.ssl_server_credentials([pair]))
            else:
                port = server.add_insecure_port(options.listen)
        except RuntimeError:
            tls = ", or its TLS certificate and key cannot be used" if options.certificate else ""
            raise CannotServe(f"grpc: cannot listen on {options.listen}{tls}") from None
        await server.start()
        self._server = server
        if options.listen.startswith("unix:"):
            return options.listen
        return f"{options.listen.rpartition(':')[0] or '127.0.0.1'}:{port}"

    async def stop(self, grace_s: float) -> None:
        """Accept no more calls, let running ones end within ``grace_s``, and cancel those that have not."""
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None


class _Handler(grpc.GenericRpcHandler):
    """Finds the call of a path, for callers that have the token."""

    def __init__(self, service: RpcService, token: str, on_bug: Callable[[str, BaseException], None]) -> None:
        self._service = service
        self._token = (_SCHEME + token).encode() if token else b""
        self._on_bug = on_bug

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        path = handler_call_details.method or ""
        if self._token and not self._is_let_in(handler_call_details):
            return grpc.unary_unary_rpc_method_handler(_refuse)
        if (unary := self._service.unary.get(path)) is not None:
            return grpc.unary_unary_rpc_method_handler(self._answer(path, unary))
        if (stream := self._service.streams.get(path)) is not None:
            return grpc.unary_stream_rpc_method_handler(self._answers(path, stream))
        return None

    def _is_let_in(self, details: grpc.HandlerCallDetails) -> bool:
        found = [value for name, value in details.invocation_metadata or () if name == "authorization"]
        # One header: a proxy and this server must not read two differently.
        value = found[0] if len(found) == 1 else ""
        given = value.encode("utf-8", "replace") if isinstance(value, str) else bytes(value)
        return hmac.compare_digest(given, self._token)

    def _answer(self, path: str, call: Callable[..., Awaitable[bytes]]) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def answer(request: bytes, context: Context) -> bytes:
            try:
                return await call(request, _metadata(context))
            except CallFailed as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - gRPC would send its text, which may quote a prompt, to the client
                failure = self._bug(path, error)
            return await _abort(context, failure)

        return answer

    def _answers(
        self, path: str, call: Callable[..., AsyncGenerator[bytes, None]]
    ) -> Callable[[bytes, Context], Awaitable[None]]:
        async def answers(request: bytes, context: Context) -> None:
            # Written here rather than yielded: gRPC leaves a generator whose caller is gone to the garbage collector.
            is_writing = False
            try:
                async with aclosing(call(request, _metadata(context))) as messages:
                    async for message in messages:
                        is_writing = True
                        await context.write(message)
                        is_writing = False
            except CallFailed as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - as above
                if is_writing or context.cancelled():
                    # The caller is gone: nothing can be written any more. gRPC says so at once or only a little later.
                    return
                failure = self._bug(path, error)
            else:
                return
            await _abort(context, failure)

        return answers

    def _bug(self, path: str, error: BaseException) -> CallFailed:
        self._on_bug(path.rpartition("/")[2], error)
        return CallFailed(UpstreamStatus.INTERNAL, "the node failed; its log says how")


def _metadata(context: Context) -> list[tuple[str, str | bytes]]:
    return [(name, value) for name, value in context.invocation_metadata() or ()]


async def _refuse(_request: bytes, context: Context) -> bytes:
    text = "the call has no valid token: send the metadata authorization: Bearer <token>"
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, text)


async def _abort(context: Context, error: CallFailed) -> NoReturn:
    report = report_message(error.payment)
    trailers = () if report is None else ((PAYMENT_TRAILER, report.SerializeToString()),)
    details = error.details.encode("utf-8", "replace")[:MAX_DETAILS_BYTES].decode("utf-8", "ignore")
    await context.abort(grpc.StatusCode[error.status.name], details, trailers)
    raise AssertionError  # abort does not return

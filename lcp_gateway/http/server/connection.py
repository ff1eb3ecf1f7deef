"""The connection level: what never becomes a request still gets an answer in OpenAI's shape, and slow heads an end."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from lcp_gateway.http.context import SERVER, request_id_of
from lcp_gateway.http.errors import PAGE_HEADERS, ApiError, map_http_exception
from lcp_gateway.http.server.proxies import TrustedProxies

HTTP_VERSION: Final = "http/1.1"
"""What is spoken, by the name that TLS has for it."""


class GatewayConnection(web.RequestHandler):
    """One connection. Beyond aiohttp's own: bounds the time a request's head may take, and shapes parse errors."""

    __slots__ = (
        "_first_line_bytes",
        "_first_line_ended",
        "_first_line_is_too_long",
        "_head_timeout_s",
        "_head_timer",
        "_on_refused",
    )

    def __init__(
        self,
        manager: web.Server,
        *,
        head_timeout_s: float,
        on_refused: Callable[[int], None],
        **options: Any,
    ) -> None:
        super().__init__(manager, **options)
        self._head_timeout_s = head_timeout_s
        self._on_refused = on_refused
        self._head_timer: asyncio.TimerHandle | None = None
        self._first_line_bytes = 0
        self._first_line_ended = False
        self._first_line_is_too_long: bool | None = None

    def data_received(self, data: bytes) -> None:
        """Take bytes; the first of a head start its clock, and the head's end stops it."""
        if not self._request_in_progress:
            self._measure_first_line(data)
        super().data_received(data)
        if (
            self._first_line_is_too_long is None
            and self._messages
            and getattr(self._messages[-1][0], "exc", None) is not None
        ):
            # Once: what comes after a head that was refused is measured as if it began another.
            self._first_line_is_too_long = self._first_line_bytes > self.max_line_size
        if self._messages or self._request_in_progress:
            self._stop_timer()
        elif self._head_timer is None:
            # From here on this clock decides, not the one of an idle connection.
            if self._keepalive_handle is not None:
                self._keepalive_handle.cancel()
                self._keepalive_handle = None
            self._head_timer = self._loop.call_later(self._head_timeout_s, self._head_is_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the clock and let go."""
        self._stop_timer()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be parsed, or what broke below the application. Closes the connection.

        aiohttp's own message quotes the bytes that it refused, so neither the answer nor a log repeats it.
        """
        del message
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        error = _of_parse_error(status, exc, bool(self._first_line_is_too_long))
        self._on_refused(error.status)
        response = _with_our_headers(error)
        response.force_close()
        return response

    def _measure_first_line(self, data: bytes) -> None:
        if self._head_timer is None:
            self._first_line_bytes, self._first_line_ended = 0, False
        if not self._first_line_ended:
            end = data.find(b"\n")
            self._first_line_ended = end >= 0
            self._first_line_bytes += end if end >= 0 else len(data)

    def _head_is_late(self) -> None:
        self._head_timer = None
        self._on_refused(408)
        if self.transport is not None and not self.transport.is_closing():
            answer = ApiError(
                408, "the request's head took too long", code="request_timeout", retry=True
            )
            self.transport.write(_raw(answer))
        self.force_close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _of_parse_error(
    status: int, exc: BaseException | None, first_line_is_too_long: bool
) -> ApiError:
    if isinstance(exc, LineTooLong):
        if first_line_is_too_long:
            return ApiError(414, "the request's target is too long", code="uri_too_long")
        return ApiError(431, "a header is too long", code="headers_too_large")
    if isinstance(exc, BadHttpMessage) and exc.message.startswith("Too many headers"):
        return ApiError(431, "there are too many headers", code="headers_too_large")
    if status == 400:  # noqa: PLR2004 - the status that aiohttp gives to whatever it cannot parse
        return ApiError(400, "this is not a request that can be read", code="malformed_request")
    return ApiError(status, "the request could not be handled", code="internal_error")


def _with_our_headers(error: ApiError) -> web.Response:
    """Put on what the application would have put on."""
    response = error.response()
    response.headers["Server"] = SERVER
    response.headers["x-request-id"] = request_id_of(None)
    # What it was meant for is not known; it could have been for /api.
    response.headers["Cache-Control"] = "no-store"
    response.headers.update(PAGE_HEADERS)
    return response


def _raw(error: ApiError) -> bytes:
    """Write an answer without aiohttp's help: here no request exists that it could answer."""
    response = _with_our_headers(error)
    body = response.body
    assert isinstance(body, bytes)  # noqa: S101 - ApiError writes bytes
    lines = [
        f"HTTP/1.1 {response.status} {response.reason}",
        *(f"{name}: {value}" for name, value in response.headers.items()),
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


class GatewayServer(web.Server):
    """Makes a ``GatewayConnection`` for each connection, and gives each request to the application of the moment."""

    def __init__(
        self, application: web.Server, protocol_options: Mapping[str, Any], proxies: TrustedProxies
    ) -> None:
        super().__init__(self._answer, request_factory=self._request, handler_cancellation=True)
        self.use(application, protocol_options, proxies)

    def __call__(self) -> web.RequestHandler:
        """Give the protocol for a new connection."""
        return GatewayConnection(self, loop=self._loop, **self._protocol_options)

    def use(
        self, application: web.Server, protocol_options: Mapping[str, Any], proxies: TrustedProxies
    ) -> None:
        """Give the requests that come from now on to this application, and make connections with these options.

        Requests under way end in the application that they came to. ``proxies`` are those that are believed.
        """
        self._application = application
        self._protocol_options = protocol_options
        self._proxies = proxies

    def _request(self, *parts: Any) -> web.BaseRequest:
        return self._proxies.seen_through(self._application.request_factory(*parts))

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._application.request_handler(request)
        except web.HTTPException as error:
            # Raised outside the middlewares: an Expect header that cannot be met.
            return map_http_exception(error).response()


async def prepare_application(app: web.Application) -> web.Server:
    """Give an application in the form in which requests can be given to it."""
    runner = web.AppRunner(app)
    await runner.setup()
    assert runner.server is not None  # noqa: S101 - it is what the setup makes
    return runner.server


class GatewaySite(web.TCPSite):
    """An address that is listened on. A handshake that takes longer than ``handshake_timeout_s`` is cut off."""

    __slots__ = ("_handshake_timeout_s",)

    def __init__(
        self, runner: web.ServerRunner, *, handshake_timeout_s: float, **options: Any
    ) -> None:
        super().__init__(runner, **options)
        self._handshake_timeout_s = handshake_timeout_s

    async def start(self) -> None:
        """Listen; as aiohttp does, which lets a handshake take a minute."""
        await web.BaseSite.start(self)
        assert self._runner.server is not None  # noqa: S101 - the runner was set up
        self._server = await asyncio.get_running_loop().create_server(
            self._runner.server,
            self._host,
            self._port,
            ssl=self._ssl_context,
            backlog=self._backlog,
            ssl_handshake_timeout=self._handshake_timeout_s if self._ssl_context else None,
        )

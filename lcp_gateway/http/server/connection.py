"""One connection: bounds the time of a request's head, and answers parse errors in OpenAI's format."""

import asyncio
import socket
import struct
from typing import Any, Final

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from lcp_gateway.http.context import SERVER, request_id_of
from lcp_gateway.http.errors import PAGE_HEADERS, ApiError

HTTP_VERSION: Final = "http/1.1"
"""The protocol spoken, by its name in TLS."""
FLUSH_S: Final = 5.0
"""How long a response that was broken off may take to leave before its connection is torn down."""


def close_if_http10(request: web.Request, response: web.StreamResponse) -> None:
    """Close the connection of an HTTP/1.0 client at the body's end, also where the client asked to keep it.

    Without chunks and without a length nothing else ends the body.
    """
    if request.version < HttpVersion11:
        response.force_close()


def cut_off(request: web.BaseRequest) -> None:
    """End a response that has begun, and its connection, so that no client takes the body for whole."""
    transport = request.transport
    if transport is None or transport.is_closing():
        return
    if request.version < HttpVersion11 and (connection := transport.get_extra_info("socket")) is not None:
        # Without chunks the end of the connection is the end of the body: only a reset shows that it was cut.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # close() sends what is written and then ends the connection: without a last chunk no client takes the body for whole.
    transport.close()
    asyncio.get_running_loop().call_later(FLUSH_S, transport.abort)


class GatewayConnection(web.RequestHandler):
    """One connection, as aiohttp's, with a limit to the time that a request's head may take."""

    __slots__ = ("_first_line_bytes", "_first_line_ended", "_first_line_is_too_long", "_head_timeout_s", "_head_timer")

    def __init__(self, manager: web.Server, *, head_timeout_s: float, **options: Any) -> None:
        super().__init__(manager, **options)
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._first_line_bytes = 0
        self._first_line_ended = False
        self._first_line_is_too_long: bool | None = None

    def data_received(self, data: bytes) -> None:
        """Take bytes; the first of a head start its timer, and the head's end stops it."""
        if not self._request_in_progress:
            self._measure_first_line(data)
        super().data_received(data)
        if (
            self._first_line_is_too_long is None
            and self._messages
            and getattr(self._messages[-1][0], "exc", None) is not None
        ):
            # Once: bytes after a head that was refused are measured as if they began another.
            self._first_line_is_too_long = self._first_line_bytes > self.max_line_size
        if self._messages or self._request_in_progress:
            self._stop_timer()
        elif self._head_timer is None:
            # From here on this timer decides, not the one of an idle connection.
            if self._keepalive_handle is not None:
                self._keepalive_handle.cancel()
                self._keepalive_handle = None
            self._head_timer = self._loop.call_later(self._head_timeout_s, self._head_is_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer a request that could not be parsed, or that failed below the application; close the connection.

        aiohttp's own message quotes the bytes that it refused, so neither the response nor a log repeats it.
        """
        del message
        if request.writer.output_size > 0:
            raise ConnectionError("a response has begun already")
        error = _of_parse_error(status, exc, bool(self._first_line_is_too_long))
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
        if self.transport is not None and not self.transport.is_closing():
            error = ApiError(408, "the request's head took too long", code="request_timeout", retry=True)
            self.transport.write(_raw(error))
        self.force_close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _of_parse_error(status: int, exc: BaseException | None, first_line_is_too_long: bool) -> ApiError:
    if isinstance(exc, LineTooLong):
        if first_line_is_too_long:
            return ApiError(414, "the request's target is too long", code="uri_too_long")
        return ApiError(431, "a header is too long", code="headers_too_large")
    if isinstance(exc, BadHttpMessage) and exc.message.startswith("Too many headers"):
        return ApiError(431, "there are too many headers", code="headers_too_large")
    if status == 400:  # noqa: PLR2004 - aiohttp's status for bytes that it cannot parse
        return ApiError(400, "this is not a request that can be read", code="malformed_request")
    return ApiError(status, "the request could not be handled", code="internal_error")


def _with_our_headers(error: ApiError) -> web.Response:
    """Return an error's response with the headers that the application would have added."""
    response = error.response()
    response.headers["Server"] = SERVER
    response.headers["x-request-id"] = request_id_of(None)
    # Its path is not known; it could have been /api.
    response.headers["Cache-Control"] = "no-store"
    response.headers.update(PAGE_HEADERS)
    return response


def _raw(error: ApiError) -> bytes:
    """Return a response as bytes, without aiohttp: here no request exists that it could answer."""
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

"""A response whose whole body is known: its head and its body leave in one write."""

from typing import Final

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time

# All but the tab: aiohttp refuses the same.
_CONTROL: Final = bytes({*range(0x20), 0x7F} - {0x09})
_LINE_END: Final = 2


class WholeResponse(web.Response):
    """The response to a POST, whose body is some bytes.

    To a client that keeps its connection it is written here, in a third of the steps of aiohttp's own way, which handles
    every kind of body and of connection. To others it goes aiohttp's way.
    """

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write the response; without a body that is left for ``write_eof``, where it has gone out whole."""
        is_plain = request.version == HttpVersion11 and request.keep_alive and self.keep_alive is None
        body = self.body
        if self.prepared or not (is_plain and isinstance(request, web.Request) and isinstance(body, bytes)):
            return await super().prepare(request)
        headers = self.headers
        headers[hdrs.CONTENT_LENGTH] = str(len(body))
        headers[hdrs.DATE] = rfc822_formatted_time()
        await request.app.on_response_prepare.send(request, self)
        fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode()
        if len(fields) - len(fields.translate(None, _CONTROL)) != _LINE_END * len(headers):
            raise ValueError("a header holds a control character")
        self._keep_alive = True
        await request.writer.write_eof(
            b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (self.status, self.reason.encode(), fields, body)
        )
        self._eof_sent = True
        return None

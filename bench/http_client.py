"""HTTP clients with as little work as possible: a kept connection, one write a request, no parsing but for the end."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from bench.workload import Tally, Workload

_LAST_CHUNK = b"\r\n0\r\n\r\n"
_LENGTH = b"content-length: "


class Client(asyncio.Protocol):
    """Asks, waits for the end of the answer, and asks again."""

    def __init__(self, first: bytes, request: bytes, tally: Tally, *, stream: bool, every_s: float) -> None:
        self._next = first
        self._request = request
        self._tally = tally
        self._stream = stream
        self._every_s = every_s
        self._transport: asyncio.Transport | None = None
        self._started = self._last = 0.0
        self._seen = b""
        self._missing = 0
        self._closed = False

    def connection_made(self, transport) -> None:
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if not self._last:
            if not self._head(data):
                return
            self._tally.began(self._started, now)
        if self._stream:
            self._tally.came(data, self._last, now)
            self._seen = (self._seen + data)[-len(_LAST_CHUNK) :]
            over = self._seen == _LAST_CHUNK
        else:
            self._missing -= len(data)
            over = self._missing <= 0
        self._last = now
        if over:
            self._tally.done(self._started, now)
            if wait_s := max(self._started + self._every_s - now, 0.0):
                asyncio.get_running_loop().call_later(wait_s, self._ask)
            else:
                self._ask()

    def connection_lost(self, _error) -> None:
        if not self._closed:
            self._tally.failed()

    def close(self) -> None:
        self._closed = True
        self._transport.abort()

    def _ask(self) -> None:
        if self._closed:
            return
        self._last, self._seen = 0.0, b""
        self._started = time.perf_counter()
        self._transport.write(self._next)
        self._next = self._request

    def _head(self, data: bytes) -> bool:
        """Read an answer's head, which comes in one piece; an error ends this client."""
        if not data.startswith(b"HTTP/1.1 200"):
            self._tally.failed()
            self.close()
            return False
        if not self._stream:
            head_end = data.index(b"\r\n\r\n") + 4
            at = data[:head_end].lower().index(_LENGTH) + len(_LENGTH)
            self._missing = head_end + int(data[at : data.index(b"\r", at)])
        return True


async def start_clients(where: str, workload: Workload, tally: Tally) -> Callable[[], Awaitable[None]]:
    """Connect all clients to ``where`` ("host:port") and start them; return a function that stops them."""
    host, _, port = where.rpartition(":")

    def request(body: bytes) -> bytes:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {where}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    how = {"stream": workload.stream, "every_s": workload.every_s}
    every = request(workload.body)
    clients = [Client(request(workload.first_body(number)), every, tally, **how) for number in range(workload.clients)]
    loop = asyncio.get_running_loop()
    for client in clients:
        await loop.create_connection(lambda client=client: client, host, int(port))

    async def stop() -> None:
        for client in clients:
            client.close()

    return stop

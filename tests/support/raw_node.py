"""A node that answers with bytes a test wrote: head, body and the end of its connection.

``case-NUMBER`` in a request's body selects its answer.
"""

import asyncio
import enum
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

_CASE = re.compile(rb"case-(\d+)")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class End(enum.StrEnum):
    """What happens to the connection after the body's bytes."""

    TIDY = "tidy"
    """A last chunk, and the connection stays for the next request."""
    OPEN = "open"
    """No last chunk, and nothing more."""
    LOST = "lost"
    """No last chunk, and the connection is closed."""
    CLOSE = "close"
    """Neither chunks nor a length: the connection's end is the body's."""


@dataclass(frozen=True)
class Scripted:
    """One answer; ``pieces`` come one after the other, each as a chunk of its own."""

    pieces: tuple[bytes, ...] = field(repr=False)
    end: End = End.TIDY
    content_type: str = "text/event-stream"

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


class RawNode:
    """The node, in a thread of its own. ``base_url`` ends where ``/chat/completions`` begins."""

    def __init__(self, cases: list[Scripted], model: str = "m") -> None:
        self.cases = cases
        self.model = model
        self.calls: list[int] = []
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()
        self._open: set[asyncio.Task] = set()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**22))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        serving = list(self._open)
        for task in serving:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*serving, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader, writer) -> None:
        self._open.add(asyncio.current_task())
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(asyncio.current_task())
            writer.close()

    async def _answer(self, reader, writer) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            listed = {"object": "list", "data": [{"id": self.model, "object": "model"}]}
            body = json.dumps(listed).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            return True
        length = _LENGTH.search(head)
        asked = await reader.readexactly(int(length[1])) if length else b""
        number = int(_CASE.search(asked)[1])
        self.calls.append(number)
        case = self.cases[number]
        framing = b"" if case.end is End.CLOSE else b"Transfer-Encoding: chunked\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%b\r\n" % (case.content_type.encode(), framing))
        for piece in case.pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if framing else piece)
            await writer.drain()
            await asyncio.sleep(0)
        if case.end is End.TIDY:
            writer.write(b"0\r\n\r\n")
            return True
        if case.end is End.OPEN:
            await reader.read(1)
        return False


@contextmanager
def raw_node(*cases: Scripted, model: str = "m"):
    with RawNode(list(cases), model) as node:
        yield node

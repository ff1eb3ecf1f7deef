"""HTTP/2 frames by hand, and a server that answers each gRPC call with the very bytes that a test wrote."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import hpack

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY = range(8)
WINDOW_UPDATE, CONTINUATION = 8, 9
END_STREAM = ACK = 1
END_HEADERS, PADDED, HAS_PRIORITY = 4, 8, 32
PREFACE_BYTES = 24
MAX_FRAME_BYTES = 16_384
CLOSE = b"<close>"
"""In a script: end the connection here."""


def frame(kind, flags, stream_id, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def settings(**values):
    names = {"push": 2, "streams": 3, "window": 4, "frame": 5, "headers": 6}
    payload = b"".join(names[name].to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in values.items())
    return frame(SETTINGS, 0, 0, payload)


def message(data):
    """A gRPC message with its prefix."""
    return b"\0" + len(data).to_bytes(4, "big") + data


def block(*headers):
    """A header block that does not change the decoder's table, so that blocks can be sent in any order."""
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder.encode(headers)


HEAD = ((":status", "200"), ("content-type", "application/grpc"))


def head(stream_id, *headers, flags=END_HEADERS):
    return frame(HEADERS, flags, stream_id, block(*(headers or HEAD)))


def data(stream_id, *messages):
    """Messages, in as many DATA frames as their size requires."""
    body = b"".join(map(message, messages))
    pieces = [body[at : at + MAX_FRAME_BYTES] for at in range(0, len(body), MAX_FRAME_BYTES)]
    return b"".join(frame(DATA, 0, stream_id, piece) for piece in pieces)


def trailers(stream_id, status="0", text=None):
    fields = (("grpc-status", status), *((("grpc-message", text),) if text is not None else ()))
    return frame(HEADERS, END_HEADERS | END_STREAM, stream_id, block(*fields))


def padded(kind, flags, stream_id, payload, padding):
    return frame(kind, flags | PADDED, stream_id, bytes((padding,)) + payload + bytes(padding))


def reset(stream_id, code):
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def goaway(last_stream_id, code=0, text=b""):
    return frame(GOAWAY, 0, 0, last_stream_id.to_bytes(4, "big") + code.to_bytes(4, "big") + text)


def window(stream_id, increment):
    return frame(WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))


@dataclass
class RawServer:
    """``script`` is asked for the bytes after each whole request; ``CLOSE`` in it ends the connection."""

    script: Callable[[int], list[bytes]]
    greeting: bytes = field(default_factory=settings)
    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    frames: list[tuple[int, int, int, bytes]] = field(default_factory=list)

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    async def __call__(self, reader, writer):
        self.connections += 1
        bodies: dict[int, bytes] = {}
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await reader.readexactly(PREFACE_BYTES)
            writer.write(self.greeting)
            while True:
                start = await reader.readexactly(9)
                kind, flags = start[3], start[4]
                stream_id = int.from_bytes(start[5:], "big")
                payload = await reader.readexactly(int.from_bytes(start[:3], "big"))
                self.frames.append((kind, flags, stream_id, payload))
                if kind == SETTINGS and not flags & ACK:
                    writer.write(frame(SETTINGS, ACK, 0))
                if kind == PING and not flags & ACK:
                    writer.write(frame(PING, ACK, 0, payload))
                if kind == DATA:
                    bodies[stream_id] = bodies.get(stream_id, b"") + payload
                if kind in {DATA, HEADERS} and flags & END_STREAM:
                    self.requests.append(bodies.pop(stream_id, b""))
                    for part in self.script(stream_id):
                        if part == CLOSE:
                            return writer.close()
                        writer.write(part)
                        await writer.drain()
        writer.close()
        return None


@contextlib.asynccontextmanager
async def raw_server(script, **how) -> AsyncIterator[RawServer]:
    made = RawServer(script, **how)
    tasks: set[asyncio.Task] = set()

    async def accept(reader, writer):
        task = asyncio.current_task()
        tasks.add(task)
        try:
            await made(reader, writer)
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

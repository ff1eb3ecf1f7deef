"""Streams read over plain sockets, without a client's cost, and a watch on a process's memory."""

import asyncio
import json
import threading
from contextlib import contextmanager

import psutil

MIB = 2**20
FIRST_BYTES_WITHIN_S = 240.0
"""A thousand streams that begin at once on a machine with other work take more than a minute."""


def request_bytes(model, text):
    """A streamed chat request as it goes over the wire; the connection ends with its answer."""
    body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": text}]})
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


async def open_stream(port, model, text):
    """Ask for a stream and wait for its first bytes; return them, and the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_bytes(model, text))
    async with asyncio.timeout(FIRST_BYTES_WITHIN_S):
        return await reader.read(65_536), reader, writer


def chunked_body(raw):
    """Undo the chunked coding of an answer, head included; fails unless its end is there."""
    at = raw.index(b"\r\n\r\n") + 4
    parts = []
    while True:
        line_end = raw.index(b"\r\n", at)
        size = int(raw[at:line_end], 16)
        at = line_end + 2
        if size == 0:
            assert raw[at:] == b"\r\n", "bytes after the end of the body"
            return b"".join(parts)
        parts.append(raw[at : at + size])
        assert raw[at + size : at + size + 2] == b"\r\n", "a chunk is cut"
        at += size + 2


class Memory:
    """The resident memory of a process, compared with what it was when this was made."""

    def __init__(self, pid):
        self._process = psutil.Process(pid)
        self._before = self._peak = self._rss()

    @contextmanager
    def watched(self):
        """Record the peak while the block runs."""
        over = threading.Event()

        def watch():
            while not over.wait(0.05):
                self._peak = max(self._peak, self._rss())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    @property
    def before_mib(self):
        return self._before / MIB

    @property
    def peak_mib(self):
        return self._peak / MIB

    @property
    def growth_mib(self):
        """From before to the peak."""
        return (self._peak - self._before) / MIB

    @property
    def now_mib(self):
        """From before to now."""
        return (self._rss() - self._before) / MIB

    def _rss(self):
        return self._process.memory_info().rss

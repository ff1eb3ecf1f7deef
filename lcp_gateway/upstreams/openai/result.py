"""A virtual node's result, checked as it is read, so that a cut one is never taken for a whole one."""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable

import aiohttp

from lcp_gateway.adapters.sse import is_readable_stream
from lcp_gateway.constants import BYTES_PER_TOKEN
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.order import Task
from lcp_gateway.purchase.outcome import Judge, Received
from lcp_gateway.purchase.ports import Result, ResultStatus, StreamBegin
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.openai.errors import FAILURES, connection_error
from lcp_gateway.upstreams.result_judges import StreamResultJudge, WholeResultJudge

CLOSE_WAIT_S = 2.0
"""How long a node may take to end its answer once the result's own end has come."""


class NodeResult:
    """A node's result, checked as it is read."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        task: Task,
        *,
        max_bytes: int,
        lost: Verdict,
        charge: Callable[[bytes, int], Msat],
    ) -> None:
        """``lost`` is the verdict of an end without a whole result.

        ``charge`` gets the part of the result that holds the usage, and the size of its text: an event of a stream
        counts as one token, since most of its bytes are the event's own.
        """
        self.content_type = response.headers.get("Content-Type", "")
        self.content_encoding = response.headers.get("Content-Encoding", "identity")
        self._response = response
        self._max_bytes = max_bytes
        self._lost = lost
        self._charge = charge
        self._digest = hashlib.sha256()
        self._length = 0
        # A compressed result cannot be read; its framing still shows a cut.
        is_events = is_readable_stream(self.content_type, self.content_encoding)
        self._events: int | None = 0 if is_events else None
        # Without a length only the text itself can show that its end is missing.
        self._is_framed = "Content-Length" in response.headers or "Transfer-Encoding" in response.headers
        self._stream: StreamResultJudge | None = None
        if task.stream:
            self._stream = StreamResultJudge(task, self.content_encoding, wants_usage=True)
            self._stream.is_tidy = self._is_framed
        self._judge: Judge = self._stream or WholeResultJudge(task, self.content_encoding)

    def begin(self) -> StreamBegin:
        """Return the head of a stream."""
        return StreamBegin(self.content_type, self.content_encoding, self._judge)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes as they come.

        Raises:
            UpstreamError: they broke off, are too many, or end before the result does.
        """
        judge = self._judge
        try:
            async for chunk in self._response.content.iter_any():
                self._take(chunk)
                yield chunk
                if judge.is_complete:
                    break
        except FAILURES as error:
            raise connection_error(error, evidence=self._lost) from None
        if judge.is_complete:
            async for chunk in self._after_end():
                yield chunk
        if self._stream is not None and judge.received() is Received.PART:
            raise self._incomplete("the stream ended without its end mark")

    def check_whole(self, body: bytes) -> None:
        """Check that a result that came without a length has its end.

        Raises:
            UpstreamError: it has none.
        """
        if self._is_framed:
            return
        self._judge.feed(body)
        if self._judge.received() is Received.PART:
            raise self._incomplete("the node's answer has no end")

    def result(self, body: bytes) -> Result:
        """Return the result, once it is complete; ``body`` is empty where it was streamed."""
        text_bytes = self._length if self._events is None else self._events * BYTES_PER_TOKEN
        usage_data = body if self._stream is None else self._stream.usage_data
        return Result(
            status=ResultStatus.OK,
            body=body,
            sha256=self._digest.digest(),
            length=self._length,
            content_type=self.content_type,
            content_encoding=self.content_encoding,
            message="",
            charged_msat=self._charge(usage_data, text_bytes),
        )

    async def _after_end(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes after the result's own end. However its connection ends then, the result is whole."""
        left_s = CLOSE_WAIT_S
        while left_s > 0 and not self._judge.is_flooded:
            waits_since = time.monotonic()
            try:
                async with asyncio.timeout(left_s):
                    chunk = await self._response.content.readany()
            except FAILURES:
                return
            if not chunk:
                return
            left_s -= time.monotonic() - waits_since
            self._take(chunk)
            yield chunk

    def _take(self, chunk: bytes) -> None:
        self._length += len(chunk)
        if self._length > self._max_bytes:
            raise self._incomplete(f"the node's answer is longer than {self._max_bytes} bytes")
        self._digest.update(chunk)
        if self._events is not None:
            self._events += chunk.count(b"data:")
        if self._stream is not None:
            self._stream.feed(chunk)

    def _incomplete(self, message: str) -> UpstreamError:
        return UpstreamError(UpstreamStatus.DATA_LOSS, message, evidence=self._lost)


async def read_at_most(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read a body or its first ``limit`` bytes; no more is read from the connection."""
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk[: limit - len(data)]
        if len(data) >= limit:
            response.close()
            break
    return bytes(data)

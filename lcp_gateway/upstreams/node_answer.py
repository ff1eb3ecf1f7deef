"""A virtual node's answer, checked as it is read, so that a cut one never passes for a whole one."""

import hashlib
import re
from collections.abc import AsyncGenerator, Callable

import aiohttp
import orjson

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.results import Result, ResultStatus
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.purchase.task import TaskKind
from lcp_gateway.upstreams.node_errors import FAILURES, broken_call
from lcp_gateway.upstreams.node_price import USAGE_TAIL_BYTES

_DONE = re.compile(rb"^data: ?\[DONE\][ \t]*$", re.MULTILINE)
# Some servers write no event lines; then the type stands first in the data.
_RESPONSE_END = re.compile(
    rb"""\n(?:event: ?|data: ?\{\s*"type"\s*:\s*")response\.(?:completed|incomplete|failed)\b"""
)
_MARK_BYTES = 64
_BYTES_PER_EVENT = 4
_MARKED = frozenset({TaskKind.CHAT_COMPLETIONS, TaskKind.COMPLETIONS, TaskKind.RESPONSES})


class NodeAnswer:
    """A node's answer, checked as it is read."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        kind: TaskKind,
        *,
        max_bytes: int,
        lost: Verdict,
        charge: Callable[[bytes, int], Msat],
    ) -> None:
        """``lost`` is what an end without a whole result means.

        ``charge`` gets the end of the result and the size of the text in it: of a stream an event counts as a token of
        four bytes, for most of its bytes are the event's own.
        """
        self.content_type = response.headers.get("Content-Type", "")
        self.content_encoding = response.headers.get("Content-Encoding", "identity")
        self._response = response
        self._max_bytes = max_bytes
        self._lost = lost
        self._charge = charge
        self._digest = hashlib.sha256()
        self._length = 0
        self._tail = b""
        # Inside a compressed answer nothing can be seen; its framing still shows a cut.
        readable = self.content_encoding.strip().lower() in {"", "identity"}
        is_events = (
            self.content_type.partition(";")[0].strip().lower() == "text/event-stream" and readable
        )
        self._events: int | None = 0 if is_events else None
        self._ending = _Ending(kind) if is_events and kind in _MARKED else None
        # Without a length only the text itself can show that its end is missing.
        self._must_be_json = (
            readable
            and not is_events
            and "Content-Length" not in response.headers
            and "Transfer-Encoding" not in response.headers
        )

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Give the bytes as they come.

        Raises:
            UpstreamError: they broke off, are too many, or end without the mark that tells that they are all.
        """
        try:
            async for chunk in self._response.content.iter_any():
                self._take(chunk)
                yield chunk
        except FAILURES as error:
            raise broken_call(error, evidence=self._lost) from None
        if self._ending is not None and not self._ending.is_whole(self._tail):
            raise self._incomplete("the stream ended without its end mark")
        if self._must_be_json and not self._tail.rstrip().endswith((b"}", b"]")):
            raise self._incomplete("the node's answer has no end")

    def check_whole(self, body: bytes) -> None:
        """Look at a result that came without a length for more than its last character.

        Raises:
            UpstreamError: it is not whole.
        """
        if not self._must_be_json:
            return
        try:
            orjson.loads(body)
        except orjson.JSONDecodeError:
            raise self._incomplete("the node's answer has no end") from None

    def result(self, body: bytes) -> Result:
        """Give the result, once all of it came; ``body`` is empty where it was streamed."""
        text_bytes = self._length if self._events is None else self._events * _BYTES_PER_EVENT
        return Result(
            status=ResultStatus.OK,
            body=body,
            sha256=self._digest.digest(),
            length=self._length,
            content_type=self.content_type,
            content_encoding=self.content_encoding,
            message="",
            charged_msat=self._charge(body or self._tail, text_bytes),
        )

    def _take(self, chunk: bytes) -> None:
        self._length += len(chunk)
        if self._length > self._max_bytes:
            raise self._incomplete(f"the node's answer is longer than {self._max_bytes} bytes")
        self._digest.update(chunk)
        if self._events is not None:
            self._events += chunk.count(b"data:")
        if self._ending is not None:
            self._ending.feed(chunk)
        self._tail = (self._tail + chunk[-USAGE_TAIL_BYTES:])[-USAGE_TAIL_BYTES:]

    def _incomplete(self, message: str) -> UpstreamError:
        return UpstreamError("DATA_LOSS", message, evidence=self._lost)


class _Ending:
    """Looks out for what ends an event stream, so that a cut one never passes for whole."""

    def __init__(self, kind: TaskKind) -> None:
        self._is_responses = kind is TaskKind.RESPONSES
        self._found = False
        self._before = b"\n"

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes. The event that ends a response can be long, so its name is looked for as it passes."""
        if not self._is_responses or self._found:
            return
        data = self._before + chunk
        if b"response." in data:
            self._found = _RESPONSE_END.search(data.replace(b"\r", b"\n")) is not None
        self._before = data[-_MARK_BYTES:]

    def is_whole(self, tail: bytes) -> bool:
        """Tell whether the stream that ends with ``tail`` came to its end."""
        lines = tail.replace(b"\r", b"\n")
        if not self._is_responses:
            return _DONE.search(lines) is not None
        if not self._found or not lines.endswith(b"\n"):
            return False
        # Cut between the event's name and its data.
        last = lines.rstrip(b"\n").rpartition(b"\n")[2]
        return not last.startswith(b"event:")


async def read_at_most(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read a body or its first ``limit`` bytes; more than that is not taken from the connection."""
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk[: limit - len(data)]
        if len(data) >= limit:
            response.close()
            break
    return bytes(data)

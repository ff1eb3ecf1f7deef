"""The result of a node that dialled in, checked as it is read; and the usage that it is charged by."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final

from lcp_gateway.adapters.sse import is_readable_stream
from lcp_gateway.adapters.usage import Usage, usage_of
from lcp_gateway.constants import BYTES_PER_TOKEN
from lcp_gateway.node_protocol.messages import End, Head
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.order import Task
from lcp_gateway.purchase.outcome import Judge
from lcp_gateway.purchase.ports import Result, ResultStatus, StreamBegin
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.dialin.requests import RemoteRequest
from lcp_gateway.upstreams.result_judges import StreamResultJudge, WholeResultJudge

TOLERANCE: Final = 3
"""How many times the gateway's own estimate a node's word may be."""
_SLACK_TOKENS: Final = 512
"""Templates around a prompt, and reasoning that is not shown, are tokens without bytes."""


class RemoteResult:
    """A node's result: bounded, counted, and hashed by the purchase that reads it.

    ``charge`` gets the end, the part of the result that holds the usage, and the size of its text; an event of a stream
    counts as one token, since most of its bytes are the event's own.
    """

    def __init__(
        self,
        request: RemoteRequest,
        head: Head,
        task: Task,
        *,
        max_bytes: int,
        charge: Callable[[End, bytes, int], Msat],
    ) -> None:
        self._request = request
        self._head = head
        self._max_bytes = max_bytes
        self._charge = charge
        self._length = 0
        is_events = is_readable_stream(head.content_type, head.content_encoding)
        self._events: int | None = 0 if is_events else None
        self._stream = StreamResultJudge(task, head.content_encoding, wants_usage=True) if task.stream else None
        self._judge: Judge = self._stream or WholeResultJudge(task, head.content_encoding)

    def begin(self) -> StreamBegin:
        """Return the head of a stream."""
        return StreamBegin(self._head.content_type, self._head.content_encoding, self._judge)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes as they come.

        Raises:
            UpstreamError: they broke off, or are too many.
        """
        request, stream = self._request, self._stream
        while chunk := await request.chunk():
            self._length += len(chunk)
            if self._length > self._max_bytes:
                raise UpstreamError(
                    UpstreamStatus.DATA_LOSS,
                    f"the node's answer is longer than {self._max_bytes} bytes",
                    evidence=Verdict.NONE,
                )
            if self._events is not None:
                self._events += chunk.count(b"data:")
            if stream is not None:
                stream.feed(chunk)
            yield chunk

    def result(self, body: bytes) -> Result:
        """Return the result, once its end has come; ``body`` is empty where it was streamed.

        Hash and length are those that the node states: the purchase compares them with its own.
        """
        end = self._request.end
        assert end is not None  # noqa: S101 - the chunks have come to their end
        text_bytes = self._length if self._events is None else self._events * BYTES_PER_TOKEN
        usage_data = body if self._stream is None else self._stream.usage_data
        return Result(
            status=ResultStatus.OK,
            body=body,
            sha256=end.sha256,
            length=end.length,
            content_type=self._head.content_type,
            content_encoding=self._head.content_encoding,
            message="",
            charged_msat=self._charge(end, usage_data, text_bytes),
        )


@dataclass(frozen=True, slots=True)
class HeldUsage:
    """The usage that is charged; ``is_refuted`` says that the node's own word was not believed."""

    usage: Usage
    is_refuted: bool


def held_usage(end: End, usage_data: bytes, *, body_bytes: int, result_bytes: int) -> HeldUsage:
    """Return the usage that a result is charged by.

    The result's own ``usage`` counts before that of the end, since the client sees it. ``usage_data`` is the part of the result that holds it, ``result_bytes`` the
    size of its text. A number far beyond the estimate is replaced by the estimate.
    """
    estimate = Usage(-(-body_bytes // BYTES_PER_TOKEN), -(-result_bytes // BYTES_PER_TOKEN))
    stated = usage_of(usage_data)
    if stated is None and (end.input_tokens is not None or end.output_tokens is not None):
        stated = Usage(end.input_tokens or 0, end.output_tokens or 0)
    if stated is None:
        return HeldUsage(estimate, is_refuted=False)
    input_tokens, input_is_wrong = _held(stated.input_tokens, estimate.input_tokens)
    output_tokens, output_is_wrong = _held(stated.output_tokens, estimate.output_tokens)
    return HeldUsage(Usage(input_tokens, output_tokens), input_is_wrong or output_is_wrong)


def _held(stated: int, estimate: int) -> tuple[int, bool]:
    is_wrong = stated > estimate * TOLERANCE + _SLACK_TOKENS
    return (estimate if is_wrong else stated), is_wrong

"""The bytes of a result decide whether it is complete or an error; how the provider's call ends does not."""

import asyncio
import json
from dataclasses import replace

import pytest

from lcp_gateway.purchase import paid_stream
from lcp_gateway.purchase.errors import Undelivered, UpstreamError
from lcp_gateway.purchase.execution import PurchaseExecutor
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.outcome import Received
from lcp_gateway.purchase.ports import ResultStatus, StreamBegin, StreamEnd
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.upstreams.result_judges import judge_result
from tests.support.cases import each_case
from tests.support.purchases import (
    NOW,
    TASK,
    MemoryJournal,
    ScriptedInspector,
    ScriptedUpstream,
    Trusting,
    order,
    quote,
    result,
    stream_events,
)

HELLO = b'data: {"choices":[{"delta":{"content":"hello"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"no"}}\n\n'
BROKEN = UpstreamError("UNAVAILABLE", "the connection was lost")
NEVER = "never"


class Hanging(ScriptedUpstream):
    """An upstream that can leave a stream open without sending anything more."""

    async def execute_stream(self, quote, task, timeout_s):
        try:
            for event in self.events:
                if event is NEVER:
                    await asyncio.Event().wait()
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            self.closed = True


def bought(*, source=ProviderSource.LCP, stream=True, kind=TaskKind.CHAT_COMPLETIONS, **script):
    upstream = Hanging(quoted=replace(quote(), source=source), **script)
    exposure, journal = Trusting(), MemoryJournal(upstream)
    executor = PurchaseExecutor(
        upstream,
        journal=journal,
        inspector=ScriptedInspector(),
        limits=SpendingLimits(),
        exposure=exposure,
        execute_timeout_s=1,
        judges=judge_result,
        now=lambda: NOW,
    )
    task = Task(kind, TASK.model, TASK.body, stream=stream)
    return upstream, journal, exposure, executor, Purchase(order(task), upstream.quoted)


async def read(executor, purchase):
    """Read a stream; return its bytes, how many of them the client had before the end, and the error."""
    stream = await executor.open_stream(purchase)
    came = b""
    try:
        async for chunk in stream.chunks():
            came += chunk
    except Undelivered as error:
        return came, stream.judge.free_bytes, error
    return came, stream.judge.free_bytes, None


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Shorten the timeouts so that no test waits long."""
    monkeypatch.setattr(paid_stream, "END_WAIT_S", 0.2)
    monkeypatch.setattr(paid_stream, "CLOSE_WAIT_S", 0.05)


ENDED = stream_events(HELLO, DONE)
*WITHOUT_RESULT, RESULT = ENDED
*WITHOUT_WORD, WORD = WITHOUT_RESULT


@pytest.mark.parametrize(
    "events",
    [
        ENDED,
        [*ENDED, NEVER],
        [*ENDED, BROKEN],
        [*WITHOUT_RESULT, NEVER],
        [*WITHOUT_RESULT, BROKEN],
        WITHOUT_RESULT,
        stream_events(HELLO, DONE, b": bye\n\n" * 1_500),
    ],
    ids=["whole", "open", "broken", "no result, open", "no result, broken", "no result", "comments"],
)
async def test_a_whole_result_with_the_right_hash_is_delivered_however_its_call_ends(events):
    upstream, journal, exposure, executor, purchase = bought(events=events)
    came, shown, error = await read(executor, purchase)
    assert error is None
    assert came.startswith(HELLO + DONE)
    assert shown == len(HELLO), "its end goes out with the end"
    assert journal.states == ["paying", "settled", "delivered"]
    assert exposure.states == ["paying", "delivered"]
    assert upstream.closed


@pytest.mark.parametrize(
    ("events", "received"),
    [
        ([*WITHOUT_WORD, NEVER], Received.PART),
        ([*WITHOUT_WORD, BROKEN], Received.PART),
        (WITHOUT_WORD, Received.PART),
        ([*WITHOUT_WORD, StreamEnd(b"\0" * 32, WORD.length), RESULT], Received.ALTERED),
        ([*WITHOUT_WORD, StreamEnd(WORD.sha256, 1), NEVER], Received.ALTERED),
        ([*WITHOUT_RESULT, replace(RESULT, status=ResultStatus.FAILED)], Received.ALTERED),
        (stream_events(HELLO, DONE, b"x" * 300_000), Received.PART),
    ],
    ids=["open", "broken", "ended", "wrong hash", "wrong length", "failed", "flood"],
)
async def test_an_end_mark_before_the_peers_hash_is_never_shown(events, received):
    """The peer sends its hash when the call ends; until then the result cannot be verified."""
    upstream, journal, exposure, executor, purchase = bought(events=events)
    _, shown, error = await read(executor, purchase)
    assert error.received is received
    assert shown == len(HELLO)
    assert journal.states[-1] == "undelivered"
    assert exposure.states[-1] == "undelivered"
    assert upstream.closed


@each_case(
    "stream, received, shown, is_told",
    [
        (HELLO, Received.PART, len(HELLO), False),
        (ERROR + DONE, Received.ERROR, len(ERROR), True),
        (HELLO + ERROR + HELLO + DONE, Received.ERROR, len(HELLO + ERROR), True),
        (b"", Received.EMPTY, 0, False),
        (b" \r\n", Received.EMPTY, 0, False),
        (DONE, Received.EMPTY, 0, False),
        (b'{"error":{"message":"no"}}', Received.ERROR, 0, False),
        (b"<html>log in</html>", Received.EMPTY, 0, False),
        (b'{"choices":[{"message":{"content":"hello"}}]}', Received.WHOLE, 0, False),
    ],
)
@each_case("source", ProviderSource)
async def test_a_stream_is_what_its_bytes_are_whatever_its_hash_says(stream, received, shown, is_told, source):
    _, journal, exposure, executor, purchase = bought(
        events=stream_events(*([stream] if stream else [])), source=source
    )
    _, was_shown, error = await read(executor, purchase)
    assert was_shown == shown
    if received is Received.WHOLE:
        assert error is None
        assert exposure.states[-1] == journal.states[-1] == "delivered"
    else:
        assert (error.received, error.is_told) == (received, is_told)
        assert exposure.states[-1] == journal.states[-1] == "undelivered"


async def test_nothing_is_awaited_after_an_error(monkeypatch):
    """Nothing that follows an error event can complete the answer, not even the hash."""
    monkeypatch.setattr(paid_stream, "END_WAIT_S", 60)
    begin = StreamBegin("text/event-stream", "")
    _, _, _, executor, purchase = bought(events=[begin, ERROR, NEVER])
    async with asyncio.timeout(60):
        _, _, error = await read(executor, purchase)
    assert (error.received, error.is_told) == (Received.ERROR, True)


async def test_a_reader_that_is_slow_after_the_end_mark_takes_nothing_from_the_wait(monkeypatch):
    monkeypatch.setattr(paid_stream, "END_WAIT_S", 0.1)
    begin, hello, done, *rest = ENDED
    _, journal, _, executor, purchase = bought(events=[begin, hello, done, *rest])
    stream = await executor.open_stream(purchase)
    async for _ in stream.chunks():
        await asyncio.sleep(0.15)
    assert journal.states[-1] == "delivered"


@pytest.mark.parametrize(
    ("kind", "good"),
    [
        (TaskKind.CHAT_COMPLETIONS, {"choices": [{"message": {"content": "hello"}}]}),
        (TaskKind.COMPLETIONS, {"choices": [{"text": "hello"}]}),
        (TaskKind.RESPONSES, {"output": [{"type": "message"}]}),
        (TaskKind.EMBEDDINGS, {"data": [{"embedding": [1]}]}),
    ],
)
@pytest.mark.parametrize("source", ProviderSource)
async def test_a_result_in_one_piece_is_what_its_bytes_are(kind, good, source):
    for body, received in [
        (json.dumps(good).encode(), Received.WHOLE),
        (b'{"error":{"message":"no"}}', Received.ERROR),
        (b"", Received.EMPTY),
        (b"  \n", Received.EMPTY),
        (b"<html>log in</html>", Received.EMPTY),
        (b"{}", Received.EMPTY),
        (json.dumps(good).encode()[:-3], Received.PART),
    ]:
        _, journal, exposure, executor, purchase = bought(outcome=result(body), source=source, kind=kind, stream=False)
        if received is Received.WHOLE:
            assert (await executor.execute(purchase)).body == body
            assert journal.states[-1] == exposure.states[-1] == "delivered"
            continue
        with pytest.raises(Undelivered) as caught:
            await executor.execute(purchase)
        assert caught.value.received is received
        assert journal.states[-1] == exposure.states[-1] == "undelivered"


async def test_a_compressed_result_is_left_to_its_hash():
    packed = result(b"\x1f\x8b", content_encoding="gzip")
    _, journal, _, executor, purchase = bought(outcome=packed, stream=False)
    await executor.execute(purchase)
    assert journal.states[-1] == "delivered"

"""Chunks that an upstream hands over as they come are hashed, counted and judged like those that are events."""

import asyncio
import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcp_gateway.purchase.errors import Undelivered
from lcp_gateway.purchase.execution import PurchaseExecutor
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.ports import Result, StreamBegin, StreamEnd
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.upstreams.result_judges import judge_result
from tests.support.purchases import (
    NOW,
    TASK,
    MemoryJournal,
    ScriptedInspector,
    ScriptedUpstream,
    Trusting,
    order,
    quote,
    stream_events,
)

HELLO = b'data: {"choices":[{"delta":{"content":"hello"},"finish_reason":null}]}\n\n'
STOP = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"no"}}\n\n'
COMMENT = b": still here\n\n"


class Offering(ScriptedUpstream):
    """Offers each chunk to the sink while its reader waits; what the sink refuses is yielded."""

    def __init__(self, *, offers, **script):
        super().__init__(**script)
        self._offers = offers
        self._sink = None
        self.handed = 0

    def _hand_to(self, sink):
        self._sink = sink

    async def execute_stream(self, quote, task, timeout_s):
        for event in self.events:
            await asyncio.sleep(0)
            if isinstance(event, StreamBegin) and self._offers:
                yield replace(event, hand_to=self._hand_to)
            elif isinstance(event, bytes) and self._sink is not None and self._sink(event):
                self.handed += 1
            else:
                yield event


class Sink:
    """Takes blocks unless the script says otherwise, in one row with those that are yielded."""

    def __init__(self, busy=()):
        self.blocks = []
        self._busy = list(busy)

    def can_take(self):
        return not (self._busy and self._busy.pop(0))

    def append(self, block, free_bytes):
        self.blocks.append(block)


async def run(events, *, offers, busy=()):
    """Return all that can be told of one stream: its bytes, those that are free, its error, and the journal's states."""
    upstream = Offering(quoted=quote(), events=events, offers=offers)
    journal = MemoryJournal(upstream)
    executor = PurchaseExecutor(
        upstream,
        journal=journal,
        inspector=ScriptedInspector(),
        limits=SpendingLimits(),
        exposure=Trusting(),
        execute_timeout_s=1,
        judges=judge_result,
        now=lambda: NOW,
    )
    task = Task(TaskKind.CHAT_COMPLETIONS, TASK.model, TASK.body, stream=True)
    stream = await executor.open_stream(Purchase(order(task), upstream.quoted))
    sink, error = Sink(busy), None
    stream.hand_to(sink)
    try:
        async for chunk in stream.chunks():
            sink.blocks.append(chunk)
    except Undelivered as raised:
        error = (str(raised), raised.received, raised.is_told)
    return (b"".join(sink.blocks), stream.judge.free_bytes, error, journal.states), upstream.handed


async def test_ordinary_chunks_are_handed_over_and_the_result_is_delivered():
    told, handed = await run(stream_events(*[HELLO] * 5, STOP, DONE), offers=True)
    assert told[0] == HELLO * 5 + STOP + DONE
    assert told[2:] == (None, ["paying", "settled", "delivered"])
    assert handed == 4, "the first shows that it is a result; the last two end it"


@pytest.mark.parametrize("change", [{"sha256": b"\0" * 32}, {"length": 7}])
async def test_a_chunk_that_was_handed_over_counts_for_hash_and_length(change):
    events = [
        replace(event, **change) if isinstance(event, StreamEnd | Result) else event
        for event in stream_events(*[HELLO] * 5, DONE)
    ]
    told, handed = await run(events, offers=True)
    assert handed == 4
    assert told[3] == ["paying", "settled", "undelivered"]


async def test_a_chunk_after_the_stream_s_end_is_out_of_order_though_it_is_offered():
    begin, *chunks, end, result = stream_events(*[HELLO] * 3)
    told, _ = await run([begin, *chunks, end, HELLO, result], offers=True)
    assert told[2] is not None and "out of order" in told[2][0]


_PARTS = st.lists(st.sampled_from([HELLO, HELLO, HELLO, COMMENT, STOP, ERROR, DONE, b"data: {}\n\n"]), max_size=9)


@settings(max_examples=300, deadline=None)
@given(
    parts=_PARTS,
    cuts=st.lists(st.integers(0, 600), max_size=8),
    busy=st.lists(st.booleans(), max_size=12),
    is_cut=st.booleans(),
)
def test_the_outcome_is_the_same_with_and_without_a_sink(parts, cuts, busy, is_cut):
    text = b"".join(parts)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    chunks = [text[a:b] for a, b in itertools.pairwise(places)]
    events = stream_events(*chunks)
    if is_cut:
        del events[-2:]
    plain, handed = asyncio.run(run(events, offers=False))
    offered, _ = asyncio.run(run(events, offers=True, busy=busy))
    assert handed == 0
    assert plain == offered

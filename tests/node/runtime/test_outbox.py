import asyncio
import contextlib

from lcp_gateway.node.lcp.effects import Send
from lcp_gateway.node.runtime.outbox import LINK, Outbox
from tests.support import virtual_time


def _messages(name, count, size=10):
    return [Send(number, name.encode() * size) for number in range(count)]


@contextlib.asynccontextmanager
async def _running(outbox, send):
    task = asyncio.create_task(outbox.run(send))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def test_jobs_take_turns_and_manifests_go_first():
    async def scenario():
        outbox, sent = Outbox(), []

        async def send(lane_id, message):
            sent.append((lane_id, message.message_type))
            return True

        outbox.put(b"long", _messages("x", 5))
        outbox.put(b"short", _messages("y", 2))
        outbox.put(LINK, _messages("m", 1))
        outbox.put(b"none", [])
        assert outbox.waiting == (8, 80)
        async with _running(outbox, send):
            await asyncio.sleep(1)
        assert sent[0] == (LINK, 0)
        assert [lane for lane, _ in sent[1:5]] == [b"long", b"short", b"long", b"short"]
        assert [number for lane, number in sent if lane == b"long"] == [0, 1, 2, 3, 4]
        assert outbox.waiting == (0, 0)

    virtual_time.run(scenario())


def test_only_the_producer_of_a_full_lane_waits():
    async def scenario():
        outbox, may_send = Outbox(), asyncio.Semaphore(0)

        async def send(lane_id, message):
            await may_send.acquire()
            return True

        outbox.put(b"full", _messages("x", 3))
        async with _running(outbox, send):
            waiting = asyncio.create_task(outbox.until_below(b"full", 10))
            await outbox.until_below(b"other", 0)
            await asyncio.sleep(1)
            assert not waiting.done()
            may_send.release()
            await asyncio.sleep(1)
            assert not waiting.done()
            may_send.release()
            await waiting
            assert outbox.waiting_bytes(b"full") == 10

    virtual_time.run(scenario())


def test_a_lane_that_is_dropped_frees_its_producer_and_sends_no_more():
    async def scenario():
        outbox, sent, go_on = Outbox(), [], asyncio.Event()

        async def send(lane_id, message):
            sent.append(message.message_type)
            await go_on.wait()
            return True

        outbox.put(b"job", _messages("x", 3))
        async with _running(outbox, send):
            waiting = asyncio.create_task(outbox.until_below(b"job", 0))
            await asyncio.sleep(1)
            outbox.drop(b"job")
            outbox.drop(b"job")
            await waiting
            outbox.put(b"job", [Send(9, b"")])
            go_on.set()
            await asyncio.sleep(1)
        assert sent == [0, 9]
        outbox.put(b"one", _messages("x", 1))
        assert outbox.clear() == {b"one"} and outbox.waiting == (0, 0)

    virtual_time.run(scenario())


def test_a_message_that_was_not_taken_is_sent_again():
    async def scenario():
        outbox, tries = Outbox(), []

        async def send(lane_id, message):
            tries.append(message.message_type)
            await asyncio.sleep(0.1)
            return len(tries) != 2

        outbox.put(b"job", _messages("x", 3))
        async with _running(outbox, send):
            await outbox.until_below(b"job", 0)
        assert tries == [0, 1, 1, 2]

    virtual_time.run(scenario())

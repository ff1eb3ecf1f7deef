"""The channel: questions and answers both ways, many at one time, and an end that every waiting caller notices."""

import asyncio
import socket

import pytest

from lcp_gateway.supervisor.channel import Channel, ChannelClosed, QuestionFailed, receive_first


async def pair(handlers_here, handlers_there):
    here, there = socket.socketpair()
    ends = await Channel.open(here, handlers_here), await Channel.open(there, handlers_there)
    return *ends, [asyncio.create_task(end.run()) for end in ends]


async def test_questions_are_answered_out_of_order_and_messages_arrive():
    told = asyncio.Queue()
    first = asyncio.Event()

    async def slow(number):
        if number == 0:
            await first.wait()
        return number * 2

    async def tell(content):
        told.put_nowait(content)

    async def broken(_content):
        raise LookupError("a secret")

    here, there, tasks = await pair({"tell": tell}, {"double": slow, "broken": broken})
    waiting = asyncio.create_task(here.ask("double", 0, timeout_s=60))
    assert await here.ask("double", 21, timeout_s=60) == 42
    first.set()
    assert await waiting == 0
    there.tell("tell", b"x" * 500_000)
    assert len(await told.get()) == 500_000
    with pytest.raises(QuestionFailed, match=r"^LookupError$"):
        await here.ask("broken", timeout_s=60)
    here.close()
    await asyncio.wait(tasks)


async def test_a_question_ends_with_the_other_end():
    async def never(_content):
        await asyncio.Event().wait()

    here, there, tasks = await pair({}, {"never": never})
    waiting = asyncio.create_task(here.ask("never", timeout_s=60))
    await asyncio.sleep(0)
    there.close()
    with pytest.raises(ChannelClosed):
        await waiting
    await asyncio.wait(tasks)
    with pytest.raises(ChannelClosed):
        await here.ask("never", timeout_s=60)
    here.tell("nothing")


async def test_a_question_that_takes_too_long_ends():
    async def never(_content):
        await asyncio.Event().wait()

    here, _there, tasks = await pair({}, {"never": never})
    with pytest.raises(TimeoutError):
        await here.ask("never", timeout_s=0.01)
    here.close()
    await asyncio.wait(tasks)


async def test_the_first_message_is_read_before_there_is_a_loop():
    here, there = socket.socketpair()
    channel = await Channel.open(here, {})
    channel.tell("boot", {"large": "x" * 400_000})
    assert await asyncio.to_thread(_received, there) == {"large": "x" * 400_000}
    channel.close()
    with pytest.raises(ChannelClosed):
        await asyncio.to_thread(_received, there)
    there.close()


def _received(end):
    end.setblocking(True)
    return receive_first(end)

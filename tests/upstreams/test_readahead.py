import asyncio

import grpc.aio
import pytest

from lcp_gateway.upstreams.readahead import ReadAhead
from tests.support.scripted_daemon import begin, chunk


class Call:
    """A call that gives what it was made with, and counts what was read of it."""

    def __init__(self, *messages):
        self.messages = list(messages)
        self.read_count = 0

    async def read(self):
        await asyncio.sleep(0)
        self.read_count += 1
        if not self.messages:
            return grpc.aio.EOF
        message = self.messages.pop(0)
        if isinstance(message, BaseException):
            raise message
        return message


async def settle():
    for _ in range(100):
        await asyncio.sleep(0)


async def test_chunks_that_wait_are_given_as_one_and_never_across_another_message():
    ahead = ReadAhead(Call(chunk(b"a"), chunk(b"b"), begin(), chunk(b"c")), 1000)
    await settle()
    assert await ahead.next() == b"ab"
    assert (await ahead.next()).HasField("result_begin")
    assert await ahead.next() == b"c"
    assert await ahead.next() is None
    assert await ahead.next() is None


async def test_the_first_chunk_is_not_held_for_the_second():
    class Slow(Call):
        async def read(self):
            if self.read_count == 1:
                await asyncio.sleep(60)
            return await super().read()

    ahead = ReadAhead(Slow(chunk(b"first"), chunk(b"second")), 1000)
    async with asyncio.timeout(5):
        assert await ahead.next() == b"first"
    await ahead.close()


async def test_it_stops_reading_while_nobody_takes():
    call = Call(*(chunk(b"x" * 100) for _ in range(1000)))
    ahead = ReadAhead(call, 1_000)
    await settle()
    assert call.read_count == 10
    assert len(await ahead.next()) == 1_000
    await settle()
    assert call.read_count == 20
    await ahead.close()


async def test_nothing_is_lost_between_stops_and_goes():
    ahead = ReadAhead(Call(*(chunk(b"%04d" % n) for n in range(500))), 64)
    got = b""
    while (block := await ahead.next()) is not None:
        got += block
    assert got == b"".join(b"%04d" % n for n in range(500))


async def test_an_error_comes_after_all_that_came_before_it():
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="gone"
    )
    ahead = ReadAhead(Call(chunk(b"a"), error), 1000)
    await settle()
    assert await ahead.next() == b"a"
    with pytest.raises(grpc.aio.AioRpcError):
        await ahead.next()


async def test_closing_ends_its_task_even_while_it_waits_for_room():
    ahead = ReadAhead(Call(*(chunk(b"x" * 100) for _ in range(100))), 100)
    await settle()
    async with asyncio.timeout(5):
        await ahead.close()

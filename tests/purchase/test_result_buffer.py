import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.purchase.result_buffer import BufferLimits, BufferPool, ResultBuffer, ResultGone, ResultHead
from lcp_gateway.purchase.states import Verdict
from tests.support.scripted_peers import ordered, settle

HEAD = ResultHead("application/json", "identity")


def answer(*, window=1_000, whole=10_000, pool=None) -> ResultBuffer:
    return ResultBuffer(ordered(), BufferLimits(window, whole), pool or BufferPool(1_000_000))


async def read_all(source: ResultBuffer) -> bytes:
    return b"".join([block async for block in source.chunks()])


async def test_a_request_that_waits_for_the_head_gets_it_when_it_is_there():
    source = answer()
    waiting = [asyncio.create_task(source.wait_head()) for _ in range(3)]
    await settle()
    source.begin(HEAD)
    assert await asyncio.gather(*waiting) == [HEAD] * 3
    assert await source.wait_head() is HEAD


async def test_a_request_that_waits_for_the_head_of_a_failed_purchase_gets_the_error():
    source = answer()
    waiting = [asyncio.create_task(source.wait_head()) for _ in range(2)]
    await settle()
    source.fail(ValueError("no"))
    for one in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(one, ValueError)
    with pytest.raises(ValueError, match="no"):
        await source.wait_head()


async def test_all_readers_get_all_bytes_whenever_they_come():
    source = answer()
    source.begin(HEAD)
    early = asyncio.create_task(read_all(source))
    await settle()
    source.append(b"one")
    await settle()
    middle = asyncio.create_task(read_all(source))
    await settle()
    source.append(b"two")
    source.end()
    assert await asyncio.gather(early, middle, read_all(source)) == [b"onetwo"] * 3


async def test_buffered_bytes_reach_a_late_reader_as_one_block():
    source = answer()
    for block in (b"a", b"b", b"c"):
        source.append(block)
    source.end()
    assert [block async for block in source.chunks()] == [b"abc"]


async def test_an_error_comes_after_every_byte_that_came_before_it():
    source = answer()
    source.append(b"half")
    source.fail(ValueError("cut"))
    chunks = source.chunks()
    assert await anext(chunks) == b"half"
    with pytest.raises(ValueError, match="cut"):
        await anext(chunks)


async def test_a_reader_that_is_cancelled_takes_nothing_from_the_others():
    source = answer()
    source.append(b"one")
    gone = asyncio.create_task(read_all(source))
    stays = asyncio.create_task(read_all(source))
    await settle()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    source.append(b"two")
    source.end()
    assert await stays == b"onetwo"


async def test_the_producer_waits_for_the_slowest_reader_and_no_longer():
    source = answer(window=10)
    slow, fast = source.chunks(), source.chunks()
    source.append(b"x" * 10)
    await anext(slow)
    await anext(fast)
    assert source.is_ahead, "a block counts as taken only when the next one is asked for"
    producer = asyncio.create_task(source.room())
    quick = asyncio.create_task(anext(fast))
    await settle()
    assert not producer.done(), "one of two readers has not taken it"
    slow_next = asyncio.create_task(anext(slow))
    await settle()
    assert producer.done()
    source.append(b"y")
    assert await quick == await slow_next == b"y"
    await slow.aclose()
    await fast.aclose()


async def test_a_slow_reader_that_leaves_holds_no_reader_up():
    source = answer(window=4)
    slow = source.chunks()
    source.append(b"xxxx")
    await anext(slow)
    producer = asyncio.create_task(source.room())
    await settle()
    assert not producer.done()
    await slow.aclose()
    await asyncio.wait_for(producer, 60)


async def test_without_a_reader_the_producer_is_never_held_up():
    source = answer(window=1)
    source.append(b"x" * 5_000)
    assert not source.is_ahead
    await asyncio.wait_for(source.room(), 60)


async def test_past_the_whole_bytes_no_new_reader_joins_and_the_others_get_everything():
    source = answer(whole=10)
    reader = source.chunks()
    source.append(b"a" * 6)
    assert await anext(reader) == b"a" * 6
    source.append(b"b" * 6)
    assert not source.readable
    with pytest.raises(ResultGone):
        await anext(source.chunks())
    assert await anext(reader) == b"b" * 6
    source.end()
    with pytest.raises(StopAsyncIteration):
        await anext(reader)


async def test_past_the_whole_bytes_blocks_read_by_all_are_released():
    pool = BufferPool(1_000_000)
    source = answer(whole=10, pool=pool)
    reader = source.chunks()
    for _ in range(50):
        source.append(b"x" * 10)
        assert await anext(reader) == b"x" * 10
    assert pool.held_bytes <= 20
    source.end()
    await reader.aclose()
    assert pool.held_bytes == 0


async def test_a_request_that_waits_gets_a_result_that_is_too_large_to_be_held():
    """A result that is not streamed arrives in one piece, before a request that waits for its head has begun to read."""
    source = answer(whole=10)
    source.listeners = 1
    waiting = asyncio.create_task(source.wait_head())
    await settle()
    source.append(b"x" * 11)
    source.begin(HEAD)
    source.end()
    await waiting
    assert await read_all(source) == b"x" * 11


async def test_a_request_that_already_waits_gets_its_result_though_the_pool_is_full():
    pool = BufferPool(10)
    pool.take(10)
    source = answer(pool=pool)
    source.listeners = 1
    waiting = asyncio.create_task(source.wait_head())
    await settle()
    source.append(b"x")
    source.begin(HEAD)
    source.end()
    await waiting
    assert await read_all(source) == b"x"


async def test_a_dropped_result_releases_its_bytes_and_cannot_be_read_again():
    pool = BufferPool(1_000_000)
    source = answer(pool=pool)
    source.append(b"x" * 100)
    source.end()
    assert pool.held_bytes == 100
    source.forget()
    source.forget()
    assert pool.held_bytes == 0
    assert not source.readable
    with pytest.raises(ResultGone):
        await read_all(source)


async def test_a_reader_of_a_forgotten_result_gets_the_rest_of_it():
    source = answer()
    source.append(b"one")
    source.append(b"two")
    source.end()
    reader = source.chunks()
    behind = source.chunks()
    first = await anext(reader)
    source.forget()
    assert first == b"onetwo"
    with pytest.raises(StopAsyncIteration):
        await anext(reader)
    with pytest.raises(ResultGone):
        await anext(behind)


def test_the_request_itself_is_released_at_the_end():
    source = answer()
    assert source.order.task.body
    digest = source.order.body_sha256
    source.end()
    assert source.order.task.body == b""
    assert source.order.body_sha256 == digest


def test_an_order_without_a_purchase_has_paid_nothing():
    assert answer().verdict is Verdict.NONE


def test_the_pool_asks_for_room_when_it_is_full():
    asked = []
    pool = BufferPool(10)
    pool.make_room = lambda: (asked.append(pool.held_bytes), pool.give_back(8))
    assert pool.take(10) and asked == []
    assert pool.take(3)
    assert asked == [13] and pool.held_bytes == 5


_STEP = st.one_of(
    st.tuples(st.just("append"), st.binary(min_size=1, max_size=30)),
    st.tuples(st.just("reader"), st.integers(0, 3)),
    st.tuples(st.just("read"), st.integers(0, 9)),
    st.tuples(st.just("leave"), st.integers(0, 9)),
)


@given(steps=st.lists(_STEP, max_size=60), fails=st.booleans(), whole=st.sampled_from([40, 10_000]))
def test_whatever_the_order_each_reader_gets_exactly_the_bytes(steps, fails, whole):
    asyncio.run(_interleave(steps, fails=fails, whole=whole))


class Reader:
    """A reader that the test drives; ``pending`` is the read under way.

    It takes no block at once (0), or all but every one of ``refuses``.
    """

    def __init__(self, source: ResultBuffer, refuses: int = 0) -> None:
        self.chunks = source.chunks(self.take if refuses else None)
        self.refuses, self.offered = refuses, 0
        self.got: list[bytes] = []
        self.pending: asyncio.Task | None = None
        self.step()

    @property
    def taken(self) -> int:
        """A block counts as taken once the next one is asked for."""
        done = self.got if self.pending is not None else self.got[:-1]
        return sum(map(len, done))

    def take(self, block: bytes) -> bool:
        assert self.pending is not None and not self.pending.done(), "a block is offered to a reader that waits"
        self.offered += 1
        if self.offered % (self.refuses + 1) == 0:
            return False
        self.got.append(block)
        return True

    def step(self) -> None:
        if self.pending is None:
            self.pending = asyncio.ensure_future(anext(self.chunks))

    def note(self) -> None:
        if self.pending is not None and self.pending.done():
            self.got.append(self.pending.result())
            self.pending = None

    async def leave(self) -> None:
        if self.pending is not None:
            self.pending.cancel()
            await asyncio.gather(self.pending, return_exceptions=True)
        await self.chunks.aclose()

    async def rest(self) -> Exception | None:
        """Read to the end; return the error that it ended with."""
        try:
            while True:
                self.step()
                self.got.append(await self.pending)
                self.pending = None
        except StopAsyncIteration:
            return None
        except ValueError as error:
            return error


async def _interleave(steps, *, fails: bool, whole: int) -> None:
    pool = BufferPool(100_000)
    source = ResultBuffer(ordered(), BufferLimits(50, whole), pool)
    sent = bytearray()
    readers: list[Reader] = []
    for action, value in steps:
        if action == "append":
            sent += value
            source.append(value)
        elif action == "reader" and source.readable:
            readers.append(Reader(source, value))
        elif action == "read" and readers:
            readers[value % len(readers)].step()
        elif action == "leave" and readers:
            reader = readers.pop(value % len(readers))
            await reader.leave()
            assert bytes(sent).startswith(b"".join(reader.got))
        await settle(6)
        for reader in readers:
            reader.note()
        behind = [len(sent) - reader.taken for reader in readers]
        assert source.is_ahead == (max(behind, default=0) >= 50)
    error = ValueError("cut") if fails else None
    if error is not None:
        source.fail(error)
    else:
        source.end()
    for reader in readers:
        assert await reader.rest() is error
        assert b"".join(reader.got) == bytes(sent)
    if source.readable:
        assert pool.held_bytes == len(sent)
        source.forget()
    assert pool.held_bytes == 0


async def test_a_reader_that_waits_takes_a_block_without_a_task():
    source = answer(window=10)
    source.listeners = 1
    taken: list[bytes] = []
    reading = asyncio.create_task(read_all_with(source, taken))
    await settle()
    for block in (b"one", b"two", b"three", b"four"):
        assert source.can_take()
        source.append(block)
    assert taken == [b"one", b"two", b"three", b"four"], "no turn of the event loop was needed"
    source.append(b"five!", 17)
    source.end()
    assert await reading == b"five!", "what is held back for a good end comes with the end"
    late = await read_all(source)
    assert late == b"onetwothreefourfive!"


async def test_a_block_that_is_refused_and_all_after_it_come_in_order():
    source = answer()
    taken: list[bytes] = []
    reading = asyncio.create_task(read_all_with(source, taken, refused={b"two"}))
    await settle()
    for block in (b"one", b"two", b"three"):
        source.append(block)
    assert taken == [b"one"], "the reader that was woken for a block comes first"
    await settle()
    source.append(b"four")
    source.end()
    assert await reading == b"twothree"
    assert taken == [b"one", b"four"]


async def test_a_producer_that_is_ahead_or_without_a_listener_has_more_to_do():
    source = answer(window=10)
    assert not source.can_take(), "no request waits for it"
    source.listeners = 1
    slow, fast = source.chunks(), source.chunks()
    source.append(b"x" * 10)
    await anext(slow)
    assert not source.can_take(), "its one reader is behind"
    await anext(fast)
    assert not source.can_take(), "both are"
    await slow.aclose()
    await fast.aclose()
    assert source.can_take()


async def read_all_with(source, taken, refused=()):
    def take(block):
        if block in refused:
            return False
        taken.append(block)
        return True

    return b"".join([block async for block in source.chunks(take)])


# -- retained for a later reader ---------------------------------------------------------------------


async def test_the_received_bytes_can_be_read_without_a_copy():
    source, block = answer(), b"a block"
    assert source.blocks() == ()
    source.append(block)
    source.append(b"more")
    assert source.blocks() == (block, b"more")
    assert source.blocks()[0] is block


async def test_the_blocks_of_a_released_result_cannot_be_read():
    source = answer(whole=5)
    source.append(b"too large")
    with pytest.raises(ResultGone):
        source.blocks()
    forgotten = answer()
    forgotten.append(b"one")
    forgotten.end()
    forgotten.forget()
    with pytest.raises(ResultGone):
        forgotten.blocks()


async def test_a_retained_result_stays_whole_when_the_pool_is_full():
    pool = BufferPool(5)
    kept, other = answer(pool=pool), answer(pool=pool)
    kept.retained_for = object()
    for source in (kept, other):
        source.append(b"longer than that")
    assert (kept.is_retained, kept.readable) == (True, True)
    assert (other.is_retained, other.readable) == (False, False)
    assert kept.blocks() == (b"longer than that",)


async def test_a_retained_result_is_still_bounded():
    kept = answer(whole=10)
    kept.retained_for = object()
    for _ in range(5):
        kept.append(b"four")
    assert not kept.readable
    assert kept._pool.held_bytes == 0


async def test_a_retained_result_that_has_ended_gives_its_bytes_back_as_any_other():
    pool = BufferPool(5)
    kept = answer(pool=pool)
    kept.retained_for = object()
    kept.append(b"longer than that")
    kept.end()
    kept.forget()
    assert pool.held_bytes == 0


async def test_listeners_are_notified_of_the_end_once_however_it_ends():
    for fails in (False, True):
        source, heard = answer(), []
        source.when_ended(heard.append)
        source.append(b"x")
        assert heard == []
        source.fail(ValueError("no")) if fails else source.end()
        # The second end is that of a result that another gateway delivered.
        source.end()
        assert heard == [source]
        source.when_ended(heard.append)
        assert heard == [source, source]


async def test_a_listener_that_is_notified_finds_the_buffer_ended():
    source, seen = answer(), []
    source.when_ended(lambda it: seen.append((it.ended, it.error, it.order.task.body, it.blocks())))
    source.append(b"x")
    source.end()
    assert seen == [(True, None, b"", (b"x",))]


async def test_a_listener_that_fails_harms_neither_the_result_nor_the_others():
    source, heard, reported = answer(), [], []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: reported.append(context["exception"]))

    def fail(_answer):
        raise RuntimeError("a bug")

    for hear in (fail, heard.append, fail):
        source.when_ended(hear)
    reading = asyncio.create_task(read_all(source))
    await settle()
    source.append(b"paid")
    source.end()
    assert await reading == b"paid"
    assert (source.error, heard) == (None, [source])
    source.when_ended(fail)
    assert [str(error) for error in reported] == ["a bug"] * 3


async def test_a_listener_that_was_notified_may_listen_again():
    source, heard = answer(), []
    source.when_ended(lambda it: it.when_ended(heard.append))
    source.end()
    assert heard == [source]


# Bytes that are held back until the result is verified.


async def test_bytes_above_the_free_ones_wait_for_a_good_end():
    source = answer()
    source.begin(HEAD)
    taken = []

    async def take():
        async for block in source.chunks():
            taken.append(block)

    reading = asyncio.create_task(take())
    source.append(b"one", 3)
    source.append(b"twoEN", 6)
    await settle()
    assert b"".join(taken) == b"onetwo"
    source.append(b"D", 6)
    source.append(b"more", 6)
    await settle()
    assert b"".join(taken) == b"onetwo" == b"".join(source.blocks())
    source.end()
    await reading
    assert b"".join(taken) == b"onetwoENDmore" == await read_all(source)


async def test_held_back_bytes_are_dropped_when_the_result_fails():
    """The end mark is not sent before the hash has been verified."""
    pool = BufferPool(1_000_000)
    source = answer(pool=pool)
    source.begin(HEAD)
    source.append(b"oneEND", 3)
    source.append(b"more", 3)
    assert pool.held_bytes == 10
    source.fail(ValueError("no"))
    came = []
    with pytest.raises(ValueError, match="no"):
        async for block in source.chunks():
            came.append(block)
    assert came == [b"one"]
    assert (source.size, pool.held_bytes) == (3, 3)
    source.forget()
    assert pool.held_bytes == 0


async def test_a_producer_does_not_wait_for_readers_to_take_what_they_cannot_have():
    source = answer(window=10)
    source.begin(HEAD)
    reading = asyncio.create_task(read_all(source))
    await settle()
    source.append(b"one", 3)
    await settle()
    for _ in range(10):
        source.append(b"x" * 10, 3)
        assert not source.is_ahead
    source.end()
    assert len(await reading) == 103


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.integers(0, 12)), max_size=20), st.booleans())
def test_readers_get_exactly_the_free_bytes_before_the_end_and_all_after_it(blocks, is_good):
    async def run():
        source = answer(window=10**6, whole=10**6)
        source.begin(HEAD)
        whole, free = b"", 0
        for block, more in blocks:
            whole += block
            free = min(free + more, len(whole))
            source.append(block, free)
            assert b"".join(source.blocks()) == whole[:free]
        if is_good:
            source.end()
        else:
            source.fail(ValueError("no"))
        assert b"".join(source.blocks()) == (whole if is_good else whole[:free])

    asyncio.run(run())

import asyncio

from lcp_gateway.node.runtime.gate import ByteGate
from lcp_gateway.node.runtime.tasks import Tasks, Timer
from tests.support import virtual_time
from tests.support.lcp_nodes import Problems


def test_a_task_that_fails_or_returns_starts_again_with_growing_pauses():
    async def scenario():
        seen, starts = Problems(), []
        tasks = Tasks(seen)

        async def run():
            starts.append(asyncio.get_running_loop().time())
            if len(starts) < 4:
                raise OSError("no")
            if len(starts) == 4:
                return
            await asyncio.Event().wait()

        tasks.keep("part", run)
        await asyncio.sleep(60)
        assert starts == [0, 0.25, 0.75, 1.75, 3.75]
        assert [part for part, _ in seen.problems] == ["part"] * 4
        await tasks.close()

    virtual_time.run(scenario())


def test_a_task_that_ran_for_long_begins_with_the_first_pause():
    async def scenario():
        starts = []
        tasks = Tasks(Problems())

        async def run():
            starts.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0 if len(starts) < 5 else 100)
            raise OSError("no")

        tasks.keep("part", run)
        await asyncio.sleep(120)
        assert starts[5] - starts[4] == 100.25
        await tasks.close()

    virtual_time.run(scenario())


def test_an_error_of_a_single_task_is_reported_and_answered():
    async def scenario():
        seen, answered = Problems(), asyncio.Event()
        tasks = Tasks(seen)

        async def fail():
            raise RuntimeError("no")

        tasks.once("step", fail, answered.set)
        await answered.wait()
        assert [part for part, _ in seen.problems] == ["step"]

    virtual_time.run(scenario())


def test_nothing_runs_after_the_close():
    async def scenario():
        tasks, ran = Tasks(Problems()), []

        async def work():
            ran.append(1)
            await asyncio.Event().wait()

        tasks.once("a", work)
        await asyncio.sleep(0)
        await tasks.close()
        late = tasks.once("b", work)
        await asyncio.wait([late])
        assert ran == [1]

    virtual_time.run(scenario())


def test_a_timer_fires_at_its_last_time_and_not_before_the_clock_says_so():
    async def scenario():
        fired = []
        loop = asyncio.get_running_loop()
        behind = 2.0
        timer = Timer(lambda: loop.time() - behind, lambda: fired.append(loop.time()))
        timer.set(1)
        timer.set(3)
        await asyncio.sleep(1)
        behind = 4.0
        await asyncio.sleep(10)
        assert fired == [7]
        timer.set(50)
        timer.cancel()
        await asyncio.sleep(100)
        assert fired == [7]
        behind = 0.0
        timer.set(300)
        timer.set(200)
        await asyncio.sleep(300)
        assert fired == [7, 200]

    virtual_time.run(scenario())


def test_a_gate_lets_bytes_in_by_their_turn():
    async def scenario():
        gate, order = ByteGate(10), []

        async def hold(name, size, seconds):
            async with gate.taken(size):
                order.append(name)
                await asyncio.sleep(seconds)

        tasks = [
            asyncio.create_task(hold(name, size, 1)) for name, size in (("a", 8), ("b", 9), ("c", 1), ("huge", 50))
        ]
        free = asyncio.create_task(hold("none", 0, 0))
        await free
        assert order == ["a", "none"]
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        await asyncio.sleep(0)
        assert order == ["a", "none", "c"]
        await asyncio.wait(tasks)
        assert order == ["a", "none", "c", "huge"]
        await hold("last", 10, 0)

    virtual_time.run(scenario())

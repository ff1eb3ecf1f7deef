import asyncio

import pytest

from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.jobs import Jobs
from lcp_gateway.telemetry.metrics import Metrics


def jobs(limit=0):
    return Jobs(limit, Metrics())


async def work(held: Jobs, until: asyncio.Event, ended: list):
    with held.admit():
        try:
            await until.wait()
            ended.append("done")
        except asyncio.CancelledError:
            ended.append("cut")


async def test_past_the_limit_a_job_is_turned_away_and_may_come_again():
    held = jobs(limit=1)
    with held.admit():
        with pytest.raises(ApiError) as caught:
            held.admit().__enter__()
        assert (caught.value.status, caught.value.retry) == (429, True)
    with held.admit():
        assert len(held) == 1


async def test_while_draining_no_job_is_taken():
    held = jobs()
    assert await held.drain(0.1, lambda: 0) == 0
    with pytest.raises(ApiError) as caught:
        held.admit().__enter__()
    assert caught.value.status == 503


async def test_draining_waits_for_what_runs():
    held, ended, until = jobs(), [], asyncio.Event()
    running = asyncio.create_task(work(held, until, ended))
    asyncio.get_running_loop().call_later(0.1, until.set)
    await asyncio.sleep(0)
    assert await held.drain(5, lambda: len(held)) == 0
    await running
    assert ended == ["done"]


async def test_what_does_not_finish_in_time_is_interrupted_and_may_say_so():
    held, ended, until = jobs(), [], asyncio.Event()
    running = asyncio.create_task(work(held, until, ended))
    await asyncio.sleep(0)

    def interrupt():
        until.set()
        return 1

    assert await held.drain(0.05, interrupt) == 1
    await running
    assert ended == ["done"]


async def test_what_does_not_even_then_end_is_cut(monkeypatch):
    monkeypatch.setattr("lcp_gateway.http.jobs._ABORT_S", 0.05)
    held, ended = jobs(), []
    running = asyncio.create_task(work(held, asyncio.Event(), ended))
    await asyncio.sleep(0)
    await held.drain(0.05, lambda: 0)
    await running
    assert ended == ["cut"]


async def test_a_hurry_cuts_the_grace_time():
    held, ended, until = jobs(), [], asyncio.Event()
    running = asyncio.create_task(work(held, until, ended))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.05, held.hurry)
    async with asyncio.timeout(5):
        await held.drain(60, lambda: until.set() or 0)
    await running

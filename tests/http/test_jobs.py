import asyncio

import pytest

from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.jobs import Jobs
from lcp_gateway.telemetry.metrics import Metrics


def jobs(limit=0):
    return Jobs(limit, Metrics())


async def work(held: Jobs, seconds: float, ended: list):
    with held.admit() as job:
        try:
            await asyncio.sleep(seconds)
            ended.append("done")
        except asyncio.CancelledError:
            ended.append("aborted" if job.aborted else "cancelled")


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
    assert await held.drain(0.1) == 0
    with pytest.raises(ApiError) as caught:
        held.admit().__enter__()
    assert caught.value.status == 503


async def test_draining_waits_for_what_runs():
    held, ended = jobs(), []
    running = asyncio.create_task(work(held, 0.1, ended))
    await asyncio.sleep(0)
    assert await held.drain(5) == 0
    await running
    assert ended == ["done"]


async def test_what_does_not_finish_in_time_is_ended_and_knows_why():
    held, ended = jobs(), []
    running = asyncio.create_task(work(held, 60, ended))
    await asyncio.sleep(0)
    assert await held.drain(0.05) == 1
    await running
    assert ended == ["aborted"]


async def test_a_hurry_cuts_the_grace_time():
    held, ended = jobs(), []
    running = asyncio.create_task(work(held, 60, ended))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.05, held.hurry)
    async with asyncio.timeout(5):
        assert await held.drain(60) == 1
    await running

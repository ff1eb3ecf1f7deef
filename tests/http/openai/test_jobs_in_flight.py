import asyncio

import pytest

from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.openai.admission import JobsInFlight
from lcp_gateway.telemetry.metrics import Metrics


def jobs(limit=0):
    return JobsInFlight(limit, Metrics())


async def work(held: JobsInFlight, until: asyncio.Event, ended: list):
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
    monkeypatch.setattr("lcp_gateway.http.openai.admission._ABORT_S", 0.05)
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


async def test_another_limit_ends_nothing_and_holds_for_the_next():
    held, until, ended = jobs(limit=2), asyncio.Event(), []
    running = [asyncio.create_task(work(held, until, ended)) for _ in range(2)]
    await asyncio.sleep(0)
    held.use(1)
    with pytest.raises(ApiError):
        held.admit()
    until.set()
    await asyncio.gather(*running)
    assert ended == ["done", "done"]
    with held.admit(), pytest.raises(ApiError):
        held.admit()
    held.use(0)
    with held.admit():
        held.admit()


# -- jobs that outlive their request ----------------------------------------------------------------


async def hand_over(held: JobsInFlight, coroutine) -> asyncio.Task:
    """Admit a job as a request does, and have it last as long as another task."""
    task = asyncio.ensure_future(coroutine)
    with held.admit() as job:
        job.hand_over(task)
    return task


async def test_a_job_that_was_handed_over_lasts_as_long_as_its_task_and_ends_once():
    held, until = jobs(limit=1), asyncio.Event()
    task = await hand_over(held, until.wait())
    assert len(held) == 1
    with pytest.raises(ApiError):
        held.admit()
    until.set()
    await task
    await asyncio.sleep(0)
    assert len(held) == 0
    assert held._metrics.registry.get_sample_value("lcpgateway_jobs_in_flight") == 0
    with held.admit():
        assert len(held) == 1


async def test_one_whose_task_has_ended_already_ends_too():
    held = jobs()
    task = asyncio.ensure_future(asyncio.sleep(0))
    await task
    with held.admit() as job:
        job.hand_over(task)
    await asyncio.sleep(0)
    assert len(held) == 0


async def test_one_whose_task_fails_or_is_cancelled_ends_too():
    async def fail():
        raise RuntimeError

    held = jobs()
    failing = await hand_over(held, fail())
    cancelled = await hand_over(held, asyncio.Event().wait())
    cancelled.cancel()
    await asyncio.gather(failing, cancelled, return_exceptions=True)
    await asyncio.sleep(0)
    assert len(held) == 0


async def test_one_that_is_not_handed_over_because_its_request_failed_ends_with_that():
    held = jobs()
    with pytest.raises(RuntimeError), held.admit():
        raise RuntimeError
    assert len(held) == 0


async def test_draining_waits_for_what_was_handed_over():
    held, until = jobs(), asyncio.Event()
    await hand_over(held, until.wait())
    asyncio.get_running_loop().call_later(0.05, until.set)
    async with asyncio.timeout(5):
        assert await held.drain(5, lambda: len(held)) == 0


async def test_what_was_handed_over_and_does_not_end_is_cut(monkeypatch):
    monkeypatch.setattr("lcp_gateway.http.openai.admission._ABORT_S", 0.05)
    held = jobs()
    request = asyncio.current_task()
    task = await hand_over(held, asyncio.Event().wait())
    await held.drain(0.05, lambda: 0)
    await asyncio.sleep(0)
    assert task.cancelled() and not request.cancelling()

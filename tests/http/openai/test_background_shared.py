"""Background jobs whose ends are stored where several processes find them."""

import asyncio
from dataclasses import replace as changed

import pytest
from aiohttp import ClientPayloadError

from lcp_gateway.responses.items import ItemKind
from lcp_gateway.responses.stored_items import MemoryItems
from tests.http.storing_front import JobRows, events, response, storing_front
from tests.support.purchases import stream_events

OWNER = "key_alice"


class SlowItems(MemoryItems):
    """A shared store that takes long to store ends and to hide jobs."""

    def __init__(self, store) -> None:
        super().__init__(store)
        self.may_put, self.may_hide = asyncio.Event(), asyncio.Event()

    async def put(self, owner, item):
        if item.kind is ItemKind.RESPONSE:
            await self.may_put.wait()
        return await super().put(owner, item)

    async def remove(self, owner, kind, item_id):
        if kind is ItemKind.JOB:
            await self.may_hide.wait()
        return await super().remove(owner, kind, item_id)


@pytest.fixture
async def front():
    async with storing_front(share=SlowItems) as it:
        yield it


async def begin(front):
    job_id = (await front.create(background=True)).document["id"]
    await front.work()
    return f"/v1/responses/{job_id}", job_id


async def test_a_job_that_was_deleted_while_it_ran_does_not_come_back_when_its_end_is_stored(front):
    """Regression: its end was stored after the deletion was answered."""
    path, _ = await begin(front)
    slow = front.background.shared
    slow.may_hide.set()
    asyncio.get_running_loop().call_later(0.2, slow.may_put.set)
    assert (await front.ask("DELETE", path)).status == 200
    await front.idle()
    await slow.may_put.wait()
    assert (await front.get(path)).status == 404


async def test_a_deletion_at_another_process_waits_until_the_job_is_gone_here(front):
    """Regression: it was answered while the process that ran the job still showed it."""
    path, job_id = await begin(front)
    slow, here = front.background.shared, front.background
    slow.may_put.set()
    rows = JobRows()
    rows.leave(job_id, elsewhere=True, payment="none")
    other = changed(here, repository=rows, cancel_elsewhere=here.cancel_here)
    asyncio.get_running_loop().call_later(1, slow.may_hide.set)
    await other.end_elsewhere(OWNER, job_id)
    assert here.find(OWNER, job_id) is None
    assert await slow.remove(OWNER, ItemKind.RESPONSE, job_id)
    assert await other.forget(OWNER, job_id)
    assert (await front.get(path)).status == 404
    assert (await front.get(f"{path}/input_items")).status == 404
    await front.idle()


async def test_the_input_of_a_job_whose_process_died_is_gone_once_it_was_deleted(front):
    """Regression: what the others showed of it stayed."""
    _, job_id = await begin(front)
    slow = front.background.shared
    slow.may_put.set()
    slow.may_hide.set()
    # As another process, once this one has died.
    rows = JobRows()
    rows.leave(job_id, payment="unknown")
    other = changed(front.background, repository=rows)
    assert await other.running_elsewhere(OWNER, job_id)
    assert await other.forget(OWNER, job_id)
    assert await other.running_elsewhere(OWNER, job_id) is None
    (await front.work()).deliver(response())
    await front.idle()


async def test_the_stream_of_a_job_that_fails_has_its_end_however_long_storing_takes(front):
    path, _ = await begin(front)
    slow = front.background.shared
    slow.may_hide.set()
    followed = await front.follow(f"{path}?stream=true")
    asyncio.get_running_loop().call_later(0.2, slow.may_put.set)
    assert (await front.ask("POST", f"{path}/cancel")).document["status"] == "cancelled"
    # OpenAI has no event for a cancelled response.
    assert b"response.failed" in (await followed).body
    await front.idle()


async def test_a_stream_whose_beginning_is_no_longer_held_breaks_off_while_its_job_goes_on(front):
    front.background.shared.may_put.set()
    front.background.shared.may_hide.set()
    began = asyncio.ensure_future(front.create(background=True, stream=True))
    work = await front.work()
    work.put(*stream_events(*events())[:2])
    (job_id,) = front.repository.rows
    answer = front.background.find(OWNER, job_id).answer
    async with asyncio.timeout(60):
        while not answer._released_blocks:
            answer.forget()
            await asyncio.sleep(0.001)
        with pytest.raises(ClientPayloadError):
            await front.get(f"/v1/responses/{job_id}?stream=true")
    assert not answer.ended
    await front.ask("POST", f"/v1/responses/{job_id}/cancel")
    await began
    await front.idle()

"""A customer's purchase is recorded as delivered only once its client has the whole result, or has left.

If the gateway is killed earlier, the result in its memory is lost, and the charge of a purchase that the journal has as `settled` is refunded.
"""

import asyncio
from dataclasses import replace

import pytest

from lcp_gateway.purchase.purchase import InterruptReason
from lcp_gateway.purchase.states import State
from tests.support.scripted_peers import NO_REPEAT, ordered, settle, world


def of_a_customer(*, stream=False):
    return replace(ordered(stream=stream), account_id="acct_1")


async def complete_in_memory(w, *, stream):
    """Let a customer's result arrive in full before its client reads it; return its buffer."""
    answer = w.service.start(of_a_customer(stream=stream), NO_REPEAT)
    w.service.joined(answer)
    work = await w.work()
    if stream:
        work.stream(b"a", b"b")
    else:
        work.deliver()
    await settle()
    assert answer.ended and answer.purchase.state is State.DELIVERED
    return answer


@pytest.mark.parametrize("stream", [False, True])
async def test_a_result_that_is_complete_only_in_memory_is_not_recorded_as_delivered(stream):
    w = world()
    answer = await complete_in_memory(w, stream=stream)
    assert w.journal.only == ["paying", "settled"]
    w.service.handed_over(answer)
    assert w.journal.only == ["paying", "settled", "delivered"]
    w.service.left(answer)
    assert w.journal.only == ["paying", "settled", "delivered"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_a_whole_result_unread_is_charged(stream):
    w = world()
    w.service.left(await complete_in_memory(w, stream=stream))
    assert w.journal.only == ["paying", "settled", "delivered"]


async def test_the_first_of_several_clients_that_has_it_is_enough():
    w = world()
    answer = await complete_in_memory(w, stream=True)
    w.service.joined(answer)
    w.service.left(answer)
    assert w.journal.only == ["paying", "settled"]
    w.service.joined(answer)
    w.service.handed_over(answer)
    assert w.journal.only == ["paying", "settled", "delivered"]


async def test_a_result_that_completes_after_its_client_left_is_delivered_at_once():
    w = world(grace_s=5)
    answer = w.service.start(of_a_customer(), NO_REPEAT)
    w.service.joined(answer)
    work = await w.work()
    w.service.left(answer)
    work.deliver()
    await settle()
    assert w.journal.only == ["paying", "settled", "delivered"]


async def test_a_result_retained_for_a_background_job_is_delivered_at_once():
    w = world()
    answer = w.service.start(of_a_customer(), NO_REPEAT)
    answer.retained_for = object()
    w.service.joined(answer)
    (await w.work()).deliver()
    await settle()
    assert w.journal.only == ["paying", "settled", "delivered"]


async def test_without_a_customer_nothing_is_held_back():
    w = world()
    answer = w.service.start(ordered(), NO_REPEAT)
    w.service.joined(answer)
    (await w.work()).deliver()
    await settle()
    assert w.journal.only == ["paying", "settled", "delivered"]


async def test_a_result_that_failed_is_recorded_at_once():
    w = world()
    answer = w.service.start(of_a_customer(stream=True), NO_REPEAT)
    w.service.joined(answer)
    await w.work()
    w.service.interrupt(answer, InterruptReason.SHUTTING_DOWN)
    await asyncio.wait_for(w.service.wait_idle(), 60)
    assert w.journal.only[-1] != "settled"

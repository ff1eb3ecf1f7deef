"""Checks of a request: the key's models, rates, concurrent jobs, price cap and budgets, up to the order."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from lcp_gateway.accounts.callers import Caller, KeyRules
from lcp_gateway.accounts.limits.concurrency import ConcurrencyLimits, MemoryLeases, TooManyConcurrentJobs
from lcp_gateway.accounts.limits.rates import (
    Allowance,
    LimitedBy,
    MemoryCounters,
    RateKind,
    RateLimited,
    RateLimits,
    Rates,
)
from lcp_gateway.accounts.shared.outage import ShieldedCalls
from lcp_gateway.http.authentication import ANONYMOUS
from lcp_gateway.http.context import RequestContext
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.openai.admission import Admission, AdmissionTicket, JobsInFlight
from lcp_gateway.purchase.money import Budget, Msat, Period
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.telemetry.metrics import Metrics


def caller(**rules) -> Caller:
    return Caller("key_1", "acct_1", KeyRules(**rules))


def task(model: str = "m", size: int = 400) -> Task:
    return Task(TaskKind.CHAT_COMPLETIONS, model, b"x" * size, stream=False)


def admission(*, jobs: int = 0, limits: RateLimits | None = None) -> Admission:
    return Admission(limits, ConcurrencyLimits(MemoryLeases(), default=jobs), lambda name: name)


def placed(key: Caller, model: str = "m", limit_msat=None):
    return admission().order(key, task(model), request_id="r", limit_msat=limit_msat)


# -- orders ---------------------------------------------------------------------------------------


def test_an_order_names_its_key_and_its_account():
    order = placed(caller())
    assert (order.key_id, order.account_id, order.request_id) == ("key_1", "acct_1", "r")
    assert (order.limit_msat, order.budgets, order.models) == (None, (), frozenset())


def test_an_anonymous_order_has_no_account():
    order = placed(ANONYMOUS)
    assert (order.key_id, order.account_id) == ("", None)


@pytest.mark.parametrize(
    ("of_key", "of_client", "expected"),
    [(0, None, None), (500, None, 500), (0, 300, 300), (500, 300, 300), (300, 500, 300), (5, 0, 0)],
)
def test_the_lower_of_the_keys_cap_and_the_clients_holds(of_key, of_client, expected):
    key = caller(max_price_msat=Msat(of_key))
    assert placed(key, limit_msat=of_client).limit_msat == expected


def test_a_keys_budgets_are_counted_for_that_key():
    order = placed(caller(budget_hour_msat=Msat(5), budget_month_msat=Msat(9)))
    assert order.budgets == (Budget(Period.HOUR, Msat(5), "key_1"), Budget(Period.MONTH, Msat(9), "key_1"))


@pytest.mark.parametrize("model", ["m", "auto", "auto:cheap"])
def test_a_key_buys_the_models_that_it_is_restricted_to_and_auto_among_them(model):
    order = placed(caller(models=frozenset({"m", "n"})), model)
    assert order.models == {"m", "n"}


@pytest.mark.parametrize("model", ["other", "M", "m ", "automatic"])
def test_a_key_buys_no_other_model(model):
    with pytest.raises(ApiError) as caught:
        placed(caller(models=frozenset({"m"})), model)
    error = caught.value
    assert (error.status, error.code, error.param) == (403, "model_not_allowed", "model")
    assert not error.retry


# -- jobs -----------------------------------------------------------------------------------------


async def test_a_key_has_so_many_jobs_at_once_and_the_place_is_free_when_one_ends():
    gate, key = admission(), caller(concurrent_jobs=2)
    first, _second = await gate.lease(key), await gate.lease(key)
    with pytest.raises(TooManyConcurrentJobs):
        await gate.lease(key)
    await first.release()
    await gate.lease(key)
    with pytest.raises(TooManyConcurrentJobs):
        await gate.lease(key)


async def test_jobs_without_a_key_are_not_counted():
    gate = admission(jobs=1)
    for _ in range(3):
        await gate.lease(ANONYMOUS)
    # The same limiter counts the jobs of a key.
    await gate.lease(caller())
    with pytest.raises(TooManyConcurrentJobs):
        await gate.lease(caller())


# -- clients that disconnect during a Redis call --------------------------------------------------------


class SlowLeases(MemoryLeases):
    """Leases in a Redis that replies when the test lets it; its client swallows a cancellation, as redis-py may."""

    lease_s = 0.03

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.asked = asyncio.Event()
        self.renewed = 0

    async def _answer(self) -> None:
        self.asked.set()
        while not self.answers.is_set():
            with suppress(asyncio.CancelledError):
                await self.answers.wait()

    async def take(self, key_id, lease_id, limit):
        await self._answer()
        return await super().take(key_id, lease_id, limit)

    async def renew(self, key_id, lease_id):
        self.renewed += 1

    async def release(self, key_id, lease_id):
        await self._answer()
        await super().release(key_id, lease_id)


@pytest.fixture
def slow():
    return SlowLeases()


@pytest.fixture
def calls():
    return ShieldedCalls()


def of_redis(slow, calls, limits=None) -> Admission:
    return Admission(limits, ConcurrencyLimits(slow, default=1), lambda name: name, shielded=calls)


async def left_during(slow, work) -> None:
    """Cancel work as soon as it calls Redis, and let Redis reply."""
    task = asyncio.create_task(work)
    await slow.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    slow.answers.set()


async def test_a_client_that_leaves_while_its_job_is_counted_leaves_no_lease(slow, calls):
    """Regression: the lease was acquired nevertheless and renewed for ever, so that the key was locked out."""
    gate = of_redis(slow, calls)
    await left_during(slow, gate.lease(caller()))
    await calls.close()
    renewed = slow.renewed
    async with await gate.lease(caller()):
        pass
    await asyncio.sleep(2 * slow.lease_s)
    assert slow.renewed == renewed, "nothing is renewed for a job that never ran"


async def test_a_client_that_leaves_while_too_many_run_is_no_error_later(slow, calls):
    gate = of_redis(slow, calls)
    slow._running["key_1"] = 1
    await left_during(slow, gate.lease(caller()))
    await calls.close()
    assert slow._running == {"key_1": 1}


async def test_a_client_that_leaves_at_the_very_end_of_its_job_leaves_no_lease(slow, calls):
    gate = of_redis(slow, calls)
    slow.answers.set()
    lease = await gate.lease(caller())
    slow.answers.clear()
    slow.asked.clear()
    await left_during(slow, gate.release([lease], Allowance(), 4, 4))
    await calls.close()
    assert not slow._running


async def test_in_one_process_the_end_of_a_job_waits_for_nothing():
    """Regression: a client that had read its whole stream and left was counted as one that left before the end."""
    gate = admission(limits=RateLimits(MemoryCounters(lambda: 600_000.0), key=Rates(100, 100_000)))
    who = caller()
    lease, allowance = await gate.lease(who), await gate.count(who, task())
    assert lease.is_counted or allowance.counted
    with pytest.raises(StopIteration):
        gate.release([lease], allowance, 4, 4).send(None)


@pytest.mark.parametrize("is_written", [True, False])
async def test_a_client_that_leaves_once_it_has_its_response_is_not_taken_for_one_that_left_before(
    slow, calls, is_written
):
    """Regression: its request was counted and logged as 499."""
    held, is_over = JobsInFlight(0, Metrics()), asyncio.Event()

    async def request():
        async with ticket(held, caller(), of_redis(slow, calls)) as admitted:
            admitted.is_written = is_written
            slow.answers.clear()
            slow.asked.clear()
            is_over.set()
        return "response"

    slow.answers.set()
    handler = asyncio.create_task(request())
    await is_over.wait()
    await slow.asked.wait()
    handler.cancel()
    (ended,) = await asyncio.gather(handler, return_exceptions=True)
    slow.answers.set()
    await calls.close()
    assert ended == "response" if is_written else isinstance(ended, asyncio.CancelledError)
    assert not slow._running and not len(held)


class SlowRates:
    """Rate limits that are counted when the test lets them, by a client that swallows a cancellation."""

    def __init__(self, slow: SlowLeases) -> None:
        self._slow = slow
        self.checked = 0

    def apply_to(self, _caller):
        return True

    async def check(self, key, tokens):
        await self._slow._answer()
        self.checked += 1
        return Allowance(tokens)


async def test_a_client_that_leaves_while_its_rates_are_checked_is_not_served_and_is_counted(slow, calls):
    rates = SlowRates(slow)
    gate = of_redis(slow, calls, rates)
    await left_during(slow, gate.count(caller(), task()))
    await calls.close()
    assert rates.checked == 1


class SlowJoint:
    """Jobs and rates that are counted together when the test lets them."""

    def __init__(self, slow: SlowLeases) -> None:
        self._slow = slow
        self._jobs = ConcurrencyLimits(slow, default=1)
        self.counted = 0

    def apply_to(self, who):
        return bool(who.rules.tokens_per_minute)

    async def take(self, who, tokens):
        lease = await self._jobs.take(who)
        self.counted += 1
        return lease, Allowance(tokens, {"x-left": "9"})


def jointly(slow, calls) -> Admission:
    return replace(of_redis(slow, calls, SlowRates(slow)), joint=SlowJoint(slow))


async def test_of_a_body_that_is_here_job_and_rates_are_counted_in_one_call(slow, calls):
    slow.answers.set()
    gate, held = jointly(slow, calls), JobsInFlight(0, Metrics())
    for is_received, rules in ((True, {"tokens_per_minute": 9}), (False, {"tokens_per_minute": 9}), (True, {})):
        async with ticket(held, caller(**rules), gate, is_received=is_received) as admitted:
            is_joint = is_received and bool(rules)
            assert slow._running == ({} if is_joint else {"key_1": 1}), "a body on its way is counted as a job"
            await admitted.count(task())
            assert slow._running == {"key_1": 1}
            assert admitted._context.headers == ({"x-left": "9"} if is_joint else {})
        assert not slow._running
    assert gate.joint.counted == 1
    await calls.close()


async def test_a_request_that_fails_before_it_is_counted_takes_no_lease(slow, calls):
    with pytest.raises(ValueError, match="broken"):
        async with ticket(
            JobsInFlight(0, Metrics()), caller(tokens_per_minute=9), jointly(slow, calls), is_received=True
        ):
            raise ValueError("broken")
    assert not slow.asked.is_set()


async def test_a_client_that_leaves_while_job_and_rates_are_counted_leaves_no_lease_and_is_counted(slow, calls):
    gate, held = jointly(slow, calls), JobsInFlight(0, Metrics())

    async def request():
        async with ticket(held, caller(tokens_per_minute=9), gate, is_received=True) as admitted:
            await admitted.count(task())

    await left_during(slow, request())
    await calls.close()
    assert (slow._running, gate.joint.counted, len(held)) == ({}, 1, 0)


async def test_a_request_without_a_limit_calls_no_redis(slow, calls):
    gate = Admission(RateLimits(slow), ConcurrencyLimits(slow), lambda name: name, shielded=calls)
    for who in (ANONYMOUS, caller()):
        lease = await gate.lease(who)
        allowance = await gate.count(who, task())
        await gate.release([lease], allowance, 4, 4)
    assert not slow.asked.is_set() and not calls._tasks


# -- rates ----------------------------------------------------------------------------------------


def limited(clock, **rates) -> Admission:
    return admission(limits=RateLimits(MemoryCounters(clock), **rates))


@pytest.fixture
def clock():
    return lambda: 600_000.0


async def settle(gate: Admission, *counted) -> None:
    await gate.release([await gate.lease(ANONYMOUS)], *counted)


async def test_without_limits_nothing_is_counted():
    gate = admission()
    allowance = await gate.count(caller(), task())
    assert (allowance.tokens, allowance.headers) == (0, {})
    await settle(gate, allowance, 400, 400)


async def test_a_request_counts_as_the_tokens_of_its_body_and_its_answer_is_counted_after(clock):
    gate = limited(clock, key=Rates(tokens_per_minute=250))
    first = await gate.count(caller(), task(size=400))
    assert first.headers["x-ratelimit-remaining-tokens"] == "150"
    await settle(gate, first, 400, 400)
    second = await gate.count(caller(), task(size=4))
    assert second.headers["x-ratelimit-remaining-tokens"] == "49"


async def test_the_emptiest_body_is_a_token(clock):
    gate = limited(clock, key=Rates(tokens_per_minute=10))
    found = await gate.count(caller(), task(size=0))
    assert found.headers["x-ratelimit-remaining-tokens"] == "9"


async def test_the_whole_gateways_limit_holds_without_a_key_too(clock):
    gate = limited(clock, gateway=Rates(requests_per_minute=2))
    for _ in range(2):
        await gate.count(ANONYMOUS, task())
    with pytest.raises(RateLimited) as caught:
        await gate.count(ANONYMOUS, task())
    assert (caught.value.limited_by, caught.value.kind) == (LimitedBy.GATEWAY, RateKind.REQUESTS)


async def test_callers_without_a_key_are_not_one_key_together(clock):
    gate = limited(clock, key=Rates(requests_per_minute=1))
    for _ in range(3):
        await gate.count(ANONYMOUS, task())


async def test_the_tokens_of_a_result_count_against_the_next_request(clock):
    gate = limited(clock, key=Rates(tokens_per_minute=150))
    allowance = await gate.count(caller(), task(size=400))
    await settle(gate, allowance, 400, 4_000)
    with pytest.raises(RateLimited):
        await gate.count(caller(), task(size=4))


@pytest.mark.parametrize("listed", ["gpt-4o-mini", "real"])
@pytest.mark.parametrize("asked", ["gpt-4o-mini", "real"])
def test_an_alias_and_its_model_are_the_same_to_a_key(listed, asked):
    names = {"gpt-4o-mini": "real"}
    gate = Admission(None, ConcurrencyLimits(MemoryLeases(), default=0), resolve=lambda name: names.get(name, name))
    key = caller(models=frozenset({listed}))
    order = gate.order(key, task(asked), request_id="r", limit_msat=None)
    assert "real" in order.models
    with pytest.raises(ApiError):
        gate.order(key, task("other"), request_id="r", limit_msat=None)


# -- the limit of requests in flight ----------------------------------------------------


def jobs(limit=0) -> JobsInFlight:
    return JobsInFlight(limit, Metrics())


def ticket(
    held: JobsInFlight, key: Caller = ANONYMOUS, gate: Admission | None = None, *, is_received: bool = False
) -> AdmissionTicket:
    context = RequestContext("r")
    context.caller = key
    return AdmissionTicket(gate or admission(), held, context, is_received=is_received)


async def refused(held: JobsInFlight) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await ticket(held).__aenter__()
    return caught.value


async def work(held: JobsInFlight, until: asyncio.Event, ended: list):
    async with ticket(held):
        try:
            await until.wait()
            ended.append("done")
        except asyncio.CancelledError:
            ended.append("cut")


async def test_past_the_limit_a_job_is_turned_away_and_may_come_again():
    held = jobs(limit=1)
    async with ticket(held):
        error = await refused(held)
        assert (error.status, error.retry) == (429, True)
    async with ticket(held):
        assert len(held) == 1


async def test_while_draining_no_job_is_taken():
    held = jobs()
    assert await held.drain(0.1, lambda: 0) == 0
    assert (await refused(held)).status == 503


async def test_draining_waits_for_running_requests():
    held, ended, until = jobs(), [], asyncio.Event()
    running = asyncio.create_task(work(held, until, ended))
    asyncio.get_running_loop().call_later(0.1, until.set)
    await asyncio.sleep(0)
    assert await held.drain(5, lambda: len(held)) == 0
    await running
    assert ended == ["done"]


async def test_a_request_that_does_not_finish_in_time_is_interrupted_and_may_tell_its_client():
    held, ended, until = jobs(), [], asyncio.Event()
    running = asyncio.create_task(work(held, until, ended))
    await asyncio.sleep(0)

    def interrupt():
        until.set()
        return 1

    assert await held.drain(0.05, interrupt) == 1
    await running
    assert ended == ["done"]


async def test_a_request_that_does_not_even_then_end_is_cut(monkeypatch):
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
    async with asyncio.timeout(60):
        await held.drain(60, lambda: until.set() or 0)
    await running


async def test_another_limit_ends_nothing_and_holds_for_the_next():
    held, until, ended = jobs(limit=2), asyncio.Event(), []
    running = [asyncio.create_task(work(held, until, ended)) for _ in range(2)]
    await asyncio.sleep(0)
    held.use(1)
    await refused(held)
    until.set()
    await asyncio.gather(*running)
    assert ended == ["done", "done"]
    async with ticket(held):
        await refused(held)
    held.use(0)
    async with ticket(held), ticket(held):
        assert len(held) == 2


# -- requests that are handed over to a background job ----------------------------------------------


async def hand_over(held: JobsInFlight, coroutine) -> asyncio.Task:
    """Admit a job as a request would, and hand its ticket over to a task."""
    task = asyncio.ensure_future(coroutine)
    async with ticket(held) as held_ticket:
        held_ticket.hand_over(task)
    return task


async def test_a_job_that_was_handed_over_lasts_as_long_as_its_task_and_ends_once():
    held, until = jobs(limit=1), asyncio.Event()
    task = await hand_over(held, until.wait())
    assert len(held) == 1
    await refused(held)
    until.set()
    await task
    await asyncio.sleep(0)
    assert len(held) == 0
    assert held._metrics.registry.get_sample_value("lcpgateway_jobs_in_flight") == 0
    async with ticket(held):
        assert len(held) == 1


async def test_one_whose_task_has_ended_already_ends_too():
    held = jobs()
    task = asyncio.ensure_future(asyncio.sleep(0))
    await task
    async with ticket(held) as held_ticket:
        held_ticket.hand_over(task)
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
    with pytest.raises(RuntimeError):
        async with ticket(held):
            raise RuntimeError
    assert len(held) == 0


async def test_draining_waits_for_jobs_that_were_handed_over():
    held, until = jobs(), asyncio.Event()
    await hand_over(held, until.wait())
    asyncio.get_running_loop().call_later(0.05, until.set)
    assert await held.drain(60, lambda: len(held)) == 0


async def test_a_job_that_was_handed_over_and_does_not_end_is_cut(monkeypatch):
    monkeypatch.setattr("lcp_gateway.http.openai.admission._ABORT_S", 0.05)
    held = jobs()
    request = asyncio.current_task()
    task = await hand_over(held, asyncio.Event().wait())
    await held.drain(0.05, lambda: 0)
    await asyncio.sleep(0)
    assert task.cancelled() and not request.cancelling()


async def test_a_place_is_free_again_where_the_key_has_no_lease_left():
    held, gate, key = jobs(limit=2), admission(), caller(concurrent_jobs=1)
    async with ticket(held, key, gate):
        with pytest.raises(ApiError) as caught:
            await ticket(held, key, gate).__aenter__()
        assert (caught.value.status, len(held)) == (429, 1)
    async with ticket(held, key, gate):
        assert len(held) == 1


async def test_a_client_that_leaves_while_its_lease_is_taken_leaves_no_place(slow, calls):
    held = jobs(limit=1)
    await left_during(slow, ticket(held, caller(), of_redis(slow, calls)).__aenter__())
    assert len(held) == 0
    await calls.close()

"""What a request must pass: the key's models, rates, jobs, price cap and budgets, in the order that it places."""

import asyncio
from contextlib import suppress

import pytest

from lcp_gateway.accounts.callers import Caller, KeyRules
from lcp_gateway.accounts.limits.concurrency import (
    ConcurrencyLimits,
    MemoryLeases,
    TooManyConcurrentJobs,
)
from lcp_gateway.accounts.limits.rate_counters import MemoryWindows, RateLimits
from lcp_gateway.accounts.limits.rates import Allowance, LimitedBy, RateKind, RateLimited, Rates
from lcp_gateway.accounts.shared.outage import ShieldedCalls
from lcp_gateway.http.authentication import ANONYMOUS
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.openai.admission import Admission
from lcp_gateway.purchase.money import Budget, Msat, Period
from lcp_gateway.purchase.order import Task, TaskKind


def caller(**rules) -> Caller:
    return Caller("key_1", "acct_1", KeyRules(**rules))


def task(model: str = "m", size: int = 400) -> Task:
    return Task(TaskKind.CHAT_COMPLETIONS, model, b"x" * size, stream=False)


def admission(*, jobs: int = 0, limits: RateLimits | None = None) -> Admission:
    return Admission(limits, ConcurrencyLimits(MemoryLeases(), default=jobs), lambda name: name)


def placed(who: Caller, model: str = "m", limit_msat=None):
    return admission().order(who, task(model), request_id="r", limit_msat=limit_msat)


# -- orders ---------------------------------------------------------------------------------------


def test_an_order_says_whose_it_is_and_who_is_charged():
    order = placed(caller())
    assert (order.key_id, order.account_id, order.request_id) == ("key_1", "acct_1", "r")
    assert (order.limit_msat, order.budgets, order.models) == (None, (), frozenset())


def test_where_everyone_comes_in_nobody_is_charged():
    order = placed(ANONYMOUS)
    assert (order.key_id, order.account_id) == ("", None)


@pytest.mark.parametrize(
    ("of_key", "of_client", "expected"),
    [(0, None, None), (500, None, 500), (0, 300, 300), (500, 300, 300), (300, 500, 300), (5, 0, 0)],
)
def test_the_lower_of_the_keys_cap_and_the_clients_holds(of_key, of_client, expected):
    who = caller(max_price_msat=Msat(of_key))
    assert placed(who, limit_msat=of_client).limit_msat == expected


def test_a_keys_budgets_are_counted_for_that_key():
    order = placed(caller(budget_hour_msat=Msat(5), budget_month_msat=Msat(9)))
    assert order.budgets == (
        Budget(Period.HOUR, Msat(5), "key_1"),
        Budget(Period.MONTH, Msat(9), "key_1"),
    )


@pytest.mark.parametrize("model", ["m", "auto", "auto:cheap"])
def test_a_key_buys_the_models_that_it_is_good_for_and_auto_among_them(model):
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
    gate, who = admission(), caller(concurrent_jobs=2)
    first, _second = await gate.job(who), await gate.job(who)
    with pytest.raises(TooManyConcurrentJobs):
        await gate.job(who)
    await first.give_back()
    await gate.job(who)
    with pytest.raises(TooManyConcurrentJobs):
        await gate.job(who)


async def test_the_jobs_of_those_who_need_no_key_are_not_counted():
    gate = admission(jobs=1)
    for _ in range(3):
        await gate.job(ANONYMOUS)
    # The same gate counts the jobs of a key.
    await gate.job(caller())
    with pytest.raises(TooManyConcurrentJobs):
        await gate.job(caller())


# -- clients that leave while Redis is asked --------------------------------------------------------


class SlowLeases(MemoryLeases):
    """Counts in a Redis that answers when the test says so; its client swallows a cancellation, as redis-py's may."""

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

    async def give_back(self, key_id, lease_id):
        await self._answer()
        await super().give_back(key_id, lease_id)


@pytest.fixture
def slow():
    return SlowLeases()


@pytest.fixture
def calls():
    return ShieldedCalls()


def of_redis(slow, calls, limits=None) -> Admission:
    return Admission(limits, ConcurrencyLimits(slow, default=1), lambda name: name, shielded=calls)


async def left_during(slow, work) -> None:
    """Cancel work as soon as it asks Redis, and let Redis answer."""
    task = asyncio.create_task(work)
    await slow.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    slow.answers.set()


async def test_a_client_that_leaves_while_its_job_is_counted_leaves_no_lease(slow, calls):
    """A12: the lease was taken all the same and renewed for ever, so that the key was locked out."""
    gate = of_redis(slow, calls)
    await left_during(slow, gate.job(caller()))
    await calls.close()
    renewed = slow.renewed
    async with await gate.job(caller()):
        pass
    await asyncio.sleep(2 * slow.lease_s)
    assert slow.renewed == renewed, "nothing is renewed for a job that never ran"


async def test_a_client_that_leaves_while_too_many_run_is_no_error_later(slow, calls):
    gate = of_redis(slow, calls)
    slow._running["key_1"] = 1
    await left_during(slow, gate.job(caller()))
    await calls.close()
    assert slow._running == {"key_1": 1}


async def test_a_client_that_leaves_at_the_very_end_of_its_job_leaves_no_lease(slow, calls):
    gate = of_redis(slow, calls)
    slow.answers.set()
    lease = await gate.job(caller())
    slow.answers.clear()
    slow.asked.clear()
    await left_during(slow, gate.release(lease, Allowance(), 4, 4))
    await calls.close()
    assert not slow._running


class SlowRates:
    """Rates that are counted when the test says so, by a client that swallows a cancellation."""

    def __init__(self, slow: SlowLeases) -> None:
        self._slow = slow
        self.checked = 0

    async def check(self, who, tokens):
        await self._slow._answer()
        self.checked += 1
        return Allowance(tokens)


async def test_a_client_that_leaves_while_its_rates_are_checked_is_not_served_and_is_counted(
    slow, calls
):
    """A12."""
    rates = SlowRates(slow)
    gate = of_redis(slow, calls, rates)
    await left_during(slow, gate.count(caller(), task()))
    await calls.close()
    assert rates.checked == 1


# -- rates ----------------------------------------------------------------------------------------


def limited(clock, **rates) -> Admission:
    return admission(limits=RateLimits(MemoryWindows(clock), **rates))


@pytest.fixture
def clock():
    return lambda: 600_000.0


async def test_without_limits_nothing_is_counted():
    gate = admission()
    allowance = await gate.count(caller(), task())
    assert (allowance.tokens, allowance.headers) == (0, {})
    await gate.settle(allowance, 400, 400)


async def test_a_request_counts_as_the_tokens_of_its_body_and_its_answer_is_counted_after(clock):
    gate = limited(clock, key=Rates(tokens_per_minute=250))
    first = await gate.count(caller(), task(size=400))
    assert first.headers["x-ratelimit-remaining-tokens"] == "150"
    await gate.settle(first, 400, 400)
    second = await gate.count(caller(), task(size=4))
    assert second.headers["x-ratelimit-remaining-tokens"] == "49"


async def test_the_emptiest_body_is_a_token(clock):
    gate = limited(clock, key=Rates(tokens_per_minute=10))
    found = await gate.count(caller(), task(size=0))
    assert found.headers["x-ratelimit-remaining-tokens"] == "9"


async def test_the_whole_gateways_limit_holds_for_those_without_a_key_too(clock):
    gate = limited(clock, gateway=Rates(requests_per_minute=2))
    for _ in range(2):
        await gate.count(ANONYMOUS, task())
    with pytest.raises(RateLimited) as caught:
        await gate.count(ANONYMOUS, task())
    assert (caught.value.limited_by, caught.value.kind) == (LimitedBy.GATEWAY, RateKind.REQUESTS)


async def test_those_without_a_key_are_not_one_key_together(clock):
    gate = limited(clock, key=Rates(requests_per_minute=1))
    for _ in range(3):
        await gate.count(ANONYMOUS, task())


async def test_what_an_answer_took_stands_in_the_way_of_the_next_request(clock):
    gate = limited(clock, key=Rates(tokens_per_minute=150))
    allowance = await gate.count(caller(), task(size=400))
    await gate.settle(allowance, 400, 4_000)
    with pytest.raises(RateLimited):
        await gate.count(caller(), task(size=4))


@pytest.mark.parametrize("listed", ["gpt-4o-mini", "real"])
@pytest.mark.parametrize("asked", ["gpt-4o-mini", "real"])
def test_an_alias_and_its_model_are_the_same_to_a_key(listed, asked):
    names = {"gpt-4o-mini": "real"}
    door = Admission(
        None,
        ConcurrencyLimits(MemoryLeases(), default=0),
        resolve=lambda name: names.get(name, name),
    )
    who = caller(models=frozenset({listed}))
    order = door.order(who, task(asked), request_id="r", limit_msat=None)
    assert "real" in order.models
    with pytest.raises(ApiError):
        door.order(who, task("other"), request_id="r", limit_msat=None)

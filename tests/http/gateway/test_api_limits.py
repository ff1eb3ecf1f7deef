"""Limits of concurrent database requests that buy nothing, per caller and in total: a few wait, the rest get 429."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from lcp_gateway.accounts.callers import Caller, KeyRules
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.gateway.api_limits import ApiCaller, ApiLimits, Group, account_caller, anonymous_caller, caller_of
from lcp_gateway.telemetry.metric_table import PREFIX
from tests.http.front import ADMIN_KEY, front

ONE, OTHER = account_caller("acct_1"), account_caller("acct_2")


async def held(limits: ApiLimits, *callers: ApiCaller) -> AsyncExitStack:
    """Hold a slot for each of these callers until closed."""
    stack = AsyncExitStack()
    for caller in callers:
        await stack.enter_async_context(limits.place(caller))
    return stack


async def all_but_one(asked: list[asyncio.Task]) -> None:
    """Wait until all but one have an answer."""
    async with asyncio.timeout(60):
        while sum(one.done() for one in asked) < len(asked) - 1:
            await asyncio.sleep(0.01)


async def is_refused(limits: ApiLimits, caller: ApiCaller) -> bool:
    try:
        async with limits.place(caller):
            return False
    except ApiError as error:
        return (error.status, error.code, error.retry) == (429, "rate_limit_exceeded", True)


async def test_each_caller_has_slots_of_its_own():
    """Regression: one customer's reads took every connection to the database."""
    limits = ApiLimits(2, 10, wait_s=0.01)
    places = await held(limits, ONE, ONE)
    assert await is_refused(limits, ONE)
    assert not await is_refused(limits, OTHER)
    await places.aclose()
    assert not await is_refused(limits, ONE)


async def test_all_callers_of_a_group_together_have_so_many_and_other_groups_have_theirs():
    limits = ApiLimits(2, 3, wait_s=0.01)
    async with await held(limits, ONE, ONE, OTHER):
        assert await is_refused(limits, account_caller("acct_3"))
        assert not await is_refused(limits, ApiCaller(Group.OPERATOR, "admin"))
        assert not await is_refused(limits, anonymous_caller("198.51.100.7"))


async def test_waiting_callers_have_their_turn_in_order_and_one_that_is_full_holds_up_no_other():
    limits = ApiLimits(1, 2, wait_s=60)
    first, second = await held(limits, ONE), await held(limits, OTHER)
    turns = []

    async def ask(caller: ApiCaller, name: str) -> None:
        async with limits.place(caller):
            turns.append(name)
            await asyncio.sleep(0)

    asked = []
    for caller, name in ((ONE, "one a"), (ONE, "one b"), (OTHER, "other")):
        asked.append(asyncio.create_task(ask(caller, name)))
        await asyncio.sleep(0)
    await second.aclose()
    async with asyncio.timeout(60):
        while not turns:
            await asyncio.sleep(0.001)
    assert turns == ["other"]
    await first.aclose()
    await asyncio.gather(*asked)
    assert turns == ["other", "one a", "one b"]


async def test_of_thousands_at_once_few_run_some_wait_and_the_rest_is_refused_at_once():
    """Regression: 3,000 concurrent GETs of one customer."""
    limits = ApiLimits(4, 8, wait_s=60)
    running, most, gate = 0, 0, asyncio.Event()

    async def read() -> int:
        nonlocal running, most
        try:
            async with limits.place(ONE):
                running += 1
                most = max(most, running)
                await gate.wait()
                running -= 1
                return 200
        except ApiError as error:
            return error.status

    reads = [asyncio.create_task(read()) for _ in range(3_000)]
    refused = 3_000 - 4 - 4 * 16
    async with asyncio.timeout(60):
        while sum(read.done() for read in reads) < refused:
            await asyncio.sleep(0.001)
    assert sum(read.done() for read in reads) == refused
    gate.set()
    found = await asyncio.gather(*reads)
    assert most == 4
    assert (found.count(200), found.count(429)) == (68, 2_932)
    assert not limits._running and not limits._waiting_of, "nothing is kept of callers that have gone"


async def test_a_caller_that_leaves_while_it_waits_takes_no_place_with_it():
    limits = ApiLimits(1, 1, wait_s=60)
    place = await held(limits, ONE)
    waiting = [asyncio.create_task(is_refused(limits, ONE)) for _ in range(3)]
    await asyncio.sleep(0)
    # One client leaves while it waits, one at the moment its turn comes.
    waiting[0].cancel()
    await asyncio.sleep(0)
    await place.aclose()
    waiting[1].cancel()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in found[:2]] == [asyncio.CancelledError] * 2
    assert found[2] is False
    assert not await is_refused(limits, ONE)


async def test_other_limits_hold_from_then_on():
    limits = ApiLimits(1, 1, wait_s=0.01)
    async with await held(limits, ONE):
        assert await is_refused(limits, ONE)
        limits.use(2, 2)
        assert not await is_refused(limits, ONE)


@pytest.mark.parametrize(
    ("caller", "remote", "counted"),
    [
        (Caller("key_1", "acct_1", KeyRules()), "198.51.100.7", ONE),
        (Caller("key_2", "acct_1", KeyRules()), None, ONE),
        (Caller("admin", None, KeyRules()), "198.51.100.7", ApiCaller(Group.OPERATOR, "admin")),
        (Caller("", None, KeyRules()), "198.51.100.7", anonymous_caller("198.51.100.7")),
        (Caller("", None, KeyRules()), None, ApiCaller(Group.ANONYMOUS, "")),
    ],
)
def test_a_caller_is_counted_by_its_account_its_key_or_its_address(caller, remote, counted):
    assert caller_of(caller, remote) == counted


def test_the_addresses_of_one_network_of_ipv6_are_one_caller():
    assert anonymous_caller("2001:db8:1:2::1") == anonymous_caller("2001:db8:1:2:3:4:5:6")
    assert anonymous_caller("2001:db8:1:2::1") != anonymous_caller("2001:db8:1:3::1")
    assert anonymous_caller("198.51.100.7") != anonymous_caller("198.51.100.8")
    assert anonymous_caller("::ffff:198.51.100.7") == anonymous_caller("198.51.100.7")


READS = [
    "/api/wallet",
    "/api/wallet/topups",
    "/api/wallet/topups/top_1",
    "/api/wallet/topups/top_1/qr.svg",
    "/api/wallet/transactions",
]


@pytest.mark.parametrize("path", READS)
async def test_a_flood_of_reads_is_answered_429_in_openais_shape_and_counted(bank, monkeypatch, path):
    """Regression: wallet routes had no limit."""
    account_id = await bank.customer()
    async with front(bank, api_per_caller=1) as gateway:
        key = await gateway.key(account_id)
        read, gate = bank.database.read, asyncio.Event()

        async def slow(work):
            await gate.wait()
            return await read(work)

        monkeypatch.setattr(bank.database, "read", slow)
        asked = [asyncio.create_task(gateway.ask("GET", path, key)) for _ in range(30)]
        await all_but_one(asked)
        gate.set()
        found = await asyncio.gather(*asked)
        refused = [one for one in found if one.status == 429]
        assert len(refused) == 29
        for one in refused:
            assert one.code == "rate_limit_exceeded"
            assert one.document["error"]["type"] == "rate_limit_error"
            assert one.headers["x-should-retry"] == "true" and one.headers["retry-after"] == "1"
            assert one.headers["X-Lcp-Payment"] == "none"
        counted = gateway.metrics.registry.get_sample_value(f"{PREFIX}refusals_total", {"reason": "api"})
        assert counted == 29
        assert (await gateway.ask("GET", "/api/wallet", key)).status == 200


async def test_the_administrator_is_bounded_too_and_by_no_flood_of_others(bank, monkeypatch):
    account_id = await bank.customer()
    async with front(bank, api_per_caller=1, api_in_all=1) as gateway:
        key = await gateway.key(account_id)
        read, gate, slow_reads = bank.database.read, asyncio.Event(), []

        async def slow(work):
            if len(slow_reads) < 1:
                slow_reads.append(work)
                await gate.wait()
            return await read(work)

        monkeypatch.setattr(bank.database, "read", slow)
        flood = [asyncio.create_task(gateway.ask("GET", "/api/wallet", key)) for _ in range(5)]
        async with asyncio.timeout(60):
            while not slow_reads:
                await asyncio.sleep(0.001)
        assert (await gateway.ask("GET", "/api/admin/accounts", ADMIN_KEY)).status == 200
        gate.set()
        await asyncio.gather(*flood)
        slow_reads.clear()
        gate.clear()
        asked = [asyncio.create_task(gateway.ask("GET", "/api/admin/accounts", ADMIN_KEY)) for _ in range(5)]
        await all_but_one(asked)
        gate.set()
        assert sorted([one.status for one in await asyncio.gather(*asked)]) == [200] + [429] * 4


async def test_unauthenticated_requests_share_a_limit_and_lock_no_customer_out(bank, monkeypatch):
    """Regression: with L402 enabled, 3,000 POSTs without a key took every connection."""
    account_id = await bank.customer()
    async with front(bank, api_per_caller=1, api_in_all=1) as gateway:
        key = await gateway.key(account_id)
        create, gate = bank.invoices.create, asyncio.Event()

        async def slow(*args, **more):
            await gate.wait()
            return await create(*args, **more)

        monkeypatch.setattr(bank.invoices, "create", slow)
        asked = [asyncio.create_task(gateway.ask("POST", "/v1/chat/completions", None)) for _ in range(20)]
        await all_but_one(asked)
        assert (await gateway.ask("GET", "/api/wallet", key)).status == 200
        gate.set()
        found = await asyncio.gather(*asked)
        assert sorted(one.status for one in found) == [402] + [429] * 19
        assert {one.code for one in found if one.status == 429} == {"rate_limit_exceeded"}


async def test_a_read_that_the_database_does_not_answer_is_given_up(bank, monkeypatch):
    account_id = await bank.customer()
    monkeypatch.setattr("lcp_gateway.http.gateway.api_limits._READ_S", 0.05)
    async with front(bank) as gateway:
        key = await gateway.key(account_id)

        async def never(_work):
            await asyncio.Event().wait()

        monkeypatch.setattr(bank.database, "read", never)
        found = await gateway.ask("GET", "/api/wallet/transactions", key)
        assert (found.status, found.code) == (503, "journal_unavailable")
        assert found.headers["x-should-retry"] == "true"

"""Two processes on one Redis buy an order once, whichever of them is killed."""

import asyncio
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from tests.accounts.shared.sharing import spawn

ROOT = Path(__file__).parents[3]


@contextmanager
def gateway(where, redis, name, how="buys"):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.accounts.shared.replica", where, redis.url, name, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


async def says(process) -> str:
    async with asyncio.timeout(120):
        return (await asyncio.to_thread(process.stdout.readline)).strip()


async def deliver(process) -> None:
    process.stdin.write("now\n")
    process.stdin.flush()


def kill_and_let_run_out(process, redis) -> None:
    """Kill a process, and end the lease of its claim, which is long."""
    process.kill()
    process.wait(60)
    with Redis.from_url(redis.url) as client:
        (claim,) = client.scan_iter("lcp-gateway:claim:*")
        client.hset(claim, "until", 0)


@pytest.fixture
def where(tmp_path, redis):
    with Redis.from_url(redis.url) as client:
        client.flushdb()
    return str(tmp_path / "journal.db")


async def test_two_processes_buy_once_and_give_the_same_answer(where, redis):
    with gateway(where, redis, "one") as one, gateway(where, redis, "two") as two:
        first = {spawn(says(one)): (one, two), spawn(says(two)): (two, one)}
        done, waiting = await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        (said,) = done
        buyer, _ = first[said]
        assert await said == "quoting" and await says(buyer) == "paying"
        await deliver(buyer)
        answer = await says(buyer)
        (theirs,) = waiting
        assert answer.startswith("answer answer of") and await theirs == answer


async def test_a_process_that_is_killed_after_it_paid_is_not_followed_by_another_payment(where, redis):
    with gateway(where, redis, "one") as one:
        assert [await says(one), await says(one)] == ["quoting", "paying"]
        with gateway(where, redis, "two") as two:
            await asyncio.sleep(1.0)
            kill_and_let_run_out(one, redis)
            assert await says(two) == "error LostElsewhere unknown"
        # Nor later, with nothing left but Redis and the journal.
        with gateway(where, redis, "three") as three:
            assert await says(three) == "error LostElsewhere unknown"


async def test_a_process_that_is_killed_before_it_paid_is_followed_by_one_that_buys(where, redis):
    with gateway(where, redis, "one", "never") as one:
        assert await says(one) == "quoting"
        with gateway(where, redis, "two") as two:
            said = spawn(says(two))
            assert not (await asyncio.wait({said}, timeout=1.0))[0]
            kill_and_let_run_out(one, redis)
            assert await said == "quoting" and await says(two) == "paying"
            await deliver(two)
            assert await says(two) == "answer answer of two"

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from lcp_gateway.accounts.shared.results import RedisResults
from lcp_gateway.app.wiring import WiringError
from lcp_gateway.app.wiring.journal import JournalParts
from lcp_gateway.app.wiring.shared_redis import open_redis
from lcp_gateway.app.wiring.shared_results import RequestStates, SharedResults
from lcp_gateway.config import Settings
from lcp_gateway.purchase.journal import JournalUnavailable
from lcp_gateway.purchase.ports import start_unsupervised
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.engines import DatabaseUnavailable
from lcp_gateway.store.journal.writer import NullJournal

NOW = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
SECRET = "a-secret-of-this-deployment"


class Log:
    def __init__(self) -> None:
        self.warnings: list = []

    def warning(self, *said, **more) -> None:
        self.warnings.append((said, more))


async def shared(run_secret="", **settings):
    log = Log()
    chosen = Settings(**settings)
    async with open_redis(chosen.redis_url) as redis:
        sharing = SharedResults(
            redis, run_secret, JournalParts(NullJournal()), SimpleNamespace(joined=print), start_unsupervised, log
        )
        made = sharing.results(chosen)
    return made, log.warnings


async def test_one_gateway_shares_nothing():
    assert await shared(admin_key=SECRET) == (None, [])


@pytest.mark.parametrize("name", ["l402_secret", "admin_key"])
async def test_several_with_a_redis_and_a_secret_share_their_answers(name):
    made, warnings = await shared(redis_url="redis://127.0.0.1:1/0", **{name: SECRET})
    assert isinstance(made, RedisResults) and warnings == []


async def test_workers_of_one_run_share_by_a_secret_of_their_own():
    made, warnings = await shared(run_secret="0" * 64, redis_url="redis://127.0.0.1:1/0", admin_key="short")
    assert isinstance(made, RedisResults) and warnings == []


@pytest.mark.parametrize("key", ["", "short"])
async def test_without_a_secret_that_is_one_they_do_not_and_say_so(key):
    made, warnings = await shared(redis_url="redis://127.0.0.1:1/0", admin_key=key)
    assert made is None and len(warnings) == 1
    assert "short" not in str(warnings)


async def test_without_the_client_of_redis_the_start_fails(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "redis.asyncio", None)
    with pytest.raises(WiringError, match="redis"):
        await shared(redis_url="redis://127.0.0.1:1/0", admin_key=SECRET)


async def test_without_a_journal_the_payments_of_a_dead_gateway_are_unknown():
    assert await RequestStates(JournalParts(NullJournal()))("k", "r", NOW) is State.UNKNOWN


async def test_a_journal_that_cannot_be_read_lets_nothing_be_bought():
    class Away:
        async def read(self, work):
            raise DatabaseUnavailable("the database cannot be reached")

    with pytest.raises(JournalUnavailable, match="cannot be reached"):
        await RequestStates(SimpleNamespace(database=Away()))("k", "r", NOW)

"""Authentication, charges and limits as configured, and settings that cannot work."""

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
import structlog

from lcp_gateway.accounts import key_sync as key_sync_module
from lcp_gateway.accounts.callers import KeyRules
from lcp_gateway.accounts.key_sync import KeySync
from lcp_gateway.accounts.keys import KeyCache
from lcp_gateway.accounts.limits.concurrency import TooManyConcurrentJobs
from lcp_gateway.app.background_tasks import BackgroundTasks
from lcp_gateway.app.wiring import WiringError, accounts
from lcp_gateway.app.wiring.accounts import l402_secret, open_access
from lcp_gateway.app.wiring.customers import credit_observer
from lcp_gateway.app.wiring.journal import JournalParts
from lcp_gateway.app.wiring.purchase import tariff
from lcp_gateway.app.wiring.routing import model_registry
from lcp_gateway.config import Settings, load
from lcp_gateway.http.authentication import AccountAuthenticator, OpenAuthenticator, StaticKeyAuthenticator
from lcp_gateway.store.database.engines import DatabaseUnavailable
from lcp_gateway.store.journal.writer import NullJournal
from lcp_gateway.telemetry.metrics import Metrics
from tests.accounts.bank import bank, migrated  # noqa: F401 - fixtures

LOG = structlog.get_logger()
NOW = datetime.now(UTC)
# Longer than a process may stand still on a busy machine.
STALE_S = 60.0


def open_parts(settings: Settings, database=None):
    journal = JournalParts(NullJournal(), database=database)
    return open_access(settings, journal, Metrics(), BackgroundTasks(LOG), LOG)


def parts_of(opened, settings: Settings):
    return opened.parts(settings, model_registry(settings))


@asynccontextmanager
async def opened(settings: Settings, database=None):
    async with open_parts(settings, database) as it:
        yield parts_of(it, settings)


# -- prices ---------------------------------------------------------------------------------------


def priced(tmp_path, toml: str):
    path = tmp_path / "config.toml"
    path.write_text(toml)
    return tariff(load(flags={}, environ={}, config_path=path).settings)


def test_without_a_mark_up_customers_are_charged_the_price():
    assert tariff(Settings()).charge_msat("m", 1_234) == 1_234


def test_percent_and_msat_are_added(tmp_path):
    found = priced(tmp_path, "markup_percent = 2.5\nmarkup_msat = 10")
    assert found.charge_msat("m", 1_000) == 1_035
    assert found.charge_msat("m", 0) == 10
    assert found.charge_msat("m", 1) == 12, "rounded up"


def test_a_model_has_a_mark_up_of_its_own_and_takes_the_rest_from_the_general_one(tmp_path):
    found = priced(
        tmp_path,
        """
        markup_percent = 10
        markup_msat = 7
        [models.dear]
        markup_percent = 100
        [models.fixed]
        markup_msat = 500
        [models.free]
        markup_percent = 0
        markup_msat = 0
        [models.plain]
        context_length = 4096
        """,
    )
    charges = {name: found.charge_msat(name, 1_000) for name in ("dear", "fixed", "free", "plain")}
    assert charges == {"dear": 2_007, "fixed": 1_600, "free": 1_000, "plain": 1_107}


# -- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "authenticator"),
    [
        (Settings(), OpenAuthenticator),
        (Settings(api_keys=("k",)), StaticKeyAuthenticator),
        (Settings(auth="keys", api_keys=("k",)), StaticKeyAuthenticator),
    ],
)
async def test_without_accounts_there_is_authentication_and_no_administration(settings, authenticator):
    async with opened(settings) as parts:
        assert isinstance(parts.authenticator, authenticator)
        assert (parts.wallet_routes, parts.admin_routes) == (None, None)
        assert parts.admission.rates is None


async def test_with_accounts_there_is_all_of_it(bank):  # noqa: F811 - the fixture
    settings = Settings(auth="accounts", admin_key="boss")
    async with open_parts(settings, bank.database) as it:
        parts = parts_of(it, settings)
        assert isinstance(parts.authenticator, AccountAuthenticator)
        assert None not in (parts.wallet_routes, parts.admin_routes, parts.admission.rates)
        expected = {"keys", "node_terms", "solvency", "withdrawals_begun", "withdrawals_open"}
        assert {task.name for task in it.tasks} == expected, "no lnd, so none to follow"


async def test_accounts_without_a_journal_are_refused():
    with pytest.raises(WiringError, match="need a journal"):
        async with opened(Settings(auth="accounts")):
            pass


@pytest.mark.parametrize("limit", ["max_requests_per_minute", "max_tokens_per_minute", "key_requests_per_minute"])
async def test_limits_hold_without_accounts_too(limit):
    async with opened(Settings(**{limit: 5})) as parts:
        assert parts.admission.rates is not None


async def test_static_keys_open_beside_those_of_accounts(bank):  # noqa: F811 - the fixture
    made = await bank.keys.create(await bank.customer(), name="k", actor="t", at=NOW, rules=KeyRules())
    settings = Settings(auth="accounts", api_keys=("mine",), keys_stale_s=STALE_S)
    async with opened(settings, bank.database) as parts:
        find = parts.authenticator._find
        assert find("mine").account_id is None
        assert find(made.text).account_id == made.record.account_id
        assert find("neither") is None


async def test_keys_that_cannot_be_read_keep_the_gateway_from_starting(bank, monkeypatch):  # noqa: F811 - the fixture
    async def away(*_):
        raise DatabaseUnavailable("the database is away")

    monkeypatch.setattr("lcp_gateway.store.accounts.keys.Keys.load_all", away)
    with pytest.raises(WiringError, match="the keys cannot be read: the database is away"):
        async with opened(Settings(auth="accounts"), bank.database):
            pass


# -- other settings ---------------------------------------------------------------------------------


async def test_other_static_keys_are_let_in_and_those_of_before_are_not(bank):  # noqa: F811 - the fixture
    made = await bank.keys.create(await bank.customer(), name="k", actor="t", at=NOW, rules=KeyRules())
    before, after = (
        Settings(auth="accounts", api_keys=(key,), admin_key=key, keys_stale_s=STALE_S) for key in ("old", "new")
    )
    async with open_parts(before, bank.database) as it:
        parts = parts_of(it, after)
        find = parts.authenticator._find
        assert find("old") is not None, "nothing has changed before it is said"
        it.use(after)
        assert find("old") is None
        assert find("new") is not None
        assert find(made.text) is not None


async def test_running_jobs_count_against_a_limit_that_is_set_later():
    none, one = Settings(key_concurrent_jobs=2), Settings(key_concurrent_jobs=1)
    caller = SimpleNamespace(key_id="k", rules=KeyRules())
    async with open_parts(none) as it:
        lease = await parts_of(it, none).admission.lease(caller)
        with pytest.raises(TooManyConcurrentJobs):
            await parts_of(it, one).admission.lease(caller)
        await lease.release()
        await parts_of(it, one).admission.lease(caller)


# -- keys in memory -------------------------------------------------------------------------


@pytest.fixture
async def key_sync(bank):  # noqa: F811 - the fixture
    key_sync = KeySync(bank.keys, KeyCache(), LOG, unavailable=(DatabaseUnavailable,), stale_s=STALE_S)
    await key_sync.load()
    return key_sync


async def test_a_key_that_another_gateway_made_or_revoked_is_known_a_moment_later(
    bank,  # noqa: F811 - the fixture
    key_sync,
    monkeypatch,
):
    monkeypatch.setattr(key_sync_module, "_READ_EVERY_S", 0.01)
    running = asyncio.create_task(key_sync.run())
    made = await bank.keys.create(await bank.customer(), name="k", actor="t", at=NOW, rules=KeyRules())
    try:
        async with asyncio.timeout(60):
            while key_sync.find(made.text) is None:
                await asyncio.sleep(0.005)
            await bank.keys.revoke(made.record.id, actor="t", at=NOW)
            while key_sync.find(made.text) is not None:
                await asyncio.sleep(0.005)
    finally:
        running.cancel()


async def test_during_an_outage_of_the_database_known_keys_are_accepted_and_it_is_logged_once(
    bank,  # noqa: F811 - the fixture
    key_sync,
    monkeypatch,
):
    monkeypatch.setattr(key_sync_module, "_READ_EVERY_S", 0.005)
    made = await bank.keys.create(await bank.customer(), name="k", actor="t", at=NOW, rules=KeyRules())
    await key_sync.refresh()
    tries = []

    async def away(*_):
        tries.append(1)
        raise DatabaseUnavailable("the database is away")

    monkeypatch.setattr(bank.keys, "changed_since", away, raising=False)
    with structlog.testing.capture_logs() as logs:
        key_sync._log = structlog.get_logger()
        running = asyncio.create_task(key_sync.run())
        async with asyncio.timeout(60):
            while len(tries) < 4:
                await asyncio.sleep(0.005)
        running.cancel()
    assert key_sync.find(made.text) is not None
    assert [line["problem"] for line in logs] == ["the database is away"]


# -- the secret of L402 ---------------------------------------------------------------------------


def place(monkeypatch, where) -> None:
    monkeypatch.setattr(accounts, "journal_place", lambda _settings: where)


def test_a_secret_is_made_once_and_only_its_owner_may_read_it(tmp_path, monkeypatch):
    place(monkeypatch, tmp_path / "journal.db")
    first = l402_secret(Settings())
    assert len(first) == 32 and l402_secret(Settings()) == first
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_secret_of_the_settings_is_used_and_nothing_is_written(tmp_path, monkeypatch):
    place(monkeypatch, tmp_path / "journal.db")
    long, short = (l402_secret(Settings(l402_secret=text)) for text in ("s" * 40, "hush"))
    assert len(long) == len(short) == 32 and long != short
    assert long == l402_secret(Settings(l402_secret="s" * 40))
    assert list(tmp_path.iterdir()) == []


def test_gateways_on_a_database_server_must_be_told_their_secret(monkeypatch):
    place(monkeypatch, "postgresql://db/x")
    with pytest.raises(WiringError, match="l402_secret"):
        l402_secret(Settings())


def test_an_incomplete_file_is_no_secret(tmp_path, monkeypatch):
    place(monkeypatch, tmp_path / "journal.db")
    (tmp_path / "journal.l402").write_bytes(b"half")
    with pytest.raises(WiringError, match="holds no secret"):
        l402_secret(Settings())


# -- credits -----------------------------------------------------------------------------


def test_credits_are_counted_and_logged_without_the_invoice():
    counted = []
    topup = SimpleNamespace(id="top_1", account_id="acct_1", received_msat=2_500, payment_request="lnbc1secret")
    with structlog.testing.capture_logs() as logs:
        tell = credit_observer(SimpleNamespace(topup=counted.append), structlog.get_logger())
        tell(SimpleNamespace(topup=topup, is_new=True))
    assert counted == [2_500]
    (line,) = logs
    assert (line["topup_id"], line["amount_msat"]) == ("top_1", 2_500)
    assert "lnbc1secret" not in str(line)
